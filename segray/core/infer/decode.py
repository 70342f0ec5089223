"""Plan rows → decoded frames, in order, decoded on request; frames in a bucket are fetched ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa

from segray.core.clock import Clock
from segray.core.io import images, storage
from segray.core.io.cells import read_images
from segray.core.io.video_index import LOST_FRAME, Start
from segray.core.labels.plan import PlanRow, frame_key, place_of
from segray.core.prefetch import FETCHES, ahead
from segray.errors import DataError

MOST_BYTES = 1 << 32  # an image is read whole; the largest that is decoded has 2 GiB without compression

Prepare = Callable[[np.ndarray], np.ndarray]


@dataclass
class DecodedFrame:
    """A plan row with its pixels as the model sees them, or the reason why there are none.

    size: (height, width) of the source.
    note: a remark about the pixels, such as a doubt about how they are to be read.
    lead: the model sees this frame only to compare the next one with it; its own row is in another shard.
    """

    row: PlanRow
    seen_hwc: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    error: DataError | None = None
    lead: bool = False
    note: str | None = None


def decoded(rows: list[PlanRow], prepare: Prepare, clock: Clock, pool: Executor) -> Iterator[DecodedFrame]:
    """Yield rows in order, each with its frame or an error. prepare: turns pixels into what the model sees."""

    def decode(fetched: tuple[PlanRow, bytes | DataError]) -> DecodedFrame:
        row, data = fetched
        if isinstance(data, DataError):
            return DecodedFrame(row, error=data)
        notes: list[str] = []
        try:
            with clock("decode"):
                image = images.decode_image(data, _source(row), notes.append)
                return DecodedFrame(row, prepare(image), image.shape[:2], note=next(iter(notes), None))
        except DataError as error:
            return DecodedFrame(row, error=error)

    def fetch(row: PlanRow) -> tuple[PlanRow, bytes | DataError]:
        try:
            with clock("fetch"):
                return row, _read(row)
        except DataError as error:
            return row, error

    for (kind, *_), found in groupby(rows, _kind):
        group = list(found)
        if kind == "video":
            yield from _decoded_video(group, prepare, clock)
        elif kind == "table":
            yield from map(decode, _table_cells(group, clock))
        elif any(storage.in_bucket(row["uri"]) for row in group):
            yield from map(decode, ahead(pool, fetch, group, FETCHES))
        else:
            yield from map(decode, map(fetch, group))  # a disk answers sooner than another thread


def encoded(rows: list[PlanRow]) -> Iterator[bytes | DataError]:
    """Yield each row's image as it is stored, in order, a video frame's as PNG; or the reason why there is none."""
    clock = Clock()
    for (kind, *_), found in groupby(rows, _kind):
        group = list(found)
        if kind == "video":
            group[0] = {**group[0], "before_pts": None}  # no lead
            for frame in _decoded_video(group, lambda image_hwc: image_hwc, clock):
                seen_hwc = frame.seen_hwc
                yield images.encode_image(seen_hwc) if seen_hwc is not None else frame.error or _no_frame(frame)
        elif kind == "table":
            yield from (data for _, data in _table_cells(group, clock))
        else:
            yield from map(_stored, group)


def _stored(row: PlanRow) -> bytes | DataError:
    try:
        return _read(row)
    except DataError as error:
        return error


def _kind(row: PlanRow) -> tuple[str, str]:
    """Return a key for grouping: rows with the same key are read together."""
    if row["error"] is not None or row["frame_index"] is None:
        return "image", ""
    return ("video" if row["video_uri"] is not None else "table"), row["uri"]


def _source(row: PlanRow) -> str:
    return row["uri"] if row["frame_index"] is None else f"{row['uri']}, row {row['frame_index']}"


def _read(row: PlanRow) -> bytes:
    if row["error"] is not None:  # the plan already has its error
        raise DataError(row["error"])
    if row["size"] > MOST_BYTES:
        raise DataError(f"{row['uri']} has {row['size']:,} bytes, more than any image that is read; it is none.")
    return storage.read_unchanged(place_of(row), row["stamp"])


def _table_cells(rows: list[PlanRow], clock: Clock) -> Iterator[tuple[PlanRow, bytes | DataError]]:
    """Yield the encoded images of one Parquet file's rows."""
    waiting = deque(rows)
    place = place_of(rows[0])
    error: DataError
    try:
        storage.check_unchanged(place, rows[0]["stamp"])
        cells = read_images(place, [i for row in rows if (i := row["frame_index"]) is not None], rows[0]["stamp"])
        while waiting:
            with clock("fetch"), storage.reading_input(place):
                data = next(cells)
            row = waiting.popleft()
            yield row, data if data is not None else DataError(f"{_source(row)} is empty.")
    except DataError as problem:
        error = problem
    except (pa.ArrowException, OSError, StopIteration) as problem:
        error = DataError(f"{rows[0]['uri']} cannot be read: {storage.reason(problem)}.")
    for row in waiting:
        yield row, error


def _decoded_video(rows: list[PlanRow], prepare: Prepare, clock: Clock) -> Iterator[DecodedFrame]:
    """Yield the frames of one video's span; a frame that the decoder does not return becomes an error row.

    The frame that the plan has before the first one comes first as its lead, so that flicker does not depend on where
    spans begin.
    """
    from segray.core.io.video import read_frames  # loads FFmpeg

    place, waiting = place_of(rows[0]), deque(DecodedFrame(row) for row in rows)
    by_index = rows[0]["pts"] is None
    if (before := rows[0]["before_pts"]) is not None:
        lead: PlanRow = {**rows[0], "frame_index": before} if by_index else {**rows[0], "pts": before}
        waiting.appendleft(DecodedFrame(lead, lead=True))
    error: DataError | None = None
    try:
        storage.check_unchanged(place, rows[0]["stamp"])
        keys = [frame_key(frame.row) for frame in waiting]
        found = read_frames(place, keys, by_index=by_index, begin=_begin(rows))
        while True:
            with clock("decode"), storage.reading_input(place):
                decoded = next(found, None)
                seen = None if decoded is None else prepare(decoded.image_hwc)
            if decoded is None:
                break
            while waiting and frame_key(waiting[0].row) < decoded.key:
                yield _lost(waiting.popleft())
            if waiting and frame_key(waiting[0].row) == decoded.key:
                frame = waiting.popleft()
                frame.seen_hwc, frame.size = seen, decoded.image_hwc.shape[:2]
                yield frame
    except DataError as problem:
        error = problem
    for frame in waiting:
        yield _lost(frame, error)


def _begin(rows: list[PlanRow]) -> Start | None:
    """Return where decoding may begin; None is the start of the video, needed if any row has to be counted from it."""
    starts = [row.get("start") for row in rows]  # a plan of an older version has none
    return Start(**starts[0]) if starts[0] and all(starts) else None  # type: ignore[arg-type]


def _lost(frame: DecodedFrame, error: DataError | None = None) -> DecodedFrame:
    frame.error = error or _no_frame(frame)
    return frame


def _no_frame(frame: DecodedFrame) -> DataError:
    return DataError(f"{frame.row['uri']}: {LOST_FRAME}")
