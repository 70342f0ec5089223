"""Exports: each format is read by its own library and gives the same pixels; stopped ones go on, others are refused."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from labelled import label_all, label_shard, settings_of
from PIL import ExifTags, Image

from segray.cli import cli
from segray.config import load
from segray.core.data import camvid, cityscapes, open_dataset, read_sample, streets, voc
from segray.core.data.class_files import read_classes
from segray.core.formats import WRITERS
from segray.core.formats.coco import INSTANCES, PANOPTIC, instances, segment_runs
from segray.core.formats.cvat import own_colors
from segray.core.formats.frame import Job, Options, replacing
from segray.core.formats.label_studio import encode_brush
from segray.core.formats.masks import Png
from segray.core.formats.names import Names
from segray.core.formats.things import things
from segray.core.infer.predictor import Predictor
from segray.core.io import images
from segray.core.io.masks import encode_mask
from segray.core.labels import quality
from segray.core.labels.folder import LabelFolder
from segray.core.labels.plan import PlanReader
from segray.core.labels.planning import make_plan
from segray.core.labels.schema import ROW_SCHEMA
from segray.core.models import bundle
from segray.core.samples import LabelSpace
from segray.errors import ConfigError, DataError, ModelError, OutputExists, StorageError
from segray.sections.labelling import ClusterSection
from segray.stages import export as stage
from segray.stages.convert import convert
from segray.stages.export import export, push, to_onnx

SPACE = LabelSpace(("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
SMALL = np.array([[1, 1, 1, 255], [0, 2, 0, 2], [0, 2, 0, 0]], np.uint8)
DRAWN = np.minimum(streets.draw(3, (48, 64)).mask_hw, 2)
NOISE = np.random.default_rng(0).integers(0, 3, (17, 23), np.uint8)
MASKS = {"a/x.jpg": SMALL, "a/y.jpg": DRAWN, "b/x.jpg": NOISE, "b/odd name, ä #1.png": SMALL.T.copy(), "b/z.png": NOISE}
NAMES = ["a/x", "a/y", "b/odd name, ä #1", "b/x", "b/z"]


def made(folder, masks=MASKS, space=SPACE, name="labels", pictures=None, **settings):
    """A label folder whose frames have these masks by file name; None is an error row. Two frames a part.

    pictures: encoded images by file name, in place of plain ones.
    """
    for file, mask in masks.items():
        (folder / "in" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4) if mask is None else mask.shape[::-1], (9, 99, 199)).save(folder / "in" / file)
    for file, data in (pictures or {}).items():
        (folder / "in" / file).write_bytes(data)
    plan = make_plan(str(folder / name), settings_of([folder / "in"], shard_size=2, **settings), space)
    (folder / name / "labels").mkdir()
    for shard in range(plan.shards):
        rows = [
            _row(plan, row, masks[row["uri"].removeprefix(f"{folder}/in/")]) for row in PlanReader(plan).shard(shard)
        ]
        pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), plan.part_uri(shard))
    return str(folder / name)


def _row(plan, planned, mask):
    row = {"input_id": planned["input_id"], "uri": planned["uri"], "model_id": "model"}
    if mask is None:
        return {**row, "status": "error", "error_code": "decode_error"}
    pixels = quality.class_pixels(mask, plan.label_space.num_classes)
    row |= {"height_px": mask.shape[0], "width_px": mask.shape[1], "confidence_mean": 0.75, "status": "ok"}
    row |= {"class_pixels": pixels.tolist(), "class_shares": (pixels / mask.size).tolist()}
    if plan.settings["mask_format"] == "png":
        return row | {"mask": {"bytes": encode_mask(mask, plan.label_space.colors), "path": "m.png"}}
    return row | {"mask_rle": {"values": mask.ravel(), "lengths": np.ones(mask.size, int)}}


@pytest.fixture
def labels(tmp_path):
    return made(tmp_path)


def files_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_class_that_would_be_void_by_name_stays_one_in_an_export(tmp_path):
    space = LabelSpace(("unlabeled", "road"), ((0, 0, 0), (128, 64, 128)))
    Png(Job(str(tmp_path), space)).join()
    assert (tmp_path / "classes.csv").read_text() == (
        "name,id,r,g,b,scored\nunlabeled,0,0,0,0,yes\nroad,1,128,64,128,yes\n"
    )
    assert read_classes(str(tmp_path / "classes.csv"))[0].names == space.names


def read_png(path):
    return np.asarray(Image.open(path))


def test_png_is_a_folder_that_can_be_trained_on(labels, tmp_path):
    out = tmp_path / "out"
    done = export(labels, "png", str(out), Options(images=True))
    assert (done.frames, done.errors, done.parts, done.of) == (5, 0, 3, 3)
    assert sorted(str(path.relative_to(out / "masks"))[:-4] for path in (out / "masks").rglob("*.png")) == NAMES
    assert Image.open(out / "masks" / "a" / "x.png").mode == "P"
    assert next(csv.reader((out / "classes.csv").open())) == ["name", "id", "r", "g", "b"]
    dataset = open_dataset(load(None, {"data.format": "folder", "data.root": str(out)}).data)
    assert (dataset.label_space.names, dataset.label_space.colors, dataset.unpaired) == (SPACE.names, SPACE.colors, ())
    refs = [ref for refs in dataset.splits.values() for ref in refs]
    assert len(refs) == 5
    for ref in refs:
        sample = read_sample(ref, dataset.label_space, None)
        wanted = MASKS[ref.image.removeprefix(f"{out}/images/")]
        np.testing.assert_array_equal(sample.mask_hw, wanted)
        assert sample.image_hwc.shape[:2] == wanted.shape


@pytest.mark.parametrize("to", ["coco", "coco-panoptic", "cvat", "label-studio", "huggingface"])
def test_what_is_exported_is_converted_back_pixel_by_pixel(labels, tmp_path, to):
    """Void stays void; void alone has no frame. Instances have at least one pixel here, so that none is left out."""
    options = Options(images=True, min_area=1) if to == "coco" else Options(images=True)
    export(labels, to, str(tmp_path / "exported"), options)
    done = convert(str(tmp_path / "exported"), str(tmp_path / "back"))
    assert (done.format, done.frames, done.background) == (to, 5, None)
    assert done.left_out == (
        ["Tasks without an annotation, of which a prediction is taken: 5, such as task 0"] * (to == "label-studio")
    )
    dataset = open_dataset(load(None, {"data.format": "folder", "data.root": str(tmp_path / "back")}).data)
    assert dataset.label_space.names == SPACE.names
    if to != "huggingface" or done.classes[0].color:
        assert dataset.label_space.colors == SPACE.colors
    refs = [ref for refs in dataset.splits.values() for ref in refs]
    assert len(refs) == 5
    for ref in refs:
        wanted = MASKS[ref.image.removeprefix(f"{tmp_path}/back/images/")]
        np.testing.assert_array_equal(read_sample(ref, dataset.label_space, None).mask_hw, wanted)


def test_masks_as_runs_give_the_same_files(labels, tmp_path):
    runs = made(tmp_path, name="runs", mask_format="rle")
    for source, out in ((labels, "a"), (runs, "b")):
        export(source, "png", str(tmp_path / out))
    assert files_below(tmp_path / "a" / "masks") == files_below(tmp_path / "b" / "masks")


def test_sources_with_one_name_have_one_each(tmp_path):
    files = ["a.jpg", "a.png", "A.PNG", "a.jpg.jpg", "b/1.png", "b/1.jpg", "c/1.png"]
    masks = {name: np.ones((2, 3 + i), np.uint8) for i, name in enumerate(files)}
    done = export(made(tmp_path, masks), "png", str(tmp_path / "out"), Options(images=True))
    found = list((tmp_path / "out" / "masks").rglob("*.png"))
    names = {str(path.relative_to(tmp_path / "out" / "masks")) for path in found}
    assert (done.frames, len({name.lower() for name in names})) == (7, 7)
    assert {read_png(path).shape[1] for path in found} == {3, 4, 5, 6, 7, 8, 9}
    assert {"b/1.png.png", "b/1.jpg.png", "c/1.png"} <= names


def test_names_stay_below_the_folder_and_frames_apart_from_files(tmp_path):
    (tmp_path / "in").mkdir()
    plan = make_plan(made(tmp_path, {"k.png": SMALL}) + "2", settings_of([tmp_path / "in"]), SPACE)
    names = Names([plan])
    names.root = "s3://b/drives"
    assert names.below("s3://b/drives/x/../../../etc/\npasswd.png") == "x/_/_/_/etc/_passwd.png"
    assert names.below("/abs//x.png") == "abs/_/x.png"
    assert names.name("s3://b/drives/day/v.mp4", 12) == "day/v/000012"
    assert names.name("s3://b/drives/day/v.jpg", None) == "day/v"


CITY = {f"aachen/aachen_00000{i}_000019_leftImg8bit.png": DRAWN + i for i in (0, 1)}


def test_cityscapes_results_have_official_ids_and_names(tmp_path):
    space = LabelSpace(("pedestrian", "traffic_sign", "road", "sky"), ((1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)))
    masks = {name: mask.copy() for name, mask in CITY.items()}
    next(iter(masks.values()))[0, 0] = 255
    export(made(tmp_path, masks, space), "cityscapes", str(tmp_path / "out"))
    for file, mask in masks.items():
        city, sequence, frame = Path(file).name.split("_")[:3]
        (found,) = (tmp_path / "out").rglob(f"{city}_{sequence}_{frame}*.png")  # evalPixelLevelSemanticLabeling
        wanted = np.choose(np.where(mask == 255, 4, mask), [24, 20, 7, 23, 0])
        np.testing.assert_array_equal(read_png(found), wanted)
        assert Image.open(found).mode == "L"


def test_classes_that_cityscapes_does_not_have_are_named_and_nothing_is_written(tmp_path):
    place = made(tmp_path, MASKS, camvid.LABEL_SPACE)
    with pytest.raises(DataError) as error:
        export(place, "cityscapes", str(tmp_path / "out"))
    assert str(error.value) == (
        "No official label of Cityscapes is called bicyclist. Train on classes that it has, with data.class_map, "
        "or export --to png."
    )
    assert not (tmp_path / "out").exists()
    assert set(cityscapes.LABEL_SPACE.names) <= {name for name, _, _ in cityscapes.LABELS}


def test_grey_masks_are_ids_for_readers_that_apply_palettes(labels, tmp_path):
    export(labels, "png", str(tmp_path / "palette"))
    export(labels, "png", str(tmp_path / "grey"), Options(grey=True))
    for path in (tmp_path / "grey/masks").rglob("*.png"):
        with Image.open(path) as grey:
            assert grey.mode == "L"
            assert np.array_equal(grey, read_png(tmp_path / "palette" / path.relative_to(tmp_path / "grey")))
    with pytest.raises(OutputExists, match=r"\(grey was True, is False\)"):
        export(labels, "png", str(tmp_path / "grey"))
    with pytest.raises(ConfigError, match=r"^--grey is for png; leave it out\.$"):
        export(labels, "cvat", str(tmp_path / "cvat"), Options(grey=True))


@pytest.mark.parametrize("min_area", [1, 5])
def test_coco_instances_are_the_regions(labels, tmp_path, min_area):
    from pycocotools.coco import COCO

    export(labels, "coco", str(tmp_path / "out"), Options(min_area=min_area))
    coco = COCO(str(tmp_path / "out" / "annotations" / "instances_default.json"))
    coco.info()  # a KeyError without
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(SPACE.names)
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == sorted(MASKS)
    for image in coco.loadImgs(coco.getImgIds()):
        mask = MASKS[image["file_name"]]
        seen = np.full(mask.shape, 255, np.uint8)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        for annotation in annotations:
            pixels = coco.annToMask(annotation).astype(bool)
            assert (seen[pixels] == 255).all()
            seen[pixels] = annotation["category_id"] - 1
            rows, columns = np.nonzero(pixels)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (annotation["area"], annotation["bbox"]) == (pixels.sum(), box)
            assert pixels.sum() >= min_area
        if min_area == 1:
            np.testing.assert_array_equal(seen, mask)
            assert len(annotations) == quality.component_counts(mask, 3).sum()
        assert (seen == mask)[seen != 255].all()


def test_instances_are_counted_down_the_columns():
    assert list(instances(np.array([[0, 1], [1, 1]], np.uint8), 2, 1)) == [(0, 1, [0, 1, 3]), (1, 3, [1, 3])]
    assert list(instances(np.full((2, 2), 255, np.uint8), 2, 1)) == []


def test_panoptic_ids_are_the_colours(labels, tmp_path):
    out = tmp_path / "out"
    export(labels, "coco-panoptic", str(out))
    told = json.loads((out / f"{PANOPTIC}.json").read_text())
    assert [(category["name"], category["isthing"]) for category in told["categories"]] == [
        ("road", 0), ("sky", 0), ("car", 1),
    ]  # fmt: skip
    assert [image["id"] for image in told["images"]] == [annotation["image_id"] for annotation in told["annotations"]]
    for image, annotation in zip(told["images"], told["annotations"], strict=True):
        mask = MASKS[image["file_name"]]
        red, green, blue = np.moveaxis(read_png(out / PANOPTIC / annotation["file_name"]).astype(int), -1, 0)
        ids = red + 256 * green + 65536 * blue
        np.testing.assert_array_equal(red, np.where(mask == 255, 0, mask + 1))
        assert (ids[mask < 2] < 256).all()  # stuff: all of a class
        cars = [segment for segment in annotation["segments_info"] if segment["category_id"] == 3]
        assert len(cars) == quality.component_counts(mask, 3)[2]
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            assert quality.component_counts((ids != segment["id"]).astype(np.uint8), 2)[0] == 1 or segment["id"] < 256
            assert segment["area"] == len(rows)
            assert segment["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert {segment["id"] for segment in annotation["segments_info"]} == set(ids[ids > 0].tolist())


def test_a_region_of_a_thing_is_a_segment_and_all_of_a_stuff_is_one():
    mask = np.array([[0, 1], [1, 0]], np.uint8)
    assert segment_runs(mask, [False, True]).ids.tolist() == [1, 258, 514, 1]
    assert segment_runs(np.full((1, 2), 255, np.uint8), [False, True]).ids.tolist() == [0]


@pytest.mark.parametrize(
    ("space", "counted"),
    [
        (camvid.LABEL_SPACE, ["car", "pedestrian", "bicyclist"]),
        (cityscapes.LABEL_SPACE, ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]),
        (LabelSpace(("road", "lane"), ((0, 0, 0), (1, 1, 1))), []),
    ],
)
def test_countable_classes_of_known_label_spaces_are_things(space, counted):
    assert [name for name, thing in zip(space.names, things(space), strict=True) if thing] == counted


def test_all_of_voc_but_its_background_is_countable_and_100_of_ade20ks_classes():
    assert things(voc.LABEL_SPACE) == [False] + 20 * [True]
    names = tuple(f"class {i}" for i in range(150))
    assert sum(things(LabelSpace(names, 150 * ((0, 0, 0),)))) == 100


def panoptic_quality(truth, found):
    """Category → (PQ, SQ, RQ) of two exports as pq_compute has them (Kirillov et al. 2019): matches overlap by over half.

    Pixels that are void in the truth count for no segment, and a segment that is mostly void is no false one.
    """
    sums, told = {}, [json.loads((out / f"{PANOPTIC}.json").read_text())["annotations"] for out in (truth, found)]
    for ours, theirs in zip(*told, strict=True):
        one, other = (
            read_png(out / PANOPTIC / ours["file_name"]).astype(int) @ [1, 256, 65536] for out in (truth, found)
        )
        segments = [
            {segment["id"]: segment["category_id"] for segment in row["segments_info"]} for row in (ours, theirs)
        ]
        matched = [set(), set()]
        for a, b in {(a, b) for a, b in zip(one.flat, other.flat, strict=True) if a and b}:
            both = ((one == a) & (other == b)).sum()
            iou = both / ((one == a) | ((other == b) & (one > 0))).sum()
            if segments[0][a] == segments[1][b] and iou > 0.5:
                sums.setdefault(segments[0][a], [0.0, 0, 0.0])[0] += iou
                sums[segments[0][a]][1] += 1
                matched[0].add(a)
                matched[1].add(b)
        void = {b for b in segments[1] if (one[other == b] == 0).mean() > 0.5}
        for side, left in enumerate((segments[0].keys() - matched[0], segments[1].keys() - matched[1] - void)):
            for segment in left:
                sums.setdefault(segments[side][segment], [0.0, 0, 0.0])[2] += 0.5
    return {i: (iou / (n + e), iou / n, n / (n + e)) for i, (iou, n, e) in sorted(sums.items())}


def test_a_panoptic_export_scores_as_panopticapi_scores_it(labels, tmp_path):
    """The figures are those of pq_compute (panopticapi-lite 0.2.0) of these two exports."""
    shifted = made(tmp_path / "shifted", {name: np.roll(mask, 1, 1) for name, mask in MASKS.items()})
    export(labels, "coco-panoptic", str(tmp_path / "truth"))
    export(shifted, "coco-panoptic", str(tmp_path / "found"))
    found = panoptic_quality(tmp_path / "truth", tmp_path / "found")
    assert found == {
        1: pytest.approx((0.15831265508684864, 0.7915632754342432, 0.2)),
        2: pytest.approx((0.27179487179487183, 0.6794871794871795, 0.4)),
        3: pytest.approx((0.01744819627679, 0.8767718629086975, 0.01990049751243781)),
    }


def test_labels_without_a_thing_say_what_panopticapi_needs(tmp_path):
    space = LabelSpace(("road", "sky", "lane"), SPACE.colors)
    done = export(made(tmp_path, {"a.jpg": SMALL}, space), "coco-panoptic", str(tmp_path / "out"))
    assert done.note.startswith(
        "No class is known as a thing, and panopticapi's pq_compute fails where the frames have"
    )


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_an_image_that_exif_turns_is_written_upright(tmp_path, suffix):
    stored = np.zeros((3 * 8, 4 * 8, 3), np.uint8)
    stored[:8, :8] = 255  # turned to the right, this corner is the upper right one
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    sink = io.BytesIO()
    Image.fromarray(stored).save(sink, Image.registered_extensions()[f".{suffix}"], exif=exif, quality=95)
    masks = {f"a.{suffix}": np.zeros((4 * 8, 3 * 8), np.uint8)}
    place = made(tmp_path, masks, pictures={f"a.{suffix}": sink.getvalue()})
    export(place, "png", str(tmp_path / "out"), Options(images=True))
    image = Image.open(tmp_path / "out" / "images" / f"a.{suffix}")
    assert image.size == Image.open(tmp_path / "out" / "masks" / "a.png").size == (24, 32)
    assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    pixels = np.asarray(image.convert("L"))
    assert (pixels[4, 20], pixels[4, 4], pixels[28, 20]) == (255, 0, 0)


def test_a_lossless_webp_is_turned_without_loss():
    stored = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    exif, sink = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(stored).save(sink, "WEBP", exif=exif, lossless=True)
    turned = np.asarray(Image.open(io.BytesIO(images.upright(sink.getvalue()))))
    np.testing.assert_array_equal(turned, np.rot90(stored, -1))


def test_an_image_that_nothing_turns_is_the_file_itself():
    sink = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(sink, "JPEG", quality=50)
    assert images.upright(sink.getvalue()) == sink.getvalue()


def test_cvat_masks_have_the_label_maps_colours(tmp_path):
    space = LabelSpace(("road", "sky", "car"), ((0, 0, 0), (70, 130, 180), (70, 130, 180)))
    done = export(made(tmp_path, MASKS, space), "cvat", str(tmp_path / "out"))
    assert "road is " in done.note
    assert "car is " in done.note
    with zipfile.ZipFile(tmp_path / "out" / "segmentation_mask.zip") as archive:
        lines = archive.read("labelmap.txt").decode().splitlines()
        assert lines[:2] == ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        colors = {tuple(map(int, line.split(":")[1].split(","))): line.split(":")[0] for line in lines[1:]}
        assert list(colors.values()) == ["background", "road", "sky", "car"]
        assert archive.read("ImageSets/Segmentation/default.txt").decode().splitlines() == NAMES
        for (file, mask), name in zip(sorted(MASKS.items()), NAMES, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(f"SegmentationClass/{name}.png"))))
            told = [[colors[tuple(pixel)] for pixel in row] for row in pixels.tolist()]
            assert told == [[(*space.names, "background")[min(i, 3)] for i in row] for row in mask.tolist()], file


def test_a_background_of_ones_own_is_cvats():
    assert own_colors(voc.LABEL_SPACE) == list(voc.LABEL_SPACE.colors)
    assert own_colors(LabelSpace(("sky", "background"), ((5, 5, 5), (9, 9, 9)))) == [(5, 5, 5), (0, 0, 0)]


def decode_brush(runs):
    """Bytes of Label Studio's brush → the values of its RGBA mask: what brush.decode_rle of its converter does."""
    bits = "".join(f"{byte:08b}" for byte in runs)

    def take(width):
        nonlocal bits
        head, bits = bits[:width], bits[width:]
        return int(head, 2)

    total, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values = []
    while len(values) < total:
        repeats, count = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * count if repeats else [take(word) for _ in range(count)]
    return values


