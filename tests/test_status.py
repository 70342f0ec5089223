"""How far a run is, from its folder alone."""

import json
import os
import time

import pytest
from labelled import label_shard, plan_rows, settings_of

from segray.config import load
from segray.core.data import streets
from segray.core.data.streets import LABEL_SPACE
from segray.core.infer.predictor import Predictor
from segray.core.io import storage
from segray.core.labels import parts
from segray.core.labels.planning import make_plan
from segray.core.labels.speed import SpeedLog, read_speed
from segray.core.search.space import list_trials
from segray.errors import DataError
from segray.stages.status import status
from segray.trials.leaderboard import Entry, write_entries


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    folder = streets.write(tmp_path_factory.mktemp("drive") / "drive", train=0, val=9, size=(32, 48), video_s=0)
    (folder / "val" / "zz.jpg").write_bytes(b"no picture")
    return folder / "val"


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_labels_are_counted_while_they_are_made(place, request, drive, tiny_bundle, tmp_path):
    out = str(tmp_path / "out") if place == "disk" else f"{request.getfixturevalue('s3')}/status"
    plan = make_plan(out, settings_of([drive]), LABEL_SPACE)
    assert len(plan_rows(plan)) == 10
    before = status(out)
    assert (before.kind, before.done, before.of, before.frames, before.age_s) == ("label", 0, 3, 0, None)
    predictor, now = Predictor(str(tiny_bundle)), iter((5.0, 25.0))
    log = SpeedLog(out, lambda: next(now))
    for shard in (0, 2):
        log.labelled(label_shard(plan, shard, predictor).rows)
    half = status(out)
    assert (half.done, half.frames, half.errors, half.finished) == (2, 6, 1, False)
    assert half.images_per_s == 2 / 20  # the second part's rows, in the seconds since the first
    assert half.age_s < 60
    label_shard(plan, 1, predictor)
    parts.finish([plan], {"images_per_s": 2.5})
    done = status(out)
    assert (done.done, done.frames, done.errors, done.finished) == (3, 10, 1, True)
    assert done.images_per_s == 2.5


def test_speed_is_that_of_the_last_ten_minutes_by_the_clock_of_the_run(tmp_path):
    at = 0.0
    log = SpeedLog(str(tmp_path), lambda: at)
    for at, frames in ((100.0, 50), (100.1, 10), (110.0, 70), (115.0, 40), (120.0, 20), (900.0, 0), (910.0, 30)):
        log.labelled(frames)
        if at == 100.1:
            assert read_speed(str(tmp_path)) is None  # two parts that come together tell nothing
        if at in (110, 115):
            assert read_speed(str(tmp_path)) == 8  # the first part starts the clock; written every ten seconds
        if at == 120:
            assert read_speed(str(tmp_path)) == 7
    assert read_speed(str(tmp_path)) == 3
    for file in tmp_path.rglob("*"):
        os.utime(file, (0, 0))  # as a copy may have any times
    assert read_speed(str(tmp_path)) == 3


def write_history(folder, mious, seconds_ago=0.0):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"epoch": i, "miou": miou, "images_per_s": 10.0 * i} for i, miou in enumerate(mious, 1)]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    then = time.time() - seconds_ago
    os.utime(folder / "history.jsonl", (then, then))


def test_a_training_run_tells_its_epochs_its_speed_and_its_age(tmp_path):
    config = load(None, {"train.epochs": 4, "train.patience": 2})
    (tmp_path / "config.yaml").write_text(config.to_yaml(("data", "model", "augment", "train", "cluster")))
    assert (status(str(tmp_path)).done, status(str(tmp_path)).miou) == (0, None)
    write_history(tmp_path, [0.2, None], seconds_ago=3600)
    found = status(str(tmp_path))
    assert (found.kind, found.done, found.of, found.finished) == ("train", 2, 4, False)
    assert (found.miou, found.images_per_s) == (0.2, 20.0)
    assert found.age_s == pytest.approx(3600, abs=60)
    write_history(tmp_path, [0.2, 0.1, 0.1])  # patience is at its end
    assert status(str(tmp_path)).finished


def test_a_sweep_is_finished_when_its_leaderboard_knows_all(tmp_path):
    config = load(None, {"sweep.learning_rates": [1e-3, 1e-2], "train.epochs": 2})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    first, second = list_trials(config)

    def say(*states):
        trials = [Entry(trial, state) for trial, state in zip((first, second), states, strict=True)]
        write_entries(str(tmp_path), trials)
        return status(str(tmp_path))

    write_history(tmp_path / "trials" / first.name, [0.1, 0.3], seconds_ago=100)
    found = say("finished", "running")
    assert (found.kind, found.unit, found.done, found.of, found.miou) == ("sweep", "trials", 1, 2, 0.3)
    write_history(tmp_path / "trials" / second.name, [0.2], seconds_ago=50)
    found = say("finished", "failed")
    assert (found.done, found.finished, found.errors) == (2, False, 1)
    storage.replace(f"{tmp_path}/leaderboard.json", json.dumps([{"trial": t.name} for t in (first, second)]).encode())
    found = status(str(tmp_path))
    assert found.finished
    assert found.age_s == pytest.approx(50, abs=30)


def test_a_sweep_is_one_before_its_first_trial(tmp_path):
    config = load(None, {"sweep.learning_rates": [1e-3, 1e-2]})
    (tmp_path / "config.yaml").write_text(config.to_yaml(("data", "model", "augment", "train", "sweep")))
    found = status(str(tmp_path))
    assert (found.kind, found.done, found.of, found.finished, found.age_s) == ("sweep", 0, 2, False, None)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no run"):
        status(str(tmp_path))


def test_an_evaluation_is_no_training_run_that_has_not_begun(tmp_path):
    (tmp_path / "config.yaml").write_text(load(None, {}).to_yaml(("data", "infer", "evaluate", "cluster")))
    with pytest.raises(DataError, match=r"holds an evaluation; give an --out of train, sweep or label\.$"):
        status(str(tmp_path))
