"""Frames that look nearly alike, by a hash of their brightness: which way it changes between neighbouring areas.

The difference hash of Krawetz 2013 (hackerfactor.com, "Kind of Like That"), of 16×16 bits. In CamVid, frames of other
drives differ in 79 bits or more of 256, those of one second of a standing car in some 15.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

SIDE = 16
ALIKE = 24  # bits of 256 that may differ: a copy in another size or quality, or a standing car
TELLING = 32  # bits that must be set, and that must not be: a black or an even frame looks like any other
PAIRS = 1 << 24  # that are compared at once


def look(image_hwc: np.ndarray) -> np.ndarray | None:
    """Return the hash of a frame, uint8 [32]; None for one without enough structure to be known by."""
    grey = Image.fromarray(image_hwc).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    values = np.asarray(grey)
    rises = values[:, 1:] > values[:, :-1]
    return np.packbits(rises) if TELLING <= int(rises.sum()) <= SIDE * SIDE - TELLING else None


def alike(one: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Give (position in `one`, position of the nearest in `others`) for each of `one` that nearly looks like it."""
    if not one or not others:
        return
    words, against = (np.stack(hashes).view(np.uint64) for hashes in (one, others))
    step = max(1, PAIRS // (len(against) * words.shape[1]))
    for start in range(0, len(words), step):
        differ = np.bitwise_count(words[start : start + step, None] ^ against[None]).sum(-1, dtype=np.int32)
        nearest = differ.argmin(1)
        for row in np.flatnonzero(differ[np.arange(len(nearest)), nearest] <= ALIKE):
            yield start + int(row), int(nearest[row])
