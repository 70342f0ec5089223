"""A model in a process of its own: what ends the process costs one row."""

import os
import threading
import time
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest
from crashing import CRASH, HANG, env
from labelled import plan_rows, settings_of

from segray.core.clock import Clock, moved
from segray.core.data import streets
from segray.core.infer import isolated
from segray.core.infer.label_rows import label_rows
from segray.core.infer.predictor import Predictor
from segray.core.labels.planning import make_plan
from segray.core.labels.schema import Labelled
from segray.core.labels.totals import Totals
from segray.errors import ModelError, StorageError
from segray.sections.labelling import InferSection


@pytest.fixture
def frames(tmp_path):
    """A crash, a hang and no picture, then two good frames and a video."""
    town = streets.write(tmp_path / "town", train=0, val=2, size=(48, 64), video_s=0.3)
    for name, data in (("5.jpg", CRASH), ("6.jpg", HANG), ("7.jpg", b"no picture")):
        (town / "val" / name).write_bytes(data)
    return [town / "val", town / "video.mp4"]


@pytest.mark.slow
def test_each_row_is_what_it_would_be_and_a_crash_is_its_own(frames, tiny_bundle, tmp_path, monkeypatch):
    plan = make_plan(str(tmp_path / "out"), settings_of(frames), streets.LABEL_SPACE)
    (tmp_path / "site").mkdir()
    monkeypatch.setenv("PYTHONPATH", env(tmp_path / "site")["PYTHONPATH"])
    label = isolated.Careful(1, 4.0, uri=str(tiny_bundle), infer=InferSection())
    rows = plan_rows(plan)
    totals, done = Totals.empty(plan.label_space.num_classes), []
    for labelled in label(plan, rows, Clock()):
        totals.count(labelled)
        done.append(labelled.row)
    label.close()
    assert [row.get("error_code") for row in done] == [
        "worker_crash", "worker_timeout", "decode_error", None, None, None, None, None,
    ]  # fmt: skip
    assert "5.jpg ended the process that labelled it (SIGSEGV); look at the file" in done[0]["error_message"]
    assert "6.jpg made no progress in 4 s; look at the file" in done[1]["error_message"]
    assert (totals.rows, totals.errors.total()) == (8, 3)

    good = [row for row in rows if row["uri"].rpartition("/")[2] not in ("5.jpg", "6.jpg")]
    usual = [labelled.row for labelled in label_rows(plan, good, Clock(), Predictor(str(tiny_bundle)), 1)]
    assert [row["input_id"] for row in usual] == [row["input_id"] for row in good]
    for mine, theirs in zip(done[3:], usual[1:], strict=True):
        assert (mine["class_pixels"], mine["flicker_share"]) == (theirs["class_pixels"], theirs["flicker_share"])
        assert mine["confidence_mean"] == pytest.approx(theirs["confidence_mean"], abs=1e-6)
    assert Totals.from_dict(totals.to_dict()).to_dict() == totals.to_dict()


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_is_no_inputs_fault(frames, tmp_path):
    plan = make_plan(str(tmp_path / "out"), settings_of(frames), streets.LABEL_SPACE)
    label = isolated.Careful(1, 60.0, uri=str(tmp_path / "no bundle"), infer=InferSection())
    with pytest.raises(isolated.Unfit, match=r"/no bundle does not exist\.") as told:
        list(label(plan, plan_rows(plan), Clock()))
    assert type(told.value.__cause__) is ModelError


def test_a_process_that_ends_before_it_reads_is_no_inputs_fault(frames, tmp_path, monkeypatch):
    """As where there is too little memory to import torch."""
    plan = make_plan(str(tmp_path / "out"), settings_of(frames), streets.LABEL_SPACE)
    monkeypatch.setattr(isolated.sys, "executable", "/bin/false")
    label = isolated.Careful(1, 60.0, uri="best", infer=InferSection())
    for _ in range(2):
        said = r"^best cannot be loaded in a process of its own, after labelling"
        with pytest.raises(isolated.Unfit, match=said) as told:
            list(label(plan, plan_rows(plan), Clock()))
        assert type(told.value.__cause__) is ModelError


