"""COCO: instances as polygons or run lengths in a JSON, and panoptic PNGs with theirs (cocodataset.org, "Data format").

Objects have no order: the largest is drawn first, so that small ones stay visible. An annotation of a crowd is one of
its class. Polygons are filled by pycocotools.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from segray.core.annotations.frames import (
    Annotations,
    Class,
    Drawn,
    Frame,
    Images,
    Problems,
    Source,
    check_count,
    color_of,
    split_of,
)
from segray.core.annotations.painting import (
    UNREAD,
    UNREADABLE,
    Say,
    Shape,
    canvas,
    checked,
    counts_of,
    fill,
    largest_first,
    paint,
)
from segray.core.io import storage
from segray.core.io.masks import decode_mask
from segray.core.samples import COLOR
from segray.errors import ConfigError, DataError

OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_")  # of COCO's own archive, beside the instances
BOXES = "Annotations without a segmentation (boxes alone), left out"
SHARED = "Images with the id of another one, whose annotations cannot be told apart, left out"
UNKNOWN = "Annotations with a category id that is not in the file, left out"


def is_coco(data: Any) -> bool:
    lists = (
        ("images", "categories")
        if isinstance(data, dict) and "annotations" not in data
        else ("images", "categories", "annotations")
    )
    return isinstance(data, dict) and all(isinstance(data.get(name), list) for name in lists)


def is_panoptic(data: Any) -> bool:
    return is_coco(data) and any(
        isinstance(one, dict) and "segments_info" in one for one in data.get("annotations", ())[:1]
    )


def read(source: Source) -> Annotations:
    """Read instances, or stuff: every JSON of one kind; several are splits by their names or folders."""
    return _read(source, _instances, panoptic=False)


def read_panoptic(source: Source) -> Annotations:
    """Read panoptic JSONs, and their PNGs from the folder with the JSON's name, or from any."""
    drawn = tuple(f"{name.rpartition('.')[0]}/" for name in files_of(source))
    images = [name for name in source.images.files.images if not name.startswith(drawn)]
    source = replace(source, images=Images(source.images.files, images))
    return _read(source, _Segments(source), panoptic=True)


def files_of(source: Source) -> list[str]:
    """List the JSONs to read. ConfigError where there are several kinds, such as instances_ and panoptic_."""
    found = [name for name in source.named(".json") if not storage.name_of(name).startswith(OTHER_TASKS)]
    kinds = {storage.name_of(name).partition("_")[0] for name in found if split_of(name)}
    if len(kinds) > 1:
        raise ConfigError(
            f"{source.files.uri} holds annotations of several kinds: {', '.join(sorted(kinds))}. Give the file of one, "
            f"such as {source.files.place(found[0])}, and --images FOLDER."
        )
    return found


def _read(source: Source, draw: Any, *, panoptic: bool) -> Annotations:
    what = "COCO: an object with the lists images, annotations and categories"
    documents = dict(source.documents(is_coco, what, files_of(source)))
    for name, data in documents.items():
        if data.get("annotations") and is_panoptic(data) != panoptic:
            kind = "coco" if panoptic else "coco-panoptic"
            raise ConfigError(f"{source.files.place(name)} is of another kind; --from {kind} reads it.")
    classes, label_of = _classes(documents, source)
    splits = {name: split_of(name) for name in documents}
    if len(set(splits.values())) == 1:
        splits = dict.fromkeys(splits, None)
    frames: list[Frame] = []
    for name, data in documents.items():
        frames += _frames(source, name, data, splits[name], partial(draw, label_of=label_of, json=name))
    return Annotations(classes, frames, len(frames), source.problems)


def _classes(documents: dict[str, Any], source: Source) -> tuple[tuple[Class, ...], dict[int, int]]:
    """Return the classes in order of category ids, and the position of each id's class. Files must agree."""
    names: dict[int, str] = {}
    colors: dict[str, Any] = {}
    for file, data in documents.items():
        try:
            for one in data["categories"]:
                name = str(one["name"]).strip() or f"class {one['id']}"
                if names.setdefault(int(one["id"]), name) != name:
                    raise DataError(
                        f"{source.files.place(file)} calls category {one['id']} {name!r}, and it is "
                        f"{names[one['id']]!r} elsewhere; convert the files one by one."
                    )
                colors.setdefault(name, color_of(one.get("color")))
        except UNREADABLE:
            raise DataError(
                f"{source.files.place(file)}: a category needs an `id`, a whole number, and a `name`."
            ) from None
    order = list(dict.fromkeys(names[i] for i in sorted(names)))
    classes = tuple(Class(name, colors[name]) for name in order)
    return check_count(classes, source.files.uri), {i: order.index(name) for i, name in names.items()}


