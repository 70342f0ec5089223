"""Annotations of other tools → classes, and frames with masks: a format is a reader in a module here, and a row below.

A reader takes a Source and gives Annotations; it draws no mask before the size of its image is known, and says what it
leaves out. Most are the twin of a writer in core.formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from segray.core.annotations import coco, cvat, huggingface, label_studio, labelme, yolo
from segray.core.annotations.files import Files
from segray.core.annotations.frames import Annotations, Images, Source
from segray.core.io import storage
from segray.errors import ConfigError, DataError, nearest


class Reader(NamedTuple):
    """read: files → annotations. about: what is read, for people."""

    read: Callable[[Source], Annotations]
    about: str


READERS = {
    "coco": Reader(coco.read, "instances or stuff in JSON: polygons and run lengths"),
    "coco-panoptic": Reader(coco.read_panoptic, "panoptic JSON and its folder of PNGs"),
    "cvat": Reader(cvat.read, '"CVAT for images 1.1" or "Segmentation mask 1.1": a zip, unpacked, or the XML'),
    "label-studio": Reader(label_studio.read, "tasks in JSON: brush strokes and polygons"),
    "labelme": Reader(labelme.read, "a JSON beside each image"),
    "yolo": Reader(yolo.read, "images/ and labels/ of polygons, and the YAML of the classes"),
    "huggingface": Reader(huggingface.read, "Parquet with a column of images and one of masks"),
}
SINGLE = (".json", ".xml", ".yaml", ".yml", ".parquet")  # files that are given alone
LOOKED_AT = 8  # JSON files: settings and lists of other kinds may lie before
BESIDE = frozenset({"annotations", "annotation", "labels"})  # folders of annotations, beside those of images
EXPECTED = (
    "a COCO JSON, a CVAT zip or annotations.xml, tasks of Label Studio, Labelme's JSONs, a data.yaml with images/ and "
    "labels/, or Parquet files"
)


def open_annotations(place: str, kind: str | None = None, images: str | None = None) -> tuple[str, Source, Annotations]:
    """Return the format, given or found by looking, the files, and what is in them. images: a folder or zip of images.

    Raises ConfigError for an unknown format, DataError where nothing is found that can be read.
    """
    if kind is not None and kind not in READERS:
        raise ConfigError(f"{kind!r} is not a format to convert from.{nearest(kind, READERS)}")
    source = _source(storage.absolute(place), images)
    zips = source.files.named(".zip")
    if kind is None and (kind := found_format(source)) is None and len(zips) == 1:
        source = Source(Files(source.files.place(zips[0])), "", source.images)
        kind = found_format(source)
    if kind is None:
        raise DataError(f"{place} holds no annotations that are read: {EXPECTED}. Or give --from.")
    return kind, source, READERS[kind].read(source)


def _source(place: str, images: str | None) -> Source:
    given = ""
    if place.lower().endswith(SINGLE):
        folder, given = storage.folder_of(place), storage.name_of(place)
        if storage.name_of(folder).lower() in BESIDE:
            folder, given = storage.folder_of(folder), f"{storage.name_of(folder)}/{given}"
        if not storage.exists(place):
            raise DataError(f"{place} does not exist; give the file or the folder that holds the annotations.")
        place = folder
    files = Files(place)
    return Source(files, given, Images(Files(images) if images else files))


def found_format(source: Source) -> str | None:
    """Return the format by what the files hold; None where they are of none."""
    files, given = source.files, source.given
    if given.endswith(".parquet") or (not given and files.named(".parquet")):
        return "huggingface"
    if given.endswith(".xml") or (not given and cvat.is_cvat(files)):
        return "cvat"
    if given.endswith((".yaml", ".yml")) or (not given and yolo.is_yolo(files)):
        return "yolo"
    kinds: dict[str, Callable[[Any], bool]] = {
        "label-studio": label_studio.is_label_studio,
        "labelme": labelme.is_labelme,
        "coco-panoptic": coco.is_panoptic,
        "coco": coco.is_coco,
    }
    for name in source.named(".json")[:LOOKED_AT]:
        data: Any = files.json(name)
        if found := next((kind for kind, is_it in kinds.items() if is_it(data)), None):
            return found
    return None
