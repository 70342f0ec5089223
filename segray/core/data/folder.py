"""Any folder of images and masks with a list of classes.

root/classes.csv            name[,id][,r,g,b][,scored], with that header; id is what masks hold, by default the row;
                            scored: no makes the id void, and so does a name of VOID_NAMES where nothing is said
root/classes.yaml           or, with data.classes: a list of names, or of {name, id, color: [r, g, b], scored}
root/images/train/…         or root/images/… without splits: then a share goes to val, by name
root/train.txt, val.txt     or these: a frame a line
root/masks/train/…          the same paths, as PNGs of class ids (grey or palette; 255 is void) or of the colours
"""

from __future__ import annotations

import colorsys
import csv
import io
from typing import Any

import yaml

from segray.core.io import storage
from segray.core.io.pairing import check_root, find_images, pair_found, split_by_lists
from segray.core.io.texts import check_columns, read_text
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace, color_id
from segray.errors import DataError
from segray.sections.training import DataSection

VOID_NAMES = frozenset({"void", "ignore", "ignored", "unlabeled", "unlabelled", "dontcare"})
COLUMNS = ("name", "id", "r", "g", "b", "scored")
KEYS = ("name", "id", "color", "scored")
SCORED = {"": None, "yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


def open_dataset(config: DataSection) -> Dataset:
    """Split by lists at the root, or by folders below images/ and masks/, or else by the hashes of names."""
    root = check_root(config.root, "images/, masks/ and classes.csv")
    space, notes = read_classes(storage.join(root, config.classes))
    images, masks = (find_images(storage.join(root, name)) for name in (config.images, config.masks))
    refs, unpaired = pair_found(images, masks)
    if not refs and not unpaired:
        raise DataError(f"{root} holds no images in {config.images}/ and masks in {config.masks}/.")
    splits, told = split_by_lists(root, refs, images, config)
    return Dataset("folder", space, splits, tuple(unpaired), notes + told)


def read_classes(uri: str) -> tuple[LabelSpace, tuple[str, ...]]:
    """Read classes.csv or .yaml: the label space and notes. DataError says what is wrong with the file."""
    text = read_text(uri)
    is_yaml = uri.endswith((".yaml", ".yml"))
    rows, unread = _yaml(text, uri) if is_yaml else _csv(text, uri)
    try:
        ids = [i if row.get("id") in (None, "") else _whole(row["id"]) for i, row in enumerate(rows)]
        given = [_color(row) for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(f"{uri}: {error}; id, r, g and b are whole numbers from 0 to 255.") from None
    names = [str(row["name"] or "").strip() for row in rows]
    if "" in names or len(set(names)) < len(names):
        raise DataError(f"{uri}: every class needs a name of its own.")
    scored = [_scored(row, name, uri) for row, name in zip(rows, names, strict=True)]
    kept = [i for i, name in enumerate(names) if (not is_void(name) if scored[i] is None else scored[i])]
    if len(set(ids)) < len(ids) or not all(0 <= i < IGNORE_INDEX + (at not in kept) for at, i in enumerate(ids)):
        raise DataError(f"{uri}: ids must differ and lie in 0 to {IGNORE_INDEX - 1}; 255 is void.")
    label_of = {row: label for label, row in enumerate(kept)}
    id_map = {raw: label_of.get(row, IGNORE_INDEX) for row, raw in enumerate(ids)} | {IGNORE_INDEX: IGNORE_INDEX}
    # A colour that two rows share is unknown in masks, as it could be either.
    single = {color_id(*color): row for row, color in enumerate(given) if color and given.count(color) == 1}
    id_map |= {raw: label_of.get(row, IGNORE_INDEX) for raw, row in single.items()}
    if not kept:
        raise DataError(f"{uri}: every class is void; give one that is scored.")
    space = LabelSpace(
        tuple(names[i] for i in kept),
        tuple(given[i] or hue(label, len(kept)) for i, label in label_of.items()),
        id_map,
    )
    void = [f"{name} (id {ids[row]})" for row, name in enumerate(names) if row not in kept and scored[row] is None]
    notes = []
    if void:
        notes.append(f"{uri}: void by name: {', '.join(void)}; a column `scored` with yes keeps such a class")
    if unread:
        read = ", ".join(KEYS if is_yaml else COLUMNS)
        notes.append(f"{uri}: not read: {', '.join(unread)}; what is read is called {read}")
    return space, tuple(notes)


def is_void(name: str) -> bool:
    """Say whether a class of this name means void: pixels that nobody drew or judged.

    >>> is_void("Don't care"), is_void("avoid")
    (True, False)
    """
    return "".join(sign for sign in name.lower() if sign.isalpha()) in VOID_NAMES


def _scored(row: dict[str, Any], name: str, uri: str) -> bool | None:
    """Return what the row itself says; None where it says nothing."""
    given = str("" if row.get("scored") is None else row["scored"]).strip().lower()
    if given not in SCORED:
        raise DataError(f"{uri}: scored is {given!r} for {name}; write yes or no.")
    return SCORED[given]


def _csv(text: str, uri: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Read rows, and the columns that are ignored; capitals and spaces in the header do not matter."""
    table = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    try:
        table.fieldnames = names = [name.strip().lower() for name in table.fieldnames or ()]
        check_columns(names, uri)
        rows = list(table)
    except csv.Error as error:
        raise DataError(f"{uri} is no table: {error}.") from None
    if not rows or "name" not in rows[0]:
        raise DataError(f"{uri} needs a header line with `name`, and optionally id,r,g,b; then a line a class.")
    rows = [row | {"color": color if any(color := [row.get(c) for c in "rgb"]) else None} for row in rows]
    return rows, [name for name in names if name and name not in COLUMNS]


def _yaml(text: str, uri: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Read rows, and the keys that are ignored, as for a CSV."""
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{uri} is not valid YAML: {str(error).splitlines()[0]}.") from None
    rows = [row if isinstance(row, dict) else {"name": row} for row in rows] if isinstance(rows, list) else []
    rows = [{str(key).lower(): value for key, value in row.items()} for row in rows]
    if not rows or not all("name" in row for row in rows):
        raise DataError(f"{uri} must be a list of class names, or of {{name, id, color: [r, g, b]}}.")
    return rows, list(dict.fromkeys(key for row in rows for key in row if key not in KEYS))


def _whole(value: Any) -> int:
    """Read a whole number as tables write it; ValueError for 1.7, and for yes, which YAML takes for true."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{str(value).lower()} is not whole")
    return int(value)


def _color(row: dict[str, Any]) -> tuple[int, int, int] | None:
    if row.get("color") is None:
        return None
    red, green, blue = map(_whole, row["color"])
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise ValueError(f"colour {red},{green},{blue}")
    return red, green, blue


def hue(index: int, count: int) -> tuple[int, int, int]:
    """Return the colour of a class that was given none."""
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(index / count, 0.65, 0.9))
    return red, green, blue
