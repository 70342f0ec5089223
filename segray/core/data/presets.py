"""Published data sets of which a row says all: where images and masks lie, what the ids mean, and which frame is when.

    images/10k/{split}/{name}   a path below the root without suffix. Each {…} is one step, or a part of one; an image
                                and a mask are of one frame where all of them are the same

A split is {split}, the group that `splits_of` knows, or what a list names; without any of them whole drives are held
out. Facts are those of the sources that stand at each row.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from segray.core.data.cityscapes import LABEL_SPACE
from segray.core.data.class_files import read_classes
from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.io.images import IMAGE_SUFFIXES
from segray.core.io.pairing import check_root, drive_of, split
from segray.core.io.texts import read_text
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace, SampleRef, color_id
from segray.errors import DataError
from segray.sections.training import DataSection

SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}
Spaces = Callable[[str], LabelSpace]


class Preset(NamedTuple):
    """images, masks: patterns of paths, of which each may have several. space: root → classes.

    about: the classes, for people. home: where the data is. account: whether it asks for one. signs: what lies in such
    a folder, and in no other; () where nothing does, and the format has to be given. lists: patterns of the lists of
    splits, whose lines begin with an image. splits_of: {group} → split. sparse: most images have no mask.
    """

    images: tuple[str, ...]
    masks: tuple[str, ...]
    space: Spaces
    about: str
    home: str
    account: bool = True
    signs: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    splits_of: Mapping[str, str] = {}
    sparse: bool = False

    @property
    def layout(self) -> str:
        """Say what lies below the root."""
        return f"{self.images[0]} {self.masks[0]}; {self.about}"


def _ids(*rows: tuple[str, str, tuple[int, ...]], void: tuple[int, ...] = (IGNORE_INDEX,)) -> Spaces:
    """Make classes of (name, colour, ids in masks)."""
    id_map = {raw: i for i, (_, _, ids) in enumerate(rows) for raw in ids} | dict.fromkeys(void, IGNORE_INDEX)
    space = LabelSpace(tuple(row[0] for row in rows), tuple(_rgb(row[1]) for row in rows), id_map)
    return lambda root: space


def _in_red(spaces: Spaces) -> Spaces:
    """Read the ids of masks from their red channel."""
    return lambda root: replace(spaces(root), mask_channel="red")


def _colors(*rows: tuple[str, str], void: tuple[str, ...] = ()) -> Spaces:
    """Make classes of (name, colour in masks)."""
    colors = [_rgb(color) for _, color in rows]
    id_map = {color_id(*color): i for i, color in enumerate(colors)}
    id_map |= dict.fromkeys([color_id(*_rgb(color)) for color in void], IGNORE_INDEX)
    space = LabelSpace(tuple(name for name, _ in rows), tuple(colors), id_map)
    return lambda root: space


def _rgb(text: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def _train_ids(root: str) -> LabelSpace:
    """Return Cityscapes' 19 classes by their train ids, which are their positions."""
    return LabelSpace(LABEL_SPACE.names, LABEL_SPACE.colors)


def _label_ids(root: str) -> LabelSpace:
    """Return Cityscapes' 19 classes by its label ids. 34 is the licence plate of GTA5's masks."""
    return replace(LABEL_SPACE, id_map={**LABEL_SPACE.id_map, 34: IGNORE_INDEX})


def _file(*names: str) -> Spaces:
    """Read the classes from the first of these files that is at the root."""

    def read(root: str) -> LabelSpace:
        there = (uri for name in names if storage.exists(uri := storage.join(root, name)))
        return read_classes(next(there, storage.join(root, names[0])))[0]

    return read


def _goose(root: str) -> LabelSpace:
    """Read goose_label_mapping.csv: class_name,label_key,has_instance,hex. `undefined` is void."""
    uri = storage.join(root, "goose_label_mapping.csv")
    try:
        rows = [
            (row["class_name"].strip(), int(row["label_key"]), _rgb(row["hex"].strip()))
            for row in csv.DictReader(io.StringIO(read_text(uri)))
        ]
    except (ValueError, LookupError, TypeError, AttributeError, csv.Error):
        raise DataError(f"{uri} needs the columns class_name, label_key and hex (#RRGGBB).") from None
    kept = [row for row in rows if row[0] != "undefined"]
    id_map = {raw: IGNORE_INDEX for _, raw, _ in rows} | {raw: i for i, (_, raw, _) in enumerate(kept)}
    return LabelSpace(tuple(row[0] for row in kept), tuple(row[2] for row in kept), id_map)


