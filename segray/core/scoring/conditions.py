"""A table about images (city, weather, camera, …) → scores of the frames that share a value."""

from __future__ import annotations

import csv
import json
import math
import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from segray.core import metrics
from segray.core.io import storage
from segray.core.io.pairing import ends, frame_name, is_elsewhere, own_folder, shared_names
from segray.core.io.texts import check_columns, open_table, read_text
from segray.errors import DataError

KEYS = ("image", "file_name", "sample_id")
MOST_VALUES = 50  # a text column with more values is a name or a time, not a condition
MOST_NUMBERS = 8  # a column with more distinct numbers is cut into quartiles
NUMBER = re.compile(r"[+-]?(?=\.?\d)(0|[1-9]\d*)?(\.\d*)?(e[+-]\d+)?")  # as programs write numbers
MOST_DIGITS = 300  # digits of a number that a float can hold
NO_NUMBER = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "null", "none"})  # in lower case, of a column of numbers
CITY = re.compile(r"(?:.*/)?([a-z-]+)_\d{6}_\d{6}")  # cityscapesScripts' names: city, sequence, frame

Table = dict[str, list[Any]]  # any kinds of values, as its author wrote them


class GroupScores(TypedDict):
    """The scores of the frames that share a value."""

    frames: int
    miou: float | None
    pixel_accuracy: float | None


Conditions = dict[str, dict[str, GroupScores]]


def read_table(place: str, names: Sequence[tuple[str, str]]) -> Table:
    """Read the table's columns, each with a value for each frame, None if the table has no row for the frame.

    names: (sample id, path of the image) of each frame. A row's key is an id or path, the end of one, or a path with
    other folders above it. If all folders differ, a row belongs to a frame whose file name is unique on both sides.
    A column has one kind of values: numbers, booleans, or texts, also where kinds are mixed. Raises DataError for a
    table without a key, with two rows of one name, one row for several frames, or without a row for any frame.
    """
    rows = _read(place)
    keys = (name for name in KEYS if any(isinstance(row.get(name), str | int) for row in rows))
    if (key := next(keys, None)) is None:
        raise DataError(
            f"{place} has no column {', '.join(KEYS[:-1])} or {KEYS[-1]}; one of them names each row's image."
        )
    for i, row in enumerate(rows):
        if row.get(key) is None:
            raise DataError(f"Row {i + 1} of {place} has no {key}; it names the row's image.")
    found = _rows_of(place, [str(row[key]) for row in rows], key, names)
    if all(i is None for i in found):
        raise DataError(
            f"No row of {place} is of a scored frame: its {key} is such as {rows[0][key]}, a frame's id {names[0][0]}."
        )
    columns = dict.fromkeys(name for row in rows for name in row if name not in KEYS)
    table = {name: _column([row.get(name) for row in rows]) for name in columns}
    return {name: [None if i is None else values[i] for i in found] for name, values in table.items()}


def _rows_of(place: str, given: Sequence[str], key: str, names: Sequence[tuple[str, str]]) -> list[int | None]:
    """Return the position of each frame's row, None for a frame without one."""
    exact, by_name, by_end, by_last = (defaultdict[str, list[int]](list) for _ in range(4))
    for i, name in enumerate(given):
        exact[name].append(i)
        by_name[frame_name(name)].append(i)
        by_last[ends(frame_name(name))[-1]].append(i)
        for end in ends(frame_name(name)):
            by_end[end].append(i)
    folders = {storage.folder_of(name) for name in by_name} - {""}
    paths = [frame_name(image or sample_id) for sample_id, image in names]
    shared = shared_names(folders, map(storage.folder_of, paths))
    lasts = Counter(map(storage.name_of, paths))
    found: list[int | None] = []
    frame_of: dict[int, str] = {}
    for (sample_id, image), whole in zip(names, paths, strict=True):
        own, path, last = frame_name(sample_id), frame_name(image), storage.name_of(whole)
        same = by_last.get(last, [])
        alone = len(same) == lasts[last] == 1 and not is_elsewhere(whole, frame_name(given[same[0]]), shared)
        tails = sorted({*ends(own), *ends(path)} & by_name.keys(), key=len)
        if tails and own_folder(whole, folders) not in ("", storage.folder_of(tails[-1])):
            tails = []  # rows of another folder, while the frame's own folder has rows
        chosen = (
            exact.get(sample_id) or exact.get(image) or (by_name[tails[-1]] if tails else None) or by_end.get(own)
            or (same if alone else [])
        )  # fmt: skip
        if len(chosen) > 1:
            raise DataError(f"{place} has two rows for {last}; give the full {key}, such as {sample_id}.")
        found.append(chosen[0] if chosen else None)
        if chosen and frame_of.setdefault(chosen[0], sample_id) != sample_id:
            raise DataError(
                f"{place} has one row, {given[chosen[0]]}, for {frame_of[chosen[0]]} and {sample_id}; "
                f"give a row each, with the full {key}."
            )
    return found


def cities(sample_ids: Sequence[str]) -> Table:
    """Return the city of each frame, if all are named as in Cityscapes and there are several cities."""
    found = [one[1] for one in map(CITY.fullmatch, sample_ids) if one]
    return {"city": found} if len(found) == len(sample_ids) and len(set(found)) > 1 else {}


