"""Trains segmentation models on Ray, sweeps them, and labels frames and video with them.

    model = segray.load("runs/sweep/best")          a model, for predictions in this process
    result = model.predict("frame.jpg")             result.mask, .names, .confidence, .plot(), .save("mask.png")
    labels = segray.open_labels("labels/street")    rows and masks that segray label wrote
    segray.train(…), sweep(…), label(…)             the commands, with their flags as keyword arguments
    segray.evaluate(predicted, true, names=[…])     scores of masks
    segray.Dataset.from_pairs(images, masks, …)     a data set of one's own files

Each is loaded when it is first used. docs/python.md shows them; docs/architecture.md shows what stands below.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segray.api.datasets import Dataset
    from segray.api.labels import Labels, open_labels
    from segray.api.models import Model, load
    from segray.api.results import Result
    from segray.api.stages import evaluate, label, sweep, train

__all__ = ["Dataset", "Labels", "Model", "Result", "evaluate", "label", "load", "open_labels", "sweep", "train"]

# This makes PyTorch's allocator use huge pages: without them, a fifth of a CPU's time in a model goes into page faults.
# It is read once, at the first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"

_HOMES = {
    "datasets": ("Dataset",),
    "labels": ("Labels", "open_labels"),
    "models": ("Model", "load"),
    "results": ("Result",),
    "stages": ("evaluate", "label", "sweep", "train"),
}


def __getattr__(name: str) -> Any:
    """Load what is asked for; see PEP 562."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'segray' has no attribute {name!r}")
    return getattr(import_module(f"segray.api.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
