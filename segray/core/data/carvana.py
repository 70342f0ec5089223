"""Carvana as Kaggle gives it: train/CAR_VIEW.jpg and train_masks/CAR_VIEW_mask.gif, of ids 0 and 1.

All views of a car are in one split, as its name's hash says; `data.val_share` of the cars are validated on. Lists
at the root, train.txt and val.txt, say otherwise.
"""

from __future__ import annotations

from segray.core.io import storage
from segray.core.io.pairing import check_root, drive_of, find_images, pair_found, split_by_lists
from segray.core.samples import Dataset, LabelSpace
from segray.errors import DataError
from segray.sections.training import DataSection

LABEL_SPACE = LabelSpace(("background", "car"), ((0, 0, 0), (0, 0, 142)), {0: 0, 1: 1, 255: 1})


def open_dataset(config: DataSection) -> Dataset:
    """Open the splits train and val, both from Kaggle's train/."""
    root = check_root(config.root, "train/ and train_masks/")
    images, masks = (find_images(storage.join(root, name)) for name in ("train", "train_masks"))
    refs, unpaired = pair_found(images, masks)
    if not refs and not unpaired:
        raise DataError(f"{root} holds no frames in train/ and train_masks/.")
    splits, notes = split_by_lists(root, refs, images, config, drive_of)  # a car, here
    return Dataset("carvana", LABEL_SPACE, splits, tuple(unpaired), notes)
