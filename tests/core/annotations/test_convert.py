"""Annotations of other tools, written as the tools write them, become a folder to train on; what is wrong is said."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from segray.cli import cli
from segray.core.data import open_dataset, read_sample
from segray.core.io.masks import encode_mask
from segray.errors import ConfigError, DataError, OutputExists
from segray.sections.training import DataSection
from segray.stages.convert import convert

SIZE = (6, 8)  # height, width


def jpeg(path, size=SIZE, exif=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"exif": exif} if exif else {}
    Image.new("RGB", size[::-1], (9, 99, 199)).save(path, **options)
    return path


def png(pixels):
    sink = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def masks(out):
    """Every mask that training sees, by the frame's name, and the data set."""
    dataset = open_dataset(DataSection(format="folder", root=str(out)))
    refs = dict.fromkeys(ref for refs in dataset.splits.values() for ref in refs)
    return {ref.sample_id: read_sample(ref, dataset.label_space, None).mask_hw for ref in refs}, dataset


def whole(label, size=SIZE):
    return np.full(size, label).tolist()


# --- COCO


def coco(root, annotations, *, images=None, categories=None, name="annotations.json"):
    root.mkdir(parents=True, exist_ok=True)
    images = images or [{"id": 1, "file_name": "a.jpg", "height": SIZE[0], "width": SIZE[1]}]
    for one in images:
        jpeg(root / "images" / one["file_name"])
    categories = categories or [{"id": 3, "name": "road", "color": [1, 2, 3]}, {"id": 90, "name": "car"}]
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def rle(marked, compressed=True):
    runs = coco_masks.encode(np.asfortranarray(np.asarray(marked, np.uint8)))
    if compressed:
        return {"size": list(SIZE), "counts": runs["counts"].decode()}
    flat = np.asarray(marked, np.uint8).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(SIZE), "counts": np.diff([0, *edges, flat.size]).tolist()}


def test_coco_polygons_and_run_lengths_are_as_pycocotools_draws_them(tmp_path):
    marked = np.zeros(SIZE, bool)
    marked[1, 2] = marked[3:5, 5] = True
    annotations = [
        {
            "id": 1,
            "image_id": 1,
            "category_id": 3,
            "segmentation": [[0.5, 0.5, 7.2, 1, 6, 5.5], [0, 3, 3, 3, 0, 6]],
            "iscrowd": 0,
        },
        {"id": 2, "image_id": 1, "category_id": 90, "segmentation": rle(marked), "iscrowd": 1},
        {"id": 3, "image_id": 1, "category_id": 90, "segmentation": rle(np.eye(*SIZE), compressed=False), "iscrowd": 1},
    ]
    file = coco(tmp_path / "in", annotations)
    done = convert(str(file), str(tmp_path / "out"))
    library = COCO(str(file))
    wanted = np.full(SIZE, 255)
    for i, label in ((1, 0), (3, 1), (2, 1)):  # the largest first
        wanted[library.annToMask(library.anns[i]) == 1] = label
    found, dataset = masks(tmp_path / "out")
    assert found["a"].tolist() == wanted.tolist()
    assert (dataset.label_space.names, dataset.label_space.colors[0]) == (("road", "car"), (1, 2, 3))
    assert (done.format, done.frames, done.left_out, done.background) == ("coco", 1, [], None)
    assert sum(done.pixels.values()) == 48
    assert (tmp_path / "in/images/a.jpg").samefile(tmp_path / "out/images/a.jpg")


def test_what_of_coco_cannot_be_taken_is_counted_with_an_example(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in (1, 2, 3)]
    del images[2]["id"]
    images[1] |= {"height": 600, "width": 800}
    annotations = [
        {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
        {"id": 2, "image_id": 1, "category_id": 77, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
        {"id": 3, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 8, 0]]},
        {"id": 4, "image_id": 1, "category_id": 3, "segmentation": [], "bbox": [0, 0, 2, 2]},
        {"id": 5, "image_id": 9, "category_id": 3, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
        {"id": 6, "image_id": 1, "category_id": 3, "segmentation": {"size": [60, 80], "counts": [4800]}},
        {"id": 7, "image_id": 1, "category_id": [3], "segmentation": "x"},
        {"id": 8, "image_id": 2, "category_id": 3, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
        {"id": 9, "image_id": 1, "category_id": 3, "segmentation": {"size": [6, 8], "counts": [48]}},
        {"id": 10, "category_id": 3, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]},
        "no annotation",
    ]
    file = coco(tmp_path / "in", annotations, images=images)
    (tmp_path / "in/images/3.jpg").unlink()
    done = convert(str(file), str(tmp_path / "out"))
    assert (done.frames, done.total) == (1, 2)
    assert sorted(done.left_out) == [
        "Annotated images that are not there, left out: 1, such as 3.jpg",
        "Annotations of an image that is not in the file, left out: 2, such as of image 9",
        "Annotations that cannot be read, left out: 2, such as annotations.json",
        "Annotations that cover no pixel, left out: 1, such as 1.jpg",
        "Annotations with a category id that is not in the file, left out: 2, such as annotation 2 of 1.jpg: 77",
        "Annotations without a segmentation (boxes alone), left out: 1, such as annotation 4 of 1.jpg",
        "Images of another size than was annotated, left out: 1, such as images/2.jpg is 6×8, annotated as 600×800 (height × width)",
        "Polygons of fewer than three points, left out: 1, such as annotation 3 of 1.jpg",
    ]  # fmt: skip


def test_two_coco_files_are_splits_and_their_folders_go(tmp_path):
    square = [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]}]
    for split in ("train2017", "val2017"):
        coco(
            tmp_path / "in",
            square,
            name=f"annotations/instances_{split}.json",
            images=[{"id": 1, "file_name": f"{split}.jpg", "height": 6, "width": 8}],
        )
        jpeg(tmp_path / "in" / split / f"{split}.jpg")
        (tmp_path / "in/images" / f"{split}.jpg").unlink()
    (tmp_path / "in/annotations/captions_val2017.json").write_text("{}")
    convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found, dataset = masks(tmp_path / "out")
    assert sorted(found) == ["train/train2017", "val/val2017"]
    assert sorted(dataset.splits) == ["train", "val"]


