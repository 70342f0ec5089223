"""Polygons and run lengths → masks of classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from segray.core.annotations.frames import Drawn
from segray.core.extras import extra
from segray.core.io.masks import decode_mask
from segray.core.samples import IGNORE_INDEX, id_text
from segray.errors import DataError

Say: TypeAlias = Callable[[str], None]
FAR = 10  # times the image's own size: a polygon that reaches further takes memory for each pixel of its outline
SLACK_PX = 1.0  # tools write corners up to a pixel beyond the edge
LONGEST_PX, PER_PIXEL = 1_000_000, 4  # outlines may have so many pixels, or so many for each of the image's
FEW = "Polygons of fewer than three points, left out"
OUTSIDE = "Annotations that reach out of their image, cut at its edge"
WILD = "Polygons with coordinates that are no numbers or far from their image, left out"
EMPTY = "Annotations that cover no pixel, left out"
UNREAD = "Annotations that cannot be read, left out"
UNREADABLE = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
)  # what a field of another type raises


class Box(NamedTuple):
    top: int
    left: int
    height: int
    width: int


class Shape(NamedTuple):
    """Pixels of a class. counts: run lengths, int64: pixels outside, inside, outside, … down the columns of the image.

    box: the runs are of this part of the image, and go along its rows.
    """

    label: int
    counts: np.ndarray
    box: Box | None = None

    @property
    def area(self) -> int:
        return int(self.counts[1::2].sum())


def canvas(height: int, width: int) -> np.ndarray:
    return np.full((height, width), IGNORE_INDEX, np.uint8)


def paint(shapes: Iterable[Shape], height: int, width: int, say: Say = lambda text: None) -> np.ndarray:
    """Draw shapes onto uint8 [H, W], a later one over an earlier one; 255 is where there is none."""
    columns = canvas(width, height)  # as COCO's runs go down
    for shape in shapes:
        if not shape.area:
            say(EMPTY)
        elif shape.box is None:
            begin, end = int(shape.counts[0]), int(shape.counts.sum())
            columns.ravel()[begin:end][_inside(shape.counts[1:], first=True)] = shape.label
        else:
            _paint_box(columns.T, shape.label, shape.box, _inside(shape.counts, first=False), say)
    return np.ascontiguousarray(columns.T)


def _inside(counts: np.ndarray, *, first: bool) -> np.ndarray:
    return np.repeat((np.arange(len(counts)) % 2 == 0) == first, counts)


def _paint_box(mask_hw: np.ndarray, label: int, box: Box, inside: np.ndarray, say: Say) -> None:
    marked_hw = inside.reshape(box.height, box.width)
    top, left = max(0, -box.top), max(0, -box.left)
    seen_hw = mask_hw[max(0, box.top) : box.top + box.height, max(0, box.left) : box.left + box.width]
    cut_hw = marked_hw[top:, left:][: seen_hw.shape[0], : seen_hw.shape[1]]
    if cut_hw.shape != marked_hw.shape:
        say(OUTSIDE)
    seen_hw[: cut_hw.shape[0], : cut_hw.shape[1]][cut_hw] = label


def drawn_ids(
    data: bytes,
    which: str,
    label_of: Mapping[int, int],
    unknown: str,
    height: int,
    width: int,
    void: Collection[int] = (),
) -> Drawn:
    """Read a mask file, and map its ids or colours to classes; those in `void`, and unknown ones, are void.

    unknown: what is said of those that are not known.
    """
    try:
        raw_hw = decode_mask(data, which)
    except DataError as error:
        return Drawn(None, [("Masks that cannot be read, left out", str(error).rstrip("."))])
    if raw_hw.shape != (height, width):
        return Drawn(None, [("Masks of another size than their image, left out", which)])
    ids, at = np.unique(raw_hw, return_inverse=True)
    found, at = ids.tolist(), at.reshape(height, width)
    problems = [(unknown, f"{id_text(raw)} in {which}") for raw in found if raw not in label_of and raw not in void]
    table = np.array([label_of.get(raw, IGNORE_INDEX) for raw in found], np.uint8)
    return Drawn(table[at], problems, np.array([raw not in label_of for raw in found])[at])


def largest_first(shapes: Iterable[Shape]) -> list[Shape]:
    """Sort by area, so that what is small stays visible; equal ones keep their order."""
    return sorted(shapes, key=lambda shape: -shape.area)


def checked(counts: Iterable[int], pixels: int) -> np.ndarray:
    """Return run lengths as int64. ValueError where they are not those of so many pixels."""
    runs = np.fromiter(counts, np.int64)
    if not len(runs) or runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise ValueError("run lengths of another size")
    return runs


def counts_of(text: str | bytes, pixels: int) -> np.ndarray:
    """Decode COCO's compressed run lengths, int64. ValueError where they are not those of so many pixels.

    5 bits of a number a character, lowest first, from "0" on, and a bit that says whether more follow; the last one's
    highest bit is the sign. From the fourth number on each is the difference to the one before the last (maskApi.c).
    pycocotools itself is not used: it returns memory that it has not written where runs are too few, and was seen to
    end the process with others.
    """
    signs = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    if not len(signs) or signs.min() < 0 or signs.max() > 63 or signs[-1] & 32:
        raise ValueError("no run lengths")
    ends = np.flatnonzero(signs & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    place = np.arange(len(signs)) - np.repeat(starts, ends + 1 - starts)
    if place.max() > 7:
        raise ValueError("a run length that no image has")
    counts = np.add.reduceat((signs & 31) << 5 * place, starts)
    counts -= np.where(signs[ends] & 16, np.int64(1) << 5 * (place[ends] + 1), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return checked(counts, pixels)


def fill(label: int, rings: Iterable[Sequence[float]], height: int, width: int, say: Say) -> Shape | None:
    """Fill polygons, each x, y, x, y, … in pixels, as pycocotools does, and join them; None where none is left.

    say: called with what is wrong of each.
    """
    kept = [ring for ring in map(list, rings) if _is_sound(ring, height, width, say)]
    if not kept:
        return None
    masks = extra("pycocotools.mask")
    runs = masks.merge(masks.frPyObjects(kept, height, width))
    return Shape(label, counts_of(runs["counts"], height * width))


def _is_sound(ring: list[float], height: int, width: int, say: Say) -> bool:
    if len(ring) < 6 or len(ring) % 2:
        say(FEW)
        return False
    xs, ys = ring[::2], ring[1::2]
    ends = (min(xs) / width, min(ys) / height, max(xs) / width, max(ys) / height)
    if not all(map(math.isfinite, ring)) or min(ends) < -FAR or max(ends) > FAR:
        say(WILD)
        return False
    steps = (abs(far - near) for sides in (xs, ys) for near, far in zip(sides, [*sides[1:], sides[0]], strict=True))
    if sum(steps) > max(LONGEST_PX, PER_PIXEL * height * width):
        say(UNREAD)
        return False
    if min(ring) < -SLACK_PX or max(xs) > width + SLACK_PX or max(ys) > height + SLACK_PX:
        say(OUTSIDE)
    return True
