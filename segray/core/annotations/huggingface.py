"""Hugging Face datasets in Parquet: a column of images and one of masks, `struct<bytes, path>` each.

Names of the classes are those of id2label.json beside the files (as segray exports them, and transformers wants them),
else those of the only ClassLabel that is not a column of its own, else ids or colours as they are found in the masks.
Splits are those of the files' names, as load_dataset finds them: train-00000-of-00002.parquet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from segray.core.annotations.frames import Annotations, Class, Drawn, Frame, Source, check_count, split_of
from segray.core.annotations.painting import UNREADABLE, drawn_ids
from segray.core.io import parquet, storage
from segray.core.io.images import IMAGE_SUFFIXES, kind
from segray.core.io.masks import decode_mask, palette_of
from segray.core.samples import COLOR, IGNORE_INDEX, id_text
from segray.errors import DataError

ID2LABEL = "id2label.json"
MASKS = ("mask", "masks", "label", "labels", "annotation", "segmentation_mask", "semantic_segmentation", "segmentation")
IMAGES = ("image", "images", "pixel_values", "img")
ROWS = 16  # in memory at once
NO_NAMES = (
    "No names of classes are in the files: classes are called by the ids or colours found. Rename them in classes.csv"
)


def read(source: Source) -> Annotations:
    """Read every Parquet file. Without names, the masks are decoded once more, for the ids in them."""
    if source.files.zip is not None:
        raise DataError(f"{source.files.uri} is a zip; unpack it to read its Parquet files.")
    files = source.named(".parquet")
    columns = _columns(source.files.place(files[0]))
    splits = {name: split_of(name) for name in files}
    if len(set(splits.values())) == 1:
        splits = dict.fromkeys(splits, None)
    total = 0
    for name in files:
        with parquet.opened(source.files.place(name)) as file:
            total += file.metadata.num_rows
    names, notes = _names(source, files[0]), []
    if names is None:
        found, colors = _found(source, files, columns[1])
        names = {raw: f"class {raw}" if raw < COLOR else id_text(raw) for raw in sorted(found - {IGNORE_INDEX})}
        notes.append(NO_NAMES)
    else:
        colors = _palette(source, files[0], columns[1])
    classes = tuple(Class(name, colors.get(raw)) for raw, name in names.items())
    label_of = {raw: i for i, raw in enumerate(names)}
    frames = _frames(source, splits, columns, label_of)
    return Annotations(check_count(classes, source.files.uri), frames, total, source.problems, tuple(notes))


def _columns(place: str) -> tuple[str, str]:
    """Return the columns of images and of masks: those with image structs, by their names."""
    with parquet.opened(place) as file:
        schema = file.schema_arrow
    images = [
        field.name
        for field in schema
        if str(field.type).startswith("struct<") and {"bytes", "path"} <= {one.name for one in field.type}
    ]
    mask = next((name for name in MASKS if name in images), None)
    image = next((name for name in IMAGES if name in images), None)
    if len(images) == 2:
        mask = mask or next((name for name in images if name != image), None) if image else mask
        image = image or next((name for name in images if name != mask), None) if mask else image
    if mask is None or image is None:
        raise DataError(
            f"{place} has {len(images)} columns of images ({', '.join(images) or 'none'}); which is the mask is not "
            f"known. Call them image and mask: datasets.load_dataset(…).rename_column(…)."
        )
    return image, mask


def _names(source: Source, first: str) -> dict[int, str] | None:
    """Return the name of each id, in order; None where the files have none."""
    beside = [name for name in source.files.names if storage.name_of(name) == ID2LABEL]
    if beside:
        try:
            given = source.files.json(beside[0])
            names = {int(raw): str(name) for raw, name in given.items()}
        except UNREADABLE:
            raise DataError(
                f'{source.files.place(beside[0])} must map ids to names, such as {{"0": "road"}}.'
            ) from None
        return dict(sorted(names.items()))
    with parquet.opened(source.files.place(first)) as file:
        told = (file.schema_arrow.metadata or {}).get(b"huggingface", b"{}")
        columns = set(file.schema_arrow.names)
    try:
        features = json.loads(told).get("info", {}).get("features", {})
    except UNREADABLE:
        return None
    lists = [
        found for name, one in features.items() if not (name in columns and _is_label(one)) for found in _labels(one)
    ]
    return dict(enumerate(map(str, lists[0]))) if len(lists) == 1 else None


def _is_label(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel"


def _labels(feature: Any) -> Iterator[list[Any]]:
    """Give the names of every ClassLabel in a feature."""
    if _is_label(feature) and isinstance(feature.get("names"), list):
        yield feature["names"]
    elif isinstance(feature, dict | list):
        for one in feature.values() if isinstance(feature, dict) else feature:
            yield from _labels(one)


def _rows(source: Source, name: str, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for batch in parquet.batches(source.files.place(name), ROWS, columns):
        yield from batch.to_pylist()


def _found(source: Source, files: list[str], mask: str) -> tuple[set[int], dict[int, tuple[int, int, int]]]:
    """Return the ids of all masks and their colours in palettes."""
    found: set[int] = set()
    colors: dict[int, tuple[int, int, int]] = {}
    for name in files:
        for row in _rows(source, name, (mask,)):
            data = (row[mask] or {}).get("bytes")
            try:
                found.update(np.unique(decode_mask(data, name)).tolist() if data else ())
                colors |= palette_of(data, name) if data and not colors else {}
            except DataError:
                continue  # said where it is drawn
            if len(found) > IGNORE_INDEX + 1:
                raise DataError(
                    f"{source.files.uri} has more than {IGNORE_INDEX} ids in its masks, which are no classes."
                )
    colors |= {raw: (raw >> 16 & 255, raw >> 8 & 255, raw & 255) for raw in found if raw >= COLOR}
    return found, colors


def _palette(source: Source, name: str, mask: str) -> dict[int, tuple[int, int, int]]:
    """Return the colours of the first mask's palette."""
    for row in _rows(source, name, (mask,)):
        try:
            return palette_of(row[mask]["bytes"], name)
        except (DataError, *UNREADABLE):
            return {}
    return {}