def marked_pixels(runs, height, width):
    return np.array(decode_brush(runs)).reshape(height, width, 4)[..., 3] > 0


# The sha256 of what brush.mask2rle of label-studio-converter 0.0.59 gave for each mask.
BRUSHES = {
    "a few": (SMALL == 2, "2647fd4f4aa9e9752f71d88c7bb7c8b14fca0a6cf0291c4185cc1534cca0fd39"),
    "one pixel": (np.zeros((1, 1), bool), "6334cb45dc0776bf455af16e052ecc323c9d3af16e907793cf58866c0915a3e4"),
    "noise": (NOISE == 1, "58a0107d08b69b612804146e92cd4a0ef84ddd73fc659778b5cb7d960aa37d53"),
    "a disc": (
        np.hypot(*np.ogrid[-24:24, -32:32]) < 20,
        "b928f9679db0fff8cbb460111a91e6bb0c74d7e64adeedca19f600338063b065",
    ),
    "a diagonal": (np.eye(40, dtype=bool), "f74d257f6bdb1dadb7e1066b7a786ce4cb6b1030d26f569cb6fb72435597925d"),
    "runs of 16 bits": (
        np.arange(48 * 640).reshape(48, 640) // 5000 % 2 == 1,
        "ed74fbbf5dafc301e655270c83b5676754567c36097d1c08d14e01fa2274c7ca",
    ),
    "a run that is cut": (
        np.ones((300, 500), bool),
        "876d779258c13a6b06916dcdf41bc4ecbe0f5c9bb5d78da4ebf30ec04d2303d4",
    ),
}


