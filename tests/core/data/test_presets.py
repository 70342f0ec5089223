"""Published data sets, written small under their own names: which frame has which mask, split and class."""

import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from segray.core.data import LAYOUTS, open_dataset, read_sample, split_refs
from segray.core.data.presets import PRESETS
from segray.errors import DataError
from segray.sections.training import DataSection

DRIVE = "2013_05_28_drive_0000_sync"


def labels(*names):
    return json.dumps({"labels": [{"name": name, "color": [i, i, i]} for i, name in enumerate(names)]})


def vistas():
    rows = [("animal--bird", True), ("void--unlabeled", False)]
    return json.dumps({"labels": [{"name": name, "color": [9, 9, 9 + used], "evaluate": used} for name, used in rows]})


# Of each: files that list something; then frames: image, mask, a pixel of it, split (None: drawn by the name's hash), its
# class (None is void).
CASES = {
    "bdd100k": (
        {},
        [
            ("images/10k/train/0a0a-1.jpg", "labels/sem_seg/masks/train/0a0a-1.png", 13, "train", "car"),
            ("images/10k/val/b.jpg", "labels/sem_seg/masks/val/b.png", 255, "val", None),
        ],
    ),
    "mapillary": (
        {"config_v1.2.json": vistas(), "config_v2.0.json": vistas()},
        [
            ("training/images/a.jpg", "training/v1.2/labels/a.png", 0, "train", "animal--bird"),
            ("validation/images/b.jpg", "validation/v1.2/labels/b.png", 1, "val", None),
        ],
    ),
    "mapillary-v2": (
        {"config_v1.2.json": vistas(), "config_v2.0.json": vistas()},
        [("training/images/a.jpg", "training/v2.0/labels/a.png", 0, "train", "animal--bird")],
    ),
    "kitti": (
        {},
        [("training/image_2/000000_10.png", "training/semantic/000000_10.png", 26, None, "car")],
    ),
    "kitti-360": (
        {
            f"data_2d_semantics/train/2013_05_28_drive_{split}_frames.txt": (
                f"data_2d_raw/{DRIVE}/image_00/data_rect/{name}.png "
                f"data_2d_semantics/train/{DRIVE}/image_00/semantic/{name}.png\n"
            )
            for split, name in (("train", "0000000250"), ("val", "0000004000"))
        },
        [
            (
                f"data_2d_raw/{DRIVE}/image_00/data_rect/{name}.png",
                f"data_2d_semantics/train/{DRIVE}/image_00/semantic/{name}.png",
                raw,
                split,
                label,
            )
            for name, raw, split, label in (("0000000250", 34, "train", "building"), ("0000004000", 42, "val", None))
        ],
    ),
    "idd": (
        {},
        [
            ("leftImg8bit/train/0/0051_leftImg8bit.png", "gtFine/train/0/0051_gtFine_labellevel3Ids.png", 8, "train", "autorickshaw"),
            ("leftImg8bit/val/119/9_leftImg8bit.jpg", "gtFine/val/119/9_gtFine_labellevel3Ids.png", 255, "val", None),
        ],
    ),
    "acdc": (
        {},
        [
            (
                "rgb_anon/fog/train/GOPR0475/GOPR0475_frame_000041_rgb_anon.png",
                "gt/fog/train/GOPR0475/GOPR0475_frame_000041_gt_labelTrainIds.png",
                0,
                "train",
                "road",
            ),
            (
                "rgb_anon/night/val/GOPR0356/GOPR0356_frame_000324_rgb_anon.png",
                "gt/night/val/GOPR0356/GOPR0356_frame_000324_gt_labelTrainIds.png",
                18,
                "val",
                "bicycle",
            ),
        ],
    ),
    "railsem19": (
        {"rs19-config.json": labels("road", "sidewalk", "construction")},
        [("jpgs/rs19_val/rs00000.jpg", "uint8/rs19_val/rs00000.png", 2, None, "construction")],
    ),
    "a2d2": (
        {"class_list.json": json.dumps({"#ff0000": "Car 1", "#c80000": "Car 2", "#87ceff": "Sky"})},
        [
            (
                "20180807_145028/camera/cam_front_center/20180807145028_camera_frontcenter_000000091.png",
                "20180807_145028/label/cam_front_center/20180807145028_label_frontcenter_000000091.png",
                (200, 0, 0),
                None,
                "Car",
            )
        ],
    ),
    "goose": (
        {"goose_label_mapping.csv": "class_name,label_key,has_instance,hex\nundefined,0,0,#000000\ncar,12,1,#b79762\n"},
        [
            ("images/train/2022-07-22_flight/a__0001_1_windshield_vis.png", "labels/train/2022-07-22_flight/a__0001_1_labelids.png", 12, "train", "car"),
            ("images/val/2023-01-20_x/b__1_2_front.png", "labels/val/2023-01-20_x/b__1_2_labelids.png", 0, "val", None),
        ],
    ),
    "rugd": (
        {},
        [
            ("RUGD_frames-with-annotations/trail-3/trail-3_00001.png", "RUGD_annotations/trail-3/trail-3_00001.png", (102, 102, 0), "train", "rock-bed"),
            ("RUGD_frames-with-annotations/park-8/park-8_00001.png", "RUGD_annotations/park-8/park-8_00001.png", (0, 0, 0), "val", None),
        ],
    ),
    "rellis-3d": (
        {
            f"{split}.lst": f"00000/pylon_camera_node/{name}.jpg 00000/pylon_camera_node_label_id/{name}.png\n"
            for split, name in (("train", "frame000000-1581624652_750"), ("val", "frame000104-1581624663_149"))
        },
        [
            (f"00000/pylon_camera_node/{name}.jpg", f"00000/pylon_camera_node_label_id/{name}.png", raw, split, label)
            for name, raw, split, label in (
                ("frame000000-1581624652_750", 34, "train", "rubble"),
                ("frame000104-1581624663_149", 0, "val", None),
            )
        ],
    ),
    "uavid": (
        {},
        [("uavid_train/seq1/Images/000000.png", "uavid_train/seq1/Labels/000000.png", (192, 0, 192), "train", "static car")],
    ),
    "loveda": (
        {},
        [
            ("Train/Urban/images_png/1366.png", "Train/Urban/masks_png/1366.png", 7, "train", "agricultural"),
            ("Val/Rural/images_png/2522.png", "Val/Rural/masks_png/2522.png", 0, "val", None),
        ],
    ),
    "synthia": ({}, [("RGB/0000000.png", "GT/LABELS/0000000.png", (17, 3, 0), None, "rider")]),
    "carla": (
        {},
        [
            ("dataA/dataA/CameraRGB/02_00_000.png", "dataA/dataA/CameraSeg/02_00_000.png", (7, 0, 0), None, "road"),
            ("dataE/CameraRGB/F1-0.png", "dataE/CameraSeg/F1-0.png", (0, 0, 0), None, None),
            ("CameraRGB/7.png", "CameraSeg/7.png", (10, 0, 0), None, "vehicle"),
        ],
    ),
    "gta5": (
        {},
        [
            ("images/00001.png", "labels/00001.png", 7, None, "road"),
            ("images/24966.png", "labels/24966.png", 34, None, None),
        ],
    ),
}  # fmt: skip


