"""Logits at labelled pixels → how well their probabilities are calibrated, and the temperature that calibrates them.

Guo et al. 2017, On Calibration of Modern Neural Networks: the expected calibration error of section 3 and the
temperature scaling of section 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypedDict

import numpy as np
import torch

from segray.core.samples import IGNORE_INDEX

BINS = 15  # as in the paper
PIXELS = 4096  # sampled from a frame at most
VALUES = 1 << 25  # logits kept of all frames together: 128 MiB
TEMPERATURES = (0.05, 20.0)  # the range that is searched
CHUNK = 1 << 16  # pixels


class Bin(TypedDict):
    """One bin of a reliability curve: the means of the pixels in it, and their share of all pixels."""

    confidence: float
    accuracy: float
    share: float


def sample_pixels(truth_hw: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Draw rows and columns of at most `most` labelled pixels, int64 [N, 2]; the same ones for the same seed."""
    labelled = np.flatnonzero(truth_hw != IGNORE_INDEX)
    if len(labelled) > most:
        labelled = np.random.default_rng(seed).choice(labelled, most, replace=False)
    return np.stack(np.unravel_index(labelled, truth_hw.shape), axis=1)


def pixels_a_frame(frames: int, classes: int) -> int:
    """Return how many pixels are sampled from a frame, so that the logits of all frames stay within VALUES."""
    return max(1, min(PIXELS, VALUES // (frames * classes)))


def ece(logits_nc: np.ndarray, truth_n: np.ndarray, temperature: float = 1.0) -> float:
    """Compute the expected calibration error: the mean distance of accuracy and confidence over bins of confidence."""
    return error_of(reliability(*confidences(logits_nc, truth_n, temperature)))


def confidences(logits_nc: np.ndarray, truth_n: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's highest probability, float32 [N], and whether its class is the true one, bool [N]."""
    found = [((logits / temperature).softmax(1).max(1), truth) for logits, truth in _chunks(logits_nc, truth_n)]
    confidence = torch.cat([best.values for best, _ in found])
    return confidence.numpy(), torch.cat([best.indices == truth for best, truth in found]).numpy()


def reliability(confidence_n: np.ndarray, right_n: np.ndarray) -> list[Bin]:
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


def fit(logits_nc: np.ndarray, truth_n: np.ndarray) -> float:
    """Find the temperature with the lowest mean negative log-likelihood, within TEMPERATURES.

    The likelihood is convex in 1 / T, so halving the range by the sign of the slope finds the only minimum.
    """
    low, high = (math.log(end) for end in TEMPERATURES)
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(logits_nc, truth_n, math.exp(-middle)) > 0 else (low, middle)
    return math.exp((low + high) / 2)


def _slope(logits_nc: np.ndarray, truth_n: np.ndarray, scale: float) -> float:
    """Return the derivative of the summed −log p(truth) by the scale of the logits: Σ (Σ_c p_c z_c − z_truth)."""
    total = 0.0
    for logits, truth in _chunks(logits_nc, truth_n):
        expected = ((logits * scale).softmax(1) * logits).sum(1)
        total += float((expected - logits.gather(1, truth.unsqueeze(1)).squeeze(1)).double().sum())
    return total


def _chunks(logits_nc: np.ndarray, truth_n: np.ndarray) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    pairs = (torch.from_numpy(logits_nc), torch.from_numpy(truth_n).long())
    return zip(*(values.split(CHUNK) for values in pairs), strict=True)
