"""How quickly a run labels: it writes that beside its plans, and `segray status` reads it from anywhere.

OUT/_segray/speed.json   images a second over the last ten minutes of work, ten seconds at least, by the run's own clock
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from segray.core.io import storage
from segray.errors import StorageError

RECENT_S = 600.0  # the time over which speed is measured
EVERY_S = 10.0  # on S3, each writing is a request; and parts that come together tell nothing of speed


class SpeedLog:
    """Counts the frames of one call of `label`, and writes their speed every ten seconds."""

    def __init__(self, out: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._uri, self._clock = _uri(out), clock
        self._done: deque[tuple[float, int]] = deque()  # when, and how many frames until then
        self._frames, self._written_s = 0, float("-inf")

    def labelled(self, frames: int) -> None:
        """Count frames that are labelled now. The first ones only start the clock: loading the model took time, too."""
        now = self._clock()
        self._frames += frames
        self._done.append((now, self._frames))
        while self._done[0][0] < now - RECENT_S and len(self._done) > 2:
            self._done.popleft()
        since_s, before = self._done[0]
        if now - max(since_s, self._written_s) >= EVERY_S:
            self._written_s = now
            about = {"images_per_s": (self._frames - before) / (now - since_s)}
            with suppress(StorageError):  # a store that does not answer must not end the run
                storage.replace(self._uri, json.dumps(about).encode())


def read_speed(out: str) -> float | None:
    """Read the speed that the last run in `out` wrote; None where none has yet."""
    if not storage.exists(_uri(out)):
        return None
    speed: float = storage.read_json(_uri(out))["images_per_s"]
    return speed


def _uri(out: str) -> str:
    return storage.join(out, "_segray", "speed.json")
