"""Logits [B, C, H, W] and class ids [B, H, W] → a scalar loss; void pixels have no part in it."""

from __future__ import annotations

import torch
from torch.nn import functional

from segray.core.samples import IGNORE_INDEX


def cross_entropy(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean over the labelled pixels; 0 for a batch without any, where torch's own mean is nan."""
    total = functional.cross_entropy(logits.float(), masks, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (masks != IGNORE_INDEX).sum().clamp(min=1)


LOSSES = {"cross_entropy": cross_entropy}
