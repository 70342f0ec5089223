"""Inputs → a plan: files become rows, rows are packed into shards, and both are frozen."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.core.formatting import counted
from segray.core.io import inputs, storage
from segray.core.io.files import IMAGE, VIDEO, Files
from segray.core.io.pairing import find_truth, frame_path, match_masks
from segray.core.labels.plan import (
    PLAN_SCHEMA,
    Plan,
    PlanReader,
    PlanRow,
    RowsFile,
    load_plan,
    load_plans,
    place_of,
    rows_name,
)
from segray.core.labels.units import HANG_S, Block, Spread, blocks, damage_id, file_id, in_threads, printable
from segray.core.samples import LabelSpace
from segray.errors import DataError

LEAST_ROWS, SHARD_ROWS = 8, 64
SPREAD = 16  # shards that a run with few images is divided into
GROWTH = 5000  # a shard has a 5000th of the rows before and of those after it: few in large plans, small at the ends
MOST_ROWS = 500  # a minute or less of work: what a process loses with its end
FILE_ROWS, FILE_SHARDS = 250_000, 2000  # of a file of a plan: some 15 MB, and 2 MB of its footer
LONGEST = 4  # shards that a video's frames between two keyframes may fill before they are cut
LONGEST_UNSEEKABLE = 16  # the same for a video each of whose shards is decoded from the beginning


def make_plan(
    out: str,
    settings: dict[str, Any],
    label_space: LabelSpace,
    before: list[Plan] | None = None,
    failed: Mapping[str, PlanRow] | None = None,
    on_found: Callable[[int], None] = lambda count: None,
    on_note: Callable[[str], None] = lambda text: None,
    spread: Spread = in_threads,
    hang_s: float = HANG_S,
) -> Plan | None:
    """List the inputs, cut them into shards, and freeze both; a plan that another run froze meanwhile wins.

    before: the output's plans so far; their files are not planned again, and None is returned when there are no
    others. failed: plan rows by id; they alone are planned, anew from their files as these are now.
    on_found gets the number of files found so far, on_note what a user should know, in a sentence. spread: where many
    videos are looked into; hang_s: as long may one of them make no progress before it is an error row.
    Raises DataError when nothing is found, and StorageError for a place that cannot be listed.
    """
    before = before or []
    files = _again(failed) if failed else inputs.find_inputs(settings["inputs"], on_found, on_note)
    if before and not failed:
        _drop_planned(files, before, on_note)
    if not len(files):
        if before:
            return None
        raise DataError(f"No image, video or Parquet file of images found in {', '.join(settings['inputs'])}.")
    if failed:
        truths = {row["uri"]: mask for row in failed.values() if (mask := row["truth_uri"])}
    else:
        truths = _truths(settings["truth"], files, before, on_note) if settings["truth"] else {}
    found = blocks(files, settings, truths, on_note, spread, hang_s)
    if failed is not None:
        found = _repeating(found, failed, _known_ids(before, failed, files))
    elif settings["limit"] is not None:
        found = _first(found, settings["limit"])
    about = [settings, label_space.to_dict(), [plan.plan_id for plan in before]]
    shards = _shards(
        found, settings["shard_size"], _least_rows(files), None if failed else _rows_ahead(files, settings)
    )
    frozen = _write_rows(out, len(before), shards, json.dumps(about, sort_keys=True).encode())
    if not frozen.shard_rows:
        if before:
            return None
        raise DataError(f"Nothing is left of {counted(len(files), 'file')}; raise label.sample or label.limit.")
    counts = len(frozen.shard_rows), sum(frozen.shard_rows)
    plan = Plan(out, len(before), frozen.plan_id, *counts, frozen.files, settings["model_id"], label_space, settings)
    # The .json is created last: it says that the rows are there, and names the files that hold them.
    created = storage.create(plan.json_uri, plan.to_json(frozen.shard_rows))
    if not created and before and failed is None:  # another run was faster: what it did not plan is left
        known = load_plans(out)
        return make_plan(out, settings, label_space, known, None, on_found, on_note, spread, hang_s)
    return load_plan(out, plan.number, plan.json_uri)


def _least_rows(files: Files) -> int:
    """Choose the rows of the first shards: fewer for few images, so that several devices have work."""
    if files.count(IMAGE) < len(files):
        return SHARD_ROWS
    return max(LEAST_ROWS, min(SHARD_ROWS, math.ceil(len(files) / SPREAD)))


def _rows_ahead(files: Files, settings: dict[str, Any]) -> int | None:
    """Return how many rows there will be, at most; None where videos or tables tell it only as they are read."""
    most = [] if settings["limit"] is None else [settings["limit"]]
    if files.count(IMAGE) == len(files):
        most.append(round(len(files) * (settings["sample"] or 1)))
    return min(most, default=None)


def shard_rows(done: int, of: int | None, least: int) -> int:
    """Choose the rows of a shard after `done` rows `of` all: `least` at first, more later, and fewer towards the end.

    So the first parts are there soon, and no process works on for long when there are no more shards for the others.
    """
    ends = done if of is None else max(0, min(done, of - done))
    return max(least, min(MOST_ROWS, ends // GROWTH))


def _shards(found: Iterator[Block], given: int | None, least: int, of: int | None) -> Iterator[pa.Table]:
    """Pack units into shards: of `given` rows or a few more; without it of shard_rows().

    Only a unit of many times that size is cut.
    """
    waiting: list[pa.Table] = []
    count = total = 0
    for block in found:
        size = given or shard_rows(total, of, least)
        ends, at = _cut(block, size), 0
        while at < len(block.rows):
            size = given or shard_rows(total, of, least)
            first = int(np.searchsorted(ends, at + size - count))  # the first end at which a shard is full
            end = int(ends[min(first, len(ends) - 1)])
            waiting.append(block.rows.slice(at, end - at))
            count, at = count + end - at, end
            if count >= size:
                yield pa.concat_tables(waiting)
                total, count, waiting = total + count, 0, []
    if count:
        yield pa.concat_tables(waiting)


def _cut(block: Block, size: int) -> np.ndarray:
    """Return where a block's units end after those that are many times the size were cut."""
    begins = np.append(0, block.ends[:-1])
    if not len(block.ends) or (block.ends - begins).max() <= size * LONGEST:
        return block.ends
    ends: list[int] = []
    for begin, end in zip(begins.tolist(), block.ends.tolist(), strict=True):
        is_seekable = block.rows["pts"][begin].is_valid or block.rows["start"][begin].is_valid
        longest = size * (LONGEST if is_seekable else LONGEST_UNSEEKABLE)
        ends += [*range(begin + longest, end, longest), end]
    return np.array(ends, np.int64)