@pytest.mark.parametrize(("marked", "sha256"), BRUSHES.values(), ids=BRUSHES)
def test_brush_strokes_are_label_studios_own(marked, sha256):
    runs = encode_brush(marked)
    assert hashlib.sha256(bytes(runs)).hexdigest() == sha256
    np.testing.assert_array_equal(marked_pixels(runs, *marked.shape), marked)


def test_a_brush_stroke_is_a_head_and_its_runs():
    runs = [0, 0, 0, 48, 57, 27, 254, 19, 0, 143, 254, 48, 8, 255, 227, 0, 143, 254, 112, 0]
    assert encode_brush(SMALL == 2) == runs
    assert decode_brush(runs)[::4] == [0, 0, 0, 0, 0, 255, 0, 255, 0, 255, 0, 0]


def test_label_studio_tasks_hold_the_masks(labels, tmp_path):
    export(labels, "label-studio", str(tmp_path / "out"), Options(image_root="https://host/frames/"))
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    urls = [task["data"]["image"] for task in tasks]
    assert urls[:3] == [
        f"https://host/frames/{name}" for name in ("a/x.jpg", "a/y.jpg", "b/odd%20name%2C%20%C3%A4%20%231.png")
    ]
    for task, file in zip(tasks, sorted(MASKS), strict=True):
        (prediction,) = task["predictions"]
        assert (prediction["model_version"], prediction["score"]) == ("model", 0.75)
        seen = np.full(MASKS[file].shape, 255, np.uint8)
        for region in prediction["result"]:
            shape = region["original_height"], region["original_width"]
            seen[marked_pixels(region["value"]["rle"], *shape)] = SPACE.names.index(region["value"]["brushlabels"][0])
        np.testing.assert_array_equal(seen, MASKS[file])
    config = (tmp_path / "out" / "label_config.xml").read_text()
    assert '<Label value="road" background="#804080"/>' in config


