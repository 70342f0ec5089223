"""A run's folder → its progress: from stored files alone, on any machine, while it runs or after."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from segray.config import Config
from segray.core.io import storage
from segray.core.labels.plan import Plan, load_plans
from segray.core.labels.speed import read_speed
from segray.core.training.checkpoint import (
    HISTORY,
    SETTINGS,
    History,
    command_of,
    is_finished,
    read_history,
    read_settings,
    scores_of,
)
from segray.errors import DataError
from segray.trials.leaderboard import planned, ranked, read_entries, trial_out

READS = 32  # footers of parts that are read at once: each is a round trip
ENDED = ("finished", "stopped", "failed")  # states of a sweep's trials


@dataclass(frozen=True)
class Status:
    """The progress of a run. kind: train, sweep or label; `done` of `of` units (epochs, trials, parts) are there.

    frames: labelled so far. errors: failed frames, or failed trials. images_per_s: as the run wrote it: of labels over
    the last ten minutes of work, or of all once they are finished; else in the last epoch. miou: the best so far.
    age_s: time since the last unit; None before the first.
    """

    kind: str
    unit: str
    done: int
    of: int
    finished: bool
    frames: int | None = None
    errors: int = 0
    images_per_s: float | None = None
    miou: float | None = None
    age_s: float | None = None


def status(out: str) -> Status:
    """Return the progress of the run in `out`. Raises DataError if there is none."""
    out = storage.absolute(out)
    if plans := load_plans(out):
        return _label(plans)
    if not storage.exists(storage.join(out, SETTINGS)):
        raise DataError(f"{out} holds no run, neither {SETTINGS} nor _segray/; give an --out of train, sweep or label.")
    command, config = command_of(out), read_settings(out)
    if command == "evaluate":
        raise DataError(f"{out} holds an evaluation; give an --out of train, sweep or label.")
    return _sweep(out, config) if command == "sweep" else _train(out, config)


def _label(plans: list[Plan]) -> Status:
    from segray.core.labels.folder import LabelFolder, part_totals

    folder = LabelFolder(plans)
    there, summary = folder.parts, folder.summary
    with ThreadPoolExecutor(READS) as pool:
        totals = list(pool.map(part_totals, (part.uri for part in there)))
    return Status(
        kind="label",
        unit="parts",
        done=len(there),
        of=folder.shards,
        finished=folder.unfinished is None,
        frames=sum(part.rows for part in totals) - folder.repeated,
        errors=sum(part.errors.total() for part in totals) - folder.repeated,
        images_per_s=summary.get("images_per_s") if summary else read_speed(folder.place),
        age_s=_age(max(part.modified_s for part in there)) if there else None,
    )


def _train(out: str, config: Config) -> Status:
    history, modified_s = _history(out)
    return Status(
        kind="train",
        unit="epochs",
        done=len(history),
        of=config.train.epochs,
        finished=is_finished(config.train, history),
        images_per_s=history[-1]["images_per_s"] if history else None,
        miou=max(scores_of(history), default=None),
        age_s=_age(modified_s),
    )


def _sweep(out: str, config: Config) -> Status:
    entries = read_entries(out)
    found = [_history(trial_out(out, entry.trial)) for entry in entries]
    newest, modified_s = max(found, key=lambda one: one[1], default=([], 0.0))
    ended = [entry for entry in entries if entry.state in ENDED]
    names = {row.trial for row in ranked(out)}
    scores = [score for history, _ in found for score in scores_of(history)]
    return Status(
        kind="sweep",
        unit="trials",
        done=len(ended),
        of=max(len(entries), planned(config)),
        finished=0 < len(ended) == len(entries) and names >= {entry.trial.name for entry in entries},
        errors=sum(entry.state == "failed" for entry in entries),
        images_per_s=newest[-1]["images_per_s"] if newest else None,
        miou=max(scores, default=None),
        age_s=_age(modified_s),
    )


def _history(out: str) -> tuple[History, float]:
    """Return a training run's rows so far, and the time of the last one; 0 if there is none."""
    rows = read_history(out)
    return rows, storage.stat(storage.join(out, HISTORY)).modified_s if rows else 0.0


def _age(modified_s: float) -> float | None:
    return max(0.0, time.time() - modified_s) if modified_s else None
