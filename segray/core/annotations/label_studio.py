"""Label Studio's JSON export: brush strokes and polygons of each task's annotation.

labelstud.io, tags BrushLabels and PolygonLabels: points are per cent of the image's sides, strokes are run lengths of
RGBA. Of several annotations, the ground truth is taken, else the last that was not skipped; of a task without any, the
last prediction. Regions are drawn in the order of the file; polygons are filled by pycocotools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

from segray.core.annotations.files import Files
from segray.core.annotations.frames import (
    Annotations,
    Class,
    Drawn,
    Frame,
    Problems,
    Source,
    check_count,
    color_of,
)
from segray.core.annotations.painting import UNREAD, UNREADABLE, Box, Say, Shape, fill, paint
from segray.core.formats.label_studio import decode_brush
from segray.core.io.images import IMAGE_SUFFIXES
from segray.errors import DataError

CONFIG = "label_config.xml"
UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of an uploaded file
KINDS = {"brushlabels": "rle", "polygonlabels": "points"}
PREDICTED = "Tasks without an annotation, of which a prediction is taken"


def is_label_studio(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and isinstance(data[0].get("data"), dict)


def read(source: Source) -> Annotations:
    """Read every task with an annotation or prediction. Classes are those of label_config.xml, or else those drawn."""
    frames: list[tuple[str, list[Any], Any]] = []
    for _, tasks in source.documents(
        is_label_studio, "a list of tasks, which Label Studio exports as JSON (not JSON-MIN)"
    ):
        frames += _tasks(tasks, source)
    classes = {one.name: one for one in _config(source.files)}
    for _, regions, _ in frames:
        for label in sorted({label for region in regions if (label := _label(region))} - classes.keys()):
            classes[label] = Class(label)
    names = list(classes)
    made = [Frame(image, partial(_draw, regions, image, names), size) for image, regions, size in frames]
    return Annotations(check_count(tuple(classes.values()), source.files.uri), made, len(made), source.problems)


def _config(files: Files) -> list[Class]:
    """Read the classes and colours of the labelling interface, where it lies beside."""
    if CONFIG not in files.names:
        return []
    try:
        root = ElementTree.fromstring(files.text(CONFIG))
    except ElementTree.ParseError as error:
        raise DataError(f"{files.place(CONFIG)} is not XML: {error}.") from None
    labels = [
        one for tag in ("BrushLabels", "PolygonLabels") for group in root.iter(tag) for one in group.iter("Label")
    ]
    named = [((one.get("alias") or one.get("value") or "").strip(), one) for one in labels]  # results have the alias
    return [Class(name, color_of(one.get("background"))) for name, one in named if name]


def _tasks(tasks: list[Any], source: Source) -> Iterator[tuple[str, list[Any], Any]]:
    """Give (image, regions, size that they were drawn on) of each task."""
    for number, task in enumerate(tasks):
        which = f"task {task.get('id', number) if isinstance(task, dict) else number}"
        try:
            url = _image_of(task["data"])
            if not any(task.get(kind) for kind in ("annotations", "completions", "predictions")):
                source.problems.add("Tasks that nobody annotated, left out", which)
                continue
            regions = _regions(task, which, source.problems)
            size = next(((int(r["original_height"]), int(r["original_width"])) for r in regions if _label(r)), None)
        except UNREADABLE:
            source.problems.add("Tasks that cannot be read, left out", which)
            continue
        if found := _find(url, source):
            yield found, regions, size


def _image_of(data: dict[str, Any]) -> str:
    """Return the URL of a task's image: that of `image`, or else of the only value with an image's suffix."""
    urls = [value for value in data.values() if isinstance(value, str)]
    named = [url for url in urls if any(suffix in url.lower() for suffix in IMAGE_SUFFIXES)]
    url = data.get("image") or (named[0] if len(named) == 1 else None)
    if not isinstance(url, str):
        raise ValueError("no image")
    return url


def _find(url: str, source: Source) -> str | None:
    """Find a task's image: Label Studio prefixes what was uploaded, and names local files in a query."""
    parts = urlsplit(url)
    path = parse_qs(parts.query).get(
        "d", [unquote(parts.path) if parts.scheme or parts.path.startswith("/data/") else url]
    )[0]
    folder, slash, name = path.rpartition("/")
    if UPLOADED.match(name) and name not in source.images.by_name:
        path = f"{folder}{slash}{UPLOADED.sub('', name)}"
    if "/upload/" in path:
        path = path.rpartition("/")[2]  # the folder is a project's number
    return source.images.find(path, source.problems)


def _regions(task: dict[str, Any], which: str, problems: Problems) -> list[Any]:
    annotations = [
        one for one in task.get("annotations") or task.get("completions") or () if not one.get("was_cancelled")
    ]
    truths = [one for one in annotations if one.get("ground_truth")] or annotations
    if len(truths) > 1:
        problems.add("Tasks with several annotations, of which the last is taken", which)
    if not truths and task.get("predictions"):
        problems.add(PREDICTED, which)
        truths = task["predictions"]
    return list(truths[-1].get("result") or ()) if truths else []


def _label(region: Any) -> str | None:
    """Return the class of a region that is drawn; None for others."""
    if not isinstance(region, dict) or region.get("type") not in KINDS or not isinstance(region.get("value"), dict):
        return None
    names = region["value"].get(region["type"])
    return (str(names[0]).strip() or None) if isinstance(names, list) and names else None


def _draw(regions: list[Any], name: str, names: list[str], height: int, width: int) -> Drawn:
    problems: list[tuple[str, str]] = []

    def say(text: str) -> None:
        problems.append((text, name))

    def read() -> Iterator[Shape]:
        for one in regions:
            label = _label(one)
            if label is None:
                kind = one.get("type") if isinstance(one, dict) else None
                say(f"Regions that are no brush strokes or polygons with a label ({kind}), left out")
            elif shape := _shape(names.index(label), one, height, width, say):
                yield shape

    return Drawn(paint(read(), height, width, say), problems)


def _shape(label: int, one: dict[str, Any], height: int, width: int, say: Say) -> Shape | None:
    try:
        if one.get("image_rotation"):
            say("Regions of an image that was rotated in Label Studio, left out")
            return None
        if (int(one["original_height"]), int(one["original_width"])) != (height, width):
            raise ValueError("drawn on another size")
        if one["type"] == "polygonlabels":
            ring = [
                side * share / 100
                for point in one["value"]["points"]
                for side, share in zip((width, height), point, strict=True)
            ]
            return fill(label, [ring], height, width, say)
        return Shape(label, decode_brush(one["value"]["rle"], height * width), Box(0, 0, height, width))
    except UNREADABLE:
        say(UNREAD)
        return None