class _Frozen(NamedTuple):
    plan_id: str
    files: tuple[RowsFile, ...]
    shard_rows: list[int]


def _write_rows(out: str, number: int, shards: Iterator[pa.Table], about: bytes) -> _Frozen:
    """Write the rows into files, one row group a shard, so that an actor reads only its own."""
    digest, files = hashlib.sha256(about), list[RowsFile]()
    shard_rows: list[int] = []
    while written := _write_file(shards, len(shard_rows)):
        data, counts = written
        sha256 = hashlib.sha256(data).hexdigest()
        digest.update(sha256.encode())
        files.append(RowsFile(rows_name(number, len(files), sha256), sha256, len(counts)))
        shard_rows += counts
        storage.create(storage.join(out, "_segray", files[-1].name), data)  # what is there has the same hash
    return _Frozen(digest.hexdigest(), tuple(files), shard_rows)


def _write_file(shards: Iterator[pa.Table], first: int) -> tuple[bytes, list[int]] | None:
    """Return the next file, and the rows of its shards, of which `first` is the first; None at the end."""
    sink, counts = pa.BufferOutputStream(), list[int]()
    with pq.ParquetWriter(sink, PLAN_SCHEMA, compression="zstd", write_statistics=False) as writer:
        for rows in shards:
            number = pa.repeat(pa.scalar(first + len(counts), pa.int32()), len(rows))
            writer.write_table(rows.set_column(0, PLAN_SCHEMA.field("shard"), number), row_group_size=len(rows))
            counts.append(len(rows))
            if sum(counts) >= FILE_ROWS or len(counts) == FILE_SHARDS:
                break
    data: bytes = sink.getvalue().to_pybytes()
    return (data, counts) if counts else None


def _drop_planned(files: Files, before: list[Plan], on_note: Callable[[str], None]) -> None:
    """Leave out the files of which an earlier plan has a row. A note names those that have changed since then."""
    planned = _Planned(before)
    changed: list[bytes] = []
    count = 0

    def is_new(batch: pa.RecordBatch) -> pa.Array:
        nonlocal count
        names, stamps = batch["name"].to_pylist(), batch["stamp"].to_pylist()
        known, other = planned.look_up(names, stamps)
        if other.any():
            count += int(other.sum())
            changed[:] = [min(*changed, names[int(other.argmax())])] if changed else [names[int(other.argmax())]]
        return pa.array(~known)

    files.keep(is_new)
    if changed:
        on_note(
            f"Changed since they were planned, and not labelled again: {count}, such as {printable(changed[0])}. "
            "Another --out labels them as they are now."
        )


