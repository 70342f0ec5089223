"""Inputs → a plan: files become rows, rows are packed into shards, and both are frozen."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.core.io import inputs, storage
from segray.core.io.inputs import Found
from segray.core.io.pairing import find_images, frame_path, match_masks
from segray.core.io.video_index import LOST_FRAME, VideoIndex
from segray.core.labels.plan import (
    PLAN_SCHEMA,
    Plan,
    PlanReader,
    PlanRow,
    frame_key,
    load_plan,
    load_plans,
    place_of,
    rows_uri,
)
from segray.core.prefetch import ahead
from segray.core.samples import LabelSpace
from segray.errors import DataError, InputUnreadable

LEAST_ROWS, SHARD_ROWS = 8, 64
SPREAD = 16  # shards that a run with few images is divided into
MOST_SHARDS = 5000  # beyond it shards grow: a listing of the parts stays a few requests
LONGEST = 4  # shards that a video's frames between two keyframes may fill before they are cut
LONGEST_UNSEEKABLE = 16  # the same for a video each of whose shards is decoded from the beginning
LOOKUPS = 8  # videos and Parquet files that are looked into at once


def make_plan(
    out: str,
    settings: dict[str, Any],
    label_space: LabelSpace,
    before: list[Plan] | None = None,
    failed: Mapping[str, PlanRow] | None = None,
    on_found: Callable[[int], None] = lambda count: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Plan | None:
    """List the inputs, cut them into shards, and freeze both; a plan that another run froze meanwhile wins.

    before: the output's plans so far; their files are not planned again, and None is returned when there are no
    others. failed: plan rows by id; they alone are planned, anew from their files as these are now.
    on_found gets the number of files found so far, on_note what a user should know, in a sentence.
    Raises DataError when nothing is found, and StorageError for a place that cannot be listed.
    """
    before = before or []
    found = _again(failed) if failed else inputs.find_inputs(settings["inputs"], on_found, on_note)
    files = found if failed else _not_planned(found, before, on_note)
    if not len(files):
        if before:
            return None
        raise DataError(f"No image, video or Parquet file of images found in {', '.join(settings['inputs'])}.")
    if failed:
        truths = {row["uri"]: mask for row in failed.values() if (mask := row["truth_uri"])}
    else:
        truths = _truths(settings["truth"], files, before, on_note) if settings["truth"] else {}
    units = _chosen(_units(files, settings, truths, on_note), settings, failed, _known_ids(before, failed or {}))
    size = settings["shard_size"] or _shard_rows(files)
    about = [settings, label_space.to_dict(), [plan.plan_id for plan in before]]
    frozen = _write_rows(out, _pack(units, size), json.dumps(about, sort_keys=True).encode())
    if not frozen.rows:
        if before:
            return None
        raise DataError(f"Nothing is left of {len(files)} files; raise label.sample or label.limit.")
    plan = Plan(out, len(before), *frozen, settings["model_id"], label_space, settings)
    # The .json is created last: it says that the rows are there, and names the file that holds them.
    created = storage.create(plan.json_uri, plan.to_json())
    if not created and before and failed is None:  # another run was faster: what it did not plan is left
        return make_plan(out, settings, label_space, load_plans(out), on_found=on_found, on_note=on_note)
    return load_plan(out, plan.number, plan.json_uri)


def _shard_rows(files: pa.Table) -> int:
    """Choose the rows of a shard: fewer for few images, so that several devices have work; more for very many files."""
    images = pc.all(pc.equal(files["kind"], inputs.IMAGE)).as_py()
    share = math.ceil(len(files) / SPREAD) if images else SHARD_ROWS
    return max(LEAST_ROWS, min(SHARD_ROWS, share), math.ceil(len(files) / MOST_SHARDS))


class _Frozen(NamedTuple):
    plan_id: str
    shards: int
    rows: int


def _write_rows(out: str, shards: Iterator[list[PlanRow]], about: bytes) -> _Frozen:
    """Write the rows into their file, one row group per shard, so that an actor reads only its own."""
    digest, count, rows = hashlib.sha256(about), 0, 0
    with tempfile.TemporaryFile() as file:
        writer = pq.ParquetWriter(file, PLAN_SCHEMA, compression="zstd")
        for count, shard in enumerate(shards, 1):
            digest.update(json.dumps(shard, sort_keys=True, default=bytes.hex).encode())
            table = pa.Table.from_pylist([{**row, "shard": count - 1} for row in shard], PLAN_SCHEMA)
            writer.write_table(table, row_group_size=len(shard))
            rows += len(shard)
        writer.close()
        frozen = _Frozen(digest.hexdigest(), count, rows)
        if rows:
            file.seek(0)
            storage.replace(rows_uri(out, frozen.plan_id), file.read())
    return frozen


def _not_planned(files: pa.Table, before: list[Plan], on_note: Callable[[str], None]) -> pa.Table:
    """Return the files of which no earlier plan has a row. A note names those that have changed since then."""
    if not before:
        return files
    planned = pa.concat_tables([_names_and_stamps(plan) for plan in before])
    is_known = pc.is_in(files["name"], planned["name"])
    there = files.filter(is_known)
    changed = there.filter(pc.is_in(there["name"], planned.filter(pc.not_equal(planned["stamp"], ""))["name"])).join(
        planned, ["name", "stamp"], join_type="left anti"
    )
    if len(changed):
        first = _printable(pc.min(changed["name"]).as_py())
        on_note(
            f"Changed since they were planned, and not labelled again: {len(changed)}, such as {first}. "
            "Another --out labels them as they are now."
        )
    return files.filter(pc.invert(is_known))


def _names_and_stamps(plan: Plan) -> pa.Table:
    """List each file of a plan once: its name, as in inputs.FILES, and its stamp."""
    rows = PlanReader(plan).columns(["uri", "raw", "stamp"])
    names = pc.coalesce(rows["raw"], rows["uri"].cast(pa.binary()))
    return pa.table({"name": names, "stamp": rows["stamp"]}).group_by(["name", "stamp"]).aggregate([])


def _again(failed: Mapping[str, PlanRow]) -> pa.Table:
    """Look up the files of failed rows as they are now."""
    places = sorted({place_of(row) for row in failed.values()})
    found = [inputs.look_up(place) for place in places]
    return pa.Table.from_pylist([one._asdict() for one in found], inputs.FILES).sort_by(
        [("kind", "ascending"), ("name", "ascending")]
    )


def _truths(folder: str, files: pa.Table, before: list[Plan], on_note: Callable[[str], None]) -> dict[str, str]:
    """Map images to masks. files: those of which no plan has a row; an image of an earlier plan keeps its mask."""
    names = files.filter(pc.equal(files["kind"], inputs.IMAGE))["name"]
    images = [pa.chunked_array([pa.array([_printable(name.as_py()) for name in names], pa.string())])]
    taken: set[str] = set()
    for rows in (PlanReader(plan).columns(["uri", "frame_index", "truth_uri"]) for plan in before):
        taken |= set(pc.unique(rows["truth_uri"]).to_pylist())
        images.append(rows["uri"].filter(pc.and_(pc.is_null(rows["frame_index"]), pc.is_null(rows["truth_uri"]))))
    masks = {key: uri for key, uri in find_images(folder).items() if uri not in taken}
    places = (place.as_py() for found in images for place in found)
    matched = match_masks(masks, ((place, frame_path(place)) for place in places))
    if not before and not matched.key_of:
        none = f"No mask in {folder} has the file name of an image; masks pair by path or by file name."
        raise DataError(matched.notes[0] if matched.notes else none)
    for note in matched.notes:
        on_note(storage.printable(note))
    return {place: masks[key] for place, key in matched.key_of.items()}


def _known_ids(before: list[Plan], failed: Mapping[str, PlanRow]) -> set[str]:
    """Return the ids of all rows so far of truncated videos: frames that such a video has gained were never planned."""
    cut = {row["uri"] for key, row in failed.items() if key == _damage_id(place_of(row))}
    known: set[str] = set()
    for plan in before if cut else []:
        rows = PlanReader(plan).columns(["input_id", "uri"])
        known |= set(rows["input_id"].filter(pc.is_in(rows["uri"], pa.array(cut, pa.string()))).to_pylist())
    return known


def _chosen(
    units: Iterator[list[PlanRow]], settings: dict[str, Any], failed: Mapping[str, PlanRow] | None, known: set[str]
) -> Iterator[list[PlanRow]]:
    """Give the rows of each unit that are to be labelled, each video's with the frame that precedes it."""
    left = settings["limit"] if failed is None else None
    before: PlanRow | None = None
    start: dict[str, int | None] | None = None
    for unit in units:
        if settings["sample"] is not None:
            # The id is a hash: the same files are in every sample of this share.
            unit = [row for row in unit if int(row["input_id"][:8], 16) < settings["sample"] * 2**32]
        for row in unit:
            if row["video_uri"] is not None and row["frame_index"] is not None:
                own, is_next = row["start"], before is not None and before["uri"] == row["uri"]
                row["before_pts"] = frame_key(before) if before and is_next else None
                row["start"] = start if is_next else own
                before, start = row, own
        if failed is not None:
            unit = [{**row, "repeats": key} for row in unit if (key := _key(row, failed, known))]
        yield unit[:left]
        if left is not None:
            left -= len(unit[:left])
            if left == 0:
                return


