"""Files that list classes → a label space: segray's own, and those that other tools and data sets have.

classes.csv, class_dict.csv   name[,id][,r,g,b][,scored], with that header, or red, green and blue; id is what masks
                              hold, by default the row; scored: no makes the id void, and so does a name of VOID_NAMES
                              where nothing is said
classes.yaml                  a list of names, or of {name, id, color: [r, g, b], scored}
labelmap.txt                  CVAT's, a line a class: name:r,g,b:parts:actions
label_colors.txt              CamVid's, a line a class: r g b, then the name
config.json                   Mapillary Vistas': {"labels": [{"name", "color", "evaluate"}, …]}, ids in that order
classes.txt, codes.txt        a name a line, ids in that order; behind a first __ignore__ from 0 on, as Labelme has it
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from segray.core.data.class_names import colored
from segray.core.io import storage
from segray.core.io.texts import check_columns, open_table, read_text
from segray.core.samples import IGNORE_INDEX, LabelSpace, color_id
from segray.errors import DataError

VOID_NAMES = frozenset({"void", "ignore", "ignored", "unlabeled", "unlabelled", "dontcare"})
IGNORED = "__ignore__"
COLUMNS = ("name", "id", "r", "g", "b", "scored")
CHANNELS = {"red": "r", "green": "g", "blue": "b"}  # as some write them
KEYS = ("name", "id", "color", "scored")
SCORED = {"": None, "yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
FILES = (
    *("classes.csv", "classes.yaml", "classes.yml", "class_dict.csv", "labelmap.txt", "label_colors.txt"),
    *("config.json", "classes.txt", "codes.txt"),
)
Rows = tuple[list[dict[str, Any]], list[str]]  # rows, and the columns or keys that are not read


def class_file(root: str) -> str | None:
    """Return the first file of FILES that is in this folder; None where there is none."""
    there = (uri for name in FILES if storage.exists(uri := storage.join(root, name)))
    return next((uri for uri in there if not uri.endswith(".json") or '"labels"' in read_text(uri)), None)


def read_classes(uri: str) -> tuple[LabelSpace, tuple[str, ...]]:
    """Read one of FILES, or a file of another name by its suffix: the label space and notes. DataError says what is
    wrong with it.
    """
    rows, unread = _reader(uri)(read_text(uri), uri)
    ids, given = [], []
    for at, row in enumerate(rows):
        try:
            ids.append(at if row.get("id") in (None, "") else _whole(row["id"]))
            given.append(_color(row))
        except (TypeError, ValueError) as error:
            rule = "id, r, g and b are whole numbers from 0 to 255."
            raise DataError(f"{uri} {_place(rows, at)}: {error}; {rule}") from None
    names = [str(row["name"] or "").strip() for row in rows]
    if "" in names:
        raise DataError(f"{uri} {_place(rows, names.index(''))}: every class needs a name.")
    _check_differ(rows, names, "name", uri)
    _check_differ(rows, ids, "id", uri)
    scored = [_scored(row, name, uri) for row, name in zip(rows, names, strict=True)]
    kept = [i for i, name in enumerate(names) if (not is_void(name) if scored[i] is None else scored[i])]
    if outside := [at for at, i in enumerate(ids) if not 0 <= i < IGNORE_INDEX + (at not in kept)]:
        raise DataError(
            f"{uri} {_place(rows, outside[0])}: the id of {names[outside[0]]} is {ids[outside[0]]}; ids are 0 to "
            f"{IGNORE_INDEX - 1}, and 255 is void."
        )
    label_of = {row: label for label, row in enumerate(kept)}
    id_map = {raw: label_of.get(row, IGNORE_INDEX) for row, raw in enumerate(ids)} | {IGNORE_INDEX: IGNORE_INDEX}
    # A colour that two rows share is unknown in masks, as it could be either.
    single = {color_id(*color): row for row, color in enumerate(given) if color and given.count(color) == 1}
    id_map |= {raw: label_of.get(row, IGNORE_INDEX) for raw, row in single.items()}
    if not kept:
        raise DataError(f"{uri}: every class is void; give one that is scored.")
    scored_names = tuple(names[i] for i in kept)
    space = LabelSpace(scored_names, colored(scored_names, [given[i] for i in kept]), id_map)
    void = [f"{name} (id {ids[row]})" for row, name in enumerate(names) if row not in kept and scored[row] is None]
    notes = []
    if storage.name_of(uri) == "labelmap.txt" and "background" in scored_names:
        notes.append(
            f"{uri}: background is a class; where CVAT wrote it for what nobody drew, --set "
            "'data.class_map={background: null}' makes it void, as segray data convert does"
        )
    if void:
        notes.append(f"{uri}: void by name: {', '.join(void)}; a column `scored` with yes keeps such a class")
    if unread:
        read = ", ".join(KEYS if uri.endswith((".yaml", ".yml")) else COLUMNS)
        notes.append(f"{uri}: not read: {', '.join(unread)}; what is read is called {read}")
    return space, tuple(notes)


def is_void(name: str) -> bool:
    """Say whether a class of this name means void: pixels that nobody drew or judged.

    >>> is_void("Don't care"), is_void("avoid")
    (True, False)
    """
    return "".join(sign for sign in name.lower() if sign.isalpha()) in VOID_NAMES


def _place(rows: list[dict[str, Any]], at: int) -> str:
    """Say where in its file a class is."""
    return f"line {rows[at]['line']}" if "line" in rows[at] else f"class {at + 1}"


def _check_differ(rows: list[dict[str, Any]], values: Sequence[Any], what: str, uri: str) -> None:
    """Raise DataError that names the first two classes with the same value."""
    first: dict[Any, int] = {}
    for at, value in enumerate(values):
        if first.setdefault(value, at) != at:
            places = f"{_place(rows, first[value])} and {_place(rows, at)}"
            raise DataError(f"{uri}: {places} have the same {what}, {value}; every class needs its own.")


def _scored(row: dict[str, Any], name: str, uri: str) -> bool | None:
    """Return what the row itself says; None where it says nothing."""
    given = str("" if row.get("scored") is None else row["scored"]).strip().lower()
    if given not in SCORED:
        raise DataError(f"{uri}: scored is {given!r} for {name}; write yes or no.")
    return SCORED[given]


def _reader(uri: str) -> Callable[[str, str], Rows]:
    by_name = {"labelmap.txt": _cvat, "label_colors.txt": _camvid}
    by_suffix = {"csv": _csv, "yaml": _yaml, "yml": _yaml, "json": _mapillary, "txt": _names}
    name = storage.name_of(uri)
    reader = by_name.get(name) or by_suffix.get(name.rpartition(".")[2].lower())
    if reader is None:
        raise DataError(f"{uri} is no list of classes by its name; give a .csv, .yaml, .json or .txt.")
    return reader


def _csv(text: str, uri: str) -> Rows:
    """Read rows, and the columns that are ignored; capitals and spaces in the header do not matter."""
    table = open_table(text)
    try:
        names = [name.strip().lower() for name in table.fieldnames or ()]
        table.fieldnames = names = [CHANNELS.get(name, name) for name in names]
        check_columns(names, uri)
        rows = [row | {"line": table.line_num} for row in table]
    except csv.Error as error:
        raise DataError(f"{uri} is no table: {error}.") from None
    if not rows or "name" not in rows[0]:
        raise DataError(f"{uri} needs a header line with `name`, and optionally id,r,g,b; then a line a class.")
    rows = [row | {"color": color if any(color := [row.get(c) for c in "rgb"]) else None} for row in rows]
    return rows, [name for name in names if name and name not in COLUMNS]


def _yaml(text: str, uri: str) -> Rows:
    """Read rows, and the keys that are ignored, as for a CSV."""
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{uri} is not valid YAML: {str(error).splitlines()[0]}.") from None
    rows = [row if isinstance(row, dict) else {"name": row} for row in rows] if isinstance(rows, list) else []
    rows = [{str(key).lower(): value for key, value in row.items()} for row in rows]
    if not rows or not all("name" in row for row in rows):
        raise DataError(f"{uri} must be a list of class names, or of {{name, id, color: [r, g, b]}}.")
    unread = list(dict.fromkeys(key for row in rows for key in row if key not in KEYS))
    return [{key: row[key] for key in KEYS if key in row} for row in rows], unread


def _cvat(text: str, uri: str) -> Rows:
    """Read CVAT's labelmap.txt, as "Segmentation mask 1.1" has it; its comments begin with #."""
    rows = []
    for number, line in _lines(text):
        name, _, rest = line.partition(":")
        color = [part.strip() for part in rest.partition(":")[0].split(",")]
        if len(color) not in (1, 3):
            raise DataError(f"{uri} line {number} is {line!r}; CVAT writes name:r,g,b:parts:actions.")
        rows.append({"name": name, "color": color if len(color) == 3 else None, "line": number})
    return _some(rows, uri), []


