"""Logits at labelled pixels → how well their probabilities are calibrated, and the temperature that calibrates them.

Temperature scaling as in section 4.2 of Guo et al. 2017, On Calibration of Modern Neural Networks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch

from segray.core.samples import IGNORE_INDEX
from segray.core.scoring.reliability import curve_of, error_of

PIXELS = 4096  # sampled from a frame at most
VALUES = 1 << 25  # logits kept of all frames together: 128 MiB
TEMPERATURES = (0.05, 20.0)  # the range that is searched
CHUNK = 1 << 16  # pixels


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
    return error_of(curve_of(*confidences(logits_nc, truth_n, temperature)))


def confidences(logits_nc: np.ndarray, truth_n: np.ndarray, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return each pixel's highest probability, float32 [N], and whether its class is the true one, bool [N]."""
    found = [((logits / temperature).softmax(1).max(1), truth) for logits, truth in _chunks(logits_nc, truth_n)]
    confidence = torch.cat([best.values for best, _ in found])
    return confidence.numpy(), torch.cat([best.indices == truth for best, truth in found]).numpy()


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