def _key(row: PlanRow, failed: Mapping[str, PlanRow], known: set[str]) -> str | None:
    """Return the id of the failed row that this row retries.

    That is its own id, or its file's, which could not be opened, or, for a new frame, that of the row that reported
    the video as truncated.
    """
    keys = [row["input_id"], _id(place_of(row))]
    if row["input_id"] not in known:
        keys.append(_damage_id(place_of(row)))
    return next((key for key in keys if key in failed), None)


def _pack(units: Iterator[list[PlanRow]], size: int) -> Iterator[list[PlanRow]]:
    """Pack units into shards of `size` rows or a few more; only a unit of many times the size is cut."""
    shard: list[PlanRow] = []
    for unit in units:
        seekable = not unit or unit[0]["pts"] is not None or unit[0]["start"] is not None
        longest = size * (LONGEST if seekable else LONGEST_UNSEEKABLE)
        for start in range(0, len(unit), longest):
            shard += unit[start : start + longest]
            if len(shard) >= size:
                yield shard
                shard = []
    if shard:
        yield shard


def _units(
    files: pa.Table, settings: dict[str, Any], truths: dict[str, str], on_note: Callable[[str], None]
) -> Iterator[list[PlanRow]]:
    """Give rows that one actor should label together: an image, or a video's frames from keyframe to keyframe."""
    several: list[str] = []  # videos that hold more than one

    def units(file: Found) -> list[list[PlanRow]]:
        if file.error is not None or file.kind == inputs.IMAGE:
            return [[_row(file, truth_uri=truths.get(_printable(file.name)))]]
        try:
            with storage.reading_input(os.fsdecode(file.name)):
                return _video_units(file, settings, several) if file.kind == inputs.VIDEO else _table_units(file)
        except (DataError, pa.ArrowException, OSError) as error:
            # An input has a row, also one that cannot be opened.
            code = "read_error" if isinstance(error, InputUnreadable) else "decode_error"
            place = _printable(file.name)
            text = _text(error) if isinstance(error, DataError) else f"{place} cannot be read: {storage.reason(error)}."
            return [[_row(file, error_code=code, error=text)]]

    images = files.filter(pc.equal(files["kind"], inputs.IMAGE))
    others = files.filter(pc.not_equal(files["kind"], inputs.IMAGE))
    for batch in images.to_batches(inputs.CHUNK):
        for file in batch.to_pylist():
            yield from units(Found(**file))
    with ThreadPoolExecutor(LOOKUPS) as pool:
        found = [Found(**file) for file in others.to_pylist()]
        yield from chain.from_iterable(ahead(pool, units, found, 2 * LOOKUPS))
    if several:
        on_note(
            f"{len(several)} videos hold several video streams ({min(several)}{', …' * (len(several) > 1)}); "
            "of each, the one that FFmpeg takes for the best is labelled."
        )