def scores(table: Table, rows: Sequence[metrics.Packed], classes: int) -> Conditions:
    """Map column → value → frames, mIoU and pixel accuracy of the frames with that value, by their summed confusion.

    rows: each frame's confusion matrix, as metrics.unpacked takes it.
    """
    result = {}
    for name, values in table.items():
        groups = _groups(values)
        if len(groups) <= MOST_VALUES:
            result[name] = {value: _scores([rows[i] for i in chosen], classes) for value, chosen in groups.items()}
    return result


def notes(table: Table) -> list[str]:
    """Say in sentences what scores() leaves out."""
    told = []
    frames = list(zip(*table.values(), strict=True))
    if unknown := sum(all(value is None for value in values) for values in frames):
        told.append(f"Frames of which no condition is known: {unknown} of {len(frames)}.")
    lacking = {name: values.count(None) - unknown for name, values in table.items()}
    if counts := [f"{name} {count}" for name, count in lacking.items() if 0 < count < len(frames) - unknown]:
        told.append(f"Frames left out of a condition, as they have no value there: {', '.join(counts)}.")
    if many := [name for name, values in table.items() if len(_groups(values)) > MOST_VALUES]:
        told.append(f"Conditions left out, as they have more than {MOST_VALUES} values: {', '.join(many)}.")
    return told


def _scores(rows: Sequence[metrics.Packed], classes: int) -> GroupScores:
    found = metrics.scores(metrics.unpacked(rows, classes)).to_dict()
    return {"frames": len(rows), "miou": found["miou"], "pixel_accuracy": found["pixel_accuracy"]}


def _groups(values: list[Any]) -> dict[str, list[int]]:
    """Group frames by value, in order; a column of many numbers by quartile."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        if value is not None:
            groups[value].append(i)
    if all(isinstance(value, int | float) for value in groups) and len(groups) > MOST_NUMBERS:
        return _quartiles(groups)
    return {str(value): groups[value] for value in sorted(groups)}


def _quartiles(groups: Mapping[float, list[int]]) -> dict[str, list[int]]:
    """Group frames by ranges of numbers, "low to high", with about a quarter of the frames each."""
    ordered = sorted(value for value, members in groups.items() for _ in members)
    highs = sorted({ordered[-(-len(ordered) * quarter // 4) - 1] for quarter in (1, 2, 3, 4)})
    ranges: dict[float, list[float]] = defaultdict(list)
    for value in sorted(groups):
        ranges[highs[bisect_left(highs, value)]].append(value)
    ends_of = sorted({end for values in ranges.values() for end in (values[0], values[-1])})
    text = next(texts for digits in range(4, 18) if len(set((texts := _texts(ends_of, digits)).values())) == len(texts))
    names = {high: " to ".join(dict.fromkeys((text[values[0]], text[high]))) for high, values in ranges.items()}
    return {names[high]: sorted(i for value in values for i in groups[value]) for high, values in ranges.items()}


def _texts(numbers: Sequence[float], digits: int) -> dict[float, str]:
    return {number: str(number) if isinstance(number, int) else f"{number:.{digits}g}" for number in numbers}


def _read(place: str) -> list[dict[str, Any]]:
    uri, name = storage.absolute(place), place.lower()
    try:
        if name.endswith(".parquet"):
            found: list[dict[str, Any]] = pq.read_table(pa.BufferReader(storage.read_bytes(uri))).to_pylist()
            return found
        text = read_text(uri)
        if name.endswith((".jsonl", ".ndjson")):
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
            if wrong := [row for row in rows if not isinstance(row, dict)]:
                raise DataError(f"{place} has the row {json.dumps(wrong[0])[:40]}; a row is an object of columns.")
            return rows
        if name.endswith(".csv"):
            table = open_table(text)
            check_columns(table.fieldnames or (), place)
            return [{name: _Cell(value) for name, value in row.items() if name and value} for row in table]
    except (ValueError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"{place} cannot be read: {storage.reason(error)}.") from None
    raise DataError(f"{place} ends in none of .csv, .jsonl, .parquet; give such a table.")


class _Cell(str):
    """A cell of a CSV file, which may be a number."""


def _column(values: list[Any]) -> list[Any]:
    """Convert cells to one kind, None for empty ones: numbers, booleans, or texts."""
    cells = [_cell(value) for value in values]
    numbers = [None if isinstance(cell, str) and cell.lower() in NO_NUMBER else cell for cell in cells]
    if all(map(_is_number, there := [cell for cell in numbers if cell is not None])) and there:
        cells = [_number(cell) if isinstance(cell, _Cell) else cell for cell in numbers]
    kinds = {type(cell) for cell in cells if cell is not None}
    large = any(isinstance(cell, int) and not -(2**63) <= cell < 2**63 for cell in cells)
    if kinds == {int, float} or (kinds == {int} and large):
        return [None if cell is None else float(cell) for cell in cells]
    if kinds <= {int} or kinds <= {float} or kinds <= {bool}:
        return cells
    return [None if cell is None else str(cell) for cell in cells]


def _cell(value: Any) -> Any:
    """Return None for a missing value, and a list, a date or the like as text."""
    if isinstance(value, _Cell):
        text = value.strip()
        return _Cell(text) if text and text.lower() != "nan" else None
    if isinstance(value, Decimal):
        value = float(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, list | dict):
        return json.dumps(value, default=str)
    if isinstance(value, int) and abs(value) >= 10**MOST_DIGITS:
        return str(value)
    return value if isinstance(value, bool | int | float) else str(value)


def _is_number(cell: Any) -> bool:
    if isinstance(cell, _Cell):
        return len(cell) <= MOST_DIGITS and NUMBER.fullmatch(cell) is not None
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _number(text: str) -> float:
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