def _a2d2(root: str) -> LabelSpace:
    """Read class_list.json: {"#ff0000": "Car 1", …}. Numbers tell objects apart: "Car 1" and "Car 2" are one class."""
    uri = storage.join(root, "class_list.json")
    given = storage.parse_json(storage.read_bytes(uri), uri)
    try:
        named = {_rgb(color): re.sub(r" \d+$", "", name) for color, name in given.items()}
    except (ValueError, TypeError, AttributeError):
        raise DataError(f'{uri} must map colours to names, such as {{"#ff0000": "Car 1"}}.') from None
    names = list(dict.fromkeys(named.values()))
    first = {name: color for color, name in reversed(named.items())}
    id_map = {color_id(*color): names.index(name) for color, name in named.items()}
    return LabelSpace(tuple(names), tuple(first[name] for name in names), id_map)


# kitti360scripts/helpers/labels.py: ids, colours, and which are scored. garage is trained as building, gate as fence
# and smallpole as pole there (trainId), and all three are ignored in its evaluation.
_KITTI_360 = LabelSpace(
    LABEL_SPACE.names,
    LABEL_SPACE.colors,
    {**LABEL_SPACE.id_map, **dict.fromkeys((*range(34, 45),), IGNORE_INDEX), 34: 2, 35: 4, 37: 5},
)
# Ids of SYNTHIA-RAND-CITYSCAPES, as ADVENT trains on them (advent/dataset/synthia.py): by Cityscapes' classes. Void, as
# there: nothing, parking slots, road work and lane markings.
_SYNTHIA = LabelSpace(
    LABEL_SPACE.names,
    LABEL_SPACE.colors,
    dict.fromkeys((0, 13, 14, 22), IGNORE_INDEX)
    | {3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10}
    | {10: 11, 17: 12, 8: 13, 18: 14, 19: 15, 20: 16, 12: 17, 11: 18},
    mask_channel="red",
)
PRESETS = {
    # bdd100k/bdd100k doc/source/download.rst and format.rst, bdd100k/label/label.py
    "bdd100k": Preset(
        ("images/10k/{split}/{name}",),
        ("labels/sem_seg/masks/{split}/{name}",),
        _train_ids,
        "the 19 classes of Cityscapes",
        "bdd-data.berkeley.edu",
        signs=("images/10k", "labels/sem_seg/masks"),
    ),
    # The README of Mapillary Vistas v2.0, as datumaro's and mmsegmentation's documents repeat it
    "mapillary": Preset(
        ("{split}/images/{name}",),
        ("{split}/v1.2/labels/{name}", "{split}/labels/{name}"),
        _file("config_v1.2.json", "config.json"),
        "the classes that config_v1.2.json evaluates",
        "mapillary.com/dataset/vistas",
        signs=("training/images", "config_v1.2.json"),
    ),
    "mapillary-v2": Preset(
        ("{split}/images/{name}",),
        ("{split}/v2.0/labels/{name}",),
        _file("config_v2.0.json"),
        "the classes that config_v2.0.json evaluates",
        "mapillary.com/dataset/vistas",
        signs=("training/images", "config_v2.0.json"),
    ),
    # The README of KITTI's devkit_semantics: one channel of Cityscapes' label ids
    "kitti": Preset(
        ("training/image_2/{name}",),
        ("training/semantic/{name}",),
        _label_ids,
        "the 19 classes of Cityscapes",
        "cvlibs.net/datasets/kitti/eval_semseg.php",
        signs=("training/image_2", "training/semantic"),
    ),
    # autonomousvision/kitti360Scripts: evaluation/semantic_2d, and the lists of its novel_view_synthesis
    "kitti-360": Preset(
        ("data_2d_raw/{drive}/{camera}/data_rect/{name}",),
        ("data_2d_semantics/train/{drive}/{camera}/semantic/{name}",),
        lambda root: _KITTI_360,
        "the 19 classes of Cityscapes",
        "cvlibs.net/datasets/kitti-360",
        signs=("data_2d_raw", "data_2d_semantics"),
        lists=("data_2d_semantics/train/2013_05_28_drive_{split}_frames.txt",),
        sparse=True,
    ),
    # AutoNUE/public-code: README.md, helpers/anue_labels.py (level3Id), preperation/createLabels.py
    "idd": Preset(
        ("leftImg8bit/{split}/{drive}/{name}_leftImg8bit",),
        ("gtFine/{split}/{drive}/{name}_gtFine_labellevel3Ids",),
        _ids(
            ("road", "804080", (0,)), ("drivable fallback", "510051", (1,)), ("sidewalk", "f423e8", (2,)),
            ("non-drivable fallback", "98fb98", (3,)), ("person", "dc143c", (4,)), ("rider", "ff0000", (5,)),
            ("motorcycle", "0000e6", (6,)), ("bicycle", "770b20", (7,)), ("autorickshaw", "ffcc36", (8,)),
            ("car", "00008e", (9,)), ("truck", "000046", (10,)), ("bus", "003c64", (11,)),
            ("vehicle fallback", "888f99", (12,)), ("curb", "dcbe28", (13,)), ("wall", "66669c", (14,)),
            ("fence", "be9999", (15,)), ("guard rail", "b4a5b4", (16,)), ("billboard", "ae4043", (17,)),
            ("traffic sign", "dcdc00", (18,)), ("traffic light", "faaa1e", (19,)), ("pole", "999999", (20,)),
            ("obs-str-bar-fallback", "a9bbd6", (21,)), ("building", "464646", (22,)), ("bridge", "966464", (23,)),
            ("vegetation", "6b8e23", (24,)), ("sky", "4682b4", (25,)),
        ),
        "the 26 classes of level 3, as preperation/createLabels.py of AutoNUE writes them",
        "idd.insaan.iiit.ac.in",
    ),
    # w1oves/Rein and yasserben/FLOSS, configs/_base_/datasets: folders, suffixes and train ids
    "acdc": Preset(
        ("rgb_anon/{condition}/{split}/{drive}/{name}_rgb_anon",),
        ("gt/{condition}/{split}/{drive}/{name}_gt_labelTrainIds",),
        _train_ids,
        "the 19 classes of Cityscapes",
        "acdc.vision.ee.ethz.ch",
        signs=("rgb_anon", "gt"),
    ),
    # rs19-config.json has the names and colours in the order of the ids; folders as in several readers of it
    "railsem19": Preset(
        ("jpgs/rs19_val/{name}",),
        ("uint8/rs19_val/{name}",),
        _file("rs19-config.json"),
        "the 19 classes of rs19-config.json",
        "wilddash.cc/railsem19",
        signs=("rs19-config.json",),
    ),
    # The tutorial of A2D2, and the readers of xmuda: scene/camera/…_camera_frontcenter_…, colours of class_list.json
    "a2d2": Preset(
        ("{drive}/camera/{camera}/{time}_camera_{side}_{name}",),
        ("{drive}/label/{camera}/{time}_label_{side}_{name}",),
        _a2d2,
        "the classes of class_list.json, objects of one kind as one",
        "a2d2.audi, camera_lidar_semantic/",
        account=False,
        signs=("class_list.json",),
    ),
    # FraunhoferIOSB/goose_dataset: image_processing/goosetools/data.py, scripts/download_goose.sh
    "goose": Preset(
        tuple(
            f"images/{{split}}/{{drive}}/{{name}}_{end}"
            for end in ("windshield_vis", "front", "camera_left", "realsense")  # the others are GOOSE-Ex's
        ),
        ("labels/{split}/{drive}/{name}_labelids",),
        _goose,
        "the 63 classes of goose_label_mapping.csv",
        "goose-dataset.de",
        account=False,
        signs=("goose_label_mapping.csv",),
    ),
    # RUGD_annotation-colormap.txt, and the scenes of its splits (Wigness et al. 2019)
    "rugd": Preset(
        ("RUGD_frames-with-annotations/{group}/{name}",),
        ("RUGD_annotations/{group}/{name}",),
        _colors(
            ("dirt", "6c4014"), ("sand", "ffe5cc"), ("grass", "006600"), ("tree", "00ff00"), ("pole", "009999"),
            ("water", "0080ff"), ("sky", "0000ff"), ("vehicle", "ffff00"), ("container/generic-object", "ff007f"),
            ("asphalt", "404040"), ("gravel", "ff8000"), ("building", "ff0000"), ("mulch", "994c00"),
            ("rock-bed", "666600"), ("log", "660000"), ("bicycle", "00ff80"), ("person", "cc99ff"),
            ("fence", "6600cc"), ("bush", "ff99cc"), ("sign", "006666"), ("rock", "99ccff"), ("bridge", "66ffff"),
            ("concrete", "65650b"), ("picnic-table", "72552f"), void=("000000",),
        ),
        "24 classes by their colours",
        "rugd.vision",
        account=False,
        signs=("RUGD_frames-with-annotations", "RUGD_annotations"),
        splits_of={
            **dict.fromkeys(("park-8", "trail-5"), "val"),
            **dict.fromkeys(("creek", "park-1", "trail-7", "trail-13"), "test"),
            **dict.fromkeys(("park-2", "village", "trail"), "train"),
            **{f"trail-{i}": "train" for i in (3, 4, 6, 9, 10, 11, 12, 14, 15)},
        },
    ),
    # unmannedlab/RELLIS-3D: README.md and the readers of its benchmarks, whose ids these are; its ontology's colours
    "rellis-3d": Preset(
        ("{drive}/pylon_camera_node/{name}",),
        ("{drive}/pylon_camera_node_label_id/{name}",),
        _ids(
            ("dirt", "6c4014", (1,)), ("grass", "006600", (3,)), ("tree", "00ff00", (4,)), ("pole", "009999", (5,)),
            ("water", "0080ff", (6,)), ("sky", "0000ff", (7,)), ("vehicle", "ffff00", (8,)), ("object", "ff007f", (9,)),
            ("asphalt", "404040", (10,)), ("building", "ff0000", (12,)), ("log", "660000", (15,)),
            ("person", "cc99ff", (17,)), ("fence", "6600cc", (18,)), ("bush", "ff99cc", (19,)),
            ("concrete", "aaaaaa", (23,)), ("barrier", "2979ff", (27,)), ("puddle", "86ffef", (31,)),
            ("mud", "634222", (33,)), ("rubble", "6e168a", (34,)), void=(0, IGNORE_INDEX),
        ),
        "19 classes",
        "github.com/unmannedlab/RELLIS-3D",
        account=False,
        signs=("00000/pylon_camera_node",),
        lists=("{split}.lst", "split/{split}.lst"),
        sparse=True,
    ),
    # uavid.nl's release: uavid_train/seq1/Images/000000.png; colours of its tool (Lyu et al. 2020)
    "uavid": Preset(
        ("uavid_{split}/{drive}/Images/{name}",),
        ("uavid_{split}/{drive}/Labels/{name}",),
        _colors(
            ("background clutter", "000000"), ("building", "800000"), ("road", "804080"), ("tree", "008000"),
            ("low vegetation", "808000"), ("moving car", "400080"), ("static car", "c000c0"), ("human", "404000"),
        ),
        "8 classes by their colours",
        "uavid.nl",
        signs=("uavid_train",),
    ),
    # Junjue-Wang/LoveDA, as mmsegmentation and torchgeo read it: 0 is no data
    "loveda": Preset(
        ("{split}/{area}/images_png/{name}",),
        ("{split}/{area}/masks_png/{name}",),
        _ids(
            ("background", "ffffff", (1,)), ("building", "ff0000", (2,)), ("road", "ffff00", (3,)),
            ("water", "0000ff", (4,)), ("barren", "9f81b7", (5,)), ("forest", "00ff00", (6,)),
            ("agricultural", "ffc380", (7,)), void=(0, IGNORE_INDEX),
        ),
        "7 classes",
        "zenodo.org/records/5706578",
        account=False,
        signs=("Train/Urban/images_png",),
    ),
    # Ids in the first channel of PNGs of 16 bits
    "synthia": Preset(
        ("RGB/{name}",),
        ("GT/LABELS/{name}",),
        lambda root: _SYNTHIA,
        "RAND_CITYSCAPES; the 19 classes of Cityscapes",
        "synthia-dataset.net",
        account=False,
        signs=("RGB", "GT/LABELS"),
    ),
    # Frames of CARLA's cameras, with tags in the first channel, as Lyft's and Udacity's challenge of 2018 has them, on
    # Kaggle in folders of two levels; tags and colours: guangwei.wang/posts/2018/lyft-challenge
    "carla": Preset(
        ("{drive}/{again}/CameraRGB/{name}", "{drive}/CameraRGB/{name}", "CameraRGB/{name}"),
        ("{drive}/{again}/CameraSeg/{name}", "{drive}/CameraSeg/{name}", "CameraSeg/{name}"),
        _in_red(
            _ids(
                ("building", "464646", (1,)), ("fence", "be9999", (2,)), ("other", "48005a", (3,)),
                ("pedestrian", "dc143c", (4,)), ("pole", "999999", (5,)), ("road line", "9dea32", (6,)),
                ("road", "804080", (7,)), ("sidewalk", "f423e8", (8,)), ("vegetation", "6b8e23", (9,)),
                ("vehicle", "0000ff", (10,)), ("wall", "66669c", (11,)), ("traffic sign", "dcdc00", (12,)), void=(0,),
            ),
        ),
        "Lyft's and Udacity's challenge; 12 classes, tags of CARLA 0.8",
        "kaggle.com/datasets/kumaresanmanickavelu/lyft-udacity-challenge",
        signs=("dataA/dataA/CameraRGB",),
    ),
    # Richter et al. 2016, download.visinf.tu-darmstadt.de/data/from_games: Cityscapes' label ids
    "gta5": Preset(
        ("images/{name}",),
        ("labels/{name}",),
        _label_ids,
        "the 19 classes of Cityscapes",
        "download.visinf.tu-darmstadt.de/data/from_games",
        account=False,
        signs=("images/24966.png", "labels/24966.png"),
    ),
}  # fmt: skip


