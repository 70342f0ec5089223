"""What a user names → the files to label, in order: from folders, globs and lists, on a disk or on S3.

    drives/            every image, video and Parquet file of images below it
    's3://b/day*/**'   what matches; ** crosses folders
    frames.txt         a path or URI a line; .jsonl: one object a line; .parquet: a column of them
    manifest.json      an S3 Inventory

What is named has a row, whatever it is. What a folder or a glob holds and is not taken is counted, and said.
"""

from __future__ import annotations

import codecs
import json
import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial, reduce
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.io.files import CHUNK, IMAGE, TABLE, VIDEO, Files, Found
from segray.core.io.images import IMAGE_SUFFIXES
from segray.core.io.inventory import MANIFEST, iter_inventory
from segray.core.io.video_index import VIDEO_SUFFIXES
from segray.core.prefetch import ahead
from segray.errors import DataError, InputMissing, StorageError

LISTS = frozenset({".txt", ".jsonl", ".ndjson"})
# The columns and keys that name a file, first one first.
PLACES = ("uri", "path", "file_name", "image", "image_path", "file", "url")
PARQUET = ".parquet"
LOOKUPS = 32  # files of a list that are looked up at once: on S3 each is a round trip
NAMED, SUFFIXES = 3, 12  # untaken files that are named, and suffixes that are counted

KIND_OF = {
    **dict.fromkeys(IMAGE_SUFFIXES, IMAGE),
    PARQUET: TABLE,
    **dict.fromkeys(VIDEO_SUFFIXES, VIDEO),
}
# Formats that Pillow would take for a picture, and files that look like lists and are not.
RAW = (".dng", ".nef", ".cr2", ".arw", ".orf", ".rw2", ".pef", ".srw")
REFUSED = dict.fromkeys(RAW, "a camera's raw file, which holds a small preview; develop it to JPEG, PNG or TIFF") | (
    dict.fromkeys((".csv", ".tsv", ".json"), "no list that is read; give .txt with a path a line, .jsonl or .parquet")
)
SUFFIX = re.compile(r"\.[a-z]\w{0,9}")  # else it is a part of a name, as in 1623173424.123456
WRITTEN = ("_segray", "_export")  # found in a folder that segray wrote
PARTS = ("_segray", "labels")  # and what `segray label` writes there


class Untaken:
    """What folders and globs hold and is not taken, counted while they are listed."""

    def __init__(self) -> None:
        self.suffixes: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self.hidden: Counter[str] = Counter()  # folders, by their names
        self.written: set[str] = set()
        self.unlisted: list[str] = []

    def taken(self, entries: Iterable[storage.Entry], *, hidden: bool = False) -> Iterator[Found]:
        """Give those listed files that are to be labelled. hidden: include files whose names mark them as hidden."""
        for entry in entries:
            name = entry.uri.rpartition("/")[2]
            _, dot, end = name.rpartition(".")
            if not hidden and storage.is_hidden(name):
                self.others["hidden files"] += 1
            elif (kind := KIND_OF.get(suffix := f".{end.lower()}" if dot else "")) is None:
                self.suffixes[suffix if SUFFIX.fullmatch(suffix) else "without suffix"] += 1
            else:
                yield Found(kind, os.fsencode(entry.uri), entry.size, entry.stamp)

    def enter(self, folder: str, *, hidden: bool = False) -> bool:
        """Say whether to list a folder: not one of a system or tool, nor one that segray wrote."""
        above, _, name = folder.rpartition("/")
        if storage.in_bucket(folder):
            written = above if name in WRITTEN else None
        else:
            written = folder if any(os.path.isdir(f"{folder}/{mark}") for mark in WRITTEN) else None  # noqa: PTH112
        if written := written or _output_of(folder):
            self.written.add(written)
        elif storage.is_hidden(name) and not hidden:
            self.hidden[name] += 1
        else:
            return True
        return False

    def odd(self, place: str) -> None:
        """Count what is neither file nor folder."""
        self.others["links to nothing" if os.path.islink(place) else "pipes, sockets or devices"] += 1  # noqa: PTH114

    def unlist(self, error: StorageError) -> None:
        """Keep the reason why a folder could not be listed."""
        self.unlisted.append(str(error))

    def notes(self) -> list[str]:
        """List the counts as sentences, one for each kind."""
        named = self.suffixes.most_common(SUFFIXES)
        counts = [f"{count} {suffix}" for suffix, count in named]
        if rest := self.suffixes.total() - sum(count for _, count in named):
            counts.append(f"{rest} with other suffixes")
        counts += [f"{count} {what}" for what, count in self.others.items()]
        if self.hidden:
            counts.append(f"{counted(self.hidden.total(), 'folder')} of systems and tools ({_some(self.hidden)})")
        notes = [f"Skipped: {', '.join(counts)}."] if counts else []
        if self.written:
            notes.append(f"Skipped, as segray wrote them: {_some(self.written)}.")
        if self.unlisted:
            more = (
                f" The same holds of {counted(len(self.unlisted) - 1, 'more folder')}."
                if len(self.unlisted) > 1
                else ""
            )
            notes.append(f"{self.unlisted[0]} What is in it is not labelled.{more}")
        return notes


