"""Ray Tune around training runs: ranked, resumable, and a failed trial is a row."""

import json

import pyarrow.parquet as pq
import pytest

from segray.core import checkpoint
from segray.errors import OutputExists
from segray.sweep import list_trials, sweep

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_sweep_ranks_its_trials_marks_the_failed_one_and_runs_again_without_training(settings, tmp_path):
    config = settings(sweep__encoders=["mobilenet_v2"], sweep__learning_rates=[1e-3, 1e30])
    seen = []
    result = sweep(config, on_row=lambda trial, row: seen.append(trial))
    board = result.leaderboard
    assert [(row.rank, row.learning_rate, row.status) for row in board] == [(1, 1e-3, "finished"), (2, 1e30, "failed")]
    assert board[1].error.startswith("The loss is ")
    assert seen == [board[0].trial] * 2
    best = tmp_path / "sweep" / "trials" / board[0].trial / "best" / "segray.json"
    assert (result.best / "segray.json").read_bytes() == best.read_bytes()
    assert pq.read_table(tmp_path / "sweep" / "leaderboard.parquet")["trial"].to_pylist() == [r.trial for r in board]
    assert json.loads((tmp_path / "sweep" / "leaderboard.json").read_text())[0]["trial"] == board[0].trial

    (state,) = tmp_path.rglob(checkpoint.STATE)  # the failed trial never ended an epoch
    stamp = state.stat().st_mtime_ns
    assert [row.trial for row in sweep(config).leaderboard] == [row.trial for row in board]
    assert state.stat().st_mtime_ns == stamp

    with pytest.raises(OutputExists, match="holds a sweep with other settings"):
        sweep(config.changed({"train.batch_size": 2}))


def test_trials_of_a_range_are_shared_out_and_the_same_every_time(settings):
    config = settings(sweep__encoders=["resnet18", "vgg11"], sweep__learning_rates="1e-4..1e-2", sweep__trials=4)
    assert [trial.name for trial in list_trials(config)] == [
        "unet-resnet18-lr3.2e-04",
        "unet-resnet18-lr3.2e-03",
        "unet-vgg11-lr3.2e-04",
        "unet-vgg11-lr3.2e-03",
    ]
    assert list_trials(config) == list_trials(config)