def _frames(source: Source, file: str, data: dict[str, Any], split: str | None, draw: Any) -> Iterator[Frame]:
    annotations: dict[Any, list[Any]] = defaultdict(list)
    known = {_key(one, "id") for one in data["images"] if isinstance(one, dict)} - {None}
    for one in data.get("annotations") or ():
        if not isinstance(one, dict):
            source.problems.add(UNREAD, file)
        elif _key(one, "image_id") not in known:
            source.problems.add(
                "Annotations of an image that is not in the file, left out", f"of image {one.get('image_id')}"
            )
        else:
            annotations[one["image_id"]].append(one)
    names: dict[Any, set[str]] = defaultdict(set)
    for one in data["images"]:
        if isinstance(one, dict):
            names[_key(one, "id")].add(str(one.get("file_name")))
    for one in data["images"]:
        try:
            name, size = str(one["file_name"]), (int(one["height"]), int(one["width"]))
        except UNREADABLE:
            source.problems.add("Images without a file_name, height or width, left out", file)
            continue
        if annotations[_key(one, "id")] and len(names[_key(one, "id")]) > 1:
            source.problems.add(SHARED, f"{name}, id {one['id']}")
            continue
        if found := source.images.find(name, source.problems, split_of(file), storage.folder_of(file)):
            yield Frame(found, partial(draw, annotations[_key(one, "id")], name), size, split)


def _key(one: dict[str, Any], name: str) -> Any:
    """Return an id; None for what can be no id."""
    return one[name] if isinstance(one.get(name), int | str) else None


def _instances(
    annotations: list[Any], name: str, height: int, width: int, label_of: dict[int, int], json: str
) -> Drawn:
    problems: list[tuple[str, str]] = []

    def shapes() -> Iterator[Shape]:
        for one in annotations:
            which = f"annotation {one.get('id')} of {name}"
            label = label_of.get(_key(one, "category_id"))
            if label is None:
                problems.append((UNKNOWN, f"{which}: {one.get('category_id')}"))
            elif not one.get("segmentation"):
                problems.append((BOXES, which))
            else:
                said: list[str] = []
                if shape := _shape(label, one["segmentation"], height, width, said.append):
                    yield shape
                problems.extend((what, which) for what in said)

    mask_hw = paint(largest_first(shapes()), height, width, lambda what: problems.append((what, name)))
    return Drawn(mask_hw, problems)


def _shape(label: int, given: Any, height: int, width: int, say: Say) -> Shape | None:
    """Read a segmentation: polygons, or run lengths as numbers or compressed."""
    try:
        if isinstance(given, dict):
            if [int(side) for side in given["size"]] != [height, width]:
                raise ValueError("a mask of another size")
            counts, pixels = given["counts"], height * width
            runs = counts_of(counts, pixels) if isinstance(counts, str) else checked(counts, pixels)
            return Shape(label, runs)
        return fill(label, given, height, width, say)
    except UNREADABLE:
        say(UNREAD)
        return None


class _Segments:
    """Draws panoptic PNGs: a pixel R, G, B is of segment R + 256 G + 65536 B, and 0 of none."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.pngs = Images(source.files, source.files.named(".png"))

    def __call__(
        self, annotations: list[Any], name: str, height: int, width: int, label_of: dict[int, int], json: str
    ) -> Drawn:
        problems: list[tuple[str, str]] = []
        if not annotations:
            return Drawn(canvas(height, width), problems)
        try:
            file, label = str(annotations[0]["file_name"]), {}
            for one in annotations[0]["segments_info"]:
                if one["category_id"] in label_of:
                    label[int(one["id"])] = label_of[one["category_id"]]
                else:
                    problems.append((UNKNOWN, f"segment {one['id']} of {name}: {one['category_id']}"))
        except UNREADABLE:
            return Drawn(None, [(UNREAD, name)])
        segments_hw = self._segments(json, file, problems)
        if segments_hw is None or segments_hw.shape != (height, width):
            problems += [("Panoptic PNGs of another size than their image, left out", file)] * (segments_hw is not None)
            return Drawn(None, problems)
        ids, at = np.unique(segments_hw, return_inverse=True)
        unknown = [i for i in ids.tolist() if i and i not in label]
        problems += [
            ("Segments of a panoptic PNG that its JSON does not know, void", f"{i} of {file}") for i in unknown
        ]
        table, at = np.array([label.get(i, 255) for i in ids.tolist()], np.uint8), at.reshape(height, width)
        return Drawn(table[at], problems, np.isin(ids, unknown)[at])

    def _segments(self, json: str, file: str, problems: list[tuple[str, str]]) -> np.ndarray | None:
        said = Problems()
        found = self.pngs.find(f"{json.rpartition('.')[0]}/{file}", said) or self.pngs.find(file, said)
        if found is None:
            problems.append(("Panoptic PNGs that are not there, left out", file))
            return None
        try:
            pixels = decode_mask(self.source.files.read(found), self.source.files.place(found)).astype(np.int64)
        except DataError as error:
            problems.append(("Panoptic PNGs that cannot be read, left out", str(error)))
            return None
        if pixels.min() < COLOR:
            problems.append(("Panoptic PNGs that are not RGB, left out", file))
            return None
        red, green, blue = pixels >> 16 & 255, pixels >> 8 & 255, pixels & 255
        segments: np.ndarray = red | green << 8 | blue << 16
        return segments
