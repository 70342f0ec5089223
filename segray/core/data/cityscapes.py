"""Cityscapes in its official layout: leftImg8bit/SPLIT/CITY/*_leftImg8bit.png, gtFine/SPLIT/CITY/*_gtFine_labelIds.png.

Names, ids and colours are cityscapesScripts' (helpers/labels.py). `cityscapes` has the 19 classes that are scored,
all others void; `cityscapes34` has every label as a class of its own.
"""

from __future__ import annotations

from segray.core.io import storage
from segray.core.io.pairing import check_root, pair
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace
from segray.errors import DataError
from segray.sections.training import DataSection

LABELS = (  # (name, whether it is one of the 19, colour); the id is the position
    ("unlabeled", False, (0, 0, 0)), ("ego vehicle", False, (0, 0, 0)), ("rectification border", False, (0, 0, 0)),
    ("out of roi", False, (0, 0, 0)), ("static", False, (0, 0, 0)), ("dynamic", False, (111, 74, 0)),
    ("ground", False, (81, 0, 81)), ("road", True, (128, 64, 128)), ("sidewalk", True, (244, 35, 232)),
    ("parking", False, (250, 170, 160)), ("rail track", False, (230, 150, 140)), ("building", True, (70, 70, 70)),
    ("wall", True, (102, 102, 156)), ("fence", True, (190, 153, 153)), ("guard rail", False, (180, 165, 180)),
    ("bridge", False, (150, 100, 100)), ("tunnel", False, (150, 120, 90)), ("pole", True, (153, 153, 153)),
    ("polegroup", False, (153, 153, 153)), ("traffic light", True, (250, 170, 30)),
    ("traffic sign", True, (220, 220, 0)), ("vegetation", True, (107, 142, 35)), ("terrain", True, (152, 251, 152)),
    ("sky", True, (70, 130, 180)), ("person", True, (220, 20, 60)), ("rider", True, (255, 0, 0)),
    ("car", True, (0, 0, 142)), ("truck", True, (0, 0, 70)), ("bus", True, (0, 60, 100)),
    ("caravan", False, (0, 0, 90)), ("trailer", False, (0, 0, 110)), ("train", True, (0, 80, 100)),
    ("motorcycle", True, (0, 0, 230)), ("bicycle", True, (119, 11, 32)),
)  # fmt: skip
CATEGORIES = {  # of the 19
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
SPLITS = ("train", "val", "test")


def _space(chosen: list[int]) -> LabelSpace:
    id_map = dict.fromkeys(range(len(LABELS)), IGNORE_INDEX) | {raw: label for label, raw in enumerate(chosen)}
    id_map[IGNORE_INDEX] = IGNORE_INDEX  # the licence plate's −1, as 8 bits hold it
    return LabelSpace(tuple(LABELS[i][0] for i in chosen), tuple(LABELS[i][2] for i in chosen), id_map)


LABEL_SPACE = _space([i for i, (_, scored, _) in enumerate(LABELS) if scored])
LABEL_SPACE_34 = _space(list(range(len(LABELS))))


def open_dataset(config: DataSection) -> Dataset:
    """Open the 19 classes; splits train, val and test as far as their folders of gtFine/ are there."""
    return _open(config, "cityscapes", LABEL_SPACE)


def open_dataset_34(config: DataSection) -> Dataset:
    """Open the data set with all 34 labels as classes."""
    return _open(config, "cityscapes34", LABEL_SPACE_34)


def _open(config: DataSection, name: str, space: LabelSpace) -> Dataset:
    root = check_root(config.root, "leftImg8bit/ and gtFine/")
    splits, unpaired = {}, []
    for split in SPLITS:
        images, masks = storage.join(root, "leftImg8bit", split), storage.join(root, "gtFine", split)
        if storage.exists(masks):  # leftImg8bit/test often stands alone
            refs, lonely = pair(images, masks, prefix=f"{split}/")
            unpaired += lonely
            if refs:
                splits[split] = tuple(refs)
    if not splits and not unpaired:
        raise DataError(f"{root} holds no frames in leftImg8bit/{{train,val}}/CITY/ and gtFine/{{train,val}}/CITY/.")
    return Dataset(name, space, splits, tuple(unpaired))
