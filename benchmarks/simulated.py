"""A GPU that is not there: it takes the time that it is told for a batch, and no processor, as a real one would.

What the processors do beside a GPU is done: batches are stacked and copied, ids come back frame by frame. What the
GPU does is waited for, without Python's lock: the copies at PCIe's speed, and the forward pass with ids and metrics in
so many milliseconds for a full batch. Masks are those of drawn streets. All processes of a machine take turns, as on
one GPU. So it shows how busy segray keeps a GPU of that speed with the processors that there are, and at 0 ms its
ceiling.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segray.cluster import labeller
from segray.core.data import streets
from segray.core.infer.predictor import Prediction, Predictor

MS, BATCH = "SEGRAY_SIMULATED_MS", 8  # the variable that holds the milliseconds, and the frames that they are for
PCIE_BYTES_PER_S = 25e9  # of 32 GB/s that generation 4 has
DRAWN = 8
TURN = Path(tempfile.gettempdir(), f"segray-simulated-{os.getuid()}.lock")


class Simulated(Predictor):
    """The model's interface, with a device that waits in its place."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.lock = threading.RLock()
        self.frame_s = float(os.environ[MS]) / 1e3 / BATCH
        self.masks: dict[tuple[int, int], list[np.ndarray]] = {}

    def predict(
        self,
        prepared: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]],
        points: Sequence[np.ndarray] | None = None,
    ) -> list[Prediction]:
        with self.lock:
            batch = torch.from_numpy(np.stack(prepared))
            there = batch.clone()  # the driver's, from memory that is not pinned
            masks = [self._mask(i, size) for i, size in enumerate(sizes)]
            back = sum(mask.numel() for mask in masks)
            self._wait((there.numel() + back) / PCIE_BYTES_PER_S + len(prepared) * self.frame_s)
            return [Prediction(mask.clone().numpy(), 0.9, 0.1, 0.1) for mask in masks]

    def _mask(self, number: int, size: tuple[int, int]) -> torch.Tensor:
        size = (size[0], size[1])
        if size not in self.masks:
            drawn = (streets.draw(seed, size).mask_hw for seed in range(DRAWN))
            classes = self.label_space.num_classes
            self.masks[size] = [torch.from_numpy(np.where(mask < classes, mask, 0).astype(np.uint8)) for mask in drawn]
        return self.masks[size][number % DRAWN]

    def _wait(self, seconds: float) -> None:
        """Wait for the device to be free, and for it to have done this."""
        with TURN.open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            time.sleep(seconds)


class SimulatedLabeller(labeller.Labeller):
    """The actor, with such a device."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.threads = 1  # as beside a GPU

    def _load(self) -> None:
        labeller.Predictor = Simulated  # type: ignore[misc]
        super()._load()