def _camvid(text: str, uri: str) -> Rows:
    rows = []
    for number, line in _lines(text):
        parts = line.split(None, 3)
        if len(parts) != 4:
            raise DataError(f"{uri} line {number} is {line!r}; a line is r g b name.")
        rows.append({"name": parts[3], "color": parts[:3], "line": number})
    return _some(rows, uri), []


def _names(text: str, uri: str) -> Rows:
    """Read a name a line; behind a first __ignore__ ids begin with 0, as in the masks that Labelme writes."""
    rows: list[dict[str, Any]] = [{"name": line, "line": number} for number, line in _lines(text)]
    if rows and rows[0]["name"] == IGNORED:
        rows = [row | {"id": at - 1 if at else IGNORE_INDEX} for at, row in enumerate(rows)]
    return _some(rows, uri), []


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Give the lines that are neither empty nor comments, with their numbers."""
    for number, line in enumerate(text.splitlines(), 1):
        if (line := line.strip()) and not line.startswith("#"):
            yield number, line


def _some(rows: list[dict[str, Any]], uri: str) -> list[dict[str, Any]]:
    if not rows:
        raise DataError(f"{uri} lists no class; give it a line a class.")
    return rows


def _mapillary(text: str, uri: str) -> Rows:
    """Read Mapillary Vistas' config.json: the ids of its label masks are positions in its list."""
    try:
        labels = json.loads(text)["labels"]
        rows = [
            {
                "name": row["name"],
                "color": row.get("color"),
                "scored": {True: "yes", False: "no"}.get(row.get("evaluate")),
            }
            for row in labels
        ]
    except (ValueError, LookupError, TypeError, AttributeError):
        raise DataError(
            f"{uri} is no list of classes: it needs labels, each with name, color and evaluate. Name the file that "
            "lists them: --set data.classes=FILE."
        ) from None
    return _some(rows, uri), []


def _whole(value: Any) -> int:
    """Read a whole number as tables write it; ValueError for 1.7, and for yes, which YAML takes for true."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{str(value).lower()} is not whole")
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(f"{value or ''!r} is no number") from None


def _color(row: dict[str, Any]) -> tuple[int, int, int] | None:
    if row.get("color") is None:
        return None
    red, green, blue = map(_whole, row["color"])
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise ValueError(f"colour {red},{green},{blue}")
    return red, green, blue