class _Planned:
    """The files of earlier plans, by hashes: eight bytes for each name, and as many for what it was then."""

    def __init__(self, plans: list[Plan]) -> None:
        found: list[list[np.ndarray]] = [[], [], []]
        for plan in plans:
            for rows in PlanReader(plan).batches(["uri", "raw", "stamp"]):
                seen = set(zip(_names(rows), rows["stamp"].to_pylist(), strict=True))
                stamped = [one for one in seen if one[1]]
                for kept, hashed in zip(found, (_hashes(seen), _hashes(stamped), map(hash, stamped)), strict=True):
                    kept.append(np.fromiter(hashed, np.int64))
        self._names, self._stamped, self._versions = (np.unique(np.concatenate(kept)) for kept in found)

    def look_up(self, names: list[bytes], stamps: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Say which files are planned, and which of them have changed since they were stamped, bool [files]."""
        hashes = np.fromiter(map(hash, names), np.int64)
        now = np.fromiter(map(hash, zip(names, stamps, strict=True)), np.int64)
        return _in(hashes, self._names), _in(hashes, self._stamped) & ~_in(now, self._versions)


def _hashes(seen: Iterable[tuple[bytes, str]]) -> list[int]:
    return [hash(name) for name, _ in seen]


def _in(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Say which values are among the sorted ones."""
    at = np.searchsorted(known, values)
    return np.append(known, 0)[at] == values if len(known) else np.zeros(len(values), bool)


def _again(failed: Mapping[str, PlanRow]) -> Files:
    """Look up the files of failed rows as they are now."""
    files = Files()
    files.add(inputs.look_up(place) for place in sorted({place_of(row) for row in failed.values()}))
    files.settle()
    return files


def _truths(folder: str, files: Files, before: list[Plan], on_note: Callable[[str], None]) -> dict[str, str]:
    """Map images to masks. files: those of which no plan has a row; an image of an earlier plan keeps its mask."""
    names = [printable(name) for batch in files.batches(IMAGE) for name in batch["name"].to_pylist()]
    images = [pa.chunked_array([pa.array(names, pa.string())])]
    taken: set[str] = set()
    for rows in (PlanReader(plan).columns(["uri", "frame_index", "truth_uri"]) for plan in before):
        taken |= set(pc.unique(rows["truth_uri"]).to_pylist())
        images.append(rows["uri"].filter(pc.and_(pc.is_null(rows["frame_index"]), pc.is_null(rows["truth_uri"]))))
    masks = {key: uri for key, uri in find_truth(folder).items() if uri not in taken}
    places = (place.as_py() for found in images for place in found)
    matched = match_masks(masks, ((place, frame_path(place)) for place in places))
    if not before and not matched.key_of:
        none = f"No mask in {folder} has the file name of an image; masks pair by path or by file name."
        raise DataError(matched.notes[0] if matched.notes else none)
    for note in matched.notes:
        on_note(storage.printable(note))
    scored = sum(name in matched.key_of for name in names)
    if scored < len(names):
        on_note(f"{scored:,} of {len(names):,} images have ground truth; the others are labelled without scores.")
    return {place: masks[key] for place, key in matched.key_of.items()}


def _known_ids(before: list[Plan], failed: Mapping[str, PlanRow], files: Files) -> set[str]:
    """Return the ids of all frames so far of videos that were truncated or not opened; others were never planned."""
    videos = {name for batch in files.batches(VIDEO) for name in batch["name"].to_pylist()}
    named = ((key, row["uri"], os.fsencode(place_of(row))) for key, row in failed.items())
    places = {uri for key, uri, name in named if name in videos and key in (file_id(name), damage_id(name))}
    known: set[str] = set()
    for plan in before if places else []:
        for rows in PlanReader(plan).batches(["input_id", "uri", "frame_index"]):
            is_one = pc.and_(pc.is_in(rows["uri"], pa.array(places, pa.string())), pc.is_valid(rows["frame_index"]))
            known |= set(rows["input_id"].filter(is_one).to_pylist())
    return known


def _repeating(found: Iterator[Block], failed: Mapping[str, PlanRow], known: set[str]) -> Iterator[Block]:
    """Give the rows that retry failed ones, with the ids of these.

    That is a row's own id, or, for a new frame, that of its file, which could not be opened, or of the row that
    reported the video as truncated. Where there are no new frames, the first row replaces these two as well.
    """
    at = PLAN_SCHEMA.get_field_index("repeats")
    for block in found:
        names, ids = _names(block.rows), block.rows["input_id"].to_pylist()
        repeats: list[str | None] = []
        for name, own in zip(names, ids, strict=True):
            keys = [own, *([] if own in known else [file_id(name), damage_id(name)])]
            repeats.append(next((key for key in keys if key in failed), None))
        kept = [i for i, key in enumerate(repeats) if key is not None]
        if kept:
            of_file = (file_id(names[0]), damage_id(names[0]))
            gone = [key for key in of_file if key in failed and key not in ids and key not in repeats]
            repeats[kept[0]] = " ".join([repeats[kept[0]] or "", *gone])
        rows = block.rows.set_column(at, PLAN_SCHEMA.field(at), pa.array(repeats, pa.string()))
        yield block._replace(rows=rows).filtered(np.array([key is not None for key in repeats], bool))


def _names(rows: pa.Table | pa.RecordBatch) -> list[bytes]:
    """Return the names of the rows' files, as in FILES."""
    names: list[bytes] = pc.coalesce(rows["raw"], rows["uri"].cast(pa.binary())).to_pylist()
    return names


def _first(found: Iterator[Block], limit: int) -> Iterator[Block]:
    """Give the first rows."""
    for block in found:
        yield block.first(limit)
        limit -= min(limit, len(block.rows))
        if not limit:
            return
