"""Score against cost: what a model costs as a labeller, and which models no other beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Of labelling frames of one size on one device, as core.infer.cost measures it.

    images_per_s: with frames in memory, class ids and metrics back; no decoding, no writing.
    peak_memory_mib: a GPU's by PyTorch's allocator; without one, what the process grew by, None where no /proc says.
    gmacs: 1e9 multiply-adds a frame, of convolutions and matrix products. parameters: with batch norm's statistics.
    """

    images_per_s: float
    peak_memory_mib: float | None
    gmacs: float
    parameters: int


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """(score, cost) → whether no other has at least the score for at most the cost, and is better in one of them."""
    return [not any(s >= score and c <= cost and (s, c) != (score, cost) for s, c in points) for score, cost in points]