def test_several_coco_files_of_one_split_keep_the_others_apart(tmp_path):
    """Three files of two splits: no frame of val may be trained on."""
    for split in ("train_day", "train_night", "val"):
        pictures = [{"id": 1, "file_name": f"{split}.jpg", "height": 6, "width": 8}]
        coco(tmp_path / "in", FULL, name=f"annotations/instances_{split}.json", images=pictures)
    convert(str(tmp_path / "in"), str(tmp_path / "out"))
    splits = masks(tmp_path / "out")[1].splits
    names = {split: [ref.sample_id for ref in refs] for split, refs in splits.items()}
    assert names == {"train": ["train/train_day", "train/train_night"], "val": ["val/val"]}


def test_images_that_share_an_id_do_not_get_each_others_annotations(tmp_path):
    """As where the lists of two files, each with ids from 1 on, were put one behind the other."""
    pictures = [
        {"id": i, "file_name": f"{n}.jpg", "height": 6, "width": 8} for n, i in {"a": 1, "b": 1, "c": 2}.items()
    ]
    pictures.append(pictures[-1])
    annotations = [FULL[0], FULL[0] | {"id": 2, "category_id": 90}, FULL[0] | {"id": 3, "image_id": 2}]
    done = convert(str(coco(tmp_path / "in", annotations, images=pictures)), str(tmp_path / "out"))
    assert {name: mask.tolist() for name, mask in masks(tmp_path / "out")[0].items()} == {"c": whole(0)}
    assert done.left_out == [
        "Images with the id of another one, whose annotations cannot be told apart, left out: 2, such as a.jpg, id 1",
        "Images that are annotated twice, of which the first annotation is taken: 1, such as images/c.jpg",
    ]


@pytest.mark.parametrize(
    ("file", "image"), [("annotations/instances_{}.json", "{}/1.jpg"), ("{}/_annotations.coco.json", "{}/1.jpg")]
)
def test_a_name_that_both_splits_have_is_the_image_of_its_own(tmp_path, file, image):
    for label, split in ((3, "train"), (90, "valid")):
        square = [FULL[0] | {"category_id": label}]
        coco(
            tmp_path / "in",
            square,
            name=file.format(split),
            images=[{"id": 1, "file_name": "1.jpg", "height": 6, "width": 8}],
        )
        jpeg(tmp_path / "in" / image.format(split))
        (tmp_path / "in/images/1.jpg").unlink()
    convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found = {name: mask.tolist() for name, mask in masks(tmp_path / "out")[0].items()}
    assert found == {"train/1": whole(0), "val/1": whole(1)}
    (tmp_path / "in" / image.format("valid")).unlink()
    assert convert(str(tmp_path / "in"), str(tmp_path / "again")).left_out == [
        "Annotated images that are not there, left out: 1, such as 1.jpg"
    ]


def test_accents_may_be_written_in_two_ways(tmp_path):
    file = coco(
        tmp_path / "in", FULL, images=[{"id": 1, "file_name": "Stra\u00dfe \u00fc.jpg", "height": 6, "width": 8}]
    )
    (tmp_path / "in/images/Stra\u00dfe \u00fc.jpg").rename(tmp_path / "in/images/Stra\u00dfe u\u0308.jpg")
    assert convert(str(file), str(tmp_path / "out")).frames == 1


def test_coco_of_another_kind_than_asked_is_one_line(tmp_path):
    file = coco(tmp_path / "in", FULL)
    with pytest.raises(ConfigError, match=r"annotations.json is of another kind; --from coco reads it."):
        convert(str(file), str(tmp_path / "out"), kind="coco-panoptic")


def test_coco_of_several_kinds_is_asked_about(tmp_path):
    for kind in ("instances", "panoptic"):
        coco(tmp_path / "in", [], name=f"annotations/{kind}_val2017.json")
    with pytest.raises(ConfigError, match=r"several kinds: instances, panoptic. Give the file of one, such as "):
        convert(str(tmp_path / "in"), str(tmp_path / "out"), kind="coco")


