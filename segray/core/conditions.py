"""A table about images (city, weather, camera, …) → scores of the frames that share a value."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.core import metrics, storage
from segray.core.datasets.pairs import pair_key, read_text
from segray.core.images import IMAGE_SUFFIXES
from segray.errors import DataError

KEYS = ("image", "file_name", "sample_id")
MOST_VALUES = 50  # a text column with more is a name or a time, and no condition
MOST_NUMBERS = 8  # a column with more different numbers is cut into quartiles
NUMBER = re.compile(r"[+-]?(?=\.?\d)(0|[1-9]\d*)?(\.\d*)?(e[+-]\d+)?")  # as programs write them
CITY = re.compile(r"(?:.*/)?([a-z-]+)_\d{6}_\d{6}")  # cityscapesScripts' names: city, sequence, frame

Table = dict[str, list[Any]]


def read_table(place: str, names: Sequence[tuple[str, str]]) -> Table:
    """The table's columns, each with a value a frame, None where the table has no row for it.

    names: (sample id, place of the image) of each frame. A row's key is a full id or path, a file name, or its stem.
    Raises DataError for a table without a key, with two rows of one name, or without a row for any frame.
    """
    rows = _read(place)
    key = next((name for name in KEYS if rows and name in rows[0]), None)
    if key is None:
        raise DataError(
            f"{place} has no column {', '.join(KEYS[:-1])} or {KEYS[-1]}; one of them names each row's image."
        )
    full = {str(row[key]): row for row in rows}
    short: dict[str, dict[str, Any] | None] = {}
    for row in rows:
        name = _short(str(row[key]))
        short[name] = None if name in short else row

    def row_of(sample_id: str, image: str) -> dict[str, Any]:
        name = _short(image or sample_id)
        found = full.get(sample_id) or full.get(image) or short.get(name, {})
        if found is None:
            raise DataError(f"{place} has two rows for {name}; give the full {key}, such as {sample_id}.")
        return found

    found = [row_of(*one) for one in names]
    if not any(found):
        raise DataError(
            f"No row of {place} is of a scored frame: its {key} is such as {rows[0][key]}, a frame's id {names[0][0]}."
        )
    return {name: [row.get(name) for row in found] for name in rows[0] if name not in KEYS}


def cities(sample_ids: Sequence[str]) -> Table:
    """The city of each frame, where all are named as in Cityscapes and are of several."""
    found = [CITY.fullmatch(one) for one in sample_ids]
    return {"city": [one[1] for one in found]} if all(found) and len({one[1] for one in found}) > 1 else {}


def scores(table: Table, rows: Sequence[dict[str, Any]], classes: int) -> dict[str, dict[str, dict[str, Any]]]:
    """Column → value → frames, mIoU and pixel accuracy of the frames that have it, by their summed confusion.

    rows: of each frame its matrix, as metrics.unpacked takes it.
    """
    result = {}
    for name, values in table.items():
        groups = _groups(values)
        if len(groups) <= MOST_VALUES:
            result[name] = {value: _scores([rows[i] for i in chosen], classes) for value, chosen in groups.items()}
    return result


def _scores(rows: list[dict[str, Any]], classes: int) -> dict[str, Any]:
    found = metrics.scores(metrics.unpacked(rows, classes)).to_dict()
    return {"frames": len(rows), "miou": found["miou"], "pixel_accuracy": found["pixel_accuracy"]}


def _groups(values: list[Any]) -> dict[str, list[int]]:
    """Value → the frames that have it, by value; numbers of many values by quartile."""
    there = [i for i, value in enumerate(values) if value is not None]
    kinds = {value for value in values if value is not None}
    if all(isinstance(value, int | float) for value in kinds) and len(kinds) > MOST_NUMBERS:
        edges = np.quantile([values[i] for i in there], [0, 0.25, 0.5, 0.75, 1])
        place = np.clip(np.searchsorted(edges, [values[i] for i in there], side="left") - 1, 0, 3)
        names = [f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges)]
        quarters = {name: [i for i, p in zip(there, place, strict=True) if p == q] for q, name in enumerate(names)}
        return {name: members for name, members in quarters.items() if members}
    groups: dict[Any, list[int]] = {}
    for i in there:
        groups.setdefault(values[i], []).append(i)
    return {str(value): groups[value] for value in sorted(groups, key=lambda v: (isinstance(v, str), v))}


def _short(name: str) -> str:
    last = storage.name_of(name)
    stem, dot, suffix = last.rpartition(".")
    return pair_key(stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else last)


def _read(place: str) -> list[dict[str, Any]]:
    uri = storage.absolute(place)
    try:
        if place.endswith(".parquet"):
            return pq.read_table(pa.BufferReader(storage.read_bytes(uri))).to_pylist()
        text = read_text(uri)
        if place.endswith((".jsonl", ".ndjson")):
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        if place.endswith(".csv"):
            rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
            return [{name: _number(value) for name, value in row.items() if name} for row in rows]
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"{place} cannot be read: {storage.reason(error)}.") from None
    raise DataError(f"{place} ends in none of .csv, .jsonl, .parquet; give such a table.")


def _number(text: Any) -> Any:
    """A CSV cell: empty is None, a number is one; a name such as CamVid's 0016E5 or 007 is none."""
    if not isinstance(text, str) or not text.strip():
        return None
    if not NUMBER.fullmatch(text.strip()):
        return text.strip()
    value = float(text)
    return int(value) if value.is_integer() else value
