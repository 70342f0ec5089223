"""CVAT's own exports: "CVAT for images 1.1" and "Segmentation mask 1.1", as zips, unpacked, or an XML alone.

docs.cvat.ai, "XML annotation format" and "Segmentation mask". A mask's `rle` are runs along the rows of its box, of
pixels outside, inside, outside, …. Shapes are drawn by z_order, and those of one by their order in the file. Polygons
are filled by pycocotools, as CVAT fills them for its masks.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from xml.etree import ElementTree

from segray.core.annotations.files import MOST_TEXT, Files
from segray.core.annotations.frames import (
    BACKGROUND,
    SPLITS,
    Annotations,
    Class,
    Color,
    Drawn,
    Frame,
    Images,
    Source,
    check_count,
    color_of,
)
from segray.core.annotations.painting import UNREAD, UNREADABLE, Box, Say, Shape, checked, drawn_ids, fill, paint
from segray.core.io import storage
from segray.core.samples import IGNORE_INDEX, color_id
from segray.errors import DataError

LABELMAP = "labelmap.txt"
NO_PIXELS = ("box", "polyline", "points", "cuboid", "skeleton", "ellipse")
NO_CLASSES = ("rectangle", "polyline", "points", "cuboid", "skeleton", "ellipse", "tag")  # types of labels
UNKNOWN = "Shapes whose label the project does not have, left out"


def is_cvat(files: Files) -> bool:
    return bool(files.named("annotations.xml") or files.named(LABELMAP))


def read(source: Source) -> Annotations:
    """Read masks where there is a labelmap.txt, else shapes from the XML."""
    if not source.given and source.files.named(LABELMAP):
        return _read_masks(source)
    found = source.named(".xml")
    if len(found) != 1:
        raise DataError(f"{source.files.uri} holds {len(found)} XML files and no {LABELMAP}; give the XML to read.")
    classes: dict[str, Class] = {}
    frames = list(_frames(source, found[0], classes))
    kept = check_count(tuple(classes.values()), source.files.place(found[0]))
    return Annotations(kept, frames, len(frames), source.problems)


def _frames(source: Source, name: str, classes: dict[str, Class]) -> Iterator[Frame]:
    """Give the frames of an XML, and fill `classes` before the first of them."""
    place, data = source.files.place(name), source.files.read(name, MOST_TEXT)
    if b"<!DOCTYPE" in data:
        raise DataError(f"{place} has a document type, which CVAT's files have not; it is not read.")
    try:
        for _, element in ElementTree.iterparse(io.BytesIO(data)):
            if element.tag == "meta":
                for one in element.iter("label"):
                    if label := _class(one):
                        classes.setdefault(label.name, label)
            elif element.tag == "track":
                raise DataError(f'{place} is "CVAT for video"; export the task as "CVAT for images 1.1".')
            elif element.tag == "image":
                if frame := _frame(source, element, list(classes)):
                    yield frame
                element.clear()
    except ElementTree.ParseError as error:
        raise DataError(f"{place} is not XML: {error}. Export it again.") from None


def _class(element: ElementTree.Element) -> Class | None:
    name = (element.findtext("name") or "").strip()
    drawn = element.findtext("type") not in NO_CLASSES and not element.findtext("parent")
    return Class(name, color_of(element.findtext("color"))) if name and drawn else None


def _frame(source: Source, element: ElementTree.Element, names: list[str]) -> Frame | None:
    name = element.get("name") or ""
    for other in element:
        if other.tag in NO_PIXELS:
            source.problems.add(f"Shapes that mark no pixels ({other.tag}), left out", name)
    shapes = [dict(one.attrib, tag=one.tag) for one in element if one.tag in ("polygon", "mask")]
    try:
        shapes.sort(key=lambda one: int(one.get("z_order", 0)))
        size = (int(element.attrib["height"]), int(element.attrib["width"]))
    except UNREADABLE:
        source.problems.add("Images without height and width, or with a z_order that is no number, left out", name)
        return None
    subset = (element.get("subset") or "").lower()
    split = SPLITS.get(subset)
    found = source.images.find(name, source.problems, split)
    return Frame(found, partial(_draw, shapes, name, names), size, split) if found else None


def _draw(shapes: list[dict[str, str]], name: str, names: list[str], height: int, width: int) -> Drawn:
    problems: list[tuple[str, str]] = []

    def say(text: str) -> None:
        problems.append((text, name))

    def read() -> Iterator[Shape]:
        for one in shapes:
            if one.get("label") not in names:
                problems.append((UNKNOWN, f"{one.get('label')} in {name}"))
            elif shape := _shape(names.index(one["label"]), one, height, width, say):
                yield shape

    return Drawn(paint(read(), height, width, say), problems)


def _shape(label: int, one: dict[str, str], height: int, width: int, say: Say) -> Shape | None:
    try:
        if one["tag"] == "polygon":
            ring = [float(number) for point in one["points"].split(";") for number in point.split(",")]
            return fill(label, [ring], height, width, say)
        box = Box(*(int(float(one[side])) for side in ("top", "left", "height", "width")))
        if box.height > height or box.width > width:
            raise ValueError("a mask larger than its image")
        return Shape(label, checked(map(int, one["rle"].split(",")), box.height * box.width), box)
    except UNREADABLE:
        say(UNREAD)
        return None


def _read_masks(source: Source) -> Annotations:
    """Read masks in the colours of labelmap.txt. Black is void: CVAT adds its `background` for what nobody drew."""
    table = source.files.named(LABELMAP)[0]
    colors = _labelmap(source.files.text(table), source.files.place(table))
    classes = tuple(Class(name, color) for name, color in colors.items() if name != BACKGROUND)
    label_of = {color_id(*color): i for i, (_, color) in enumerate(classes) if color}
    if BACKGROUND in colors:
        label_of.setdefault(color_id(*colors[BACKGROUND]), IGNORE_INDEX)
    label_of.setdefault(color_id(0, 0, 0), IGNORE_INDEX)
    top = table.removesuffix(LABELMAP)
    masks = [name for name in source.files.named(".png") if name.startswith(f"{top}SegmentationClass/")]
    drawn = (f"{top}SegmentationClass/", f"{top}SegmentationObject/")
    images = Images(source.images.files, [name for name in source.images.files.images if not name.startswith(drawn)])
    splits = _splits(source.files, top)
    frames = []
    for mask in masks:
        stem = mask.removeprefix(f"{top}SegmentationClass/")[: -len(".png")]
        if found := images.find_stem(stem, source.problems, splits.get(stem)):
            frames.append(Frame(found, partial(_draw_mask, source.files, mask, label_of), split=splits.get(stem)))
    return Annotations(check_count(classes, source.files.place(table)), frames, len(frames), source.problems)


def _labelmap(text: str, place: str) -> dict[str, Color]:
    """Read a line a class: name:r,g,b:parts:actions."""
    colors: dict[str, Color] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, given, *_ = line.strip().split(":")
            if not name or name in colors:
                raise ValueError(line)
            red, green, blue = (int(channel) for channel in given.split(","))
            colors[name] = (red, green, blue)
            if not color_of([red, green, blue]):
                raise ValueError(line)
        except ValueError:
            raise DataError(
                f"{place} line {number} is {line!r}; a line is name:r,g,b:: with a name of its own."
            ) from None
    if len(set(colors.values())) < len(colors):
        raise DataError(f"{place} gives two labels one colour; which of them a pixel has cannot be known.")
    return colors


def _splits(files: Files, top: str) -> dict[str, str]:
    """Return the split of each frame from ImageSets/Segmentation/train.txt and so on."""
    found: dict[str, str] = {}
    for name in files.named(".txt"):
        split = SPLITS.get(storage.stem_of(name).lower())
        if split and name.startswith(f"{top}ImageSets/Segmentation/"):
            found |= {line.strip(): split for line in files.text(name).splitlines()}
    return found


def _draw_mask(files: Files, name: str, label_of: dict[int, int], height: int, width: int) -> Drawn:
    unknown = f"Colours that {LABELMAP} does not have, void"
    return drawn_ids(files.read(name), files.place(name), label_of, unknown, height, width)
