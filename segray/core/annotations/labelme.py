"""Labelme: a JSON beside each image (github.com/wkentaro/labelme, _label_file.py and _utils/shape.py).

Shapes are drawn in their order and as Labelme draws them, with Pillow's ImageDraw; lines and points mark no pixels.
"""

from __future__ import annotations

import base64
import math
import posixpath
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from segray.core.annotations.frames import Annotations, Drawn, Frame, Problems, Source, check_count, classes_of
from segray.core.annotations.painting import EMPTY, FAR, FEW, OUTSIDE, SLACK_PX, UNREAD, UNREADABLE, WILD, canvas
from segray.core.data.class_files import IGNORED
from segray.core.io import storage
from segray.core.io.images import open_image
from segray.core.io.masks import decode_mask
from segray.core.samples import IGNORE_INDEX
from segray.errors import DataError

LABELS = "labels.txt"  # of Labelme's examples: a label a line, __ignore__ for what is void
POINTS = {
    "polygon": range(3, 1 << 20),
    "oriented_rectangle": range(4, 5),
    "rectangle": range(2, 3),
    "circle": range(2, 3),
}


def is_labelme(data: Any) -> bool:
    return isinstance(data, dict) and isinstance(data.get("shapes"), list) and "imagePath" in data


def read(source: Source) -> Annotations:
    """Read every JSON of Labelme. Classes are those of labels.txt, in its order, else those drawn, by name."""
    found = source.documents(is_labelme, "Labelme's: an object with shapes and an imagePath")
    documents = [one for name, data in found if (one := _document(name, data, source))]
    listed = source.files.text(LABELS).splitlines() if LABELS in source.files.names else []
    drawn = sorted({_label(one) for document in documents for one in document.shapes})
    names = list(dict.fromkeys(name for line in (*listed, *drawn) if (name := line.strip()) not in ("", IGNORED)))
    frames = [
        Frame(one.image, partial(_draw, one.shapes, one.name, names), one.size, picture=one.picture)
        for one in documents
    ]
    return Annotations(check_count(classes_of(names), source.files.uri), frames, len(frames), source.problems)


class _Document(NamedTuple):
    """name: the JSON. image: its image, which `picture` reads where it is in the JSON itself."""

    name: str
    image: str
    shapes: list[Any]
    size: tuple[int, int] | None
    picture: Callable[[], bytes] | None


def _document(name: str, data: dict[str, Any], source: Source) -> _Document | None:
    """Return what a JSON says, without the image in it, which takes most of its memory."""
    image = str(data["imagePath"]).replace("\\", "/")
    folder = storage.folder_of(name)
    said = Problems()
    found = source.images.find(posixpath.normpath(f"/{folder}/{image}").lstrip("/"), said)
    sides = data.get("imageHeight"), data.get("imageWidth")
    size = (sides[0], sides[1]) if isinstance(sides[0], int) and isinstance(sides[1], int) else None
    if found:
        return _Document(name, found, data["shapes"], size, None)
    if _picture(data):
        inside = f"{folder}/{storage.name_of(image)}".lstrip("/")
        return _Document(name, inside, data["shapes"], size, lambda: _picture(source.files.json(name)))
    for what, (_, which) in said.found.items():
        source.problems.add(what, which)
    return None


def _picture(data: dict[str, Any]) -> bytes:
    """Return the image that is in a JSON itself, b"" for none."""
    try:
        return base64.b64decode(data.get("imageData") or "", validate=True)
    except (TypeError, ValueError):
        return b""


def _draw(shapes: list[Any], name: str, names: list[str], height: int, width: int) -> Drawn:
    problems: list[tuple[str, str]] = []

    def say(text: str) -> None:
        problems.append((text, name))

    mask_hw, void_hw = canvas(height, width), np.zeros((height, width), bool)
    for one in shapes:
        label = _label(one)
        try:
            marked_hw = _marked(one, height, width, say)
        except (DataError, *UNREADABLE):
            label = ""
        if not label:
            say(UNREAD)
            continue
        if marked_hw is not None:
            if not marked_hw.any():
                say(EMPTY)
            mask_hw[marked_hw] = IGNORE_INDEX if label == IGNORED else names.index(label)
            void_hw[marked_hw] = label == IGNORED
    return Drawn(mask_hw, problems, void_hw)


def _label(one: Any) -> str:
    """Return the class of a shape; '' where it has none."""
    label = one.get("label") if isinstance(one, dict) else None
    return label.strip() if isinstance(label, str) else ""


def _marked(one: dict[str, Any], height: int, width: int, say: Callable[[str], None]) -> np.ndarray | None:
    """Return the pixels of a shape, bool [H, W]; None where it has none, and why is said."""
    kind = one.get("shape_type") or "polygon"
    points = [(float(x), float(y)) for x, y in one["points"]]
    flat = [number for point in points for number in point]
    if not all(map(math.isfinite, flat)) or max(map(abs, flat)) > FAR * max(height, width):
        say(WILD)
        return None
    if kind == "mask":
        return _stored(one["mask"], points, height, width, say)
    if kind not in POINTS:
        say(f"Shapes that mark no pixels ({kind}), left out")
        return None
    if len(points) not in POINTS[kind]:
        say(FEW)
        return None
    xs, ys = flat[::2], flat[1::2]
    if min(flat) < -SLACK_PX or max(xs) > width + SLACK_PX or max(ys) > height + SLACK_PX:
        say(OUTSIDE)
    return _filled(kind, points, height, width)


def _filled(kind: str, points: list[tuple[float, float]], height: int, width: int) -> np.ndarray:
    image = Image.fromarray(np.zeros((height, width), np.uint8))
    pen = ImageDraw.Draw(image)
    if kind == "circle":
        (x, y), other = points
        radius = math.dist((x, y), other)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    elif kind == "rectangle":
        (x0, y0), (x1, y1) = points
        pen.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, fill=1)
    else:
        pen.polygon(points, outline=1, fill=1)
    return np.asarray(image).astype(bool)


def _stored(
    text: str, points: list[tuple[float, float]], height: int, width: int, say: Callable[[str], None]
) -> np.ndarray | None:
    """Place a mask, a PNG in base64, at its corners."""
    data = base64.b64decode(text)
    stored = open_image(data, "mask")
    if stored.height > height + 1 or stored.width > width + 1:
        raise ValueError("a mask larger than its image")
    patch_hw = decode_mask(data) > 0
    (left, top), (right, bottom) = ((round(x), round(y)) for x, y in points)
    if all(number.is_integer() for point in points for number in point):  # the mask is cut by its corners
        patch_hw = patch_hw[: bottom - top + 1, : right - left + 1]
    marked_hw = np.zeros((height, width), bool)
    cut_hw = patch_hw[max(0, -top) :, max(0, -left) :]
    seen_hw = marked_hw[max(0, top) : max(0, top) + cut_hw.shape[0], max(0, left) : max(0, left) + cut_hw.shape[1]]
    if seen_hw.shape != patch_hw.shape:
        say(OUTSIDE)
    seen_hw[:] = cut_hw[: seen_hw.shape[0], : seen_hw.shape[1]]
    return marked_hw
