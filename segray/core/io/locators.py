"""A frame's place → its pixels: an image file, a row of label Parquet, or a frame of a video.

frames/a.png                     a file
labels/part.parquet#row=17       a mask in a row; with `,0.8`, pixels below that confidence are void
drive.mp4#frame=120              a video frame, by its index in presentation order
images.parquet#image=5           an encoded image in a row
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import lru_cache
from threading import Lock
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from segray.core.formatting import counted
from segray.core.io import images, parquet, storage
from segray.core.io.cells import read_images
from segray.core.io.masks import decode_mask, palette_of
from segray.core.io.spool import Spool
from segray.core.io.video_index import LOST_FRAME, VideoIndex
from segray.core.samples import IGNORE_INDEX, MaskChannel
from segray.errors import DataError

ROW = re.compile(r"(.*)#row=(\d+)(?:,([\d.]+))?")
FRAME = re.compile(r"(.*)#frame=(\d+)")
CELL = re.compile(r"(.*)#image=(\d+)")
ROW_COLUMNS = ("mask", "mask_rle", "confidence", "height_px", "width_px")
ROWS_AT_ONCE = 64  # rows of a part that are decoded at a time
INDICES = 256  # video indices in memory, each made by reading a whole file; ten minutes at 30 frames/s take 1.3 MB


class FrameOf(TypedDict):
    """The frame that a label row is of."""

    input_id: str
    uri: str
    video_uri: str | None
    frame_index: int | None


def image_place(row: Mapping[str, Any]) -> str:
    """Return where the frame of a label row is."""
    if row["frame_index"] is None:
        return str(row["uri"])
    return f"{row['uri']}#{'frame' if row['video_uri'] else 'image'}={row['frame_index']}"


def file_of(place: str) -> str:
    """Return the file that a place is in.

    >>> file_of("drive.mp4#frame=120"), file_of("frames/a.png")
    ('drive.mp4', 'frames/a.png')
    """
    found = ROW.fullmatch(place) or FRAME.fullmatch(place) or CELL.fullmatch(place)
    return found[1] if found else place


def mask_of(row: Mapping[str, Any], source: str = "mask") -> np.ndarray | None:
    """Decode the class ids, uint8 [H, W], that a label row holds as a PNG or as runs; None where it holds none."""
    if row["mask"] is not None:
        return decode_mask(row["mask"]["bytes"], source)
    if row["mask_rle"] is None:
        return None
    lengths = np.array(row["mask_rle"]["lengths"], np.int64)
    if (lengths < 0).any() or lengths.sum() != row["height_px"] * row["width_px"]:
        raise DataError(f"{source} has runs of {lengths.sum()} pixels, not {row['height_px']}×{row['width_px']}.")
    flat = np.repeat(np.array(row["mask_rle"]["values"], np.uint8), lengths)
    return flat.reshape(row["height_px"], row["width_px"])


def mask_in(row: Mapping[str, Any], source: str) -> np.ndarray:
    """Decode the mask of a row as mask_of() does. DataError where it holds none."""
    mask_hw = mask_of(row, source)
    if mask_hw is None:
        raise DataError(f"{source} is not there; the row holds metrics alone, or an error.")
    return mask_hw


def read_image(place: str, note: Callable[[str], None] | None = None, stamp: str | None = None) -> np.ndarray:
    """Read uint8 RGB [H, W, 3]. note: see images.decode_image(). DataError for what cannot be decoded.

    stamp: InputChanged where the file has another one.
    """
    if stamp is not None and (file := file_of(place)) != place:
        storage.check_unchanged(file, stamp)
    if found := FRAME.fullmatch(place):
        from segray.core.io.video import read_frames  # loads FFmpeg

        index, number = _index(found[1]), int(found[2])
        if number >= len(index.keys):
            raise DataError(
                f"{place} is past the end of the video, which has {counted(len(index.keys), 'frame')}, from 0 on."
            )
        keys = index.keys[number : number + 1] if number not in index.lost else ()
        for frame in read_frames(found[1], keys, by_index=index.pts is None, begin=index.start_of(number)):
            return frame.image_hwc
        raise DataError(f"{place}: {LOST_FRAME}")
    if found := CELL.fullmatch(place):
        (data,) = read_images(found[1], [int(found[2])], stamp)
        return images.decode_image(data or b"", place, note)
    return images.decode_image(_bytes_of(place, stamp), place, note)


def _bytes_of(place: str, stamp: str | None) -> bytes:
    return storage.read_bytes(place) if stamp is None else storage.read_unchanged(place, stamp)


def video_of(place: str) -> str | None:
    """Return the video that a frame is in; None for an image."""
    found = FRAME.fullmatch(place)
    return found[1] if found else None


def image_size(place: str, stamp: str | None = None) -> tuple[int, int]:
    """Return a frame's (height, width), of an image file without decoding it. Raises as read_image()."""
    if FRAME.fullmatch(place) or CELL.fullmatch(place):
        height, width = read_image(place, stamp=stamp).shape[:2]
        return height, width
    return images.upright_size(_bytes_of(place, stamp), place)


