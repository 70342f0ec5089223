"""YOLO's segmentation labels (docs.ultralytics.com/datasets/segment): a text for each image, and a YAML of the classes.

A line is `class x1 y1 x2 y2 …`, in shares of the image's sides. images/ in an image's path is labels/ in that of its
text. The largest polygon is drawn first, as ultralytics draws overlapping masks; pycocotools fills them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import yaml

from segray.core.annotations.files import Files
from segray.core.annotations.frames import SPLITS, Annotations, Class, Drawn, Frame, Problems, Source, check_count
from segray.core.annotations.painting import UNREAD, UNREADABLE, Shape, fill, largest_first, paint
from segray.core.io.pairing import folders_above
from segray.errors import DataError

BOX = 5  # numbers of a line that is a box: class, centre, size


def is_yolo(files: Files) -> bool:
    return bool(_labels(files)) and bool(_yaml_of(files))


def read(source: Source) -> Annotations:
    """Read the labels of every image. Splits are those of the YAML, folders or lists."""
    files = source.files
    found = [source.given] if source.given else _yaml_of(files)
    if len(found) != 1:
        raise DataError(f"{files.uri} holds {len(found)} YAML files with names; give the one to read.")
    data = _read_yaml(files, found[0])
    classes = _classes(data["names"], files.place(found[0]))
    label_of = {key: i for i, key in enumerate(_ids(data["names"]))}
    texts = {name.rpartition(".")[0]: name for name in _labels(files)}
    images = source.images.files.images
    of_split = _splits(data, files, images, source.problems)
    frames = []
    for image in images:
        label = texts.get(_label_of(image))
        split = next((of_split[place] for place in (image, *folders_above(image)) if place in of_split), None)
        frames.append(Frame(image, partial(_draw, files, label, label_of), split=split))
    labelled = set(map(_label_of, images))
    for stem, name in texts.items():
        if stem not in labelled:
            source.problems.add("Labels whose image is not there, left out", files.place(name))
    return Annotations(check_count(classes, files.place(found[0])), frames, len(frames), source.problems)


def _labels(files: Files) -> list[str]:
    return [name for name in files.named(".txt") if "labels" in name.split("/")[:-1]]


def _label_of(image: str) -> str:
    """Return the path of an image's label without suffix: the last images/ in it is labels/.

    >>> _label_of("train/images/day1/a.jpg"), _label_of("a.jpg")
    ('train/labels/day1/a', 'labels/a')
    """
    folders = image.rpartition(".")[0].split("/")
    at = max((i for i, part in enumerate(folders[:-1]) if part == "images"), default=None)
    return "/".join(["labels", *folders] if at is None else [*folders[:at], "labels", *folders[at + 1 :]])


def _yaml_of(files: Files) -> list[str]:
    names = [name for name in files.named(".yaml", ".yml") if "/" not in name]
    return [name for name in names if "names" in _read_yaml(files, name, strict=False)]


def _read_yaml(files: Files, name: str, *, strict: bool = True) -> dict[str, Any]:
    try:
        data = yaml.safe_load(files.text(name))
    except (yaml.YAMLError, RecursionError):
        data = None
    if strict and (not isinstance(data, dict) or not isinstance(data.get("names"), list | dict) or not data["names"]):
        raise DataError(f"{files.place(name)} has no `names`, a list of classes or their ids and names.")
    return data if isinstance(data, dict) else {}


def _ids(names: Any) -> list[int]:
    return sorted(map(int, names)) if isinstance(names, dict) else list(range(len(names)))


def _classes(names: Any, place: str) -> tuple[Class, ...]:
    try:
        listed = [str(names[i]).strip() for i in _ids(names)]
    except UNREADABLE:
        raise DataError(f"{place}: the keys of `names` are class ids, whole numbers.") from None
    if len(set(listed)) < len(listed) or "" in listed:
        raise DataError(f"{place}: every class needs a name of its own.")
    return tuple(map(Class, listed))


def _splits(data: dict[str, Any], files: Files, images: list[str], problems: Problems) -> dict[str, str]:
    """Return the split of each folder of images that the YAML names, or of each image of its lists."""
    there, folders = set(images), {*files.names, *(folder for image in images for folder in folders_above(image))}
    found: dict[str, str] = {}
    for key, split in SPLITS.items():
        given = data.get(key)
        for place in given if isinstance(given, list) else [given]:
            name = _below(place, folders) if isinstance(place, str) else ""
            if name.endswith(".txt"):
                for line in filter(str.strip, files.text(name).splitlines()):
                    if image := _below(line, there):
                        found[image] = split
                    else:
                        problems.add("Lines of a list that name no image, left out", f"{line} in {files.place(name)}")
            elif name:
                found[name] = split
    return found


def _below(path: str, there: Collection[str]) -> str:
    """Return the longest end of a path that is a file or folder here, as its head may be of another machine."""
    steps = [part for part in path.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return next((end for i in range(len(steps)) if (end := "/".join(steps[i:])) in there), "")


def _draw(files: Files, name: str | None, label_of: dict[int, int], height: int, width: int) -> Drawn:
    problems: list[tuple[str, str]] = []
    if name is None:
        return Drawn(paint((), height, width), problems)

    def shapes() -> Iterator[Shape]:
        for number, line in enumerate(files.text(name).splitlines(), 1):
            which = f"{files.place(name)} line {number}"
            if not line.strip():
                continue
            try:
                raw, *shares = line.split()
                label = label_of.get(int(raw))
                ring = [float(share) * (height if i % 2 else width) for i, share in enumerate(shares)]
            except ValueError:
                problems.append((UNREAD, which))
                continue
            if label is None:
                problems.append(("Objects of a class that the YAML does not name, left out", f"{raw} in {which}"))
            elif len(shares) + 1 == BOX:
                problems.append(("Boxes without a polygon, left out", which))
            else:
                said: list[str] = []
                if shape := fill(label, [ring], height, width, said.append):
                    yield shape
                problems.extend((what, which) for what in said)

    mask_hw = paint(largest_first(shapes()), height, width, lambda what: problems.append((what, files.place(name))))
    return Drawn(mask_hw, problems)