def test_without_a_root_images_are_where_they_are(labels, tmp_path):
    export(labels, "label-studio", str(tmp_path / "out"))
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert tasks[0]["data"]["image"] == str(tmp_path / "in" / "a" / "x.jpg")


def test_load_dataset_reads_the_folder(labels, tmp_path, monkeypatch):
    import datasets

    (tmp_path / "in" / "a" / "y.jpg").unlink()
    done = export(labels, "huggingface", str(tmp_path / "out"))
    assert (done.frames, len(done.lost)) == (4, 1)
    assert "a/y.jpg does not exist; it was moved or deleted, or its name is mistyped" in done.lost[0]
    data = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(data.features["image"], datasets.Image)
    assert isinstance(data.features["mask"], datasets.Image)
    assert sorted(data["file_name"]) == sorted(set(MASKS) - {"a/y.jpg"})
    for row in data:
        np.testing.assert_array_equal(np.asarray(row["mask"]), MASKS[row["file_name"]])
        assert row["image"].size == row["mask"].size
        assert row["confidence_mean"] == 0.75
    stored = pq.read_table(tmp_path / "out" / "data").to_pylist()
    assert {row["image"]["bytes"] for row in stored} == {
        (tmp_path / "in" / row["file_name"]).read_bytes() for row in stored
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["task_categories"] == ["image-segmentation"]
    assert "| 2 | car | 0, 0, 142 |" in card
    assert json.loads((tmp_path / "out" / "id2label.json").read_text())["0"] == "road"


def test_video_frames_and_parquet_cells_have_their_pictures(tiny_bundle, tmp_path):
    town = streets.write(tmp_path / "town", train=0, val=2, size=(48, 64), video_s=0.5)
    cells = [{"bytes": path.read_bytes()} for path in sorted((town / "val").iterdir())]
    pq.write_table(pa.table({"image": cells}), town / "cells.parquet")
    (town / "val" / "broken.png").write_bytes(b"no image")
    (town / "val" / os.fsdecode(b"bad\xff.jpg")).write_bytes(cells[0]["bytes"])  # a name that is no UTF-8
    inputs = [town / "val", town / "video.mp4", town / "cells.parquet"]
    plan = make_plan(str(tmp_path / "labels"), settings_of(inputs), streets.LABEL_SPACE)
    label_all(plan, Predictor(str(tiny_bundle)))
    done = export(str(tmp_path / "labels"), "coco", str(tmp_path / "out"), Options(images=True, min_area=1))
    assert (done.frames, done.errors, done.lost) == (10, 1, [])
    told = json.loads((tmp_path / "out" / INSTANCES).read_text())
    names = {image["file_name"] for image in told["images"]}
    assert {f"video/{i:06}.png" for i in range(5)} | {
        "cells/000000.jpeg",
        "cells/000001.jpeg",
        "val/bad\\xff.jpg",
    } <= names
    for image in told["images"]:
        assert Image.open(tmp_path / "out" / "images" / image["file_name"]).size == (image["width"], image["height"])
    truth = streets.draw(90_000, (48, 64), 0.2).image_hwc.astype(int)
    frame = read_png(tmp_path / "out" / "images" / "video" / "000002.png")
    assert np.abs(frame - truth).mean() < 8


@pytest.mark.parametrize("to", WRITERS)
def test_a_stopped_export_goes_on_and_comes_to_the_same(labels, tmp_path, monkeypatch, to):
    monkeypatch.setattr("segray.stages.export.THREADS", 1)

    def stop(more, of):
        raise KeyboardInterrupt

    export(labels, to, str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        export(labels, to, str(tmp_path / "stopped"), progress=stop)
    assert len(list((tmp_path / "stopped" / "_export").glob("*.jsonl"))) == 2
    first = tmp_path / "stopped" / "_export" / "00000-00000.jsonl"
    before = first.stat().st_mtime_ns
    done = export(labels, to, str(tmp_path / "stopped"))
    assert first.stat().st_mtime_ns == before
    whole, stopped = (files_below(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.keys() == stopped.keys()
    assert [name for name in whole if whole[name] != stopped[name] and not name.endswith(".zip")] == []
    again = export(labels, to, str(tmp_path / "stopped"))
    assert (done.frames, again.new, again.frames) == (5, False, 5)
    assert files_below(tmp_path / "stopped") == stopped


def test_a_killed_export_goes_on(labels, tmp_path):
    code = (
        "import os, segray.stages.export\nsegray.stages.export.THREADS = 1\n"
        f"segray.stages.export.export({labels!r}, 'coco', {str(tmp_path / 'out')!r}, progress=lambda *_: os._exit(9))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert not (tmp_path / "out" / INSTANCES).exists()
    assert export(labels, "coco", str(tmp_path / "out")).frames == 5
    assert len(json.loads((tmp_path / "out" / INSTANCES).read_text())["images"]) == 5


def test_a_piece_that_was_cut_is_written_again(labels, tmp_path, monkeypatch):
    broken = "segray.core.formats.masks.images.encode_image"
    with monkeypatch.context() as patch:
        patch.setattr(broken, lambda pixels: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises((StorageError, OSError), match="No space left"):
            export(labels, "cityscapes", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as patch:  # what fails before a part is written refuses no other format
        patch.setattr(broken, lambda pixels: sys.exit(9))
        with pytest.raises(SystemExit):
            export(labels, "cityscapes", str(tmp_path / "out"))
        assert export(labels, "png", str(tmp_path / "out")).frames == 5
    export(labels, "cityscapes", str(tmp_path / "out"), overwrite=True)
    assert export(labels, "cityscapes", str(tmp_path / "out")).frames == 5


def test_frames_of_an_export_that_was_killed_are_not_among_another_ones(labels, tmp_path, monkeypatch):
    monkeypatch.setattr("segray.stages.export.THREADS", 1)  # else another frame may be the first
    first_only = iter([images.encode_image])
    with monkeypatch.context() as patch:
        patch.setattr(images, "encode_image", lambda pixels: next(first_only, sys.exit)(pixels))
        with pytest.raises(SystemExit):
            export(labels, "cityscapes", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out" / "masks").rglob("*.png")] == ["x.png"]
    other = made(tmp_path / "other", {"new.jpg": SMALL})
    export(other, "cityscapes", str(tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out" / "masks").rglob("*.png")] == ["new.png"]


def test_images_that_no_export_wrote_are_kept(labels, tmp_path):
    out = tmp_path / "out"
    export(labels, "png", str(out))
    (out / "images").mkdir()
    (out / "images" / "mine.jpg").write_text("mine")
    export(labels, "png", str(out), overwrite=True)
    assert (out / "images" / "mine.jpg").exists()


def test_another_export_and_other_files_are_refused(labels, tmp_path):
    out = tmp_path / "out"
    export(labels, "png", str(out))
    (out / "masks" / "mine.txt").write_text("mine")
    (out / "mine.txt").write_text("mine")
    with pytest.raises(
        OutputExists,
        match=r"holds an export with other settings \(format was png, is coco\)\. Give another --out, or --overw",
    ):
        export(labels, "coco", str(out))
    (tmp_path / "other").mkdir()
    other = made(tmp_path / "other")
    with pytest.raises(OutputExists, match=r"labels was .*, is "):
        export(other, "png", str(out))
    export(labels, "coco", str(out), overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["_export", "annotations", "mine.txt"]
    with pytest.raises(OutputExists, match="holds files that are no export; give another --out"):
        export(labels, "png", str(tmp_path / "in"))


def test_bad_questions_are_one_line(labels, tmp_path):
    with pytest.raises(ConfigError, match=r"'coc' is not a format to export to\. Did you mean coco"):
        export(labels, "coc", str(tmp_path / "out"))
    with pytest.raises(DataError, match="holds no labels; give the --out of segray label"):
        export(str(tmp_path / "in"), "png", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="--min-area is for coco; leave it out"):
        export(labels, "png", str(tmp_path / "out"), Options(min_area=3))
    figures = made(tmp_path, name="figures", mask_format="none")
    with pytest.raises(DataError, match="holds no masks; label with --mask-format png"):
        export(figures, "png", str(tmp_path / "out"))


def test_a_package_that_is_missing_is_named(labels, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(ConfigError, match=r"pycocotools is not installed; pip install 'segray\[export\]' brings it"):
        export(labels, "coco", str(tmp_path / "out"))


def test_error_rows_are_left_out_and_retried_ones_come_once(tiny_bundle, tmp_path):
    town = streets.write(tmp_path / "town", train=0, val=3, size=(32, 48), video_s=0)
    good = (town / "val" / "street_050001.jpg").read_bytes()
    (town / "val" / "street_050001.jpg").write_bytes(b"broken")
    place, predictor = str(tmp_path / "labels"), Predictor(str(tiny_bundle))
    settings = settings_of([town / "val"], shard_size=2)
    plan = make_plan(place, settings, streets.LABEL_SPACE)
    label_shard(plan, 0, predictor)
    done = export(place, "coco", str(tmp_path / "out"))
    assert (done.frames, done.errors, done.parts, done.of) == (1, 1, 1, 2)
    label_shard(plan, 1, predictor)
    (town / "val" / "street_050001.jpg").write_bytes(good)
    again = make_plan(place, settings, streets.LABEL_SPACE, [plan], LabelFolder([plan]).failed_rows())
    label_all(again, predictor)
    done = export(place, "coco", str(tmp_path / "out"))
    assert (done.frames, done.errors, done.parts, done.of) == (3, 0, 3, 3)
    files = [image["file_name"] for image in json.loads((tmp_path / "out" / INSTANCES).read_text())["images"]]
    assert sorted(files) == [f"street_05000{i}.jpg" for i in range(3)]


def test_tasks_of_a_cluster_must_see_the_frames_and_get_only_their_own_repeated_rows(
    plain_bundle, tmp_path, monkeypatch
):
    frames, labels, seen, given = tmp_path / "in", str(tmp_path / "labels"), [], []
    frames.mkdir()
    for i in range(4):
        (frames / f"{i}.png").write_bytes(b"broken")
    plan = make_plan(labels, settings_of([frames], shard_size=2), SPACE)
    label_all(plan, Predictor(str(plain_bundle)))
    make_plan(labels, plan.settings, SPACE, [plan], LabelFolder([plan]).failed_rows())

    @contextmanager
    def spread(cluster, places, written):
        seen.append(places)
        yield lambda work, tasks: given.extend(tasks) or ()

    monkeypatch.setattr(stage, "spread", spread)
    for name, options in (("a", Options()), ("b", Options(images=True))):
        export(labels, "png", str(tmp_path / name), options, cluster=ClusterSection(address="head:6379"))
    assert [len(task.repeated) for task in given] == [2] * 4
    assert [str(frames / "0.png") in places for places in seen] == [False, True]


def files_of(place):
    from segray.core.io import storage

    found = {entry.uri.removeprefix(place): storage.read_bytes(entry.uri) for entry in storage.iter_files(place)}
    return {name: data for name, data in found.items() if "/_export/" not in name}


@pytest.mark.parametrize("to", ["coco", "cvat", "huggingface", "label-studio", "png"])
def test_an_export_on_s3_has_the_files_of_a_local_one(labels, tmp_path, s3, to):
    out = f"{s3}/{tmp_path.name}"
    options = Options(images=to == "png", image_root="x" if to == "label-studio" else "")
    here, there = export(labels, to, str(tmp_path / "out"), options), export(labels, to, out, options)
    assert there == here
    local, remote = files_of(str(tmp_path / "out")), files_of(out)
    assert local.keys() == remote.keys()
    if to == "cvat":  # a zip has the time at which it was made
        archives = [zipfile.ZipFile(io.BytesIO(files.pop("/segmentation_mask.zip"))) for files in (local, remote)]
        assert len({tuple((name, one.read(name)) for name in one.namelist()) for one in archives}) == 1
    assert local == remote
    assert not export(labels, to, out, options).new
    with pytest.raises(OutputExists, match=rf"{out} holds an export with other settings \(images was "):
        export(labels, to, out, Options(images=to != "png", image_root=options.image_root))


def test_a_file_larger_than_one_request_goes_to_s3_in_pieces(tmp_path, s3, monkeypatch):
    from segray.core.io import s3 as s3_requests
    from segray.core.io import storage

    monkeypatch.setattr(s3_requests, "UPLOAD_PART_BYTES", 6 << 20)
    data = os.urandom(7 << 20)
    with replacing(f"{s3}/large.bin", "wb") as file:
        file.write(data)
    assert storage.read_bytes(f"{s3}/large.bin") == data
    with pytest.raises(ZeroDivisionError), replacing(f"{s3}/none.bin", "wb") as file:
        file.write(bytes([1 // 0]))
    assert not storage.exists(f"{s3}/none.bin")


def test_pieces_are_in_the_order_of_the_labels(tmp_path):
    job = Job(str(tmp_path), SPACE)
    for name in ("00000-100000", "00000-99999", "00001-00000"):
        job.put(f"_export/{name}.jsonl", b"{}")
    assert job.pieces == [f"_export/{name}.jsonl" for name in ("00000-99999", "00000-100000", "00001-00000")]


def test_labels_and_images_may_be_in_a_bucket(tiny_bundle, tmp_path, bucket):
    from segray.core.io import storage

    town = streets.write(tmp_path / "town", train=0, val=2, size=(32, 48), video_s=0)
    for path in (town / "val").iterdir():
        storage.replace(f"{bucket}/export/in/day/{path.name}", path.read_bytes())
    plan = make_plan(f"{bucket}/export/labels", settings_of([f"{bucket}/export/in"]), streets.LABEL_SPACE)
    label_all(plan, Predictor(str(tiny_bundle)))
    export(f"{bucket}/export/labels", "png", str(tmp_path / "out"), Options(images=True))
    found = files_below(tmp_path / "out")
    assert found["images/street_050000.jpg"] == (town / "val" / "street_050000.jpg").read_bytes()
    assert "masks/street_050001.png" in found


# Models.


@pytest.mark.slow
def test_an_onnx_file_gives_the_models_logits(plain_bundle, tmp_path):
    import onnxruntime
    import torch

    from segray.core.models import forward
    from segray.core.transforms import normalize, to_float

    out = str(tmp_path / "model.onnx")
    check = to_onnx(str(plain_bundle), out)
    assert check.dynamic
    assert check.difference < 1e-3
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    frame = streets.draw(5, (70, 101)).image_hwc
    model, info = bundle.load(str(plain_bundle))
    with torch.inference_mode():
        wanted = forward(model, normalize(to_float(torch.from_numpy(frame[None])), info.mean, info.std)).numpy()
    (given,) = session.run(["logits"], {"image": frame[None].transpose(0, 3, 1, 2).astype(np.float32)})
    np.testing.assert_allclose(given, wanted, atol=1e-3)
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["segray.classes"]) == info.label_space["names"]
    assert (told["segray.model_id"], json.loads(told["segray.input_size"])) == (info.model_id, [32, 48])
    with pytest.raises(OutputExists, match=r"model\.onnx is there already"):
        to_onnx(str(plain_bundle), out)


def test_other_logits_are_an_error(tiny_bundle, tmp_path, monkeypatch):
    from segray.core.models import onnx_file

    monkeypatch.setattr(onnx_file, "_export", lambda whole, info, dynamic: b"")
    check = onnx_file.Check(True, [], 0.5, 2.0)
    monkeypatch.setattr(onnx_file, "_check", lambda *args: check)
    with pytest.raises(ModelError, match=r"its logits differ by 0\.5 from the model's, which go up to 2"):
        to_onnx(str(tiny_bundle), str(tmp_path / "model.onnx"))
    assert not (tmp_path / "model.onnx").exists()


def test_a_bundle_has_a_card(tiny_bundle, tmp_path):
    model, info = bundle.load(str(tiny_bundle))
    names = info.label_space["names"]
    scores = {"miou": 0.5, "pixel_accuracy": 0.9, "class_iou": [0.25, *[None] * (len(names) - 1)]}
    config = {"data": {"format": "camvid", "val_split": "val", "root": "/home/me"}, "train": {"epochs": 3, "seed": 0}}
    bundle.save(tmp_path / "b", model, info.model_copy(update={"scores": scores, "config": config, "epoch": 2}))
    text = (tmp_path / "b" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["pipeline_tag"] == "image-segmentation"
    assert "# unet over resnet18, 11 classes" in text
    assert (
        "Of epoch 2, on the split val of its data (camvid), at the input size: mIoU 0.500, pixel accuracy 0.900" in text
    )
    assert f"| 0 | {names[0]} | {', '.join(map(str, info.label_space['colors'][0]))} | 0.250 |" in text
    assert "- epochs: 3" in text
    assert "/home" not in text


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine that takes every file in its commits: {path: bytes}, and what was asked."""
    import base64

    from huggingface_hub import constants

    files, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = {"url": f"{base}/me/model", "id": "me/model", "name": "me/model", "errors": [], "warnings": []}
            if "preupload" in self.path:
                answer = {
                    "files": [
                        {**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]
                    ]
                }
            elif "commit" in self.path:
                for line in body.splitlines():
                    told = json.loads(line)
                    if told["key"] == "file":
                        files[told["value"]["path"]] = base64.b64decode(told["value"]["content"])
                answer = {"success": True, "commitOid": "0" * 40, "commitUrl": f"{base}/me/model/commit/0"}
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", base)
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield files, asked
    server.shutdown()


def test_a_bundle_is_pushed_without_this_machines_places(tiny_bundle, tmp_path, hub):
    files, asked = hub
    model, info = bundle.load(str(tiny_bundle))
    config = {"data": {"format": "camvid", "root": "/home/me/camvid"}, "train": {"out": "/home/me/runs"}}
    bundle.save(tmp_path / "b", model, info.model_copy(update={"config": config}))
    (tmp_path / "b" / "secret.txt").write_text("mine")
    place, sizes = push(str(tmp_path / "b"), "me/model", dry_run=True)
    assert (place, asked) == ("me/model", [])
    push(str(tmp_path / "b"), "me/model")
    assert set(files) == set(sizes) == {"model.safetensors", "config.json", "segray.json", "README.md"}
    assert files["model.safetensors"] == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert b"/home/me" not in files["segray.json"] + files["README.md"]
    for name, data in files.items():
        (tmp_path / "got").mkdir(exist_ok=True)
        (tmp_path / "got" / name).write_bytes(data)
    assert bundle.load(str(tmp_path / "got"))[1].model_id == info.model_id


def test_a_hub_that_refuses_is_one_line(tiny_bundle, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        StorageError, match=r"me/model cannot be uploaded: .* Name it OWNER/NAME, and log in: hf auth login"
    ):
        push(str(tiny_bundle), "me/model")


# The command.


def test_the_command_says_what_came_of_it(tiny_bundle, tmp_path, capsys):
    def say(*args):
        cli.main(["export", *map(str, args)], standalone_mode=False)
        return capsys.readouterr().out

    place = made(tmp_path, MASKS | {"c/broken.png": None})
    (tmp_path / "in" / "a" / "x.jpg").unlink()
    sorted(Path(place, "labels").iterdir())[1].unlink()
    first = say(place, "--to", "huggingface", "--out", tmp_path / "out")
    assert first.startswith(
        f"2 frames are in {tmp_path}/out/README.md; error rows left out: 1. The folder is a dataset"
    )
    assert "2 of 3 parts are labelled so far; when more are, the same command exports them." in first
    assert f"Left out: {tmp_path}/in/a/x.jpg does not exist; it was moved or deleted, or its name is mistyped." in first
    assert "It was there already." in say(place, "--to", "huggingface", "--out", tmp_path / "out")
    told = say(tiny_bundle, "--to", "hub", "--repo", "me/model", "--dry-run")
    assert told.startswith("Nothing is uploaded. It would be: model.safetensors (")
    with pytest.raises(ConfigError, match=r"--repo is not given; name the repository: --repo OWNER/NAME\."):
        say(tiny_bundle, "--to", "hub")
