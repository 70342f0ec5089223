"""Per-image counts of two evaluations of the same frames → whether their scores differ by more than noise.

Paired bootstrap over images (Efron and Tibshirani 1993, chapter 16): N images are drawn with replacement, the same
ones for both, and the data set's IoU is computed anew from their summed counts.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

DRAWS = 10_000
CHUNK = 1 << 22  # drawn images in work at once: 32 MiB
INTERVAL = (2.5, 97.5)  # percent


class Difference(TypedDict):
    """The difference B − A of a score: measured, the ends of its 95 % interval, and the share of draws where B wins."""

    difference: float
    low: float
    high: float
    b_better: float


class Differences(TypedDict):
    """The differences of mIoU and of each class's IoU; None if a run does not define it, or a single image does."""

    miou: Difference | None
    classes: list[Difference | None]
    draws: int
    seed: int


def compare(a_nc3: np.ndarray, b_nc3: np.ndarray, draws: int = DRAWS, seed: int = 0) -> Differences:
    """Compute B − A for mIoU and each class's IoU: measured, 95 % interval, and the share of draws where B is better.

    a_nc3, b_nc3: int64 [N, C, 3], for each image and class the pixels that are hit, true, and predicted. Classes
    that are undefined in either run are None, and so is what a single image alone has: all draws of it are alike. The
    seed makes the result deterministic.
    """
    images, classes, _ = a_nc3.shape
    a, b = np.concatenate([a_nc3, b_nc3]).reshape(2, images, -1).astype(np.float64)
    rng = np.random.default_rng(seed)
    differences = []
    step = max(1, CHUNK // images)
    for start in range(0, draws, step):
        count = min(step, draws - start)
        drawn = rng.integers(0, images, (count, images)) + images * np.arange(count)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=count * images).reshape(count, images).astype(np.float64)
        differences.append(_difference(weights @ a, weights @ b, classes))
    drawn = np.concatenate(differences)
    measured = _difference(a.sum(0, keepdims=True), b.sum(0, keepdims=True), classes)[0]
    having = (a_nc3 + b_nc3).any(2).sum(0)  # images that have each class
    return {
        "miou": _summary(measured[-1], drawn[:, -1]) if images > 1 else None,
        "classes": [_summary(measured[i], drawn[:, i]) if having[i] > 1 else None for i in range(classes)],
        "draws": draws,
        "seed": seed,
    }


def ious(counts: np.ndarray) -> np.ndarray:
    """Turn counts [..., C, 3] into IoU [..., C]; nan where a class is neither true nor predicted."""
    hit, union = counts[..., 0], counts[..., 1] + counts[..., 2] - counts[..., 0]
    found: np.ndarray = np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)
    return found


def mean(values: np.ndarray) -> np.ndarray:
    """Average the defined values over the last axis; nan if none is defined."""
    known = np.isfinite(values)
    total, count = np.where(known, values, 0).sum(-1), known.sum(-1)
    found: np.ndarray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return found


def _difference(a: np.ndarray, b: np.ndarray, classes: int) -> np.ndarray:
    """Turn summed counts [D, 3 C] of both runs into B − A, [D, C + 1]: each class, then the mean."""
    a, b = (ious(counts.reshape(len(counts), classes, 3)) for counts in (a, b))
    return np.column_stack([b - a, mean(b) - mean(a)])


def _summary(measured: float, drawn: np.ndarray) -> Difference | None:
    known = drawn[np.isfinite(drawn)]
    if not np.isfinite(measured) or not len(known):
        return None
    low, high = (float(end) for end in np.percentile(known, INTERVAL))
    return {"difference": float(measured), "low": low, "high": high, "b_better": float((known > 0).mean())}
