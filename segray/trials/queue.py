"""The queue of a sweep's trials: which is next, the state of each, and who is told of its epochs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from segray.config import Config
from segray.core.search.space import Trial, choices_of, fits, list_trials, propose, with_seeds
from segray.core.training.checkpoint import EpochRow, is_finished, read_history
from segray.stages import trackers
from segray.stages.resume import claim
from segray.stages.train import new_rows
from segray.trials.leaderboard import Entry, outcomes, planned, read_entries, trial_config, trial_out, write_entries

OnRow = Callable[[str, EpochRow], None]


class Turns:
    """The sweep's trials: whose turn is next, and the state of each, as in trials.json.

    Used by two threads: Tune's takes turns and reports how trials end, the caller's polls for new epochs.
    """

    def __init__(self, config: Config, on_row: OnRow, stack: ExitStack) -> None:
        self.config, self.out = config, config.sweep.out
        self._on_row, self._stack = on_row, stack
        self._polls: list[Callable[[], None]] = []
        self._closed = False
        stack.callback(self._close)
        self.entries: dict[str, Entry] = {}
        for entry in self._begin():
            self._add(entry)
        self._write()

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ()  # Tune pickles all that it holds into a file that nothing reads

    def _begin(self) -> list[Entry]:
        """List the trials known before the first turn, each with its state: with TPE the earlier ones, else all."""
        before = {entry.trial.name: entry for entry in read_entries(self.out)}
        trials = list_trials(self.config)
        if self.config.sweep.search == "tpe":
            choices = choices_of(self.config)
            trials = [one.trial for one in before.values() if fits(choices, _point(one.trial))]
        return [self._resumed(trial, before.get(trial.name)) for trial in trials]

    def _resumed(self, trial: Trial, before: Entry | None) -> Entry:
        """Return a trial's entry in a resumed sweep: a stop by ASHA is final, a failure is tried again."""
        if self._is_finished(trial):
            return Entry(trial, "finished")
        return Entry(trial, "stopped") if before and before.state == "stopped" else Entry(trial)

    def are_left(self) -> bool:
        return bool(self._waiting()) or len(self.entries) < planned(self.config)

    def next(self) -> Trial | None:
        """Return the trial whose turn it is now, or None when all had theirs."""
        waiting = self._waiting()
        if not waiting and self.are_left():
            waiting = self._propose()
        if not waiting:
            return None
        self.set(waiting[0].name, "running")
        return waiting[0]

    def _waiting(self) -> list[Trial]:
        return [entry.trial for entry in self.entries.values() if entry.state == "waiting"]

    def _propose(self) -> list[Trial]:
        settings = propose(self.config, outcomes(self.config, list(self.entries.values())))
        trials = [] if settings is None else list(with_seeds(self.config, settings))
        for trial in trials:
            self._add(Entry(trial))
        return trials

    def _add(self, entry: Entry) -> None:
        self.entries[entry.trial.name] = entry
        one = trial_config(self.config, entry.trial)
        self._polls.append(_follow(one, entry.trial.name, self._on_row, self._stack))

    def ended(self, name: str, error: str | None) -> None:
        """Set a trial's state when it ends: with an error, at its end, stopped by ASHA, or with the sweep's budget."""
        if error is not None:
            self.set(name, "failed", error)
        elif self._is_finished(self.entries[name].trial):
            self.set(name, "finished")
        elif self.entries[name].state != "stopped":
            self.set(name, "interrupted")

    def set(self, name: str, state: str, error: str | None = None) -> None:
        if self._closed:
            return
        self.entries[name] = replace(self.entries[name], state=state, error=error)
        self._write()

    def _close(self) -> None:
        """Ignore later changes: after Ctrl-C, Ray ends under Tune's thread, which then reports wrong states."""
        self._closed = True

    def poll(self) -> None:
        for poll in list(self._polls):
            poll()

    def _is_finished(self, trial: Trial) -> bool:
        return is_finished(trial_config(self.config, trial).train, read_history(trial_out(self.out, trial)))

    def _write(self) -> None:
        write_entries(self.out, list(self.entries.values()))


def _point(trial: Trial) -> dict[str, Any]:
    return {key: value for key, value in trial.settings.items() if key != "train.seed"}


def _follow(config: Config, name: str, on_row: OnRow, stack: ExitStack) -> Callable[[], None]:
    """Return a poll of one trial's new rows, for its trackers and for on_row."""
    claim(config, overwrite=False)
    track = stack.enter_context(trackers.tracking(config))

    def tell(row: EpochRow) -> None:
        track(row)
        on_row(name, row)

    return new_rows(config.train.out, tell)
