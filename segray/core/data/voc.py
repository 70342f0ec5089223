"""Pascal VOC (Everingham et al. 2010): JPEGImages/, SegmentationClass/ and ImageSets/Segmentation/*.txt.

The root is VOC2012, or a folder that holds it, such as VOCdevkit. Palette masks of 21 ids; 255 is void.
"""

from __future__ import annotations

from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.io.pairing import check_root, find_images, pair_found, read_lists, split
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace
from segray.errors import DataError
from segray.sections.training import DataSection

NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def color_of(label: int) -> tuple[int, int, int]:
    """Compute the devkit's VOClabelcolormap: bits 0, 1, 2 of each octal digit go to red, green, blue, highest first."""
    red, green, blue = (
        sum((label >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )
    return red, green, blue


LABEL_SPACE = LabelSpace(
    NAMES,
    tuple(color_of(label) for label in range(len(NAMES))),
    {i: i for i in range(len(NAMES))} | {IGNORE_INDEX: IGNORE_INDEX},
)


def open_dataset(config: DataSection) -> Dataset:
    """Open the splits that the lists of ImageSets/Segmentation name: train, val, trainval."""
    root = _devkit(check_root(config.root, "JPEGImages/, SegmentationClass/ and ImageSets/"))
    images, masks = (find_images(storage.join(root, name)) for name in ("JPEGImages", "SegmentationClass"))
    refs, _ = pair_found(images, masks)
    if not refs:
        raise DataError(f"{root} holds no frames in JPEGImages/ and SegmentationClass/.")
    splits, notes = read_lists(storage.join(root, "ImageSets", "Segmentation"), refs, images, config)
    if splits:
        return Dataset("voc", LABEL_SPACE, splits, notes=tuple(notes))
    # Most images have no mask: the set is much larger than its segmentation part.
    if more := len(images.keys() - masks.keys()):
        notes.append(f"{counted(more, 'image')} in {root}/JPEGImages without a mask: left out")
    unpaired = tuple(masks[name] for name in sorted(masks.keys() - images.keys()))
    return Dataset("voc", LABEL_SPACE, split(refs, config), unpaired, tuple(notes))


def _devkit(root: str) -> str:
    places = [root, *(storage.join(root, *path) for path in (("VOC2012",), ("VOCdevkit", "VOC2012")))]
    return next((place for place in places if storage.exists(storage.join(place, "SegmentationClass"))), root)