def test_panoptic_pngs_become_classes(tmp_path):
    segments = np.zeros((*SIZE, 3), np.uint8)
    segments[:3] = (4, 1, 0)  # segment 260
    segments[3, 0] = (1, 0, 1)  # 65537
    segments[4, 0] = (9, 0, 0)  # unknown
    annotation = {
        "image_id": 1, "file_name": "a.png",
        "segments_info": [{"id": 260, "category_id": 90}, {"id": 65537, "category_id": 3}, {"id": 5, "category_id": 6}],
    }  # fmt: skip
    file = coco(tmp_path / "in", [annotation], name="annotations/panoptic_val.json")
    (tmp_path / "in/annotations/panoptic_val").mkdir()
    (tmp_path / "in/annotations/panoptic_val/a.png").write_bytes(png(segments))
    done = convert(str(file), str(tmp_path / "out"))
    wanted = np.full(SIZE, 255)
    wanted[:3], wanted[3, 0] = 1, 0
    assert masks(tmp_path / "out")[0]["a"].tolist() == wanted.tolist()
    assert done.format == "coco-panoptic"
    assert done.left_out == [
        "Annotations with a category id that is not in the file, left out: 1, such as segment 5 of a.jpg: 6",
        "Segments of a panoptic PNG that its JSON does not know, void: 1, such as 9 of a.png",
    ]


def test_panoptic_segments_that_are_unknown_and_pngs_that_are_gone_are_no_background(tmp_path):
    pictures = [{"id": i, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in (1, 2)]
    annotations = [
        {"image_id": i, "file_name": f"{i}.png", "segments_info": [{"id": 1, "category_id": 3}]} for i in (1, 2)
    ]
    file = coco(tmp_path / "in", annotations, images=pictures, name="annotations/panoptic_val.json")
    segments = np.zeros((*SIZE, 3), np.uint8)
    segments[:, 0], segments[:, 1] = (1, 0, 0), (9, 0, 0)  # 9 is unknown
    (tmp_path / "in/annotations/panoptic_val").mkdir()
    (tmp_path / "in/annotations/panoptic_val/1.png").write_bytes(png(segments))
    done = convert(str(file), str(tmp_path / "out"), background="class")
    found = {name: mask.tolist() for name, mask in masks(tmp_path / "out")[0].items()}
    assert found == {"1": [[1, 255, *[0] * 6]] * 6}
    assert "Panoptic PNGs that are not there, left out: 1, such as 2.png" in done.left_out


# --- what holds for all


FULL = [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 8, 0, 8, 6, 0, 6]]}]
HALF = [{"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[0, 0, 4, 0, 4, 6, 0, 6]]}]


@pytest.mark.parametrize(
    ("own", "asked", "names", "left", "right"),
    [
        ("car", None, ("road", "car"), 0, 255), ("car", "class", ("background", "road", "car"), 1, 0),
        ("Background", None, ("road", "Background"), 0, 1), ("Background", "void", ("road", "Background"), 0, 255),
        ("Background", "class", ("road", "Background"), 0, 1),
    ],
)  # fmt: skip
def test_what_nobody_annotated_is_void_or_background(tmp_path, own, asked, names, left, right):
    categories = [{"id": 3, "name": "road"}, {"id": 90, "name": own}]
    file = coco(tmp_path / "in", HALF, categories=categories)
    done = convert(str(file), str(tmp_path / "out"), background=asked)
    found, dataset = masks(tmp_path / "out")
    assert found["a"].tolist() == [[left] * 4 + [right] * 4] * 6
    assert dataset.label_space.names == names
    assert done.background == (None if right == 255 else names[right])


def test_frames_without_annotations_are_left_out_where_they_would_be_void(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in (1, 2)]
    file = coco(tmp_path / "in", FULL, images=images)
    done = convert(str(file), str(tmp_path / "void"))
    assert (done.frames, done.left_out) == (
        1,
        ["Frames in which nothing is annotated, left out: 1, such as images/2.jpg"],
    )
    assert convert(str(file), str(tmp_path / "class"), background="class").frames == 2


@pytest.mark.parametrize("upright", [True, False])
def test_masks_stand_as_their_image_does_after_exif(tmp_path, upright):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # stored on its side: 6 high and 8 wide, shown 8 high and 6 wide
    size = (8, 6) if upright else SIZE
    polygon = [[0, 0, size[1], 0, size[1], 2, 0, 2]]  # the two rows at the head
    images = [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}]
    file = coco(tmp_path / "in", [FULL[0] | {"segmentation": polygon}], images=images)
    jpeg(tmp_path / "in/images/a.jpg", exif=exif)
    convert(str(file), str(tmp_path / "out"))
    mask = masks(tmp_path / "out")[0]["a"]
    assert mask.tolist() == ([[0] * 6] * 2 + [[255] * 6] * 6 if upright else [[255] * 4 + [0] * 2] * 8)


@pytest.mark.parametrize(
    ("turn", "size", "unclear"), [(3, SIZE, True), (6, (6, 6), True), (6, SIZE, False), (1, (6, 6), False)]
)
def test_images_whose_size_does_not_tell_how_they_were_annotated_are_said(tmp_path, turn, size, unclear):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    images = [{"id": 1, "file_name": "a.jpg", "height": size[0], "width": size[1]}]
    file = coco(tmp_path / "in", FULL, images=images)
    jpeg(tmp_path / "in/images/a.jpg", size, exif)
    left_out = [line for line in convert(str(file), str(tmp_path / "out")).left_out if "EXIF" in line]
    said = "Images that EXIF turns or mirrors to the same size, whose annotations are taken as of the upright picture"
    assert left_out == [f"{said}: 1, such as images/a.jpg"] * unclear


def test_images_of_one_stem_get_masks_of_their_own(tmp_path):
    images = [
        {"id": i, "file_name": name, "height": 6, "width": 8}
        for i, name in enumerate(("a.jpg", "a.png", "a_mask.jpg"), 1)
    ]
    annotations = [FULL[0] | {"id": i, "image_id": i} for i in (1, 2, 3)]
    convert(str(coco(tmp_path / "in", annotations, images=images)), str(tmp_path / "out"))
    assert sorted(masks(tmp_path / "out")[0]) == ["a", "a_mask_jpg", "a_png"]


def test_a_name_is_never_an_image_of_another_folder(tmp_path):
    images = [{"id": i, "file_name": f"{day}/a.jpg", "height": 6, "width": 8} for i, day in ((1, "day1"), (2, "day2"))]
    file = coco(tmp_path / "in", [FULL[0], FULL[0] | {"id": 2, "image_id": 2}], images=images)
    (tmp_path / "in/images/day1/a.jpg").unlink()
    done = convert(str(file), str(tmp_path / "out"))
    assert list(masks(tmp_path / "out")[0]) == ["day2/a"]
    assert done.left_out == ["Annotated images that are not there, left out: 1, such as day1/a.jpg"]


def test_an_interrupted_conversion_goes_on_and_another_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("segray.stages.convert.PIECE", 2)
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 6, "width": 8} for i in range(1, 6)]
    annotations = [FULL[0] | {"id": i, "image_id": i} for i in range(1, 6)]
    file, out = coco(tmp_path / "in", annotations, images=images), tmp_path / "out"
    done = convert(str(file), str(out))
    assert (done.frames, done.new) == (5, True)
    (out / "_convert/00001.json").unlink()
    (out / "classes.csv").unlink()
    (out / "masks/3.png").unlink()
    before = (out / "masks/1.png").stat().st_mtime_ns
    assert convert(str(file), str(out))._replace(new=True) == done
    assert (out / "masks/3.png").exists()
    assert (out / "masks/1.png").stat().st_mtime_ns == before
    assert not convert(str(file), str(out)).new
    with pytest.raises(
        OutputExists, match="holds a conversion with other settings \\(background was None, is class\\)"
    ):
        convert(str(file), str(out), background="class")
    assert convert(str(file), str(out), background="class", overwrite=True).background == "background"


