"""A sweep's folder → its trials: score against cost, which to take, and the sweep's progress.

trials.json         each trial, its state and why it failed; written by the sweep alone
trials/NAME/        its training run, whose history has the scores
against.json        models that are not trained here, which the trials are compared with (sweep.against)
leaderboard.json    the rows below, also in leaderboard.parquet; costs are measured when all trials have ended

No Ray and no torch: `segray sweep show` reads a sweep while it runs.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from statistics import mean, stdev
from typing import Any, NamedTuple

from segray.config import Config
from segray.core.formatting import number
from segray.core.io import storage
from segray.core.io.claims import is_live
from segray.core.search.pareto import Cost, pareto_front
from segray.core.search.space import Outcome, Trial, list_trials
from segray.core.training.checkpoint import (
    BEST,
    EpochRow,
    best_epoch,
    is_finished,
    read_history,
    read_settings,
    scores_of,
)
from segray.errors import DataError

TRIALS, ROWS, TABLE, AGAINST = "trials.json", "leaderboard.json", "leaderboard.parquet", "against.json"
GIVEN = "given"  # status of a model that is not trained here
PRACTICAL = 0.9  # share of the best mIoU above which a much cheaper model is recommended


@dataclass(frozen=True)
class Entry:
    """A line of trials.json. state: waiting, running, interrupted, finished, stopped (by ASHA), failed (with error)."""

    trial: Trial
    state: str = "waiting"
    error: str | None = None


@dataclass(frozen=True)
class LeaderboardRow:
    """A trial's best epoch, and what its model costs as a labeller; None where nothing was measured.

    status: finished, stopped (by ASHA), failed, running, interrupted (the same command resumes) or not run; given: not
    a trial but a model of sweep.against, by its name, without a learning rate and epochs.
    encoder: "" where the architecture takes none.
    miou_mean, miou_spread: mean and standard deviation over the seeds of one combination.
    label_images_per_s, peak_memory_mib, gmacs, parameters: search.pareto.Cost at the model's input size; images_per_s
    is training's. cost_per_million: of labelling a million frames, by sweep.price.
    pareto: no other trial is at least as good and as fast, and better in one. chosen: its bundle is best/.
    """

    rank: int
    trial: str
    arch: str
    encoder: str
    learning_rate: float | None
    settings: str
    miou: float | None
    miou_mean: float | None
    miou_spread: float | None
    pixel_accuracy: float | None
    epochs: int | None
    status: str
    parameters: int | None
    images_per_s: float | None
    seconds: float | None
    label_images_per_s: float | None
    peak_memory_mib: float | None
    gmacs: float | None
    cost_per_million: float | None
    pareto: bool
    chosen: bool
    error: str | None


class Given(NamedTuple):
    """A line of against.json: a model of sweep.against, and its scores on the sweep's validation frames.

    cost: None, as are the scores, where the model failed, with the error.
    """

    name: str
    model_id: str
    data_id: str
    arch: str
    encoder: str
    miou: float | None = None
    pixel_accuracy: float | None = None
    cost: Cost | None = None
    error: str | None = None


@dataclass(frozen=True)
class SweepResult:
    """rows: best first; best: the chosen trial's bundle; advice: which to take, and why; state: the progress."""

    out: str
    best: str
    leaderboard: list[LeaderboardRow]
    advice: str
    state: str


def read_sweep(out: str) -> SweepResult:
    """Read a sweep from its files alone, finished or not. Raises DataError if there is none."""
    out = storage.absolute(out)
    if not storage.exists(storage.join(out, TRIALS)):
        raise DataError(f"{out} holds no sweep (no {TRIALS}); give the --out of segray sweep.")
    config = read_settings(out).changed({"sweep.out": out})
    entries, live = read_entries(out), is_live(out)
    board = leaderboard(config, entries, known_costs(out), read_given(out), live)
    return SweepResult(out, storage.join(out, BEST), board, advice(board), _state(config, board, live))