def _video_units(file: Found, settings: dict[str, Any], several: list[str]) -> list[list[PlanRow]]:
    from segray.core.io.video import index_video  # loads FFmpeg

    index, uri = index_video(os.fsdecode(file.name)), _printable(file.name)
    if index.streams > 1:
        several.append(uri)
    keyframes = set(index.keyframes)
    units: list[list[PlanRow]] = [[]]
    chosen = chosen_frames(index, settings["every"], settings["fps"])
    for last, i in zip([-1, *chosen], chosen, strict=False):
        if units[-1] and any(k in keyframes for k in range(last + 1, i + 1)):
            units.append([])
        row = _row(
            file,
            video_uri=uri,
            frame_index=i,
            pts=None if index.pts is None else index.pts[i],
            time_s=index.times_s[i],
        )
        if start := index.start_of(i):
            row["start"] = start._asdict()
        if i in index.lost:
            row |= {"error_code": "decode_error", "error": f"{uri}: {LOST_FRAME}"}
        units[-1].append(row)
    if index.damage:
        units.append([_row(file, video_uri=uri, error_code="video_truncated", error=index.damage)])
    return units


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


def _table_units(file: Found) -> list[list[PlanRow]]:
    """Give the rows of a Parquet file by row group: a group is read as a whole."""
    place = os.fsdecode(file.name)
    with storage.open_read(place) as opened:
        about = pq.ParquetFile(opened)
        if inputs.image_column(about.schema_arrow) is None:
            raise DataError(f"{_printable(file.name)} has no column called image, nor one other of encoded images.")
        units, first = [], 0
        for group in range(about.num_row_groups):
            end = first + about.metadata.row_group(group).num_rows
            units.append([_row(file, frame_index=i) for i in range(first, end)])
            first = end
    return units


def _row(
    file: Found,
    *,
    truth_uri: str | None = None,
    video_uri: str | None = None,
    frame_index: int | None = None,
    pts: int | None = None,
    time_s: float | None = None,
    error_code: str | None = None,
    error: str | None = None,
) -> PlanRow:
    place, uri = os.fsdecode(file.name), _printable(file.name)
    what = place if frame_index is None else f"{place}#{frame_index}"
    return {
        "shard": None,
        "input_id": _damage_id(what) if error_code == "video_truncated" else _id(what),
        "uri": uri,
        "raw": None if uri == place else file.name,
        "size": file.size,
        "stamp": file.stamp,
        "truth_uri": truth_uri,
        "video_uri": video_uri,
        "frame_index": frame_index,
        "pts": pts,
        "before_pts": None,
        "start": None,
        "time_s": time_s,
        "error_code": error_code or file.error_code,
        "error": error or file.error,
        "repeats": None,
    }


def _damage_id(place: str) -> str:
    return _id(f"{place}#damage")


def _id(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _printable(name: bytes) -> str:
    """Return a file's name as text: undecodable bytes as \\xff."""
    return name.decode(errors="backslashreplace")


def _text(error: BaseException) -> str:
    return _printable(str(error).encode(errors="surrogateescape"))
