"""Score against cost: what a model costs as a labeller, and which models are on the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """The cost of labelling frames of one size on one device, as core.infer.cost measures it.

    images_per_s: with frames in memory, class ids and metrics back; no decoding, no writing.
    peak_memory_mib: of a GPU by PyTorch's allocator; else the growth of the process, None without /proc.
    gmacs: 1e9 multiply-adds a frame, of convolutions and matrix products. parameters: with batch norm's statistics.
    Both are None for an ONNX file, which does not tell them.
    """

    images_per_s: float
    peak_memory_mib: float | None
    gmacs: float | None
    parameters: int | None


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Say of each (score, cost) whether no other has at least its score for at most its cost, and is better in one."""
    return [not any(s >= score and c <= cost and (s, c) != (score, cost) for s, c in points) for score, cost in points]