def orientation(place: str) -> int | None:
    """Return a file's EXIF orientation, as images.orientation() does; 1 where the frame is not a file of its own."""
    if any(inside.fullmatch(place) for inside in (FRAME, CELL, ROW)):
        return 1
    return images.orientation(storage.read_bytes(place), place)


def read_mask(place: str, channel: MaskChannel | None = None) -> np.ndarray:
    """Read the ids stored in the mask, or in that channel of it, unsigned [H, W].

    DataError for what cannot be decoded.
    """
    if not (found := ROW.fullmatch(place)):
        return decode_mask(storage.read_bytes(place), place, channel)
    row = _rows_of(os.getpid()).read(found[1], int(found[2]))
    mask_hw = mask_in(row, place)
    if found[3]:
        if row.get("confidence") is None:  # also labels from before there was the column
            raise DataError(
                f"{place} has no confidence map for data.min_pixel_confidence; "
                "label again with --set label.confidence_maps=true."
            )
        confidence_hw = decode_mask(row["confidence"]["bytes"], place)
        mask_hw[confidence_hw < 255 * float(found[3])] = IGNORE_INDEX
    return mask_hw


def read_mask_and_palette(
    place: str, channel: MaskChannel | None = None
) -> tuple[np.ndarray, dict[int, tuple[int, int, int]]]:
    """Read a mask as read_mask() does, and its palette's colour of each id; {} for a mask without a palette."""
    if ROW.fullmatch(place):
        return read_mask(place), {}
    data = storage.read_bytes(place)
    return decode_mask(data, place, channel), palette_of(data, place)


def read_confidence(place: str) -> np.ndarray | None:
    """Read each pixel's confidence × 255, uint8 [H, W], of a label row; None where labels hold none."""
    found = ROW.fullmatch(place)
    if found is None:
        return None
    row = _rows_of(os.getpid()).read(found[1], int(found[2]))
    return decode_mask(row["confidence"]["bytes"], place) if row.get("confidence") else None


class _Rows:
    """Label rows by part and number. A row group is read once, and its rows are copied to a file of this process's own.

    Masks stay encoded there, and memory holds only where each row begins.
    """

    def __init__(self) -> None:
        self._spool = Spool()
        self._firsts: dict[str, np.ndarray] = {}  # the first row of each row group of a part, and the end of the last
        self._spans: dict[tuple[str, int], np.ndarray] = {}  # where each row of a group begins and ends, [N, 2]
        self._schemas: dict[str, pa.Schema] = {}
        self._reading: defaultdict[str, Lock] = defaultdict(Lock)

    def read(self, part: str, number: int) -> dict[str, Any]:
        with self._reading[part]:
            if part not in self._firsts or (part, self._group(part, number)) not in self._spans:
                self._copy_group(part, number)
        group = self._group(part, number)
        begin, end = self._spans[part, group][number - self._firsts[part][group]].tolist()
        encoded = self._spool.read((begin, end))
        row: dict[str, Any] = pa.ipc.read_record_batch(encoded, self._schemas[part]).to_pylist()[0]
        return row

    def _group(self, part: str, number: int) -> int:
        """Return the row group that a row is in. DataError for a number that the part does not have."""
        firsts = self._firsts[part]
        if number >= firsts[-1]:
            raise DataError(f"{part} has no row {number}; it has {firsts[-1]}, from 0 on.")
        return int(np.searchsorted(firsts, number, "right")) - 1

    def _copy_group(self, part: str, number: int) -> None:
        with parquet.opened(part, ahead=0) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._firsts[part] = np.cumsum([0, *rows])
            group, spans = self._group(part, number), list[tuple[int, int]]()
            columns = [name for name in ROW_COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=columns):
                self._schemas[part] = batch.schema
                encoded = (batch.slice(i, 1).serialize() for i in range(len(batch)))
                spans += [self._spool.append(row, f"the masks of {part}") for row in encoded]
        self._spans[part, group] = np.array(spans, np.int64)


@lru_cache(maxsize=1)
def _rows_of(process: int) -> _Rows:
    """Return this process's rows; a forked process begins anew."""
    return _Rows()


@lru_cache(maxsize=INDICES)
def _index(uri: str) -> VideoIndex:
    from segray.core.io.video import index_video

    return index_video(uri)