def test_annotations_that_are_given_as_data_lead_to_the_command(tmp_path):
    file = coco(tmp_path / "in", FULL)
    for place in (file, file.parent):
        with pytest.raises(
            ConfigError, match=rf"Annotations of other tools become it: segray data convert {place} OUT\."
        ):
            open_dataset(DataSection(root=str(place)))


def test_links_may_be_symbolic(tmp_path):
    file = coco(tmp_path / "in", FULL)
    convert(str(file), str(tmp_path / "out"), link=True)
    assert (tmp_path / "out/images/a.jpg").readlink() == tmp_path / "in/images/a.jpg"


def test_images_may_lie_elsewhere_and_in_a_zip(tmp_path):
    file = coco(tmp_path / "in", FULL)
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.write(tmp_path / "in/images/a.jpg", "frames/a.jpg")
    (tmp_path / "in/images/a.jpg").unlink()
    with pytest.raises(
        DataError,
        match=r"gives no frame with a mask: Annotated images that are not there, left out: 1, such as a.jpg. --images FOLDER says where",
    ):
        convert(str(file), str(tmp_path / "out"))
    assert not (tmp_path / "out/_convert").exists()
    convert(str(file), str(tmp_path / "out"), images=str(tmp_path / "pictures.zip"))
    assert masks(tmp_path / "out")[0]["frames/a"].tolist() == whole(0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2", "is not JSON"), ('{"a": 1}', "holds no annotations that are read: a COCO JSON, a CVAT zip"),
        ('{"images": [], "categories": [{"name": "road"}]}', "a category needs an `id`, a whole number, and a `name`."),
        ("[" * 100_000, "is nested deeper than annotations are."),
    ],
)  # fmt: skip
def test_what_is_no_annotation_is_one_line(tmp_path, content, said):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=said):
        convert(str(tmp_path / "a.json"), str(tmp_path / "out"))


def test_a_zip_that_leads_out_of_itself_or_is_none_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../../a.jpg", b"")
    with pytest.raises(DataError, match=r"holds '../../a.jpg', a path that leads out of the zip; it is not read."):
        convert(str(tmp_path / "bad.zip"), str(tmp_path / "out"))
    (tmp_path / "torn.zip").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(DataError, match=r"torn.zip is no whole zip: File is not a zip file. Export it again."):
        convert(str(tmp_path / "torn.zip"), str(tmp_path / "out"))


def test_a_zip_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("segray.core.annotations.cvat.MOST_TEXT", 1000)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", b" " * 100_000)
    with pytest.raises(DataError, match=r"annotations.xml has 100000 bytes; at most 1000 are read of such a file."):
        convert(str(tmp_path / "bomb.zip"), str(tmp_path / "out"))


def test_what_is_read_is_not_written_into(tmp_path):
    file = coco(tmp_path / "in", FULL)
    with pytest.raises(ConfigError, match=r"lies in .*in, which is read; give a folder beside it."):
        convert(str(file), str(tmp_path / "in/out"))


# --- CVAT (docs.cvat.ai, "XML annotation format")

CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><job><labels>
    <label><name>road</name><color>#804080</color><type>any</type><attributes></attributes></label>
    <label><name>car</name><color>#00008e</color><type>mask</type><attributes></attributes></label>
    <label><name>plate</name><color>#ffffff</color><type>rectangle</type><attributes></attributes></label>
  </labels></job></meta>
  <image id="0" name="day1/a.jpg" width="8" height="6">
    <mask label="car" source="manual" occluded="0" rle="0, 2, 1, 1, 2" left="5" top="1" width="3" height="2" z_order="1"></mask>
    <polygon label="road" source="manual" occluded="0" points="0.00,0.00;8.00,0.00;8.00,6.00;0.00,6.00" z_order="0"></polygon>
    <box label="plate" source="manual" occluded="0" xtl="1" ytl="1" xbr="2" ybr="2" z_order="0"></box>
    <polygon label="tram" source="manual" occluded="0" points="0,0;1,1;1,0" z_order="0"></polygon>
    <mask label="car" source="manual" occluded="0" rle="0, 2" left="5" top="1" width="3" height="2" z_order="1"></mask>
    <tag label="road" source="manual"></tag>
  </image>
  <image id="1" name="b.jpg" width="8" height="6" subset="val"></image>
</annotations>"""


@pytest.mark.parametrize("zipped", [True, False])
def test_cvat_draws_polygons_and_masks_by_their_z_order(tmp_path, zipped):
    for name in ("day1/a.jpg", "b.jpg"):
        jpeg(tmp_path / "in/images" / name)
    (tmp_path / "in/annotations.xml").write_text(CVAT)
    place = tmp_path / "in"
    if zipped:
        place = tmp_path / "task.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for path in (tmp_path / "in").rglob("*.*"):
                archive.write(path, path.relative_to(tmp_path / "in"))
    done = convert(str(place), str(tmp_path / "out"))
    wanted = np.zeros(SIZE, int)
    wanted[1, 5:7], wanted[2, 5] = 1, 1
    found, dataset = masks(tmp_path / "out")
    assert found["day1/a"].tolist() == wanted.tolist()
    assert (dataset.label_space.names, dataset.label_space.colors) == (("road", "car"), ((128, 64, 128), (0, 0, 142)))
    assert sorted(done.left_out) == [
        "Annotations that cannot be read, left out: 1, such as day1/a.jpg",
        "Frames in which nothing is annotated, left out: 1, such as images/b.jpg",
        "Shapes that mark no pixels (box), left out: 1, such as day1/a.jpg",
        "Shapes whose label the project does not have, left out: 1, such as tram in day1/a.jpg",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotations/>', "has a document type, which CVAT's files have not; it is not read."),
        ("<annotations><track/></annotations>", '"CVAT for video"; export the task as "CVAT for images 1.1".'),
        ("<annotations><meta>", "is not XML"),
        ("<annotations></annotations>", "has 0 classes; 1 to 255 are read."),
    ],
)  # fmt: skip
def test_other_xml_is_one_line(tmp_path, content, said):
    (tmp_path / "annotations.xml").write_text(content)
    with pytest.raises(DataError, match=said):
        convert(str(tmp_path), str(tmp_path.parent / "out"))


def test_cvat_segmentation_masks_are_read_by_their_label_map(tmp_path):
    """docs.cvat.ai, "Segmentation mask": JPEGImages/ stands beside where images were saved too."""
    (tmp_path / "in/SegmentationClass").mkdir(parents=True)
    for split in ("train", "val"):
        pixels = np.zeros((*SIZE, 3), np.uint8)
        pixels[0], pixels[1] = (128, 64, 128), (9, 9, 9)
        (tmp_path / f"in/SegmentationClass/{split}_1.png").write_bytes(png(pixels))
        (tmp_path / "in/ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/ImageSets/Segmentation/{split}.txt").write_text(f"{split}_1\n")
        jpeg(tmp_path / f"in/JPEGImages/{split}_1.jpg")
    (tmp_path / "in/labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\n"
    )
    done = convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found, dataset = masks(tmp_path / "out")
    assert found["train/train_1"].tolist() == [[0] * 8] + [[255] * 8] * 5
    assert (sorted(dataset.splits), dataset.label_space.names) == (["train", "val"], ("road",))
    assert [line.partition(":")[0] for line in done.left_out] == ["Colours that labelmap.txt does not have, void"]


@pytest.mark.parametrize("line", ["road:1,2", "road:1,2,3::\nroad:3,2,1::", "road:1,2,300::", ":1,2,3::"])
def test_a_damaged_label_map_is_named_by_its_line(tmp_path, line):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/labelmap.txt").write_text(f"{line}\n")
    with pytest.raises(
        DataError, match=r"labelmap.txt line \d is '.*'; a line is name:r,g,b:: with a name of its own."
    ):
        convert(str(tmp_path / "in"), str(tmp_path / "out"))


# --- Label Studio (labelstud.io/tags/brushlabels and /polygonlabels)


def region(kind, value, **more):
    return {"type": kind, "original_width": 8, "original_height": 6, "image_rotation": 0, "value": value, **more}


def test_label_studio_polygons_are_in_per_cent_and_later_ones_lie_above(tmp_path):
    square = {"points": [[0, 0], [100, 0], [100, 100], [0, 100]], "polygonlabels": ["road"]}
    half = {"points": [[50, 0], [100, 0], [100, 100], [50, 100]], "polygonlabels": ["car"]}
    tasks = [
        {
            "id": 7, "data": {"image": "/data/upload/3/0a1b2c3d-a.jpg"},
            "annotations": [
                {"was_cancelled": True, "result": []},
                {"result": [region("polygonlabels", half)]},
                {"result": [
                    region("polygonlabels", square), region("polygonlabels", half), region("rectanglelabels", {}),
                    region("polygonlabels", square | {"polygonlabels": [" "]}),
                    region("polygonlabels", square, image_rotation=90), {"type": "choices", "value": {"choices": ["night"]}},
                ]},
            ],
        },
        {"id": 8, "data": {"image": "/data/local-files/?d=drives%2Fb.jpg"}, "predictions": [{"result": [region("polygonlabels", square)]}]},
        {"id": 9, "data": {}, "annotations": []},
        {"id": 10, "data": {"image": "s3://bucket/c.jpg"}, "annotations": [{"result": []}]},
        {"id": 11, "data": {"image": "a.jpg"}, "annotations": []},
    ]  # fmt: skip
    jpeg(tmp_path / "in/a.jpg")
    jpeg(tmp_path / "in/drives/b.jpg")
    (tmp_path / "in/project-1.json").write_text(json.dumps(tasks))
    done = convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found, dataset = masks(tmp_path / "out")
    assert dataset.label_space.names == ("car", "road")
    assert found["a"].tolist() == [[1] * 4 + [0] * 4] * 6
    assert found["drives/b"].tolist() == whole(1)
    assert sorted(done.left_out) == [
        "Annotated images that are not there, left out: 1, such as /c.jpg",
        "Regions of an image that was rotated in Label Studio, left out: 1, such as a.jpg",
        "Regions that are no brush strokes or polygons with a label (choices), left out: 1, such as a.jpg",
        "Regions that are no brush strokes or polygons with a label (polygonlabels), left out: 1, such as a.jpg",
        "Regions that are no brush strokes or polygons with a label (rectanglelabels), left out: 1, such as a.jpg",
        "Tasks that cannot be read, left out: 1, such as task 9",
        "Tasks that nobody annotated, left out: 1, such as task 11",
        "Tasks with several annotations, of which the last is taken: 1, such as task 7",
        "Tasks without an annotation, of which a prediction is taken: 1, such as task 8",
    ]


def test_label_studios_results_have_the_alias_of_a_label(tmp_path):
    square = {"points": [[0, 0], [100, 0], [100, 100], [0, 100]], "polygonlabels": ["road"]}
    task = {"data": {"image": "a.jpg"}, "annotations": [{"result": [region("polygonlabels", square)]}]}
    jpeg(tmp_path / "in/a.jpg")
    (tmp_path / "in/tasks.json").write_text(json.dumps([task]))
    labels = '<Label value="Car " background="#00008E"/><Label value="The road" alias="road" background="#804080"/>'
    (tmp_path / "in/label_config.xml").write_text(f"<View><PolygonLabels>{labels}</PolygonLabels></View>")
    convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found, dataset = masks(tmp_path / "out")
    assert found["a"].tolist() == whole(1)
    assert (dataset.label_space.names, dataset.label_space.colors) == (("Car", "road"), ((0, 0, 142), (128, 64, 128)))


# --- Labelme (labelme/_utils/shape.py)


def test_labelme_shapes_are_drawn_in_their_order(tmp_path):
    patch = np.array([[0, 255], [255, 255]], np.uint8)
    shapes = [
        {"label": "road", "shape_type": "polygon", "points": [[0, 0], [7, 0], [7, 5], [0, 5]]},
        {"label": "car", "shape_type": "rectangle", "points": [[3, 3], [1, 2]]},
        {"label": "sign", "shape_type": "circle", "points": [[6, 2], [7, 2]]},
        {"label": "sign", "shape_type": "mask", "points": [[0, 4], [1, 5]], "mask": base64.b64encode(png(patch)).decode()},
        {"label": "__ignore__", "shape_type": "polygon", "points": [[4, 0], [5, 0], [5, 0]]},
        {"label": "pole", "shape_type": "line", "points": [[0, 0], [5, 5]]},
        {"label": "road", "shape_type": "polygon", "points": [[0, 0], [7, 0]]},
        {"label": "road", "shape_type": "rectangle", "points": [["x", 0], [7, 0]]},
        {"shape_type": "rectangle", "points": [[0, 0], [7, 0]]},
    ]  # fmt: skip
    jpeg(tmp_path / "in/day1/a.jpg")
    facts = {"imageHeight": 6, "imageWidth": 8, "flags": {}, "version": "5.5.0"}
    (tmp_path / "in/day1/a.json").write_text(
        json.dumps(facts | {"imagePath": "a.jpg", "shapes": shapes, "imageData": None})
    )
    inside = base64.b64encode((tmp_path / "in/day1/a.jpg").read_bytes()).decode()
    (tmp_path / "in/b.json").write_text(
        json.dumps(facts | {"imagePath": "..\\gone\\b.jpg", "shapes": shapes[:1], "imageData": inside})
    )
    done = convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found, dataset = masks(tmp_path / "out")
    assert dataset.label_space.names == ("car", "pole", "road", "sign")
    assert found["b"].tolist() == whole(2)
    assert found["day1/a"].tolist() == [
        [2, 2, 2, 2, 255, 255, 2, 2],
        [2, 2, 2, 2, 2, 2, 3, 2],
        [2, 0, 0, 0, 2, 3, 3, 3],
        [2, 0, 0, 0, 2, 2, 3, 2],
        [2, 3, 2, 2, 2, 2, 2, 2],
        [3, 3, 2, 2, 2, 2, 2, 2],
    ]  # fmt: skip
    assert sorted(done.left_out) == [
        "Annotations that cannot be read, left out: 2, such as day1/a.json",
        "Polygons of fewer than three points, left out: 1, such as day1/a.json",
        "Shapes that mark no pixels (line), left out: 1, such as day1/a.json",
    ]


def test_labelmes_list_of_labels_gives_the_order_and_the_background(tmp_path):
    shapes = [
        {"label": "car", "shape_type": "rectangle", "points": [[0, 0], [7, 2]]},
        {"label": "__ignore__", "shape_type": "rectangle", "points": [[0, 0], [1, 5]]},
        {"label": "road", "shape_type": "rectangle", "points": [[0, 5], [0, 5]]},
    ]
    jpeg(tmp_path / "in/a.jpg")
    (tmp_path / "in/a.json").write_text(
        json.dumps({"imagePath": "a.jpg", "shapes": shapes, "imageHeight": 6, "imageWidth": 8})
    )
    (tmp_path / "in/labels.txt").write_text("__ignore__\n_background_\nroad\ncar\n")
    convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found, dataset = masks(tmp_path / "out")
    assert dataset.label_space.names == ("_background_", "road", "car")
    void = [255, 255]  # __ignore__ is no background
    assert found["a"].tolist() == [[*void, *[2] * 6]] * 3 + [[*void, *[0] * 6]] * 2 + [[1, 255, *[0] * 6]]


# --- YOLO (docs.ultralytics.com/datasets/segment)


@pytest.mark.parametrize("layout", ["images/{}/x.jpg", "{}/images/x.jpg"])
@pytest.mark.parametrize("listed", [False, True])
def test_yolo_polygons_are_shares_of_the_image(tmp_path, layout, listed):
    for split in ("train", "valid"):
        image = tmp_path / "in" / layout.format(split)
        jpeg(image)
        text = tmp_path / "in" / layout.format(split).replace("images", "labels").replace(".jpg", ".txt")
        text.parent.mkdir(parents=True)
        text.write_text("1 0.5 0 1 0 1 1 0.5 1\n0 0 0 1 0 1 1 0 1\n\n7 0 0 1 0 1 1\n0 0.5 0.5 0.2 0.2\n0 a b\n")
        (tmp_path / f"in/{split}.txt").write_text(f"./{layout.format(split)}\n")
    where = {
        split: f"{split}.txt" if listed else f"../{layout.format(split)[: -len('/x.jpg')]}"
        for split in ("train", "valid")
    }
    names = "{0: road, 1: car}" if listed else "[road, car]"
    (tmp_path / "in/data.yaml").write_text(
        f"path: ../datasets/mine\ntrain: {where['train']}\nval: {where['valid']}\nnames: {names}\n"
    )
    done = convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found, dataset = masks(tmp_path / "out")
    assert {name: mask.tolist() for name, mask in found.items()} == dict.fromkeys(
        ("train/x", "val/x"), [[0] * 4 + [1] * 4] * 6
    )
    assert dataset.label_space.names == ("road", "car")
    assert sorted(line.partition(":")[0] + line.partition(":")[2][:2] for line in done.left_out) == [
        "Annotations that cannot be read, left out 2",
        "Boxes without a polygon, left out 2",
        "Objects of a class that the YAML does not name, left out 2",
    ]


def yolo(root, names, **splits):
    for name in names:
        jpeg(root / "images" / name)
        text = root / "labels" / f"{name.rpartition('.')[0]}.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text("0 0 0 1 0 1 1 0 1\n")
    lines = [f"{split}: {place}\n" for split, place in splits.items()]
    (root / "data.yaml").write_text("".join(["names: [road]\n", *lines]))
    return root


def names_of(dataset):
    return {split: [ref.sample_id for ref in refs] for split, refs in dataset.splits.items()}


def test_yolos_lists_hold_for_images_that_lie_elsewhere(tmp_path):
    root = yolo(tmp_path / "in", [f"{name}.jpg" for name in "abcd"], train="train.txt", val="val.txt")
    (root / "train.txt").write_text("./images/a.jpg\n\n./images/b.jpg\n./images/gone.jpg\n")
    (root / "val.txt").write_text("./images/c.jpg\n./images/d.jpg\n")
    (root / "images").rename(tmp_path / "images")
    done = convert(str(root), str(tmp_path / "out"), images=str(tmp_path / "images"))
    assert names_of(masks(tmp_path / "out")[1]) == {"train": ["train/a", "train/b"], "val": ["val/c", "val/d"]}
    assert done.left_out == [
        f"Lines of a list that name no image, left out: 1, such as ./images/gone.jpg in {root}/train.txt"
    ]


def test_a_yolo_folder_in_another_ones_is_a_split_of_its_own(tmp_path):
    convert(str(yolo(tmp_path / "in", ["a.jpg", "v/b.jpg"], train="images", val="images/v")), str(tmp_path / "out"))
    assert names_of(masks(tmp_path / "out")[1]) == {"train": ["train/a"], "val": ["val/v/b"]}


def test_two_yolo_images_of_one_name_have_the_same_label(tmp_path):
    """Otherwise one of them would be all background."""
    convert(str(yolo(tmp_path / "in", ["a.jpg", "a.jpeg"])), str(tmp_path / "out"), background="class")
    found = {name: mask.tolist() for name, mask in masks(tmp_path / "out")[0].items()}
    assert found == {"a": whole(1), "a_jpg": whole(1)}


# --- Hugging Face


@pytest.mark.parametrize("named", [True, False])
def test_a_dataset_of_the_hub_is_read_as_its_library_reads_it(tmp_path, named):
    import datasets

    mask = np.zeros(SIZE, np.uint8)
    mask[0], mask[1] = 1, 255
    features = datasets.Features(
        {
            "pixel_values": datasets.Image(),
            "label": datasets.Image(),
            "scene": datasets.ClassLabel(names=["day", "night"]),
        }
    )
    for split in ("train", "validation"):
        rows = {
            "pixel_values": [Image.fromarray(np.zeros((*SIZE, 3), np.uint8))] * 2,
            "label": [Image.fromarray(mask)] * 2,
            "scene": [0, 1],
        }
        (tmp_path / "in/data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            str(tmp_path / f"in/data/{split}-00000-of-00001.parquet")
        )
    if named:
        (tmp_path / "in/id2label.json").write_text('{"0": "road", "1": "car", "2": "sky"}')
    done = convert(str(tmp_path / "in"), str(tmp_path / "out"))
    found, dataset = masks(tmp_path / "out")
    assert sorted(found) == ["train/000001", "train/000002", "val/000003", "val/000004"]
    assert all(one.tolist() == mask.tolist() for one in found.values())
    assert dataset.label_space.names == (("road", "car", "sky") if named else ("class 0", "class 1"))
    assert bool(done.notes) != named


def test_an_id_of_255_that_has_a_name_is_a_class(tmp_path):
    import datasets

    mask = np.zeros(SIZE, np.uint8)
    mask[0] = 255
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = {"image": [Image.new("RGB", SIZE[::-1])], "mask": [Image.fromarray(mask)]}
    (tmp_path / "in").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "in/data.parquet"))
    (tmp_path / "in/id2label.json").write_text('{"0": "road", "255": "crack"}')
    convert(str(tmp_path / "in"), str(tmp_path / "out"))
    assert [one.tolist() for one in masks(tmp_path / "out")[0].values()] == [(mask > 0).astype(int).tolist()]


def test_void_of_a_dataset_of_the_hub_is_no_background(tmp_path):
    """As VOC's borders of objects, beside its class background; a mask of another size is no frame of background."""
    import datasets

    mask = np.zeros(SIZE, np.uint8)
    mask[0], mask[1], mask[2] = 1, 255, 77  # 77 has no name
    features = datasets.Features({"image": datasets.Image(), "mask": datasets.Image()})
    rows = {
        "image": [Image.new("RGB", SIZE[::-1])] * 2,
        "mask": [Image.fromarray(mask), Image.fromarray(mask[:2])],
    }
    (tmp_path / "in").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(tmp_path / "in/data.parquet"))
    (tmp_path / "in/id2label.json").write_text('{"0": "background", "1": "car"}')
    done = convert(str(tmp_path / "in"), str(tmp_path / "out"))
    wanted = np.where(mask > 1, 255, mask).tolist()
    assert [one.tolist() for one in masks(tmp_path / "out")[0].values()] == [wanted]
    assert [line.partition(":")[0] for line in done.left_out] == [
        "Ids that have no name, void",
        "Masks of another size than their image, left out",
    ]