def find_inputs(
    inputs: Sequence[str],
    on_found: Callable[[int], None] = lambda count: None,
    on_note: Callable[[str], None] = lambda text: None,
) -> Files:
    """List every file that the inputs name, once, images first, each kind in order of its name.

    on_found gets the number found so far; on_note gets sentences on what is named twice, holds nothing or is not taken.
    Raises DataError for an input that does not exist, StorageError for a place that cannot be listed.
    """
    files, untaken, folders = Files(), Untaken(), set[bytes]()
    for root in inputs:
        found, known, before = _find(root, untaken), set(untaken.written), len(files)
        since = files.mark() if storage.in_bucket(root) or _is_inventory(root) else None
        while chunk := list(islice(found, CHUNK)):
            files.add(chunk)
            folders.update(one.name.rpartition(b"/")[0] for one in chunk)
            on_found(len(files))
        if since is not None and (late := untaken.written - known):  # it is seen to be one after its first files
            files.keep(partial(_outside, sorted(os.fsencode(f"{folder}/") for folder in late)), since)
        if len(files) == before:
            on_note(storage.printable(f"{root} holds nothing to label."))
    if twice := files.settle():
        on_note(f"Named more than once, and labelled once: {twice}.")
    if twice := _drop_links(files, folders):
        on_note(f"Found again in folders to which several links lead, and labelled once: {twice}.")
    for note in untaken.notes():
        on_note(storage.printable(note))
    return files


def _outside(folders: list[bytes], files: pa.RecordBatch) -> pa.Array | None:
    """Say which files are in none of the folders; None: all."""
    names = files["name"]
    first, last = names[0].as_py(), names[-1].as_py()
    masks = [pc.starts_with(names, folder) for folder in folders if first[: len(folder)] <= folder <= last]
    return pc.invert(reduce(pc.or_, masks)) if masks else None


def _drop_links(files: Files, folders: set[bytes]) -> int:
    """Keep one name of each file that links show under several; the name in the folder itself comes first."""
    real = {folder: os.path.realpath(folder) for folder in folders if not storage.in_bucket(os.fsdecode(folder))}
    shared = {target for target, count in Counter(real.values()).items() if count > 1}
    several = {folder: target for folder, target in real.items() if target in shared}
    if not several:
        return 0
    chosen: dict[bytes, bytes] = {}
    for one in files:
        folder, _, name = one.name.rpartition(b"/")
        if (target := several.get(folder)) is not None:
            whole = b"/".join([target, name])
            if whole not in chosen or whole == one.name:
                chosen[whole] = one.name
    kept = set(chosen.values())
    return files.keep(
        lambda batch: pa.array(
            name in kept or name.rpartition(b"/")[0] not in several for name in batch["name"].to_pylist()
        )
    )


def look_up(place: str, listed: str = "") -> Found:
    """Look at one file as it is now; where it cannot be read, return it with the reason.

    listed: where it is named, as in `frames.txt line 3`.
    """
    try:
        with storage.reading_input(place):
            entry = storage.stat(place)
    except (DataError, UnicodeError) as error:
        code, text = "read_error", str(error)
        if isinstance(error, InputMissing):
            code = "input_missing"
            text = storage.printable(f"{place} {f'is listed in {listed} and ' if listed else ''}does not exist.")
        return Found(_kind(place) or IMAGE, _bytes(place), -1, "", code, text)
    return _seen(place, entry)


def _seen(place: str, entry: storage.Entry) -> Found:
    """Return a file as it is named, with the reason where it is no input."""
    found = Found(_kind(place) or IMAGE, os.fsencode(entry.uri), entry.size, entry.stamp)
    if out := _output_of(storage.folder_of(place)):
        text = storage.printable(f"{place} is of the labels that segray wrote into {out}, and no input.")
        return found._replace(error_code="decode_error", error=text)
    if reason := REFUSED.get(_suffix(place)):
        return found._replace(error_code="decode_error", error=storage.printable(f"{place} is {reason}."))
    return found


