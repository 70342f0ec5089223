"""Telemetry for machines: Prometheus metrics through Ray's exporter, and log lines that carry their run.

Ray's agent on each node serves the metrics beside its own, with `ray_` before a name and `_total` after a counter's;
deploy/grafana.json draws them. They are updated once per shard or epoch, in a process that Ray started or joined, and
the last values of a process are sent when it ends. A run is named by the path of its output, percent-encoded where
that is not ASCII.
"""

from __future__ import annotations

import logging
import math
import string
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import ray.util.metrics as prometheus

    from segray.core.labels.parts import Receipt
    from segray.core.training.checkpoint import EpochRow

COUNTERS = {
    "segray_frames": "Rows written, those that are errors too",
    "segray_errors": "Rows written that hold a reason instead of a mask",
    "segray_stage_seconds": "Seconds that shards spent in a stage; wait is for a turn at the model",
}
GAUGES = {
    "segray_frames_left": "Rows that are planned and have no part yet",
    "segray_train_epoch": "The epoch that ended last, from 1",
    "segray_train_loss": "Mean training loss of that epoch",
    "segray_train_val_loss": "Validation loss after it",
    "segray_train_miou": "Validation mIoU after it, at the model's size",
    "segray_train_images_per_s": "Training images a second, over all workers",
    "segray_train_wait_share": "Share of the epoch that the device waited for data",
}

KEEP_S = 5.0  # agents get values every 10 s, and forget a gauge that was not set for 20 s

log = logging.getLogger("segray")


def event(text: str, run: str, *, level: int = logging.INFO, **facts: Any) -> None:
    """Write a log line; run and facts are keys of their own, beside Ray's node_id, job_id and worker_id."""
    log.log(level, text, extra={"run": run, **facts}, stacklevel=2)


class LabelCounters:
    """The counters of one labelling process."""

    def __init__(self, run: str) -> None:
        self._frames, self._errors = _counter("segray_frames", run), _counter("segray_errors", run)
        self._seconds = _counter("segray_stage_seconds", run, "stage")

    def add(self, receipt: Receipt) -> None:
        """Count a shard that this process worked on; rows of a part that already existed are not counted."""
        if receipt.created:
            _add(self._frames, receipt.rows)
            _add(self._errors, receipt.errors)
        for stage, seconds in receipt.seconds.items():
            _add(self._seconds, seconds, stage=stage)


class Gauges:
    """Values of a run that are shown until they change, the process ends, or `close` is called."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._made: dict[str, prometheus.Gauge] = {}
        self._values: dict[str, float] = {}
        self._lock, self._closed = threading.Lock(), threading.Event()
        threading.Thread(target=self._keep, daemon=True).start()

    def set(self, name: str, value: float) -> None:
        from ray.util.metrics import Gauge

        with self._lock:
            if name not in self._made:
                self._made[name] = Gauge(name, GAUGES[name], ("run",)).set_default_tags({"run": tag(self._run)})
            self._values[name] = value
            self._made[name].set(value)

    def set_epoch(self, row: EpochRow) -> None:
        """Set the values of a row of history; what is undefined in it keeps its last value."""
        for name in GAUGES:
            value = row.get(name.removeprefix("segray_train_"))
            if isinstance(value, int | float) and math.isfinite(value):
                self.set(name, value)

    def close(self) -> None:
        self._closed.set()

    def _keep(self) -> None:
        while not self._closed.wait(KEEP_S):
            with self._lock:
                for name, value in self._values.items():
                    self._made[name].set(value)


def tag(run: str) -> str:
    """Return a run's path as the value of a tag, which Ray takes in ASCII alone.

    >>> tag("runs/Straße")
    'runs/Stra%C3%9Fe'
    """
    return quote(run, safe=string.printable, errors="surrogateescape")


def _counter(name: str, run: str, *tags: str) -> prometheus.Counter:
    from ray.util.metrics import Counter

    counter = Counter(name, COUNTERS[name], ("run", *tags))
    counter.set_default_tags({"run": tag(run)})
    return counter


def _add(counter: prometheus.Counter, value: float, **tags: str) -> None:
    if value > 0:  # Ray refuses 0
        counter.inc(value, tags)