def test_names_of_images_in_parquet_cannot_leave_the_folder(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = jpeg(tmp_path / "a.jpg").read_bytes()
    mask = encode_mask(np.zeros(SIZE, np.uint8), [(1, 2, 3)])
    paths = ["../../a.jpg", "/etc/b.jpg", None, "day1/c.jpg", "d.exe"]
    rows = [{"image": {"bytes": picture, "path": path}, "mask": {"bytes": mask, "path": None}} for path in paths]
    rows += [{"image": {"bytes": None, "path": "x.jpg"}, "mask": {"bytes": mask, "path": None}}]
    (tmp_path / "in").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in/part.parquet")
    done = convert(str(tmp_path / "in/part.parquet"), str(tmp_path / "out"))
    assert sorted(masks(tmp_path / "out")[0]) == ["000003", "a", "b", "d", "day1/c"]
    assert done.left_out == [
        f"Rows without the bytes of an image and a mask, left out: 1, such as row 6 of {tmp_path}/in"
    ]
    assert masks(tmp_path / "out")[1].label_space.colors == ((1, 2, 3),)


def test_the_command_says_what_it_did_and_what_comes_next(tmp_path, capsys):
    file = coco(tmp_path / "in", HALF)
    cli.main(["data", "convert", str(file), str(tmp_path / "out")], standalone_mode=False)
    out = capsys.readouterr().out
    assert "Classes, from coco" in out
    assert "Pixels that nobody annotated are void, and count nowhere; --background class makes them a class." in out
    assert f"1 of 1 frame is in {tmp_path}/out. Next: segray data check {tmp_path}/out" in out
    with pytest.raises(ConfigError, match=r"'coko' is not a format to convert from. Did you mean coco"):
        cli.main(["data", "convert", str(file), str(tmp_path / "out"), "--from", "coko"], standalone_mode=False)
