"""ADE20K as its scene-parsing benchmark lays it out (Zhou et al. 2017): images/training, annotations/training, ….

150 classes are ids 1 to 150, 0 is void; their names stand in objectInfo150.txt of the root.
"""

from __future__ import annotations

from segray.core.data.voc import color_of
from segray.core.io import storage
from segray.core.io.pairing import check_root, pair
from segray.core.io.texts import read_text
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace
from segray.errors import DataError
from segray.sections.training import DataSection

CLASSES = 150
FOLDERS = {"train": "training", "val": "validation"}


def open_dataset(config: DataSection) -> Dataset:
    """Open the splits train (training/) and val (validation/)."""
    root = check_root(config.root, "images/ and annotations/")
    splits, unpaired = {}, []
    for name, folder in FOLDERS.items():
        refs, lonely = pair(storage.join(root, "images", folder), storage.join(root, "annotations", folder), f"{name}/")
        unpaired += lonely
        if refs:
            splits[name] = tuple(refs)
    if not splits and not unpaired:
        raise DataError(f"{root} holds no frames in images/training/ and annotations/training/.")
    return Dataset("ade20k", label_space(root), splits, tuple(unpaired))


def label_space(root: str) -> LabelSpace:
    id_map = {0: IGNORE_INDEX, IGNORE_INDEX: IGNORE_INDEX} | {i + 1: i for i in range(CLASSES)}
    colors = tuple(color_of(i + 1) for i in range(CLASSES))
    return LabelSpace(_names(storage.join(root, "objectInfo150.txt")), colors, id_map)


def _names(uri: str) -> tuple[str, ...]:
    """Read the first synonym in each line's last column; classes are numbered where the file is absent."""
    if not storage.exists(uri):
        return tuple(f"class {i + 1}" for i in range(CLASSES))
    lines = read_text(uri).splitlines()[1:]
    names = [line.split("\t")[-1].split(",")[0].strip() for line in lines if line.strip()]
    if len(names) != CLASSES:
        raise DataError(f"{uri} names {len(names)} classes; ADE20K's benchmark has {CLASSES}.")
    return tuple(name if names.count(name) == 1 else f"{name} {i + 1}" for i, name in enumerate(names))
