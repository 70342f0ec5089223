"""What can be said of a mask without ground truth: plain numbers a frame, each a share in 0..1."""

from __future__ import annotations

import numpy as np


def boundary_share(mask_hw: np.ndarray) -> float:
    """Share of pixels whose right or lower neighbour is of another class."""
    edges = np.zeros(mask_hw.shape, dtype=bool)
    edges[:, :-1] |= mask_hw[:, :-1] != mask_hw[:, 1:]
    edges[:-1] |= mask_hw[:-1] != mask_hw[1:]
    return float(edges.mean())


def flicker_share(mask_hw: np.ndarray, before_hw: np.ndarray) -> float:
    """Share of pixels whose class differs from the frame labelled before, without motion compensation."""
    return float((mask_hw != before_hw).mean())