def open_preset(name: str, config: DataSection) -> Dataset:
    """List the frames of a published data set by its row. DataError where its folder holds none."""
    row = PRESETS[name]
    root = check_root(config.root, " and ".join((row.images[0], row.masks[0])))
    images, masks = (_found(root, patterns) for patterns in (row.images, row.masks))
    if not images and not masks:
        account = ", which asks for an account" if row.account else ""
        raise DataError(f"{root} holds no {row.images[0]} and {row.masks[0]}. The data is from {row.home}{account}.")
    refs = {key: SampleRef("/".join(key), images[key], masks[key]) for key in sorted(images.keys() & masks.keys())}
    splits, listed = _splits(root, row, refs, images, config)
    missing = images.keys() - masks.keys()
    with_masks = {key[0] for key in masks} if "{split}" in row.images[0] else {key[0] for key in missing}
    bare = missing if row.sparse else {key for key in missing if key[0] not in with_masks}
    notes = [f"{counted(len(bare), 'image')} without a mask: passed over, as {name} has them"] if bare else []
    lonely = sorted([images[key] for key in missing - bare] + [masks[key] for key in masks.keys() - images.keys()])
    return Dataset(name, row.space(root), splits, tuple(lonely), (*notes, *listed))


def _found(root: str, patterns: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """Map what stands for the groups, the split first, to the image file there; of several patterns the first counts.

    DataError where two files of one pattern are of one frame.
    """
    found: dict[tuple[str, ...], str] = {}
    for pattern in patterns:
        fits = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(pattern)))
        prefix = pattern.split("{")[0].rpartition("/")[0]
        here: dict[tuple[str, ...], str] = {}
        for entry in storage.list_files(storage.join(root, prefix) if prefix else root, storage.not_hidden):
            path, _, suffix = entry.uri[len(root) + 1 :].rpartition(".")
            match = fits.fullmatch(path)
            if match is None or f".{suffix.lower()}" not in IMAGE_SUFFIXES or storage.is_hidden(match["name"]):
                continue
            groups = match.groupdict()
            split = groups.pop("split", None)
            key = (*([] if split is None else [SPLITS.get(split.lower(), split)]), *groups.values())
            if (other := here.setdefault(key, entry.uri)) != entry.uri:
                raise DataError(f"{entry.uri} and {other} are of one frame; keep one of them.")
        found = here | found
    return found