def image(path, pixel=(90, 120, 60), size=(3, 2)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, *np.shape(pixel)), pixel, np.uint8)).save(path)


def deep(path, pixel, size=(3, 2)):
    """A PNG of 16 bits a channel, as SYNTHIA's masks are, which Pillow does not write in colour."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    path.parent.mkdir(parents=True, exist_ok=True)
    row = b"\0" + struct.pack(">3H", *pixel) * size[1]
    header = struct.pack(">IIBBBBB", size[1], size[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row * size[0])) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.fixture(params=sorted(PRESETS))
def published(request, tmp_path):
    """A data set as it is published: its name, its folder, and what is in it."""
    files, frames = CASES[request.param]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for picture, mask, pixel, _, _ in frames:
        image(tmp_path / picture)
        (deep if request.param == "synthia" else image)(tmp_path / mask, pixel)
    return request.param, tmp_path, frames


def test_every_published_data_set_is_read_by_its_row(published):
    name, root, frames = published
    dataset = open_dataset(DataSection(format=name, root=str(root)))
    found = {ref.image: (split, ref) for split, refs in dataset.splits.items() for ref in refs}
    assert (len(found), dataset.unpaired) == (len(frames), ())
    for picture, mask, _, split, label in frames:
        its_split, ref = found[str(root / picture)]
        assert (ref.mask, split or its_split) == (str(root / mask), its_split)
        (seen,) = np.unique(read_sample(ref, dataset.label_space, None).mask_hw)
        assert (None if seen == 255 else dataset.label_space.names[seen]) == label


def test_a_published_data_set_is_found_by_looking_where_it_has_a_sign(published):
    name, root, _ = published
    both = {"mapillary", "mapillary-v2"}  # one folder has both
    if LAYOUTS[name].signs and name not in both:
        assert open_dataset(DataSection(root=str(root))).name == name


def test_a_data_set_that_asks_for_an_account_says_where(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError) as error:
        open_dataset(DataSection(format="bdd100k", root=str(tmp_path)))
    assert str(error.value) == (
        f"{tmp_path} holds no images/10k/{{split}}/{{name}} and labels/sem_seg/masks/{{split}}/{{name}}. "
        "The data is from bdd-data.berkeley.edu, which asks for an account."
    )


def test_images_of_a_test_split_and_those_of_a_sparse_data_set_need_no_mask(tmp_path):
    for split in ("train", "test"):
        image(tmp_path / f"images/10k/{split}/a.jpg")
    image(tmp_path / "labels/sem_seg/masks/train/a.png", 1)
    dataset = open_dataset(DataSection(format="bdd100k", root=str(tmp_path)))
    assert (dataset.unpaired, dataset.notes) == ((), ("1 image without a mask: passed over, as bdd100k has them",))
    image(tmp_path / "images/10k/train/b.jpg")
    image(tmp_path / "labels/sem_seg/masks/train/c.png", 1)
    dataset = open_dataset(DataSection(format="bdd100k", root=str(tmp_path)))
    assert dataset.unpaired == (
        f"{tmp_path}/images/10k/train/b.jpg", f"{tmp_path}/labels/sem_seg/masks/train/c.png",
    )  # fmt: skip
    with pytest.raises(DataError, match=r"b\.jpg has no partner"):
        split_refs(dataset, "train")


def test_the_first_edition_of_mapillary_vistas_is_read_too(tmp_path):
    image(tmp_path / "training/images/a.jpg")
    image(tmp_path / "training/labels/a.png", 0)
    (tmp_path / "config.json").write_text(vistas())
    dataset = open_dataset(DataSection(format="mapillary", root=str(tmp_path)))
    assert (dataset.label_space.names, list(dataset.splits)) == (("animal--bird",), ["train"])


@pytest.mark.parametrize("again", ["images/10k/train/a.png", "labels/sem_seg/masks/train/a.tif"])
def test_two_files_of_one_frame_are_refused(tmp_path, again):
    image(tmp_path / "images/10k/train/a.jpg")
    image(tmp_path / "labels/sem_seg/masks/train/a.png", 1)
    image(tmp_path / again, 2)
    with pytest.raises(DataError, match=r"are of one frame; keep one of them\.$"):
        open_dataset(DataSection(format="bdd100k", root=str(tmp_path)))


def test_without_lists_whole_drives_are_held_out(tmp_path):
    for i in range(12):
        for name, pixel in (("camera", (1, 2, 3)), ("label", (255, 0, 0))):
            image(tmp_path / f"2018_{i // 4}/{name}/cam_front_center/2018_{name}_frontcenter_{i:09}.png", pixel)
    (tmp_path / "class_list.json").write_text('{"#ff0000": "Car 1"}')
    splits = open_dataset(DataSection(format="a2d2", root=str(tmp_path))).splits
    drives = [{ref.sample_id.split("/")[0] for ref in refs} for refs in splits.values()]
    assert drives[0] & drives[1] == set()


@pytest.mark.parametrize(
    ("name", "file", "text", "said"),
    [
        ("goose", "goose_label_mapping.csv", "a,b\n1,2\n", "needs the columns class_name, label_key and hex"),
        ("a2d2", "class_list.json", '{"red": "Car 1"}', "must map colours to names"),
        ("a2d2", "class_list.json", "[1]", "must map colours to names"),
    ],
)  # fmt: skip
def test_a_damaged_list_of_classes_is_one_line(tmp_path, name, file, text, said):
    for picture, mask, pixel, _, _ in CASES[name][1]:
        image(tmp_path / picture)
        image(tmp_path / mask, pixel)
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=said):
        open_dataset(DataSection(format=name, root=str(tmp_path)))


def test_cityscapes_classes_have_the_ids_that_each_data_set_gives_them():
    """Spot checks against bdd100k's label.py, kitti360scripts' labels.py, and the mapping of ADVENT."""
    spaces = {name: PRESETS[name].space("") for name in ("bdd100k", "kitti-360", "synthia", "gta5")}
    car = {name: [raw for raw, label in space.id_map.items() if label == 13] for name, space in spaces.items()}
    assert car == {"bdd100k": [13], "kitti-360": [26], "synthia": [8], "gta5": [26]}
    assert all(space.names[13] == "car" for space in spaces.values())
