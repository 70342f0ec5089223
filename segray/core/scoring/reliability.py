"""Confidences of pixels → a reliability curve, its expected calibration error, and its drawing.

Section 3 of Guo et al. 2017, On Calibration of Modern Neural Networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 15  # as in the paper


class Bin(TypedDict):
    """One bin of a reliability curve: the means of the pixels in it, and their share of all pixels."""

    confidence: float
    accuracy: float
    share: float


def curve_of(confidence_n: np.ndarray, right_n: np.ndarray) -> list[Bin]:
    """List mean confidence, accuracy and share of pixels of each bin of confidence that holds pixels."""
    place = np.clip(np.ceil(confidence_n * np.float32(BINS)).astype(np.int64) - 1, 0, BINS - 1)
    count, confident, right = (
        np.bincount(place, weights, BINS) for weights in (None, confidence_n, right_n.astype(np.float64))
    )
    return [
        {
            "confidence": float(confident[i] / count[i]),
            "accuracy": float(right[i] / count[i]),
            "share": float(count[i] / len(confidence_n)),
        }
        for i in np.flatnonzero(count)
    ]


def error_of(curve: list[Bin]) -> float:
    """Return the expected calibration error of a reliability curve."""
    return sum(one["share"] * abs(one["accuracy"] - one["confidence"]) for one in curve)


def draw(axes: Axes, curve: Sequence[Bin], line: str, accent: str) -> None:
    """Draw accuracy over confidence by bin, a dashed line of perfect calibration, and bars of each bin's share."""
    confidence, accuracy = [one["confidence"] for one in curve], [one["accuracy"] for one in curve]
    axes.grid(True, alpha=0.5)
    axes.bar(confidence, [one["share"] for one in curve], 0.75 / BINS, color=line, alpha=0.35, label="share of pixels")
    axes.plot([0, 1], [0, 1], "--", color=line, linewidth=1, label="perfectly calibrated")
    axes.plot(confidence, accuracy, "o-", color=accent, label="this model")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="accuracy")