def image_column(schema: pa.Schema) -> str | None:
    """Name the column of a Parquet file that holds encoded images: binary, or the Hub's struct of bytes and path."""
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    return "image" if "image" in columns else columns[0] if len(columns) == 1 else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0) and _holds_bytes(kind.field("bytes").type)
    return any(holds(kind) for holds in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return any(holds(kind) for holds in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _find(root: str, untaken: Untaken) -> Iterator[Found]:
    is_folder = not storage.in_bucket(root) and os.path.isdir(root)  # noqa: PTH112, as Path.is_dir raises for a long name
    if _output_of(root.rstrip("/")) or _output_of(storage.folder_of(root)):
        raise DataError(f"{root} was written by segray and is no input; give the folder of the images themselves.")
    if not is_folder and _is_inventory(root):
        yield from untaken.taken(iter_inventory(root, untaken.enter))
    elif not is_folder and (_suffix(root) in LISTS or (_suffix(root) == PARQUET and _is_list(root))):
        yield from _listed(root, untaken)
    elif storage.is_glob(root) and not storage.exists(root):
        yield from _matching(root, untaken)
    elif not is_folder and not storage.exists(root):
        raise DataError(f"{root} does not exist; give an image, a video, a folder or glob of them, or a list.")
    elif is_folder or storage.in_bucket(root):
        yield from _below(root, untaken)
    else:
        yield look_up(root)


def _below(root: str, untaken: Untaken) -> Iterator[Found]:
    """List the files of a folder; on S3 also a file that is named itself."""
    if any(storage.exists(storage.join(root, name)) for name in WRITTEN):
        raise DataError(f"{root} was written by segray and is no input; give the folder of the images themselves.")
    real = f"{os.path.realpath(root).rstrip('/')}/"

    def enter(folder: str) -> bool:
        if not storage.in_bucket(root) and os.path.islink(folder):  # noqa: PTH114
            target = os.path.realpath(folder)
            if target.startswith(real) and not any(map(storage.is_hidden, target.removeprefix(real).split("/"))):
                untaken.others["links to folders that are listed anyway"] += 1
                return False
        return untaken.enter(folder)

    entries = storage.iter_files(root, enter, untaken.odd, untaken.unlist)
    first = next(entries, None)
    if first and first.uri == root:
        yield look_up(root)
    elif first:
        yield from untaken.taken(chain([first], entries))


def _is_inventory(root: str) -> bool:
    return storage.name_of(root) == MANIFEST


def _matching(pattern: str, untaken: Untaken) -> Iterator[Found]:
    """List files that match a glob, from the folders that can hold some."""
    parts = pattern.split("/")
    fixed = next(i for i, part in enumerate(parts) if storage.is_glob(part))
    deep = parts.index("**") if "**" in parts else len(parts)
    hidden = any(part.startswith(".") for part in parts[fixed:])  # as the pattern says
    try:
        starts = ["/".join(parts[:n]) for n in range(len(parts) + 1)]
        matches = [re.compile(glob_translate(start), re.DOTALL).fullmatch for start in starts]
    except ValueError:
        raise DataError(f"{pattern}: ** stands for folders, as a whole part of the path: drives/**/*.jpg.") from None

    def enter(folder: str) -> bool:
        n = folder.count("/") + 1
        can_hold = n > deep or (n < len(parts) and matches[n](folder))
        return bool(can_hold) and untaken.enter(folder, hidden=hidden)

    below = len(parts) - fixed > 1 or deep < len(parts)
    entries = storage.iter_files(starts[fixed] or "/", enter, untaken.odd, untaken.unlist, deep=below)
    matching = (entry for entry in entries if matches[-1](entry.uri))
    yield from untaken.taken(matching, hidden=hidden)


def _output_of(folder: str) -> str | None:
    """Return the output of `segray label` whose labels or plans lie in a folder."""
    if not storage.in_bucket(folder) and os.path.islink(folder):  # noqa: PTH114
        folder = os.path.realpath(folder)
    above, _, name = folder.rpartition("/")
    with suppress(StorageError):  # one may have no rights there
        if name in PARTS and above and storage.exists(storage.join(above, "_segray")):
            return above
    return None


def _kind(uri: str) -> int | None:
    return KIND_OF.get(_suffix(uri))


def _suffix(uri: str) -> str:
    _, dot, end = storage.name_of(uri).rpartition(".")
    return f".{end.lower()}" if dot else ""


def _some(names: Iterable[str]) -> str:
    first = sorted(names)
    return ", ".join(first[:NAMED]) + (", …" if len(first) > NAMED else "")


def _listed(uri: str, untaken: Untaken) -> Iterator[Found]:
    """List the files that a list names; one that does not exist is listed with the reason, and so gets a row."""
    folder, _, name = uri.rpartition("/")
    with ThreadPoolExecutor(LOOKUPS) as pool:
        places = ((_whole(folder, place), f"{name} {where}", about) for where, place, about in _places(uri, untaken))
        yield from ahead(pool, lambda named: _known(named[0], named[2]) or look_up(*named[:2]), places, 2 * LOOKUPS)


def _known(place: str, about: Mapping[str, Any]) -> Found | None:
    """Return a file on S3 without asking for it, where a list tells its size and etag as S3 does."""
    size, etag = about.get("size"), about.get("etag")
    if not (place.startswith("s3://") and isinstance(size, int) and isinstance(etag, str)):
        return None
    return _seen(place, storage.Entry(place, size, etag.strip('"'), 0.0))


def _whole(folder: str, place: str) -> str:
    """Return a place that a list names, relative ones from the list's folder on, in one spelling."""
    if "://" in place:
        return place
    whole = place if place.startswith("/") else storage.join(folder, place)
    if not storage.in_bucket(whole):
        return storage.normal(whole)
    steps = {".", ".."} & set(place.split("/"))  # else a key is what it is
    return whole[:5] + posixpath.normpath(whole[5:]) if steps else whole


def _places(uri: str, untaken: Untaken) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Give (`line 3`, the place named there, what else stands there) for each entry of a list."""
    if _suffix(uri) == PARQUET:
        with storage.open_read(uri) as opened:
            file = pq.ParquetFile(opened)
            column = _place_column(file.schema_arrow) or ""
            known = [name for name in ("size", "etag") if name in file.schema_arrow.names]
            rows = chain.from_iterable(b.to_pylist() for b in file.iter_batches(CHUNK, columns=[column, *known]))
            for number, row in enumerate(rows):
                cell = row[column.partition(".")[0]]
                if place := cell["path"] if isinstance(cell, dict) else cell:
                    yield f"row {number}", place, row
                else:
                    untaken.others[f"empty cells of {storage.name_of(uri)}"] += 1
        return
    for number, line in enumerate(_text(uri).splitlines(), 1):
        if line.strip():
            if _suffix(uri) == ".txt":
                yield f"line {number}", os.fsdecode(line), {}
            else:
                yield f"line {number}", *_place(line, f"{uri}, line {number}")


def _text(uri: str) -> bytes:
    """Read a list without its byte-order mark, as UTF-8 where it is marked as UTF-16; names need be neither."""
    data = storage.read_bytes(uri)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeError:
            raise DataError(f"{uri} is UTF-16 that cannot be read; save it as UTF-8.") from None
    if b"\0" in data:
        raise DataError(f"{uri} holds NUL bytes, as UTF-16 without its mark does; save it as UTF-8, a path a line.")
    return data.removeprefix(codecs.BOM_UTF8)


def _place(line: bytes, source: str) -> tuple[str, Mapping[str, Any]]:
    try:
        found: Any = json.loads(line)
    except ValueError as error:
        raise DataError(f"{source} is not JSON: {error}.") from None
    about = found if isinstance(found, dict) else {}
    if isinstance(found, dict):
        found = next((found[key] for key in PLACES if found.get(key) is not None), None)
    if isinstance(found, dict):  # as the Hugging Face Hub writes an image
        found = found.get("path")
    if not isinstance(found, str):
        raise DataError(f"{source} names no file; give it under one of the keys {', '.join(PLACES)}.")
    return found, about


def _is_list(uri: str) -> bool:
    """Say whether a Parquet file names images and holds none. False for an unreadable one: it becomes a row."""
    try:
        with storage.open_read(uri) as opened:
            file = pq.ParquetFile(opened)
            return _place_column(file.schema_arrow) is not None and not _holds_images(file)
    except (StorageError, pa.ArrowException, OSError):
        return False


def _holds_images(file: pq.ParquetFile) -> bool:
    """Say whether there is a column of images with an image in it: the Hub's struct may have paths alone."""
    column = image_column(file.schema_arrow)
    if column is None or not pa.types.is_struct(file.schema_arrow.field(column).type):
        return column is not None
    batches = file.iter_batches(64, columns=[f"{column}.bytes"])
    return any(pc.struct_field(batch.column(0), "bytes").null_count < len(batch) for batch in batches)


def _place_column(schema: pa.Schema) -> str | None:
    """Name the column that names files; for the Hub's struct its path."""
    places = {field.name: field.name for field in schema if _holds_text(field.type)}
    structs = (field for field in schema if pa.types.is_struct(field.type))
    for field in structs:
        if field.type.get_field_index("path") >= 0 and _holds_text(field.type.field("path").type):
            places[field.name] = f"{field.name}.path"
    return next((places[name] for name in PLACES if name in places), None)


def _bytes(place: str) -> bytes:
    try:
        return os.fsencode(place)
    except UnicodeEncodeError:  # half of a pair, as JSON can write one
        return place.encode(errors="surrogatepass")
