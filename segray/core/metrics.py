"""Class ids in, one integer confusion matrix out; every score is one division of its counts at the end.

`confusion[t, p]` counts pixels of true class t that were predicted as p. Pixels whose truth is the
ignore index are not in it. Scores follow cityscapesScripts' evalPixelLevelSemanticLabeling: IoU =
TP / (TP + FP + FN) over the whole data set, and a class absent from truth and prediction is undefined (nan).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np


class Headlines(TypedDict):
    """The scores that a row of history has."""

    miou: float | None
    pixel_accuracy: float | None
    mean_f1: float | None
    mean_sensitivity: float | None
    mean_specificity: float | None
    fw_iou: float | None


NOT_EVALUATED: Headlines = {
    "miou": math.nan,
    "pixel_accuracy": math.nan,
    "mean_f1": math.nan,
    "mean_sensitivity": math.nan,
    "mean_specificity": math.nan,
    "fw_iou": math.nan,
}


class PlainScores(Headlines):
    """Scores as JSON holds them: None where one is undefined."""

    mean_precision: float | None
    micro_iou: float | None
    class_iou: list[float | None]
    class_f1: list[float | None]
    class_sensitivity: list[float | None]
    class_specificity: list[float | None]
    class_precision: list[float | None]


class Packed(TypedDict):
    """A matrix as two columns: `cells`, the flat positions of its nonzero cells, and `pixels`, their values."""

    cells: Sequence[int] | np.ndarray
    pixels: Sequence[int] | np.ndarray


def confusion_matrix(truth: Any, pred: Any, num_classes: int, ignore_index: int = 255) -> Any:
    """Count the (true, predicted) pairs, int64 [C, C].

    truth, pred: numpy arrays or torch tensors of one shape, class ids; pred in 0..C-1.
    The result is of the same library, and for torch on the same device.
    """
    keep = truth != ignore_index
    if isinstance(truth, np.ndarray):
        pairs = truth[keep].astype(np.int64) * num_classes + pred[keep]
        counts = np.bincount(pairs, minlength=num_classes**2)
    else:
        pairs = truth[keep].long() * num_classes + pred[keep]
        counts = pairs.bincount(minlength=num_classes**2)
    # A pair beyond the end would make the counts longer and the reshape fail, so ids are checked here, too.
    return counts.reshape(num_classes, num_classes)


def confusion_with_undecided(truth_hw: np.ndarray, pred_hw: np.ndarray, classes: int) -> np.ndarray:
    """Count the (true, predicted) pairs, int64 [C, C + 1]; ids that are no class, 255 above all, in the last column."""
    decided = np.minimum(pred_hw.astype(np.int64), classes)
    counts: np.ndarray = confusion_matrix(truth_hw, decided, classes + 1)[:classes]
    return counts


@dataclass(frozen=True)
class Scores:
    """Scores of one confusion matrix. Per-class lists hold nan where a class is undefined."""

    miou: float
    pixel_accuracy: float
    mean_f1: float
    mean_sensitivity: float
    mean_specificity: float
    mean_precision: float
    micro_iou: float
    fw_iou: float
    class_iou: list[float]
    class_f1: list[float]
    class_sensitivity: list[float]
    class_specificity: list[float]
    class_precision: list[float]

    def headlines(self) -> Headlines:
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_f1": self.mean_f1,
            "mean_sensitivity": self.mean_sensitivity,
            "mean_specificity": self.mean_specificity,
            "fw_iou": self.fw_iou,
        }

    def to_dict(self) -> PlainScores:
        """Return plain numbers, with None for undefined ones, so that JSON can hold them."""
        return {
            "miou": _plain(self.miou),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_f1": _plain(self.mean_f1),
            "mean_sensitivity": _plain(self.mean_sensitivity),
            "mean_specificity": _plain(self.mean_specificity),
            "mean_precision": _plain(self.mean_precision),
            "micro_iou": _plain(self.micro_iou),
            "fw_iou": _plain(self.fw_iou),
            "class_iou": list(map(_plain, self.class_iou)),
            "class_f1": list(map(_plain, self.class_f1)),
            "class_sensitivity": list(map(_plain, self.class_sensitivity)),
            "class_specificity": list(map(_plain, self.class_specificity)),
            "class_precision": list(map(_plain, self.class_precision)),
        }


def scores(confusion: Any) -> Scores:
    """Compute every score of a confusion matrix, int [C, C]. F1 equals Dice, as both are of pixel counts.

    Means are over the classes for which the score is defined (macro); micro_iou adds counts over classes first;
    fw_iou weighs each class's IoU by its share of the true pixels (Long et al. 2015, section 5). Sensitivity is
    also called recall. With one more column, [C, C + 1], the last one counts undecided pixels, which are misses of
    their class, and false alarms of none.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    hit = np.diag(counts)
    truth, pred, total = counts.sum(1), counts.sum(0)[: len(counts)], counts.sum()
    seen = truth + pred > 0
    iou = _ratio(hit, truth + pred - hit)
    f1 = _ratio(2 * hit, truth + pred)
    sensitivity, precision = _ratio(hit, truth), _ratio(hit, pred)
    specificity = np.where(seen, _ratio(total - truth - pred + hit, total - truth), np.nan)
    return Scores(
        miou=_mean(iou),
        pixel_accuracy=float(_ratio(hit.sum(), total)),
        mean_f1=_mean(f1),
        mean_sensitivity=_mean(sensitivity),
        mean_specificity=_mean(specificity),
        mean_precision=_mean(precision),
        micro_iou=float(_ratio(hit.sum(), truth.sum() + pred.sum() - hit.sum())),
        fw_iou=float(_ratio(np.nansum(truth * iou), total)),
        class_iou=iou.tolist(),
        class_f1=f1.tolist(),
        class_sensitivity=sensitivity.tolist(),
        class_specificity=specificity.tolist(),
        class_precision=precision.tolist(),
    )