def _frames(
    source: Source, splits: dict[str, str | None], columns: tuple[str, str], label_of: dict[int, int]
) -> Iterator[Frame]:
    image, _ = columns
    number = 0
    for file, split in splits.items():
        for row in _rows(source, file, columns):
            number += 1
            which = f"row {number} of {source.files.uri}"
            picture, drawn = ((row[key] or {}).get("bytes") for key in columns)
            if not picture or not drawn:
                source.problems.add("Rows without the bytes of an image and a mask, left out", which)
                continue
            name = _name(str((row[image] or {}).get("path") or ""), picture, number)
            if name is None:
                source.problems.add("Rows whose image is none, left out", which)
                continue
            draw = partial(_draw, drawn, which, label_of)
            yield Frame(name, draw, split=split, picture=partial(bytes, picture))


def _name(path: str, data: bytes, number: int) -> str | None:
    """Return a path for an image that cannot leave the folder that it is put into; None for what is no image."""
    steps = [part for part in path.replace("\\", "/").split("/") if part.strip(".") and ":" not in part]
    if steps and not path.startswith("/") and f".{path.rpartition('.')[2].lower()}" in IMAGE_SUFFIXES:
        return "/".join(steps)
    try:
        suffix = kind(data)
    except DataError:
        return None
    return f"{storage.stem_of(steps[-1]) if steps else f'{number:06}'}.{suffix}"


def _draw(data: bytes, which: str, label_of: dict[int, int], height: int, width: int) -> Drawn:
    unknown = "Ids that have no name, void"
    return drawn_ids(data, f"the mask of {which}", label_of, unknown, height, width, {IGNORE_INDEX})
