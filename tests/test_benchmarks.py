"""The command that measures a GPU machine: what a step prints is kept, whatever becomes of the step."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import gpu, tail
from benchmarks.__main__ import bench
from segray.core.data import streets


def run_of(report, *command, seconds=60.0):
    gpu.run_step("limits", {}, time.time() + seconds, report, command)


def test_a_step_that_fails_leaves_its_last_lines_and_the_next_goes_on(tmp_path):
    report = gpu.Report(tmp_path / "there" / "gpu.md", 9)
    run_of(report, sys.executable, "-c", "print('| product | 7 |'); raise ValueError('no such kernel')")
    run_of(report, "echo", "| copy | 3 |")
    lines = report.path.read_text().splitlines()
    assert "| product | 7 |" in lines
    assert any(line.startswith("limits **failed with 1**, after ") for line in lines)
    assert "ValueError: no such kernel" in lines
    assert lines.index("| copy | 3 |") > lines.index("ValueError: no such kernel")


def test_a_step_whose_time_is_over_is_ended_and_keeps_what_it_printed(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "END_S", 0.3)
    report, started = gpu.Report(tmp_path / "gpu.md", 9), time.time()
    run_of(report, "sh", "-c", "trap '' TERM; echo '| one | 1 |'; sleep 60", seconds=1.0)
    assert time.time() - started < 30
    lines = report.path.read_text().splitlines()
    assert "| one | 1 |" in lines
    assert any(line.startswith("limits **was stopped when its time was over**") for line in lines)


def test_a_step_that_does_not_exist_is_one_line():
    found = CliRunner().invoke(bench, ["gpu", "--only", "limit"])
    assert found.output == (
        "Error: limit is no step; they are card, tests, limits, alone, ray, training, camvid.\n"
    )  # fmt: skip


def test_runs_that_are_worth_most_come_first_and_several_processes_get_as_many_more_frames(tmp_path):
    (tmp_path / "jpeg").mkdir()
    files = [tmp_path / "jpeg" / f"{i}.jpg" for i in range(3)]
    for file in files:
        file.write_bytes(b"frame")
    images = {"files": [str(file) for file in files], "inputs": [str(tmp_path / "jpeg")], "spans": [], "frames": 3}
    video = {"files": ["a.mp4"], "inputs": ["a.mp4"], "spans": [(0, 9)], "frames": 10}
    plain = [
        (net, kind, about) for kind, about in (("jpeg", images), ("video", video)) for net in ("unet", "segformer")
    ]
    sizes = replace(gpu.SMALL, nets=("unet", "segformer"), per_gpu=(2, 4))
    runs = gpu.worth_most(plain, sizes)
    assert [(net, kind, about.get("per_gpu"), about["frames"]) for net, kind, about in runs] == [
        ("unet", "jpeg", None, 3), ("unet", "video", None, 10), ("unet", "jpeg", 2, 6), ("unet", "video", 2, 10),
        ("segformer", "jpeg", None, 3), ("segformer", "video", None, 10), ("unet", "jpeg", 4, 12), ("unet", "video", 4, 10),
    ]  # fmt: skip
    (folder,) = runs[2][2]["inputs"]
    assert len(list(Path(folder).iterdir())) == 6


@pytest.mark.long
def test_every_step_runs_in_small_without_a_gpu(tmp_path):
    town = streets.write(tmp_path / "town", train=6, val=2, size=(48, 64), video_s=0)
    given = ["gpu", "--minutes", "8", "--out", str(tmp_path / "gpu.md"), "--camvid", str(town)]
    found = CliRunner().invoke(bench, given, catch_exceptions=False)
    assert found.exit_code == 0
    written = (tmp_path / "gpu.md").read_text()
    assert "**" not in written, written
    for name in gpu.STEPS:
        assert f"\n{name}: " in written, written


def test_the_end_of_a_simulated_run_by_hand():
    """At 1 frame/s shards 0, 2 and 4 take until 30 s, at 0.5 frames/s 1 and 3 until 40 s."""
    fleet = tail.Fleet((1.0, 0.5), at_once=1)
    assert tail.Run(fleet, [10.0] * 5).seconds() == 40
    assert tail.ideal_s(fleet, 50) == pytest.approx(50 / 1.5)


def test_shards_at_once_share_an_actors_speed_and_the_last_one_is_not_faster_alone():
    """Two threads of 0.5 frames/s are done with three shards at 20, 20 and 40 s."""
    assert tail.Run(tail.Fleet((1.0,), at_once=2), [10.0] * 3).seconds() == 40


def test_what_a_lost_node_had_in_work_is_done_anew_when_it_is_back():
    """The first node has done shard 0 and half of shard 2 when it is lost at 15 s, and is back at 20 s."""
    fleet = tail.Fleet((1.0, 1.0), at_once=1, per_node=1)
    assert tail.Run(fleet, [10.0, 10.0, 10.0], [(15.0, 0)], back_s=5.0).seconds() == 30


def test_the_shards_of_a_plan_are_small_at_both_ends_and_hold_every_frame():
    sizes = tail.planned(10_000_000)
    assert sum(sizes) == 10_000_000
    assert (sizes[0], max(sizes), sizes[-2]) == (64, 500, 64)
    fleet = tail.Fleet((30.0,) * 20, at_once=18)
    assert tail.overrun(fleet, 3_000_000, None, 0.0, 0) < tail.overrun(fleet, 3_000_000, 500, 0.0, 0) / 3


def test_a_deeper_queue_lets_a_slow_actor_keep_shards_that_others_could_do():
    """Of ten shards, the slow one does two with one queued, and five with four."""
    shards = [10.0] * 10
    ends = [tail.Run(tail.Fleet((1.0, 0.1), 1, queue), shards).seconds() for queue in (1, 4)]
    assert ends == [200, 500]
