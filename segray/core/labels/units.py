"""Files → rows of a plan: one for an image, for each chosen frame of a video, for each image in a Parquet file.

They come in blocks. A block says where its units end: the rows that one actor should label together, as a video's
frames from keyframe to keyframe. Rows are made as columns, since a plan may have a hundred million of them.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.core.clock import Clock, Standstill, within
from segray.core.formatting import counted
from segray.core.io import inputs, storage
from segray.core.io.files import CHUNK, IMAGE, TABLE, VIDEO, Files, Found
from segray.core.io.video_index import LOST_FRAME, VideoIndex
from segray.core.labels.plan import PLAN_SCHEMA
from segray.core.prefetch import ahead
from segray.errors import DataError, InputUnreadable

LOOKUPS = 8  # videos and Parquet files that are looked into at once
HANG_S = 600.0  # how long one of them may make no progress, as of label.input_timeout; each packet is some
MANY = 100  # of them, for which other machines are asked


class Block(NamedTuple):
    """Rows of PLAN_SCHEMA, and where each unit ends: int64, rising to the number of rows."""

    rows: pa.Table
    ends: np.ndarray

    def filtered(self, kept: np.ndarray) -> Block:
        """Return those rows for which `kept`, bool [rows], is true."""
        ends = np.cumsum(kept)[self.ends - 1] if len(self.ends) else self.ends
        return Block(self.rows.filter(pa.array(kept)), np.unique(ends[ends > 0]))

    def first(self, count: int) -> Block:
        return Block(self.rows.slice(0, count), np.unique(np.minimum(self.ends, count)))


Looked = tuple[Found, VideoIndex | list[int] | None]
Map = Callable[[Callable[[Found], Looked], Iterable[Found]], Iterable[Looked]]  # gives results in order
Spread = Callable[[str], AbstractContextManager[Map]]  # is given one of the files' places


@contextmanager
def in_threads(place: str) -> Iterator[Map]:
    """Look into files in threads of this process."""
    with ThreadPoolExecutor(LOOKUPS) as pool:
        yield lambda work, items: ahead(pool, work, items, 2 * LOOKUPS)


def blocks(
    files: Files,
    settings: Mapping[str, Any],
    truths: Mapping[str, str],
    on_note: Callable[[str], None],
    spread: Spread = in_threads,
    hang_s: float = HANG_S,
) -> Iterator[Block]:
    """Give the rows of all files in order, those of a video in one block; of `settings["sample"]` that share.

    spread: where MANY videos and Parquet files or more are looked into. hang_s: as long may one make no progress.
    """
    for batch in files.batches(IMAGE):
        yield _sampled(_images(batch, truths), settings["sample"])
    several: list[str] = []  # videos that hold more than one
    count = files.count(TABLE) + files.count(VIDEO)
    if not count:
        return
    others = (file for kind in (TABLE, VIDEO) for batch in files.batches(kind) for file in _found(batch))
    first = next(others)
    with (spread if count >= MANY else in_threads)(os.fsdecode(first.name)) as look:
        # No partial(), which Ray does not take.
        for file, seen in look(lambda file: _looked_into(file, hang_s), chain([first], others)):
            if seen is None:
                found = iter([_unit(_error_row(file))])
            elif isinstance(seen, VideoIndex):
                if seen.streams > 1:
                    several.append(printable(file.name))
                found = iter([_frames(file, seen, chosen_frames(seen, settings["every"], settings["fps"]))])
            else:
                found = _cells(file, seen)
            for block in found:
                yield _with_lead(_sampled(block, settings["sample"]))
    if several:
        videos = counted(len(several), "video holds", "videos hold")
        on_note(
            f"{videos} several video streams ({min(several)}{', …' * (len(several) > 1)}); "
            "of each, the one that FFmpeg takes for the best is labelled."
        )


def _found(batch: pa.RecordBatch) -> Iterator[Found]:
    return map(Found._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))


def _looked_into(file: Found, hang_s: float) -> Looked:
    """Return what a video or Parquet file holds: its frames, or the rows of each row group; None, and why."""
    if file.error is not None:
        return file, None
    place = os.fsdecode(file.name)
    look: Callable[[str], VideoIndex | list[int]] = _row_groups if file.kind == TABLE else _index
    try:
        with storage.reading_input(place):
            return file, within(hang_s, Clock(), partial(look, place))
    except Standstill as error:
        text = f"{place} made {error} when it was looked into; look at the file."
        return file._replace(error_code="worker_timeout", error=printable(text.encode(errors="surrogateescape"))), None
    except (DataError, pa.ArrowException, OSError) as error:
        # An input has a row, also one that cannot be opened.
        code = "read_error" if isinstance(error, InputUnreadable) else "decode_error"
        text = f"{place} cannot be read: {storage.reason(error)}."
        if isinstance(error, DataError):
            text = str(error)
        return file._replace(error_code=code, error=printable(text.encode(errors="surrogateescape"))), None


def _index(place: str) -> VideoIndex:
    from segray.core.io.video import index_video  # loads FFmpeg

    return index_video(place)


def _row_groups(place: str) -> list[int]:
    with storage.open_read(place) as opened:
        file = pq.ParquetFile(opened)
        if inputs.image_column(file.schema_arrow) is None:
            raise DataError(f"{place} has no column called image, nor one other of encoded images.")
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _rows(count: int, **columns: Any) -> pa.Table:
    """Make rows of PLAN_SCHEMA from arrays, lists, and values that all rows have; what is not given is null."""
    arrays = []
    for field in PLAN_SCHEMA:
        value = columns.get(field.name)
        if not isinstance(value, (list, np.ndarray, pa.Array)):
            value = pa.nulls(count, field.type) if value is None else pa.repeat(pa.scalar(value, field.type), count)
        arrays.append(value if isinstance(value, pa.Array) else pa.array(value, field.type))
    return pa.Table.from_arrays(arrays, schema=PLAN_SCHEMA)


def _unit(rows: pa.Table) -> Block:
    return Block(rows, np.array([len(rows)], np.int64))


def _images(files: pa.RecordBatch, truths: Mapping[str, str]) -> Block:
    names = files["name"].to_pylist()
    uris, raw = _places(files["name"], names)
    masks = [truths.get(uri) for uri in uris.to_pylist()] if truths else None
    same = {name: files[name] for name in ("size", "stamp", "error_code", "error")}
    ids = [_id(name) for name in names]
    rows = _rows(len(files), input_id=ids, uri=uris, raw=raw, truth_uri=masks, **same)
    return Block(rows, np.arange(1, len(files) + 1))


def _places(names: pa.Array, listed: list[bytes]) -> tuple[pa.Array, list[bytes | None] | None]:
    """Return names as text, and as bytes those that are not UTF-8."""
    try:
        return names.cast(pa.string()), None
    except pa.ArrowInvalid:
        uris = [printable(name) for name in listed]
        raw = [None if name == uri.encode() else name for name, uri in zip(listed, uris, strict=True)]
        return pa.array(uris, pa.string()), raw


def _about(file: Found) -> dict[str, Any]:
    """Return what all rows of a file have."""
    uri = printable(file.name)
    return {"uri": uri, "raw": None if uri.encode() == file.name else file.name, "size": file.size, "stamp": file.stamp}


def _error_row(file: Found) -> pa.Table:
    return _rows(1, input_id=[_id(file.name)], **_about(file), error_code=file.error_code, error=file.error)


def _frames(file: Found, index: VideoIndex, chosen: list[int]) -> Block:
    """Make the rows of a video, and one that says where it was cut."""
    about, frames = _about(file), np.array(chosen, np.int64)
    about["video_uri"] = about["uri"]
    lost = [i in index.lost for i in chosen] if index.lost else []
    rows = _rows(
        len(frames),
        **about,
        input_id=_ids_inside(file.name, chosen),
        frame_index=frames,
        pts=None if index.pts is None else [index.pts[i] for i in chosen],
        start=[at._asdict() if (at := index.start_of(i)) else None for i in chosen] if index.starts else None,
        time_s=[index.times_s[i] for i in chosen],
        error_code=["decode_error" if is_lost else None for is_lost in lost] or None,
        error=[f"{about['uri']}: {LOST_FRAME}" if is_lost else None for is_lost in lost] or None,
    )
    begun = np.searchsorted(np.array(sorted(index.keyframes)), frames, "right")  # units up to each frame
    ends = np.append(np.flatnonzero(np.diff(begun)) + 1, len(frames))
    if not index.damage:
        return Block(rows, ends)
    cut = _rows(1, **about, input_id=[damage_id(file.name)], error_code="video_truncated", error=index.damage)
    return Block(pa.concat_tables([rows, cut]), np.append(ends, len(frames) + 1))


def chosen_frames(index: VideoIndex, every: int, fps: float | None) -> list[int]:
    """Choose every N-th frame, or the first at or after each tick of 1/fps seconds."""
    if fps is None:
        return list(range(0, len(index.times_s), every))
    frames, tick = [], 0
    for i, time_s in enumerate(index.times_s):
        at = time_s * fps + 1e-6  # in ticks; stamps are rounded, and the tolerance keeps a tick from being missed
        if at >= tick:
            frames.append(i)
            tick = math.floor(at) + 1
    return frames


def _cells(file: Found, groups: list[int]) -> Iterator[Block]:
    """Make the rows of a Parquet file by row group, as a group is read as a whole; of a long one CHUNK at a time."""
    end = 0
    for count in groups:
        first, end = end, end + count
        for start in range(first, end, CHUNK):
            cells = range(start, min(start + CHUNK, end))
            ids = _ids_inside(file.name, cells)
            yield _unit(_rows(len(cells), **_about(file), input_id=ids, frame_index=list(cells)))


def _sampled(block: Block, share: float | None) -> Block:
    """Keep a share of the rows by their ids, which are hashes: the same files are in every sample of this share."""
    if share is None or (end := math.ceil(share * 2**32)) >= 2**32:
        return block
    begins = pc.utf8_slice_codeunits(block.rows["input_id"], 0, 8)
    return block.filtered(pc.less(begins, f"{end:08x}").to_numpy())


def _with_lead(block: Block) -> Block:
    """Give each frame of a video the key of the one before it, and the place from which both can be decoded."""
    rows = block.rows
    count = len(rows) - rows["frame_index"].null_count
    if not count or rows["video_uri"].null_count:
        return block
    frames, rest = rows.slice(0, count), rows.slice(count)  # which says that the video was cut
    keys = pc.coalesce(frames["pts"], frames["frame_index"]).combine_chunks()
    before = pa.concat_arrays([pa.nulls(1, pa.int64()), keys.slice(0, count - 1)])
    frames = _with(frames, "before_pts", before)
    if frames["start"].null_count < count:
        frames = _with(frames, "start", frames["start"].take(np.maximum(np.arange(count) - 1, 0)))
    return block._replace(rows=pa.concat_tables([frames, rest]))


def _with(rows: pa.Table, name: str, column: Any) -> pa.Table:
    return rows.set_column(rows.schema.get_field_index(name), PLAN_SCHEMA.field(name), column)


def _ids_inside(name: bytes, numbers: Any) -> list[str]:
    """Return the ids of frames of a video, or of images in a Parquet file."""
    begun = hashlib.sha256(name + b"#")
    ids = []
    for number in numbers:
        one = begun.copy()
        one.update(b"%d" % number)
        ids.append(one.hexdigest()[:16])
    return ids


def damage_id(name: bytes) -> str:
    """Return the id of the row that says that a video was cut."""
    return _id(name + b"#damage")


def file_id(name: bytes) -> str:
    """Return the id of an image's row, or of that of a file that could not be opened."""
    return _id(name)


def _id(what: bytes) -> str:
    return hashlib.sha256(what).hexdigest()[:16]


def printable(name: bytes) -> str:
    """Return a file's name as text: undecodable bytes as \\xff."""
    return name.decode(errors="backslashreplace")
