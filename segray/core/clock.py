"""Time the stages of some work, and give work up that stands still."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

CHECK_S = 1.0
STDERR = 2
# Stages that may take as long as they take: a turn at the model is waited for, or a place that many write to.
WAITS = frozenset({"wait", "write"})

Result = TypeVar("Result")

_this = threading.local()


class Clock:
    """Seconds by stage, counted in any thread. steps: changes when a stage begins, ends or moves on."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.steps = 0
        self.stage = ""  # of the thread that began or ended one last
        self.is_waiting = False

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        _this.clock, self.stage = self, stage
        self.steps += 1
        if stage in WAITS:
            self.is_waiting = True
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started
            self.steps += 1
            if stage in WAITS:
                self.is_waiting = False


def moved() -> None:
    """Tell the clock of this thread's work, if it has one, that a long stage moves on."""
    clock: Clock | None = getattr(_this, "clock", None)
    if clock is not None:
        clock.steps += 1


class Standstill(Exception):
    """Work that made no progress. stage: what it began last."""

    def __init__(self, stage: str, after_s: float) -> None:
        super().__init__(f"no progress in {after_s:g} s")
        self.stage = stage


class Movement:
    """Look at a clock from time to time, and count for how long it has stood still.

    Looks are counted and not seconds, as a process that was stopped for a while has not had them.
    """

    def __init__(self, clock: Clock, every_s: float) -> None:
        self.clock, self.every_s = clock, every_s
        self.still_s, self._seen = 0.0, clock.steps

    def look(self) -> float:
        """Return the seconds without a step until now; call it every `every_s`."""
        steps = self.clock.steps
        moves = steps != self._seen or self.clock.is_waiting
        self._seen, self.still_s = steps, 0.0 if moves else self.still_s + self.every_s
        return self.still_s


def within(timeout_s: float, clock: Clock, work: Callable[[], Result]) -> Result:
    """Return what the work returns. Raises Standstill if its clock does not move for `timeout_s`.

    The work then goes on in its thread, as a thread cannot be ended; the caller may end the process.
    """
    future: Future[Result] = Future()
    thread = threading.Thread(target=_fulfil, args=(future, clock, work), daemon=True)
    thread.start()
    movement = Movement(clock, min(CHECK_S, timeout_s / 4))
    while not wait([future], movement.every_s).done:
        if movement.look() >= timeout_s:
            raise Standstill(clock.stage, timeout_s)
    thread.join()  # one that is about to end when Python does could end it badly
    return future.result()


def _fulfil(future: Future[Result], clock: Clock, work: Callable[[], Result]) -> None:
    _this.clock = clock
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)


def end_if_held(timeout_s: float) -> None:
    """End this process when no Python runs in it for `timeout_s`, as where a decoder hangs that holds Python's lock.

    What every thread was doing then stands on stderr.
    """

    def keep() -> None:
        while True:
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=STDERR)  # runs without Python's lock
            time.sleep(min(CHECK_S, timeout_s / 4))

    threading.Thread(target=keep, daemon=True).start()
