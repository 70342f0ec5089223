"""Published data sets, written small in their exact layout and names, and read."""

import json

import numpy as np
import pytest
from labelled import plan_rows, settings_of
from PIL import Image

from segray.cli.data import show_check
from segray.core.data import LAYOUTS, cityscapes, map_classes, open_dataset, read_sample, split_refs, voc
from segray.core.data.check import check
from segray.core.infer.label_rows import _score as score
from segray.core.samples import LabelSpace, color_id
from segray.core.scoring.sources import reading_space
from segray.errors import ConfigError, DataError, SegrayError
from segray.sections.training import DataSection


def jpeg(path, size=(8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)


def ids(path, rows, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(rows, np.uint8))
    if palette is not None:
        image.putpalette(np.array(palette, np.uint8).tobytes())
    image.save(path)


def colors(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(rows, np.uint8)).save(path)


def masks(config, split="train"):
    dataset = open_dataset(config)
    return {
        ref.sample_id: read_sample(ref, dataset.label_space, None).mask_hw.tolist()
        for ref in split_refs(dataset, split)
    }


@pytest.fixture
def city(tmp_path):
    """Two cities, the labels' other files beside them."""
    for split, name in (("train", "aachen_000000_000019"), ("val", "frankfurt_000001_000576")):
        place = name.split("_")[0]
        jpeg(tmp_path / "leftImg8bit" / split / place / f"{name}_leftImg8bit.png", (3, 2))
        fine = tmp_path / "gtFine" / split / place
        ids(fine / f"{name}_gtFine_labelIds.png", [[7, 8, 0], [33, 1, 26]])
        colors(fine / f"{name}_gtFine_color.png", np.zeros((2, 3, 3)))
        Image.fromarray(np.zeros((2, 3), np.uint16)).save(fine / f"{name}_gtFine_instanceIds.png")
        ids(fine / f"{name}_gtFine_labelTrainIds.png", np.zeros((2, 3)))
        (fine / f"{name}_gtFine_polygons.json").write_text("{}")
    return tmp_path


def test_cityscapes_scores_19_classes_and_the_rest_is_void(city):
    config = DataSection(format="cityscapes", root=str(city))
    assert masks(config) == {"train/aachen/aachen_000000_000019": [[0, 1, 255], [18, 255, 13]]}
    assert masks(config, "val") == {"val/frankfurt/frankfurt_000001_000576": [[0, 1, 255], [18, 255, 13]]}
    space = cityscapes.LABEL_SPACE
    assert (space.num_classes, space.names[18], space.colors[13]) == (19, "bicycle", (0, 0, 142))
    assert masks(config.model_copy(update={"format": "cityscapes34"}))["train/aachen/aachen_000000_000019"] == [
        [7, 8, 0],
        [33, 1, 26],
    ]


def test_frames_of_cityscapes_without_labels_are_passed_over(city):
    jpeg(city / "leftImg8bit" / "test" / "berlin" / "berlin_000000_000019_leftImg8bit.png")
    dataset = open_dataset(DataSection(format="cityscapes", root=str(city)))
    assert (sorted(dataset.splits), dataset.unpaired) == (["train", "val"], ())


def test_cityscapes_tables_are_the_official_ones():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels")
    for label in labels.labels:
        if 0 <= label.id < 34:
            name, scored, color = cityscapes.LABELS[label.id]
            assert (name, color, scored) == (label.name, label.color, label.trainId not in (255, -1))
            assert cityscapes.LABEL_SPACE.id_map[label.id] == (label.trainId if scored else 255)


def test_original_camvid_colours_are_merged_into_segnets_classes(tmp_path):
    for name in ("0001TP_006690", "0016E5_00390"):
        jpeg(tmp_path / "701_StillsRaw_full" / f"{name}.png", (4, 1))
        row = [[(128, 128, 128), (64, 192, 0), (128, 0, 192), (0, 0, 0)]]  # sky, wall, lane marking, void
        colors(tmp_path / "LabeledApproved_full" / f"{name}_L.png", row)
    (tmp_path / "train.txt").write_text("0001TP_006690.png\n")
    (tmp_path / "._train.txt").write_bytes(b"\0\5\x16\7\xff")  # as macOS leaves it on other disks
    (tmp_path / "val.txt").write_text("/data/0016E5_00390.png extra\n")
    config = DataSection(format="camvid-color", root=str(tmp_path))
    assert masks(config) == {"0001TP_006690": [[0, 1, 3, 255]]}
    assert masks(config, "val") == {"0016E5_00390": [[0, 1, 3, 255]]}


def test_every_original_camvid_label_is_in_one_class_or_void():
    from segray.core.data.camvid import BLENDED, COLOR_SPACE, MERGED

    assert sum(map(len, MERGED.values())) == 31
    assert len(COLOR_SPACE.id_map) == 32 + len(BLENDED)  # no colour is given twice
    assert sorted(set(COLOR_SPACE.id_map.values())) == [*range(11), 255]


@pytest.mark.parametrize("folders", [("701_StillsRaw_full", "LabeledApproved_full"), ("images", "labels")])
def test_original_camvid_without_lists_keeps_drives_whole(tmp_path, folders):
    for name in ("0001TP_006690", "0001TP_006720", "0006R0_f00930", "Seq05VD_f02610", "Seq05VD_f02640"):
        jpeg(tmp_path / folders[0] / f"{name}.png", (2, 1))
        colors(tmp_path / folders[1] / f"{name}_L.png", [[(128, 128, 26), (128, 64, 128)]])  # a blended edge, road
    config = DataSection(format="camvid-color", root=str(tmp_path))
    assert masks(config, "val") == {"Seq05VD_f02610": [[255, 3]], "Seq05VD_f02640": [[255, 3]]}
    assert list(masks(config)) == ["0001TP_006690", "0001TP_006720", "0006R0_f00930"]


def test_an_unknown_colour_is_named_as_people_write_it(tmp_path, capsys):
    jpeg(tmp_path / "701_StillsRaw_full" / "a.png", (1, 1))
    colors(tmp_path / "LabeledApproved_full" / "a_L.png", [[(1, 2, 3)]])
    config = DataSection(format="camvid-color", root=str(tmp_path), val_share=0.01)
    with pytest.raises(
        DataError, match=r"a_L\.png has class id #010203; the label space knows #000000, #000040, #0000C0, "
    ):
        masks(config)
    assert any("id #010203 is unknown" in line for line in check(open_dataset(config), ()).problems)
    show_check(check(open_dataset(config), ()), open_dataset(config).label_space)
    assert "#010203  unknown" in capsys.readouterr().out
    fixed = config.model_copy(update={"id_map": {color_id(1, 2, 3): 4}})
    assert masks(fixed) == {"a": [[4]]}


def test_a_colour_is_a_key_of_id_map_in_settings():
    assert DataSection(id_map={"#010203": 4}).id_map == {color_id(1, 2, 3): 4}


def test_carvana_reads_gifs_and_keeps_a_cars_views_together(tmp_path):
    for car in range(12):
        for view in ("01", "02", "16"):
            jpeg(tmp_path / "train" / f"car{car}_{view}.jpg", (2, 1))
            path = tmp_path / "train_masks" / f"car{car}_{view}_mask.gif"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.array([[0, 1]], np.uint8)).save(path)
    dataset = open_dataset(DataSection(format="carvana", root=str(tmp_path), val_share=0.4))
    cars = {split: {ref.sample_id.split("_")[0] for ref in refs} for split, refs in dataset.splits.items()}
    assert cars["train"] & cars["val"] == set()
    assert len(cars["train"] | cars["val"]) == 12
    assert masks(DataSection(format="carvana", root=str(tmp_path), val_share=0.4))[
        "car0_01" if "car0" in cars["train"] else next(iter(cars["train"])) + "_01"
    ] == [[0, 1]]