def leaderboard(
    config: Config, entries: Sequence[Entry], costs: Mapping[str, Cost], given: Sequence[Given] = (), live: bool = False
) -> list[LeaderboardRow]:
    """Make rows from the trials' folders and the given models, best mean mIoU first, those without a score last.

    live: the sweep runs.
    """
    rows = [_row(config, entry, costs.get(entry.trial.name), live) for entry in entries]
    scores = defaultdict(list)
    for entry, row in zip(entries, rows, strict=True):
        if row.miou is not None:
            scores[entry.trial.point].append(row.miou)
    for i, entry in enumerate(entries):
        if found := scores[entry.trial.point]:
            spread = stdev(found) if len(found) > 1 else None
            rows[i] = replace(rows[i], miou_mean=mean(found), miou_spread=spread)
    rows += [_given_row(config, one) for one in given]
    rows.sort(key=lambda row: (row.miou is not None, _score(row), row.miou or 0), reverse=True)
    both = {
        row.trial: (row.miou_mean, 1 / row.label_images_per_s)
        for row in rows
        if row.miou_mean is not None and row.label_images_per_s
    }
    front = pareto_front(list(both.values()))
    on_front = {trial for trial, there in zip(both, front, strict=True) if there}
    chosen = _chosen(config, rows)
    return [
        replace(row, rank=rank, pareto=row.trial in on_front, chosen=row.trial == chosen)
        for rank, row in enumerate(rows, start=1)
    ]


def _chosen(config: Config, rows: Sequence[LeaderboardRow]) -> str | None:
    rows = [row for row in rows if row.status != GIVEN]
    if not rows or rows[0].miou is None:
        return None
    kind, _, share = config.sweep.objective.partition(":")
    return (rows[0] if kind == "miou" else cheapest(rows, float(share))).trial


def cheapest(rows: Sequence[LeaderboardRow], share: float) -> LeaderboardRow:
    """Return the fastest labeller with that share of the best mIoU; the best model if no speed was measured."""
    measured = [row for row in rows if row.label_images_per_s and row.miou is not None]
    good = [row for row in measured if _score(row) >= share * _score(rows[0])]
    return max(good, key=lambda row: row.label_images_per_s or 0, default=rows[0])


def _score(row: LeaderboardRow) -> float:
    return row.miou_mean or 0


def advice(board: Sequence[LeaderboardRow]) -> str:
    """Say which model to take, and why."""
    if not board or board[0].miou is None:
        return "No trial has a score yet."
    best, cheap = board[0], cheapest(board, PRACTICAL)
    speed, most = best.label_images_per_s, cheap.label_images_per_s
    if speed is None or most is None:
        return f"{best.trial} is the best; its speed as a labeller is not measured."
    if most <= speed:
        return f"{best.trial} is the best, and none within a tenth of its mIoU labels faster."
    points, share = 100 * (_score(best) - _score(cheap)), speed / most
    speeds = f"{number(most)} against {number(speed)} images/s"
    return f"{cheap.trial}: {points:.1f} points below the best ({best.trial}) at {share:.2f} of its cost ({speeds})."


def planned(config: Config) -> int:
    """Return how many trials the sweep has in all; with TPE at most, as a small space can be used up before."""
    tpe = config.sweep.search == "tpe"
    return config.sweep.trials * config.sweep.seeds if tpe else len(list_trials(config))


def _state(config: Config, board: Sequence[LeaderboardRow], live: bool) -> str:
    """Say how far the sweep is: 'Running: 3 finished, 1 running, 4 not run.'"""
    counts = Counter(row.status for row in board)
    counts["not run"] += max(0, planned(config) - len(board) + counts[GIVEN])
    told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    if live:
        return f"Running: {told}."
    if counts["interrupted"] or counts["not run"]:
        return f"Not running: {told}. To resume: segray sweep --resume --out {config.sweep.out}"
    return f"Complete: {told}."


def outcomes(config: Config, entries: Sequence[Entry]) -> list[Outcome]:
    """List the result of each combination over its seeds, in the order of their first turns, for TPE."""
    points = defaultdict(list)
    for entry in entries:
        points[entry.trial.point].append(entry)
    return [_outcome(config, seeds) for seeds in points.values()]


def _outcome(config: Config, seeds: Sequence[Entry]) -> Outcome:
    histories = [read_history(trial_out(config.sweep.out, entry.trial)) for entry in seeds]
    states = [entry.state for entry in seeds]
    over = next((state for state in ("finished", "stopped") if state in states), "failed")
    scores = [max(found) for history in histories if (found := scores_of(history))]
    return Outcome(
        {key: value for key, value in seeds[0].trial.settings.items() if key != "train.seed"},
        "running" if {"waiting", "running"} & set(states) else over,
        max(map(len, histories)),
        mean(scores) if scores else None,
    )


def trial_out(out: str, trial: Trial) -> str:
    return storage.join(out, "trials", trial.name)


def trial_config(config: Config, trial: Trial) -> Config:
    """Return the settings of one trial's training run."""
    return config.changed(trial.settings | {"train.out": trial_out(config.sweep.out, trial)})


