"""What a user names → the files to label, in order: from folders, globs and lists, on a disk or on S3.

    drives/            every image, video and Parquet file of images below it
    's3://b/day*/**'   what matches; ** crosses folders
    frames.txt         a path or URI a line; .jsonl: one object a line; .parquet: a column of them

The files lie in Arrow columns, some 200 bytes each, so that a million of them fit anywhere.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from segray.core import storage
from segray.core.ahead import ahead
from segray.core.images import IMAGE_SUFFIXES
from segray.core.video import VIDEO_SUFFIXES
from segray.errors import DataError, InputMissing, StorageError

LISTS = frozenset({".txt", ".jsonl", ".ndjson"})
PLACES = ("uri", "path", "file_name", "image", "file", "url")  # the columns and keys that name a file, first one first
PARQUET = ".parquet"
LOOKUPS = 32  # files of a list that are looked up at once: on S3 each is a round trip
CHUNK = 10_000

IMAGE, TABLE, VIDEO = 0, 1, 2  # the order in which files are labelled
FILES = pa.schema(
    [
        ("kind", pa.int8()),
        ("name", pa.binary()),  # as the file system has it: a name on a disk need not be UTF-8
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
    ]
)


class Found(NamedTuple):
    """A row of FILES. error: why it cannot be labelled, where that is known already."""

    kind: int
    name: bytes
    size: int
    stamp: str
    error_code: str | None = None
    error: str | None = None


def find_inputs(inputs: Sequence[str], without: str = "", on_found: Callable[[int], None] = lambda n: None) -> pa.Table:
    """Every file that the inputs name, once, images first, each kind in order of its name.

    without: a folder whose files are not inputs, as the labels' own. on_found gets the number found so far.
    Raises DataError for an input that does not exist, StorageError for a place that cannot be listed.
    """
    tables = [FILES.empty_table()]
    for root in inputs:
        found = _find(root, f"{without}/".encode() if without else None)
        while chunk := list(islice(found, CHUNK)):
            columns = zip(zip(*chunk, strict=True), FILES, strict=True)
            tables.append(
                pa.Table.from_arrays([pa.array(values, field.type) for values, field in columns], schema=FILES)
            )
            on_found(sum(len(table) for table in tables))
    files = pa.concat_tables(tables).sort_by([("kind", "ascending"), ("name", "ascending")]).combine_chunks()
    if len(files) < 2:
        return files
    new = pc.not_equal(files["name"].slice(1), files["name"].slice(0, len(files) - 1))
    return files.filter(pa.chunked_array([pa.array([True]), *new.chunks]))


def look_up(place: str) -> Found:
    """One file as it is now; where it cannot be looked at, with the reason."""
    kind = _kind(place) or IMAGE
    try:
        with storage.reading_input(place):
            entry = storage.stat(place)
    except (DataError, UnicodeError) as error:
        code = "input_missing" if isinstance(error, InputMissing) else "read_error"
        return Found(kind, _bytes(place), -1, "", code, str(error))
    return Found(kind, os.fsencode(entry.uri), entry.size, entry.stamp)


def image_column(schema: pa.Schema) -> str | None:
    """The column of a Parquet file that holds encoded images: binary, or the Hub's struct of bytes and path."""
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    return "image" if "image" in columns else columns[0] if len(columns) == 1 else None


def read_images(uri: str, rows: Sequence[int]) -> Iterator[bytes | None]:
    """The encoded images in these rows of a Parquet file, which stand in order; None for an empty cell."""
    with storage.open_read(uri) as opened:
        file = pq.ParquetFile(opened)
        column = image_column(file.schema_arrow)
        wanted, first = list(rows), 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            while wanted and wanted[0] < end:
                for batch in file.iter_batches(64, row_groups=[group], columns=[column]):
                    while wanted and wanted[0] < first + len(batch):
                        cell = batch.column(0)[wanted.pop(0) - first].as_py()
                        yield cell.get("bytes") if isinstance(cell, dict) else cell
                    first += len(batch)
            first = end


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _find(root: str, without: bytes | None) -> Iterator[Found]:
    suffix = _suffix(root)
    if suffix in LISTS or (suffix == PARQUET and _is_list(root)):
        yield from _listed(root)
        return
    entries, nothing = _matching(root) if _is_glob(root) else storage.iter_files(root), True
    for entry in entries:
        nothing, kind, name = False, _kind(entry.uri), os.fsencode(entry.uri)
        hidden = storage.name_of(entry.uri).startswith(".")
        if kind is not None and not hidden and not (without and name.startswith(without)):
            yield Found(kind, name, entry.size, entry.stamp)
    if nothing and not storage.exists(root):
        raise DataError(f"{root} does not exist; give an image, a video, a folder or glob of them, or a list.")


def _kind(uri: str) -> int | None:
    suffix = _suffix(uri)
    kinds = {IMAGE: IMAGE_SUFFIXES, TABLE: {PARQUET}, VIDEO: VIDEO_SUFFIXES}
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), None)


def _suffix(uri: str) -> str:
    return f".{storage.name_of(uri).rpartition('.')[2].lower()}"


def _is_glob(root: str) -> bool:
    return any(sign in root for sign in "*?[") and not storage.exists(root)


def _matching(pattern: str) -> Iterator[storage.Entry]:
    """Files that match a glob, from a listing of the folder above its first sign."""
    folder = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
    matches = re.compile(glob_translate(pattern), re.DOTALL).fullmatch
    return (entry for entry in storage.iter_files(folder or "/") if matches(entry.uri))


def _listed(uri: str) -> Iterator[Found]:
    """The files that a list names; one that is not there has its reason, and so a row."""
    folder = uri.rpartition("/")[0]
    with ThreadPoolExecutor(LOOKUPS) as pool:
        places = (
            place if "://" in place or place.startswith("/") else storage.join(folder, place) for place in _places(uri)
        )
        yield from ahead(pool, look_up, places, 2 * LOOKUPS)


def _places(uri: str) -> Iterator[str]:
    if _suffix(uri) == PARQUET:
        with storage.open_read(uri) as opened:
            file = pq.ParquetFile(opened)
            for batch in file.iter_batches(CHUNK, columns=[_place_column(file.schema_arrow)]):
                yield from (place for place in batch.column(0).to_pylist() if place)
        return
    for number, line in enumerate(storage.read_bytes(uri).splitlines(), 1):
        if line.strip():
            yield os.fsdecode(line) if _suffix(uri) == ".txt" else _place(line, f"{uri}, line {number}")


def _place(line: bytes, source: str) -> str:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{source} is not JSON: {error}.") from None
    if isinstance(found, dict):
        found = next((found[key] for key in PLACES if key in found), None)
    if not isinstance(found, str):
        raise DataError(f"{source} names no file; give it under one of the keys {', '.join(PLACES)}.")
    return found


def _is_list(uri: str) -> bool:
    """Whether a Parquet file names images and does not hold them. False for what cannot be read: it becomes a row."""
    try:
        with storage.open_read(uri) as opened:
            schema = pq.read_schema(opened)
    except (StorageError, pa.ArrowException, OSError):
        return False
    return image_column(schema) is None and _place_column(schema) is not None


def _place_column(schema: pa.Schema) -> str | None:
    texts = {field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)}
    return next((name for name in PLACES if name in texts), None)


def _bytes(place: str) -> bytes:
    try:
        return os.fsencode(place)
    except UnicodeEncodeError:  # half of a pair, as JSON can write one
        return place.encode(errors="surrogatepass")