def _splits(
    root: str,
    row: Preset,
    refs: Mapping[tuple[str, ...], SampleRef],
    images: Mapping[tuple[str, ...], str],
    config: DataSection,
) -> tuple[dict[str, tuple[SampleRef, ...]], list[str]]:
    """Return the frames of each split, and notes."""
    if "{split}" in row.images[0]:
        return _grouped(refs, lambda key: key[0]), []
    if row.splits_of:
        return _grouped(refs, lambda key: row.splits_of.get(key[0], "other")), []
    by_place = {images[key][len(root) + 1 :]: ref for key, ref in refs.items()}
    listed: dict[str, tuple[SampleRef, ...]] = {}
    unknown: list[str] = []
    for pattern in row.lists:
        for name in dict.fromkeys(SPLITS.values()):
            uri = storage.join(root, pattern.replace("{split}", name))
            if name in listed or not storage.exists(uri):
                continue
            places = [line.split()[0] for line in read_text(uri).splitlines() if line.strip()]
            unknown += [place for place in places if place not in by_place]
            listed[name] = tuple(dict.fromkeys(by_place[place] for place in places if place in by_place))
    listed = {name: members for name, members in listed.items() if members}
    if listed:
        notes = (
            [f"not there with a mask: {counted(len(unknown), 'frame')} of the lists, such as {unknown[0]}"]
            if unknown
            else []
        )
        return listed, notes
    return split(list(refs.values()), config, drive_of), []


def _grouped(
    refs: Mapping[tuple[str, ...], SampleRef], split_of: Callable[[tuple[str, ...]], str]
) -> dict[str, tuple[SampleRef, ...]]:
    found: dict[str, list[SampleRef]] = {}
    for key, ref in refs.items():
        found.setdefault(split_of(key), []).append(ref)
    return {name: tuple(members) for name, members in found.items()}