def read_entries(out: str) -> list[Entry]:
    """Read trials.json; [] before a sweep's first turn."""
    lines = _read(out, TRIALS)
    return [Entry(Trial(**line["trial"]), line["state"], line["error"]) for line in lines]


def write_entries(out: str, entries: Sequence[Entry]) -> None:
    storage.replace(storage.join(out, TRIALS), json.dumps([asdict(entry) for entry in entries], indent=1).encode())


def read_given(out: str) -> list[Given]:
    """Read against.json; [] where the sweep is compared with no model, or has not come to it yet."""
    return [Given(**{**line, "cost": line["cost"] and Cost(**line["cost"])}) for line in _read(out, AGAINST)]


def write_given(out: str, rows: Sequence[Given]) -> None:
    lines = [{**row._asdict(), "cost": row.cost and asdict(row.cost)} for row in rows]
    storage.replace(storage.join(out, AGAINST), json.dumps(lines, indent=1).encode())


def ranked(out: str) -> list[LeaderboardRow]:
    """Read the leaderboard that the sweep wrote at its end; [] before. Columns that an older one lacks are None."""
    nothing: dict[str, Any] = dict.fromkeys(field.name for field in fields(LeaderboardRow))
    return [LeaderboardRow(**nothing | {name: row[name] for name in nothing.keys() & row}) for row in _read(out, ROWS)]


def _read(out: str, name: str) -> list[dict[str, Any]]:
    place = storage.join(out, name)
    rows: list[dict[str, Any]] = storage.read_json(place) if storage.exists(place) else []
    return rows


def known_costs(out: str) -> dict[str, Cost]:
    """Return by trial the costs that an earlier leaderboard has measured."""
    return {
        row.trial: Cost(row.label_images_per_s, row.peak_memory_mib, row.gmacs, row.parameters)
        for row in ranked(out)
        if row.label_images_per_s and row.gmacs is not None and row.parameters is not None
    }


def write_leaderboard(out: str, board: Sequence[LeaderboardRow]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [asdict(row) for row in board]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    storage.replace(storage.join(out, TABLE), sink.getvalue().to_pybytes())
    storage.replace(storage.join(out, ROWS), json.dumps(rows, indent=2).encode())


def _row(config: Config, entry: Entry, cost: Cost | None, live: bool) -> LeaderboardRow:
    settings = trial_config(config, entry.trial)
    history = read_history(settings.train.out)
    best = history[best_epoch(history) - 1] if scores_of(history) else None
    return LeaderboardRow(
        trial=entry.trial.name,
        arch=settings.model.arch,
        encoder=settings.model.encoder if settings.model.has_encoder else "",
        learning_rate=settings.train.peak_rate,
        settings=json.dumps(entry.trial.settings),
        miou=best["miou"] if best else None,
        miou_mean=None,
        pixel_accuracy=best.get("pixel_accuracy") if best else None,
        epochs=len(history),
        status=_status(entry, history, is_finished(settings.train, history), live),
        images_per_s=best.get("images_per_s") if best else None,
        seconds=sum(row["seconds"] for row in history),
        error=entry.error,
        **_costs(config, cost),
    )


def _given_row(config: Config, given: Given) -> LeaderboardRow:
    return LeaderboardRow(
        trial=given.name,
        arch=given.arch,
        encoder=given.encoder,
        learning_rate=None,
        settings="",
        miou=given.miou,
        miou_mean=given.miou,
        pixel_accuracy=given.pixel_accuracy,
        epochs=None,
        status=GIVEN,
        images_per_s=None,
        seconds=None,
        error=given.error,
        **_costs(config, given.cost),
    )


def _costs(config: Config, cost: Cost | None) -> dict[str, Any]:
    """Return a row's columns of costs, and those that its place among the others fills."""
    hours = 1e6 / cost.images_per_s / 3600 if cost else None
    return {
        "rank": 0,
        "miou_spread": None,
        "pareto": False,
        "chosen": False,
        "parameters": cost.parameters if cost else None,
        "label_images_per_s": cost.images_per_s if cost else None,
        "peak_memory_mib": cost.peak_memory_mib if cost else None,
        "gmacs": cost.gmacs if cost else None,
        "cost_per_million": hours * config.sweep.price if hours and config.sweep.price else None,
    }


def _status(entry: Entry, history: Sequence[EpochRow], finished: bool, live: bool) -> str:
    if finished or entry.state in ("stopped", "failed"):
        return "finished" if finished else entry.state
    if live and entry.state == "running":
        return "running"
    return "interrupted" if history else "not run"
