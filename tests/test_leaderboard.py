"""A sweep's folder as `segray sweep show` reads it, while it runs and after; and its table in a narrow terminal."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from segray.cli import terminal
from segray.config import load
from segray.core.io import storage
from segray.core.io.claims import alone
from segray.core.search.pareto import Cost
from segray.core.search.space import list_trials
from segray.core.training.checkpoint import write_history
from segray.errors import DataError, OutputExists
from segray.stages.sweep import SECTIONS
from segray.trials.leaderboard import Entry, leaderboard, read_sweep, write_entries, write_leaderboard

STATES = ("finished", "stopped", "failed", "running", "running", "waiting")
EPOCHS = (3, 1, 0, 2, 0, 0)


@pytest.fixture
def folder(tmp_path):
    """A sweep of seven trials in the middle: six had or have their turn, as STATES and EPOCHS say."""
    rates = [10**-i for i in range(7)]
    config = load(None, {"sweep.out": "elsewhere", "sweep.learning_rates": rates, "train.epochs": 3})
    (tmp_path / "config.yaml").write_text(config.to_yaml(SECTIONS))
    trials = list_trials(config)[:6]
    write_entries(
        str(tmp_path),
        [
            Entry(trial, state, "The loss is nan." if state == "failed" else None)
            for trial, state in zip(trials, STATES, strict=True)
        ],
    )
    for trial, epochs in zip(trials, EPOCHS, strict=True):
        (tmp_path / "trials" / trial.name).mkdir(parents=True)
        rows = [
            {"epoch": i, "miou": 0.1 * i, "pixel_accuracy": 0.5, "seconds": 2.0, "images_per_s": 9.0}
            for i in range(1, epochs + 1)
        ]
        write_history(str(tmp_path / "trials" / trial.name), rows)
    return str(tmp_path)


def told(result):
    return [(row.learning_rate, row.status, row.epochs, row.miou) for row in result.leaderboard]


def test_a_sweep_is_read_from_its_files_while_it_runs_and_after_it_was_killed(folder):
    with alone(folder, "sweep"):
        live = read_sweep(folder)
    assert told(live) == [
        (1, "finished", 3, pytest.approx(0.3)),
        (1e-3, "running", 2, 0.2),
        (0.1, "stopped", 1, 0.1),
        (0.01, "failed", 0, None),
        (1e-4, "running", 0, None),
        (1e-5, "not run", 0, None),
    ]
    assert live.state == "Running: 1 finished, 2 running, 1 stopped, 1 failed, 2 not run."
    killed = read_sweep(folder)
    assert [row.status for row in killed.leaderboard] == [
        "finished",
        "interrupted",
        "stopped",
        "failed",
        "not run",
        "not run",
    ]
    assert killed.state == (
        "Not running: 1 finished, 1 interrupted, 1 stopped, 1 failed, 3 not run. "
        f"To resume: segray sweep --resume --out {folder}"
    )
    assert killed.advice == f"{killed.leaderboard[0].trial} is the best; its speed as a labeller is not measured."
    with pytest.raises(DataError, match=r"trials holds no sweep \(no trials.json\); give the --out of segray sweep\."):
        read_sweep(f"{folder}/trials")


def test_a_second_sweep_in_the_same_folder_is_refused(folder):
    with (
        alone(folder, "sweep"),
        pytest.raises(OutputExists, match=r"A sweep is running in .*; wait for its end"),
        alone(folder, "sweep"),
    ):
        pass
    with alone(folder, "sweep"):
        pass


def test_costs_that_were_measured_are_known_again(folder):
    config = load(f"{folder}/config.yaml").changed({"sweep.out": folder})
    entries = [Entry(trial) for trial in list_trials(config)]
    board = leaderboard(config, entries, {entries[0].trial.name: Cost(8.0, 100.0, 1.5, 11)})
    write_leaderboard(folder, board)
    row = read_sweep(folder).leaderboard[0]
    assert (row.label_images_per_s, row.peak_memory_mib, row.gmacs, row.parameters) == (8.0, 100.0, 1.5, 11)
    assert json.loads(Path(folder, "leaderboard.json").read_text())[0]["parameters"] == 11


def terminal_of(width, monkeypatch, **more):
    """What is written to a terminal, or to a file, of this width."""
    file = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=file, width=width, highlight=False, soft_wrap=True, **more))
    return file


def drawn(rows, width, monkeypatch):
    file = terminal_of(width, monkeypatch)
    terminal.console.print(terminal.leaderboard_table(rows))
    print(file.getvalue())  # to be looked at
    return [line.rstrip() for line in file.getvalue().rstrip().splitlines()]


@pytest.fixture
def rows(folder):
    """Rows in which every column has something to say."""
    full = {
        "miou": 0.6125,
        "miou_mean": 0.6,
        "miou_spread": 0.02,
        "parameters": 14_328_209,
        "label_images_per_s": 123.4,
    }
    full |= {
        "peak_memory_mib": 1234.5,
        "gmacs": 21.6,
        "cost_per_million": 12.34,
        "status": "interrupted",
        "pareto": True,
    }
    return [replace(row, **full) for row in read_sweep(folder).leaderboard]


def test_a_narrow_terminal_gets_fewer_columns_and_a_wide_one_all(rows, monkeypatch):
    wide = drawn(rows, 160, monkeypatch)
    assert all(title in wide[2] for title in terminal.COLUMNS)
    narrow = drawn(rows, 80, monkeypatch)
    assert narrow[2].split() == ["trial", "mIoU", "mean", "±", "status", "labels/s"]
    for lines, width in ((wide, 160), (narrow, 80)):
        assert len(lines) == 5 + len(rows) - 1
        assert max(map(len, lines)) <= width
        assert all(any(row.trial in line for line in lines) for row in rows)


def test_names_that_do_not_fit_stand_above_the_table_by_their_numbers(rows, monkeypatch):
    long = [replace(row, trial=row.trial + "-weight_decay0.0123-loss_dice_1_focal_2") for row in rows]
    lines = drawn(long, 80, monkeypatch)
    assert lines[0] == f"1  {long[0].trial}"
    assert lines[-1].split()[:4] == ["*", "6", "0.613", "0.600"]
    assert max(map(len, lines)) <= 80


def test_nothing_is_shown_of_what_no_trial_has(folder, monkeypatch):
    (_, _, head, *_) = drawn(read_sweep(folder).leaderboard, 160, monkeypatch)
    assert head.split() == ["trial", "mIoU", "epochs", "status"]


EPOCH = {"epoch": 2, "loss": 0.5, "val_loss": 0.6, "miou": 0.25, "images_per_s": 9.0, "seconds": 2.0}
LINE = "epoch 2/3  loss 0.500  val loss 0.600  mIoU 0.250  9.0 images/s  2 s left"


def test_a_terminal_has_a_leaderboard_that_lives_and_a_log_has_a_line_an_epoch(folder, monkeypatch):
    file = terminal_of(80, monkeypatch, force_terminal=True)
    with alone(folder, "sweep"), terminal.sweeping(folder) as on_row:
        on_row("one", EPOCH)
    for text in ("Leaderboard", "unet-resnet18-lr1.0e-03  0.200       2  running", "Running: 1 finished", LINE):
        assert text in file.getvalue()
    file = terminal_of(60, monkeypatch, force_terminal=True)
    with alone(folder, "sweep"), terminal.sweeping(folder) as on_row:
        on_row("one", EPOCH)
    assert LINE[:50] in file.getvalue()
    assert "2 s left" in file.getvalue()
    file = terminal_of(80, monkeypatch)
    with terminal.sweeping(folder) as on_row:
        on_row("one", EPOCH)
    assert file.getvalue() == f"one  {LINE}\n"
    file = terminal_of(80, monkeypatch, force_terminal=True)
    with terminal.sweeping(f"{folder}/none"):
        pass
    assert "Starting" in file.getvalue()


def test_a_sweep_in_a_bucket_has_a_leaderboard_that_lives_too(folder, s3, monkeypatch):
    for entry in storage.list_files(str(folder)):
        storage.replace(f"{s3}/sweep{entry.uri.removeprefix(str(folder))}", storage.read_bytes(entry.uri))
    file = terminal_of(80, monkeypatch, force_terminal=True)
    with terminal.sweeping(f"{s3}/sweep") as on_row:
        on_row("one", EPOCH)
    for text in ("Leaderboard", "unet-resnet18-lr1.0e-03  0.200       2", LINE):
        assert text in file.getvalue()