def majority_baseline(confusion: Any) -> Scores:
    """Score the best constant guess for this ground truth: its most frequent class everywhere."""
    counts = np.asarray(confusion, dtype=np.int64)
    truth = counts.sum(1)
    guess = np.zeros_like(counts)
    guess[:, int(truth.argmax())] = truth
    return scores(guess)


def boundary_counts(
    truth: np.ndarray, pred: np.ndarray, num_classes: int, ignore_index: int = 255, ratio: float = 0.02
) -> np.ndarray:
    """Count (intersection, union) in pixels of each class's boundary regions in one frame, int64 [C, 2].

    Cheng et al. 2021, Boundary IoU: the region is a mask without its erosion by `ratio` of the frame's diagonal
    (at least 1 pixel). The frame's edge is boundary, too, as in the authors' mask_to_boundary. Void pixels are
    of no class and in no region. Counts add up over frames; a class's boundary IoU is one division at the end.
    """
    reach = max(1, round(ratio * float(np.hypot(*truth.shape))))
    pred = np.where(truth == ignore_index, ignore_index, pred)  # void ends both masks alike
    mine, theirs = _near_other(truth, reach), _near_other(pred, reach)

    def count(classes: np.ndarray) -> np.ndarray:
        return np.bincount(classes, minlength=num_classes)[:num_classes]

    hit = count(truth[mine & theirs & (truth == pred)])
    return np.stack([hit, count(truth[mine]) + count(pred[theirs]) - hit], 1)


def packed(counts: np.ndarray) -> Packed:
    cells = np.flatnonzero(counts)
    return {"cells": cells, "pixels": counts.ravel()[cells]}


def unpacked(rows: Iterable[Packed], num_classes: int) -> np.ndarray:
    """Sum the matrices that `packed` made rows of, int64 [C, C + 1]; the last column counts undecided pixels."""
    counts = np.zeros(num_classes * (num_classes + 1), np.int64)
    for row in rows:
        counts[np.asarray(row["cells"], np.int64)] += np.asarray(row["pixels"], np.int64)
    return counts.reshape(num_classes, -1)


def _near_other(ids: np.ndarray, reach: int) -> np.ndarray:
    """Say of each pixel whether the square of `reach` pixels around it holds another id or leaves the frame.

    This covers all classes at once: otherwise the least and the greatest id in the square are the pixel's own.
    """
    near = np.ones(ids.shape, bool)
    if min(ids.shape) > 2 * reach:
        within = (slice(reach, -reach), slice(reach, -reach))
        least, most = (_of_squares(extreme, ids, 2 * reach + 1) for extreme in (np.minimum, np.maximum))
        near[within] = (least != ids[within]) | (most != ids[within])
    return near


def _of_squares(extreme: np.ufunc, values: np.ndarray, side: int) -> np.ndarray:
    """Return the extreme of each square of `side` in [H, W], by doubling windows: log2(side) steps per axis."""
    for _ in range(2):
        have = 1
        while have < side:
            step = min(have, side - have)
            values = extreme(values[:-step], values[step:])
            have += step
        values = np.ascontiguousarray(values.T)
    return values


def _ratio(part: Any, whole: Any) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(whole) > 0, np.asarray(part) / np.asarray(whole), np.nan)


def _mean(values: np.ndarray) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _plain(value: float) -> float | None:
    return None if value != value else value
