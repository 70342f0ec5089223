"""A GPU that is not there: it takes the time that it is told for a batch, and no processor, as a real one would.

What the processors do beside a GPU is done: batches are stacked and queued, and results waited for, by Predictor's own
code. What the GPU does takes time alone, without Python's lock: frames are copied at PCIe's speed while it computes;
forward pass, ids and metrics take so many milliseconds for a full batch, and ids are copied back. Batches come one
after the other, those of all processes of this machine in one queue. Masks are those of drawn streets. So it shows
how busy segray keeps a GPU of that speed with the processors that there are, and at 0 ms its ceiling.
"""

from __future__ import annotations

import fcntl
import os
import struct
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from segray.cluster import labeller
from segray.core.data import streets
from segray.core.infer.predictor import Pending, Prediction, Predictor

MS, BATCH = "SEGRAY_SIMULATED_MS", 8  # the variable that holds the milliseconds, and the frames that they are for
PCIE_BYTES_PER_S = 25e9  # of 32 GB/s that generation 4 has
DRAWN = 8
QUEUE = Path(tempfile.gettempdir(), f"segray-simulated-{os.getuid()}")  # when the device will be free


class Simulated(Predictor):
    """The predictor, with a device that waits in the model's place."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lock = threading.RLock()  # as on a GPU
        self.frame_s = float(os.environ[MS]) / 1e3 / BATCH
        self.masks: dict[tuple[int, int], list[np.ndarray]] = {}
        self.pinned: dict[tuple[int, ...], np.ndarray] = {}  # which is reused, as PyTorch does

    def _predict(self, jobs: Sequence[Any]) -> list[Pending]:
        shape = len(jobs), *jobs[0].seen_hwc.shape
        host = self.pinned.setdefault(shape, np.empty(shape, np.uint8))
        np.stack([job.seen_hwc for job in jobs], out=host)
        masks = [self._mask(i, job.size) for i, job in enumerate(jobs)]
        there = time.monotonic() + host.nbytes / PCIE_BYTES_PER_S
        back_s = sum(mask.nbytes for mask in masks) / PCIE_BYTES_PER_S
        done = queue(there, len(jobs) * self.frame_s + back_s)

        def ready(mask: np.ndarray) -> Prediction:
            time.sleep(max(0.0, done - time.monotonic()))
            return Prediction(mask, 0.9, 0.1, 0.1)

        return [partial(ready, mask) for mask in masks]

    def _mask(self, number: int, size: tuple[int, int]) -> np.ndarray:
        if size not in self.masks:
            drawn = (streets.draw(seed, size).mask_hw for seed in range(DRAWN))
            classes = self.label_space.num_classes
            self.masks[size] = [np.where(mask < classes, mask, 0).astype(np.uint8) for mask in drawn]
        return self.masks[size][number % DRAWN]


def queue(earliest: float, seconds: float) -> float:
    """Queue work on the device; return when it is done, by the machine's monotonic clock."""
    with QUEUE.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        free = struct.unpack("d", file.read(8) or bytes(8))[0]
        done = max(earliest, free) + seconds
        file.truncate(0)
        file.write(struct.pack("d", done))
    return float(done)


class SimulatedLabeller(labeller.Labeller):
    """The actor, with such a device."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.threads = 1  # as beside a GPU

    def _load(self) -> None:
        labeller.Predictor = Simulated  # type: ignore[misc]
        super()._load()