class Child:
    """A child in a thread: what it raises is put into it by the test."""

    def __init__(self, command, pass_fds):
        self.pipe = Connection(os.dup(int(command[-1])))
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        with self.pipe, suppress(BrokenPipeError):  # of one that nobody waits for any more
            isolated.serve(self.pipe)

    def kill(self):
        pass  # it ends with the pipe

    def wait(self):
        self.thread.join(10)
        return 0


@pytest.fixture
def child(monkeypatch):
    """label(row names) → their rows, from a child that does the next of `does`: an exception, or what takes time."""
    does, loads = {}, []

    def fake_rows(plan, rows, clock, *_, **__):
        does_next = (does.get(rows[0]["uri"]) or [None]).pop(0)
        if isinstance(does_next, Exception):
            raise does_next
        if does_next:
            with clock("decode"):
                does_next()
        yield Labelled({"uri": rows[0]["uri"], "status": "ok"})

    class Fake:
        def __init__(self, **options):
            loads.append(options)
            if "slow" in does:
                does["slow"].wait(0.5)

        def check(self):
            if error := does.get("check"):
                raise error

    monkeypatch.setattr(isolated.subprocess, "Popen", Child)
    monkeypatch.setattr(isolated, "Predictor", Fake)
    monkeypatch.setattr(isolated, "label_rows", fake_rows)
    monkeypatch.setattr(isolated, "lost_row", lambda plan, row, code, text: {"uri": row["uri"], code: text})
    plan = SimpleNamespace(label_space=SimpleNamespace(num_classes=2))
    careful_label = isolated.Careful(1, 0.4, uri="best")

    def label(*names):
        return [labelled.row for labelled in careful_label(plan, [{"uri": name} for name in names], Clock())]

    yield SimpleNamespace(label=label, does=does, loads=loads)
    careful_label.close()


def test_an_input_that_no_code_expects_is_its_own_row_with_what_was_raised(child):
    child.does["odd.jpg"] = [IndexError("list index out of range"), IndexError("list index out of range")]
    assert child.label("a.jpg", "odd.jpg", "b.jpg") == [
        {"uri": "a.jpg", "status": "ok"},
        {
            "uri": "odd.jpg",
            "worker_crash": "odd.jpg cannot be labelled (IndexError: list index out of range); look at the file, and at "
            "the machine's memory.",
        },
        {"uri": "b.jpg", "status": "ok"},
    ]
    assert len(child.loads) == 3


def test_a_device_that_fails_once_costs_no_row(child):
    child.does["a.jpg"] = [RuntimeError("CUDA error: unspecified launch failure"), None]
    assert child.label("a.jpg") == [{"uri": "a.jpg", "status": "ok"}]


def test_a_device_that_fails_at_a_black_frame_makes_no_rows(child):
    child.does["check"] = RuntimeError("CUDA error: no kernel image\nFor debugging consider …")
    with pytest.raises(isolated.Unfit, match=r"^RuntimeError: CUDA error: no kernel image$"):
        child.label("a.jpg")


def test_a_row_that_makes_no_progress_is_an_error_and_a_long_one_that_does_is_not(child):
    def long():
        for _ in range(30):
            time.sleep(0.02)
            moved()

    child.does.update({"long.mp4": [long], "hangs.jpg": [partial(time.sleep, 0.8)]})
    assert child.label("long.mp4", "hangs.jpg", "b.jpg") == [
        {"uri": "long.mp4", "status": "ok"},
        {
            "uri": "hangs.jpg",
            "worker_timeout": "hangs.jpg made no progress in 0.4 s; look at the file, and at the machine's memory.",
        },
        {"uri": "b.jpg", "status": "ok"},
    ]


def test_a_process_that_does_not_start_is_not_waited_for_without_end(child, monkeypatch):
    monkeypatch.setattr(isolated, "START_S", 0.01)
    child.does["slow"] = threading.Event()
    with pytest.raises(isolated.Unfit, match=r"^it did not start within 0 s$"):
        child.label("a.jpg")
    child.does["slow"].set()


def test_a_store_that_is_gone_ends_the_run_also_from_a_child(child):
    child.does["a.jpg"] = [StorageError("s3://b/a.jpg cannot be read: gone.")]
    with pytest.raises(StorageError, match=r"^s3://b/a\.jpg cannot be read: gone\.$"):
        child.label("a.jpg")