@pytest.mark.parametrize("inside", [".", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_reads_palette_masks_by_its_lists(tmp_path, inside):
    root = tmp_path / inside
    for name in ("2007_000032", "2007_000039", "2008_000008"):
        jpeg(root / "JPEGImages" / f"{name}.jpg", (3, 1))
    for name in ("2007_000032", "2007_000039"):  # most images have no mask
        ids(root / "SegmentationClass" / f"{name}.png", [[0, 15, 255]], [voc.color_of(i) for i in range(256)])
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000032\n")
    (lists / "val.txt").write_text("2007_000039\n")
    (lists / "trainval.txt").write_text("2007_000032\n2007_000039\n")
    config = DataSection(format="voc", root=str(tmp_path))
    assert masks(config) == {"2007_000032": [[0, 15, 255]]}
    assert len(masks(config, "trainval")) == 2
    assert voc.color_of(15) == (192, 128, 128)  # person, as in the devkit
    (lists / "trainaug.txt").write_text("2007_000032\n2008_000008\n")  # lists masks that VOC does not have
    assert list(open_dataset(config).splits) == ["train", "trainval", "val"]
    assert check(open_dataset(config), ()).pixels == {0: 2, 15: 2, 255: 2}  # trainval's are not counted again
    (lists / "val.txt").write_text("2007_000039\n2008_000008\n")
    with pytest.raises(
        DataError, match=r"val\.txt line 2 lists 2008_000008, whose image has no mask \(1 such line\)\.$"
    ):
        open_dataset(config)


@pytest.fixture
def drives(tmp_path):
    """Frames of one name in three folders, as VOC and CamVid lay theirs out; each mask holds its day."""
    for day in (1, 2, 3):
        for frame in ("0000", "0001"):
            jpeg(tmp_path / "JPEGImages" / f"day{day}" / f"{frame}.jpg", (2, 1))
            ids(tmp_path / "SegmentationClass" / f"day{day}" / f"{frame}.png", [[day, day]])
            jpeg(tmp_path / "images" / f"day{day}" / f"{frame}.jpg", (2, 1))
            colors(tmp_path / "labels" / f"day{day}" / f"{frame}.png", [[(128, 64, 128)] * 2])
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    return tmp_path


def listed(root, train, val):
    """Splits by lists of these lines, by format."""
    names = {}
    for name in ("voc", "camvid-color"):
        folder = root / "ImageSets" / "Segmentation" if name == "voc" else root
        (folder / "train.txt").write_text(train)
        (folder / "val.txt").write_text(val)
        splits = open_dataset(DataSection(format=name, root=str(root))).splits
        names[name] = {split: [ref.sample_id for ref in refs] for split, refs in splits.items()}
    return names


@pytest.mark.parametrize(
    "line", ["{}", "{}.jpg", "./{}.png", "/old/disk/My Drives/{}.jpg", "a\\{}.jpg 1", "{}.jpg {}.png"]
)
def test_frames_of_one_name_in_several_folders_are_listed_by_their_paths(drives, line):
    lines = {day: "\r\n".join(line.replace("{}", f"day{day}/{name}") for name in ("0000", "0001")) for day in (1, 2, 3)}
    found = listed(drives, f"{lines[1]}\n{lines[2]}\n", lines[3])
    splits = {"train": ["day1/0000", "day1/0001", "day2/0000", "day2/0001"], "val": ["day3/0000", "day3/0001"]}
    assert found == {"voc": splits, "camvid-color": splits}


def test_a_list_may_end_its_lines_as_old_macs_do(drives):
    found = listed(drives, "day1/0000\rday2/0000\r", "day3/0000\r")
    assert found["voc"] == {"train": ["day1/0000", "day2/0000"], "val": ["day3/0000"]}


def test_lists_without_a_line_are_refused(drives):
    with pytest.raises(
        DataError, match=r"Segmentation/train\.txt lists no frame; give it some, or delete all lists\.$"
    ):
        listed(drives, "\n", " \n")


def test_a_listed_name_that_several_frames_have_is_refused(drives):
    with pytest.raises(DataError) as error:
        listed(drives, "0000\n", "day3/0001\n")
    assert str(error.value) == (
        f"{drives}/ImageSets/Segmentation/train.txt line 1 lists 0000, and 3 frames end so, such as day1/0000 and day2/0000; "
        "list their paths."
    )


def test_a_listed_frame_of_another_folder_is_not_taken_for_one_of_its_name(drives):
    with pytest.raises(
        DataError, match=r"train\.txt line 1 lists day4/0000, of which there is no image \(1 such line\)\.$"
    ):
        listed(drives, "day4/0000\n", "day3/0001\n")


def test_a_listed_frame_of_a_folder_that_is_there_is_not_taken_for_one_at_the_root(drives):
    """day2/0002 has no mask, day2/0003 no image; both names are also those of a frame at the root."""
    for name in ("0002", "0003"):
        jpeg(drives / "JPEGImages" / f"{name}.jpg", (2, 1))
        ids(drives / "SegmentationClass" / f"{name}.png", [[9, 9]])
    jpeg(drives / "JPEGImages" / "day2" / "0002.jpg", (2, 1))
    for line, says in (
        ("day2/0002", "whose image has no mask"),
        ("/old/day2/0002.jpg", "whose image has no mask"),
        ("day2/0003", "of which there is no image"),
        ("day2/0003.jpg 1", "of which there is no image"),
        ("/old/My Disk/day2/0003.jpg", "of which there is no image"),
    ):
        with pytest.raises(DataError) as error:
            voc_listed(drives, f"day1/0000\n\n{line}\n")
        where = f"{drives}/ImageSets/Segmentation/train.txt line 3"
        assert str(error.value) == f"{where} lists {line}, {says} (1 such line)."
    assert voc_listed(drives, "/old/disk/0003.jpg\n0002\n") == ["0003", "0002"]


def voc_listed(root, train):
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(train)
    return [ref.sample_id for ref in open_dataset(DataSection(format="voc", root=str(root))).splits["train"]]


@pytest.mark.parametrize("comma", [",", " , ", ";", "\t", "  "])
def test_a_list_may_have_columns_and_name_the_frames_own_mask(drives, comma):
    lines = [
        f"JPEGImages/day1/0000.jpg{comma}SegmentationClass/day1/0000.png",
        f"day2/0000.jpg{comma}0000.png{comma}0.5",
        f"/old/disk/JPEGImages/day3/0000.jpg{comma}/old/disk/SegmentationClass/day3/0000.png",
        f"day3/0001{comma}SegmentationClass/day3/0001",
    ]
    assert voc_listed(drives, "\n".join(lines)) == ["day1/0000", "day2/0000", "day3/0000", "day3/0001"]


@pytest.mark.parametrize("comma", [",", ";", " "])
@pytest.mark.parametrize(
    "other", ["SegmentationClass/day1/0001.png", "SegmentationClass/day2/0000.png", "Aug/day1/0000.png", "x.png",
              "SegmentationClass/day1/0001"]
)  # fmt: skip
def test_a_line_that_names_another_frames_mask_is_refused_by_its_number(drives, other, comma):
    with pytest.raises(DataError) as error:
        voc_listed(drives, f"day2/0000\nJPEGImages/day1/0000.jpg{comma}{other}\n")
    assert str(error.value) == (
        f"{drives}/ImageSets/Segmentation/train.txt line 2 lists {other} beside JPEGImages/day1/0000.jpg, which is not "
        f"the frame's mask, {drives}/SegmentationClass/day1/0000.png. List images alone, or put the masks that are "
        "meant where the others lie."
    )


@pytest.mark.parametrize("line", ["gone.jpg,day1/0000.png", "gone.jpg day1/0000.png", "x/gone,day1/0000.png"])
def test_a_line_of_an_image_that_is_gone_does_not_mean_that_of_its_mask(drives, line):
    with pytest.raises(DataError, match=r"train\.txt line 1 lists .*, of which there is no image \(1 such line\)\.$"):
        voc_listed(drives, f"{line}\n")


def test_lists_that_are_passed_over_are_said(drives):
    lists = drives / "ImageSets" / "Segmentation"
    (lists / "test.txt").write_text("day1/0000\nday9/0000\n")
    (lists / "readme.txt").write_text("See the paper.\n")
    (lists / "val.csv").write_text("day3/0000\n")
    voc_listed(drives, "day1/0000\n")
    dataset = open_dataset(DataSection(format="voc", root=str(drives)))
    assert sorted(dataset.splits) == ["train"]
    assert dataset.notes == (
        f"{lists}/test.txt line 2 lists day9/0000, of which there is no image (1 such line). So test is no split here",
        f"{lists}/val.csv is not read: a list of a split is a .txt with a frame a line",
    )


def test_without_lists_vocs_masks_need_an_image(drives):
    jpeg(drives / "JPEGImages" / "0009.jpg")
    config = DataSection(format="voc", root=str(drives))
    assert open_dataset(config).notes == (f"1 image in {drives}/JPEGImages without a mask: left out",)
    (drives / "JPEGImages" / "day1" / "0001.jpg").unlink()
    dataset = open_dataset(config)
    assert dataset.unpaired == (f"{drives}/SegmentationClass/day1/0001.png",)
    assert f"{dataset.unpaired[0]} has no partner" in check(dataset, ()).problems
    assert voc_listed(drives, "day1/0000\n") == ["day1/0000"]


def test_two_lines_for_one_frame_are_refused_and_a_repeated_line_counts_once(tmp_path):
    for name in ("a", "b"):
        jpeg(tmp_path / "images" / f"{name}.png", (2, 1))
        colors(tmp_path / "labels" / f"{name}.png", [[(128, 64, 128)] * 2])
    (tmp_path / "train.txt").write_text("day1/a.png\nday2/a.png\n")
    config = DataSection(format="camvid-color", root=str(tmp_path))
    with pytest.raises(DataError) as error:
        open_dataset(config)
    assert str(error.value) == (
        f"{tmp_path}/train.txt lists day1/a.png and day2/a.png, which are one frame, {tmp_path}/images/a.png."
    )
    (tmp_path / "train.txt").write_text("a\na\nb\n")
    (tmp_path / "val.txt").write_text("b\n")
    dataset = open_dataset(config)
    assert {split: [ref.sample_id for ref in refs] for split, refs in dataset.splits.items()} == {
        "train": ["a", "b"],
        "val": ["b"],
    }
    assert check(dataset, ("train", "val")).notes[:2] == [
        f"{tmp_path}/train.txt repeats 1 line; each frame is taken once",
        "1 frame is in train and in val, such as b: their scores are those of training",
    ]


@pytest.mark.parametrize("name", ["1623173424.123456", "my frame 1", "a,b", "Straße"])
def test_a_listed_name_may_hold_dots_and_spaces(tmp_path, name):
    for one in (name, "my"):
        jpeg(tmp_path / "images" / f"{one}.jpg", (2, 1))
        colors(tmp_path / "labels" / f"{one}_L.png", [[(128, 64, 128)] * 2])
    for line in (name, f"{name}.jpg", f"{name} 1", f"images/{name}.jpg labels/{name}_L.png"):
        (tmp_path / "train.txt").write_text(f"{line}\n")
        assert list(masks(DataSection(format="camvid-color", root=str(tmp_path)))) == [name]


@pytest.mark.parametrize("format_", ["camvid-color", "carvana", "folder"])
def test_lists_at_the_root_say_which_frames_are_validated_on(tmp_path, format_):
    names = {"camvid-color": ("images", "labels"), "carvana": ("train", "train_masks"), "folder": ("images", "masks")}
    for day in ("1", "2", "3"):
        for frame in ("0000", "0001"):
            jpeg(tmp_path / names[format_][0] / day / f"{frame}.png", (2, 1))
            ids(tmp_path / names[format_][1] / day / f"{frame}.png", [[0, 1]])
    (tmp_path / "classes.csv").write_text("name\nroad\ncar\n")
    (tmp_path / "all.txt").write_text("1/0000\n1/0001\n2/0000\n")
    config = DataSection(format=format_, root=str(tmp_path))
    dataset = open_dataset(config)
    assert (sorted(dataset.splits), dataset.notes) == (
        ["train", "val"],
        (f"{tmp_path}/all.txt is of no split by its name",),
    )
    for train, val in (("1", "2"), ("2", "3"), ("3", "1")):  # one of them at least is not as the hashes say
        (tmp_path / "train.txt").write_text(f"{train}/0000\n{train}/0001\n")
        (tmp_path / "val.txt").write_text(f"{val}/0001\n")
        splits = open_dataset(config).splits
        assert [ref.sample_id for ref in splits["train"]] == [f"{train}/0000", f"{train}/0001"]
        assert [ref.sample_id for ref in splits["val"]] == [f"{val}/0001"]


@pytest.mark.parametrize("format_", ["camvid-color", "carvana"])
def test_without_lists_folders_are_drives_and_stay_whole(tmp_path, format_):
    """Names without an underscore, and folders with one."""
    images, labels = ("images", "labels") if format_ == "camvid-color" else ("train", "train_masks")
    for day in ("my_day", "my_night", "dawn"):
        for frame in ("0000", "0001"):
            jpeg(tmp_path / images / day / f"{frame}.png", (2, 1))
            ids(tmp_path / labels / day / f"{frame}.png", [[0, 1]])
    splits = open_dataset(DataSection(format=format_, root=str(tmp_path))).splits
    days = {name: {ref.sample_id.split("/")[0] for ref in refs} for name, refs in splits.items()}
    assert sorted(days) == ["train", "val"]
    assert days["train"] & days["val"] == set()


def test_ade20k_counts_from_one_and_reads_its_names(tmp_path):
    for folder, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        jpeg(tmp_path / "images" / folder / f"{name}.jpg", (3, 1))
        ids(tmp_path / "annotations" / folder / f"{name}.png", [[0, 1, 150]])
    config = DataSection(format="ade20k", root=str(tmp_path))
    assert masks(config) == {"train/ADE_train_00000001": [[255, 0, 149]]}
    assert masks(config, "val") == {"val/ADE_val_00000001": [[255, 0, 149]]}
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t0.1\t1\t1\tname{i}, other" for i in range(1, 151))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    assert open_dataset(config).label_space.names[:2] == ("name1", "name2")


@pytest.mark.parametrize("kind", ["ids", "palette", "rgb", "grey and alpha"])
@pytest.mark.parametrize("classes", ["classes.csv", "classes.yaml"])
def test_a_folder_has_masks_of_ids_or_of_the_classes_colours(tmp_path, kind, classes):
    table = [("road", 4, (128, 64, 128)), ("car", 9, (0, 0, 142))]
    if classes == "classes.csv":
        lines = [f"{name},{i},{r},{g},{b}" for name, i, (r, g, b) in table]
        (tmp_path / classes).write_text("\n".join(["name,id,r,g,b", *lines]))
    else:
        rows = [{"name": name, "id": i, "color": list(color)} for name, i, color in table]
        (tmp_path / classes).write_text(json.dumps(rows))
    jpeg(tmp_path / "images" / "train" / "a.jpg", (2, 1))
    target = tmp_path / "masks" / "train" / "a.png"
    if kind == "rgb":
        colors(target, [[(0, 0, 142), (128, 64, 128)]])
    elif kind == "grey and alpha":
        colors(target, [[(9, 0), (4, 255)]])
    else:
        ids(target, [[9, 4]], [[i, 0, 0] for i in range(256)] if kind == "palette" else None)
    config = DataSection(format="folder", root=str(tmp_path), classes=classes)
    assert masks(config) == {"train/a": [[1, 0]]}
    assert open_dataset(config).label_space.colors == ((128, 64, 128), (0, 0, 142))


def test_masks_hold_their_ids_in_a_channel_where_it_is_named(tmp_path):
    """As CARLA's cameras store them; 16 bits, as SYNTHIA's: test_images."""
    (tmp_path / "classes.csv").write_text("name,id\nroad,7\ncar,10\n")
    for split in ("train", "val"):
        jpeg(tmp_path / "images" / split / "a.jpg", (2, 1))
        colors(tmp_path / "masks" / split / "a.png", [[(7, 0, 0), (10, 3, 0)]])
    config = DataSection(format="folder", root=str(tmp_path), mask_channel="red")
    assert masks(config) == {"train/a": [[0, 1]]}
    assert check(open_dataset(config), ("train", "val")).pixels == {7: 2, 10: 2}
    space = open_dataset(config).label_space
    assert LabelSpace.from_dict(space.to_dict()) == space
    with pytest.raises(ConfigError, match=r"^data\.mask_channel is of mask files; labels hold class ids: leave it out"):
        open_dataset(DataSection(format="labels", root=str(tmp_path), mask_channel="red"))


def test_truth_is_read_by_the_channel_that_the_model_learned_from(tmp_path):
    colors(tmp_path / "a.png", [[(7, 0, 0), (10, 3, 0)]])
    space = LabelSpace(("road", "car"), ((0, 0, 0), (0, 0, 1)), {7: 0, 10: 1}, mask_channel="red")
    scores, confusion = score(str(tmp_path / "a.png"), np.array([[0, 1]], np.uint8), space)
    assert (scores["miou"], confusion.tolist()) == (1.0, [[1, 0], [0, 1]])
    assert reading_space(LabelSpace(("road", "car"), ((0, 0, 0), (0, 0, 1))), space)[0] == space


def test_a_list_of_names_is_enough(tmp_path):
    (tmp_path / "classes.yml").write_text("[road, car]")
    jpeg(tmp_path / "images" / "train" / "a.jpg", (2, 1))
    ids(tmp_path / "masks" / "train" / "a.png", [[1, 0]])
    assert masks(DataSection(format="folder", root=str(tmp_path), classes="classes.yml")) == {"train/a": [[1, 0]]}
    (tmp_path / "classes.yml").write_text("road: 1")
    with pytest.raises(DataError, match=r"classes\.yml must be a list of class names"):
        open_dataset(DataSection(format="folder", root=str(tmp_path), classes="classes.yml"))


def test_classes_are_merged_renamed_and_made_void(city):
    class_map = {"person": "human", "rider": "human", "car": None}
    space = map_classes(cityscapes.LABEL_SPACE, class_map)
    assert space.num_classes == 17
    assert space.names[11] == "human"
    assert space.colors[11] == (220, 20, 60)
    assert space.id_map[24] == space.id_map[25] == 11
    assert space.id_map[26] == 255
    assert space.id_map[27] == 12  # truck moves up
    config = DataSection(format="cityscapes", root=str(city), class_map=class_map)
    assert masks(config)["train/aachen/aachen_000000_000019"] == [[0, 1, 255], [16, 255, 255]]
    with pytest.raises(ConfigError, match=r"^data\.class_map names 'rood'\. Did you mean road"):
        map_classes(cityscapes.LABEL_SPACE, {"rood": "x"})
    with pytest.raises(ConfigError, match=r"^data\.class_map makes every class void; keep one\.$"):
        map_classes(cityscapes.LABEL_SPACE, dict.fromkeys(cityscapes.LABEL_SPACE.names))


def test_nothing_is_drawn_into_a_folder_that_is_read(tmp_path):
    with pytest.raises(
        DataError, match=r"holds no drawn streets \(no streets\.json\)\. segray data draw draws some\.$"
    ):
        open_dataset(DataSection(format="streets", root=str(tmp_path)))
    with pytest.raises(DataError, match=r"typo does not exist"):
        open_dataset(DataSection(format="streets", root=str(tmp_path / "typo")))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", sorted(set(LAYOUTS) - {"labels"}))
def test_an_empty_folder_is_one_line(name, tmp_path):
    with pytest.raises(SegrayError) as error:
        open_dataset(DataSection(format=name, root=str(tmp_path)))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truth_of_cityscapes_pairs_with_its_frames_in_labelling(city, tiny_bundle, tmp_path):
    from segray.core.labels.planning import make_plan
    from segray.core.samples import LabelSpace

    settings = settings_of([city / "leftImg8bit" / "val"], city / "gtFine" / "val")
    (row,) = plan_rows(make_plan(str(tmp_path / "out"), settings, LabelSpace(("a",), ((0, 0, 0),))))
    assert row["truth_uri"].endswith("frankfurt_000001_000576_gtFine_labelIds.png")
