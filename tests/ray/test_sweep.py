"""Ray Tune around training runs: ranked, resumable, and a failed trial is a row."""

import json

import pyarrow.parquet as pq
import pytest

from segray.core import checkpoint
from segray.errors import OutputExists
from segray.sweep import sweep

pytestmark = pytest.mark.usefixtures("ray_session")


def test_a_sweep_ranks_its_trials_marks_the_failed_one_and_runs_again_without_training(settings, tmp_path):
    config = settings(sweep__encoders=["mobilenet_v2"], sweep__learning_rates=[1e-3, 1e30])
    seen = []
    result = sweep(config, on_row=lambda trial, row: seen.append(trial))
    board = result.leaderboard
    assert [(row.rank, row.learning_rate, row.status) for row in board] == [(1, 1e-3, "finished"), (2, 1e30, "failed")]
    assert board[1].error.startswith("The loss is ")
    assert (board[0].pareto, board[0].chosen, board[1].chosen) == (True, True, False)
    assert board[0].label_images_per_s > 0 < board[0].gmacs
    assert board[1].gmacs is None
    assert result.advice == f"{board[0].trial} is the best, and none within a tenth of its mIoU labels faster."
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


def test_a_sweep_whose_time_is_up_says_what_was_not_run_and_goes_on_with_the_same_command(settings):
    config = settings(sweep__learning_rates=[1e-3, 2e-3], sweep__time="0.1s", sweep__concurrent=1, train__epochs=1)
    board = sweep(config.changed({"sweep.price": 3.6})).leaderboard
    assert [row.status for row in board] == ["finished", "not run"]
    assert board[0].cost_per_million == pytest.approx(1e6 / board[0].label_images_per_s / 1000)
    board = sweep(config.changed({"sweep.time": None})).leaderboard
    assert [row.status for row in board] == ["finished", "finished"]
