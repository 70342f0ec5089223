"""Any folder of images and masks with a list of classes.

root/classes.csv            name[,id][,r,g,b], with that header; id is what masks hold, by default the row
root/classes.yaml           or, with data.classes: a list of names, or of {name, id, color: [r, g, b]}
root/images/train/…         or root/images/… without splits: then a share goes to val, by name
root/masks/train/…          the same paths, as PNGs of class ids (grey or palette; 255 is void) or of the colours
"""

from __future__ import annotations

import colorsys
import csv
import io
from typing import Any

import yaml

from segray.config import DataSection
from segray.core import storage
from segray.core.datasets.pairs import check_root, pair, read_text, split
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace, color_id
from segray.errors import DataError


def open_dataset(config: DataSection) -> Dataset:
    """Splits as folders below images/ and masks/, or else one folder, shared out by the names' hashes."""
    root = check_root(config.root, "images/, masks/ and classes.csv")
    space = read_classes(storage.join(root, config.classes))
    refs, unpaired = pair(storage.join(root, config.images), storage.join(root, config.masks))
    if not refs and not unpaired:
        raise DataError(f"{root} holds no images in {config.images}/ and masks in {config.masks}/.")
    return Dataset("folder", space, split(refs, config), tuple(unpaired))


def read_classes(uri: str) -> LabelSpace:
    """classes.csv or .yaml → label space. DataError says what is wrong with it."""
    text = read_text(uri)
    rows = _yaml(text, uri) if uri.endswith((".yaml", ".yml")) else _csv(text, uri)
    try:
        ids = [int(i if row.get("id") in (None, "") else row["id"]) for i, row in enumerate(rows)]
        given = [_color(row) for row in rows]
    except (TypeError, ValueError) as error:
        raise DataError(f"{uri}: {error}; id, r, g and b are whole numbers from 0 to 255.") from None
    if len(set(ids)) < len(ids) or not all(0 <= i < IGNORE_INDEX for i in ids):
        raise DataError(f"{uri}: ids must differ and lie in 0 to {IGNORE_INDEX - 1}; 255 is void.")
    names = tuple(str(row["name"] or "").strip() for row in rows)
    if "" in names or len(set(names)) < len(names):
        raise DataError(f"{uri}: every class needs a name of its own.")
    id_map = {raw: label for label, raw in enumerate(ids)} | {IGNORE_INDEX: IGNORE_INDEX}
    # A colour that two classes share is unknown in masks, as it could be either.
    id_map |= {color_id(*color): i for i, color in enumerate(given) if color is not None and given.count(color) == 1}
    colors = [color or _hue(i, len(rows)) for i, color in enumerate(given)]
    return LabelSpace(names, tuple(colors), id_map)


def _csv(text: str, uri: str) -> list[dict[str, Any]]:
    rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    if not rows or "name" not in rows[0]:
        raise DataError(f"{uri} needs a header line with `name`, and optionally id,r,g,b; then a line a class.")
    return [row | {"color": [row[c] for c in "rgb"] if row.get("r") else None} for row in rows]


def _yaml(text: str, uri: str) -> list[dict[str, Any]]:
    try:
        rows = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{uri} is not valid YAML: {str(error).splitlines()[0]}.") from None
    rows = [row if isinstance(row, dict) else {"name": row} for row in rows] if isinstance(rows, list) else []
    if not rows or not all("name" in row for row in rows):
        raise DataError(f"{uri} must be a list of class names, or of {{name, id, color: [r, g, b]}}.")
    return rows


def _color(row: dict[str, Any]) -> tuple[int, int, int] | None:
    if row.get("color") is None:
        return None
    red, green, blue = (int(channel) for channel in row["color"])
    if not all(0 <= channel <= 255 for channel in (red, green, blue)):
        raise ValueError(f"colour {red},{green},{blue}")
    return red, green, blue


def _hue(index: int, count: int) -> tuple[int, int, int]:
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(index / count, 0.65, 0.9))
