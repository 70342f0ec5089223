"""Any folder of images and masks with a list of classes.

root/classes.csv            or another list of classes, as class_files reads them
root/images/train/…         or root/images/… without splits: then a share goes to val, by name
root/train.txt, val.txt     or these: a frame a line
root/masks/train/…          the same paths, as PNGs of class ids (grey or palette; 255 is void) or of the colours

Folders and files may have other names, as roles finds them.
"""

from __future__ import annotations

from dataclasses import replace

from segray.core.data import roles
from segray.core.data.class_files import FILES, class_file, read_classes
from segray.core.io import storage
from segray.core.io.pairing import check_root, split_by_lists
from segray.core.samples import Dataset
from segray.errors import DataError
from segray.sections.training import DataSection


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
            f"and edit it: segray data classes {config.root}"
        )
    if classes != storage.join(root, FILES[0]):
        notes = (f"classes are those of {classes}", *notes)
    space = replace(space, listed_in=classes)
    splits, told = split_by_lists(root, refs, found.images, config)
    return Dataset("folder", space, splits, tuple(unpaired), (*notes, *found.notes, *told))
