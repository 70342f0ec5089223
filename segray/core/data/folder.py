"""Any folder of images and masks with a list of classes.

root/classes.csv            or another list of classes, as class_files reads them
root/images/train/…         or root/images/… without splits: then a share goes to val, by name
root/train.txt, val.txt     or these: a frame a line
root/masks/train/…          the same paths, as PNGs of class ids (grey or palette; 255 is void) or of the colours

Folders and files may have other names, as roles finds them.
"""

from __future__ import annotations

from dataclasses import replace
from shlex import quote

from segray.core.data import roles
from segray.core.data.class_files import FILES, class_file, read_classes
from segray.core.io import storage
from segray.core.io.pairing import check_root, split_by_hash, split_by_lists
from segray.core.samples import Dataset, SampleRef
from segray.errors import DataError
from segray.sections.training import DataSection

VAL_NAMES = ("val", "valid", "validation")


def open_dataset(config: DataSection) -> Dataset:
    """Split by lists at the root, or by folders of images and masks, or else by the hashes of names."""
    root = check_root(config.root, "images/, masks/ and classes.csv")
    classes = storage.join(root, config.classes) if config.classes else class_file(root)
    space, notes = read_classes(classes) if classes else (None, ())
    found = roles.find(root, config.images, config.masks, config.mask_suffix)
    refs, unpaired = found.paired()
    if not refs and not unpaired:
        raise DataError(
            f"{root} holds no images in {config.images or 'images'}/ and masks in {config.masks or 'masks'}/."
        )
    if space is None:
        raise DataError(
            f"{root} lists no classes (no {', '.join(FILES[:3])} …). Write a proposal by what stands in its masks, "
            f"and edit it: segray data classes {quote(config.root or root)}"
        )
    if classes != storage.join(root, FILES[0]):
        notes = (f"classes are those of {classes}", *notes)
    space = replace(space, listed_in=classes)
    splits, told = _held_out(*split_by_lists(root, refs, found.images, config), config)
    return Dataset("folder", space, splits, tuple(unpaired), (*notes, *found.notes, *told))


def _held_out(
    splits: dict[str, tuple[SampleRef, ...]], notes: tuple[str, ...], config: DataSection
) -> tuple[dict[str, tuple[SampleRef, ...]], tuple[str, ...]]:
    """Hold a share of the training frames out to validate on, where there is no split to do so; and add a note."""
    train, name = splits.get(config.train_split, ()), config.val_split
    if len(train) < 2 or any(split.lower() in VAL_NAMES for split in splits) or name not in VAL_NAMES:
        return splits, notes
    kept, val = split_by_hash(train, config.val_share)
    note = (
        f"there is no split {name}: {len(val)} of {len(train)} frames of {config.train_split} are held out for it "
        "(data.val_share)"
    )
    return {**splits, config.train_split: kept, name: val}, (*notes, note)
