"""segray from Python: each documented example runs, and wrong input is refused with its rule."""

import doctest
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from labelled import label_all, settings_of
from PIL import Image
from videos import write as write_video

import segray
from segray.api import stages
from segray.cli import cli
from segray.config import load
from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.io.masks import decode_mask
from segray.core.labels import parts
from segray.core.labels.planning import make_plan
from segray.core.samples import color_id
from segray.errors import ConfigError, DataError, SegrayError
from segray.stages.run_data import plan_data

NAMES = streets.LABEL_SPACE.names
EXAMPLES = [
    *("datasets.Dataset.from_pairs", "labels.open_labels", "labels.Labels.to_arrow", "labels.Labels.frames"),
    *("models.load", "models.Model.predict", "stages.train", "stages.evaluate"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_bundle):
    """A folder with a model, frames, a video and their labels, as the examples have it."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_bundle, root / "runs/street/best")
    streets.write(root / "streets", train=4, val=0, video_s=0, size=(96, 128))
    (root / "frames").mkdir()
    for number, path in enumerate(sorted((root / "streets/train").glob("*.jpg"))):
        shutil.copy(path, root / f"frames/{number:03}.jpg")
    write_video(root / "drive.mp4", pts=range(10))
    plan = make_plan(
        str(root / "labels/street"), settings_of([root / "frames"], confidence_maps=True), streets.LABEL_SPACE
    )
    label_all(plan, Predictor(str(tiny_bundle), confidence_maps=True))
    parts.finish([plan], {})
    return root


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def loaded(place):
    return segray.load(place / "runs/street/best", device="cpu")


@pytest.fixture
def model(here, loaded):
    return loaded


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_documented_example_runs(here, model, name):
    module, *names = name.split(".")
    found = import_module(f"segray.api.{module}")
    for part in names:
        found = getattr(found, part)
    images = sorted(map(str, (here / "streets/train").glob("*.jpg")))
    masks = sorted(map(str, (here / "streets/trainannot").glob("*.png")))
    known = {"segray": segray, "np": np, "model": model, "labels": segray.open_labels("labels/street")}
    known |= {"images": images, "masks": masks}
    known["data"] = segray.Dataset.from_pairs(images, masks, NAMES, void=[11])
    (test,) = [one for one in doctest.DocTestFinder(recurse=False).find(found, name, globs=known) if one.examples]
    assert doctest.DocTestRunner().run(test) == (0, len(test.examples))


def test_the_page_about_python_runs(here, capsys):
    """All its examples but the last, whose data sets are of other sizes: that one's settings are resolved."""
    page = (Path(__file__).parents[1] / "docs/python.md").read_text()
    *blocks, calls = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    known = {}
    for block in blocks:
        exec(block, known)
    assert known["run"].best == str(here / "runs/mine/best")
    for name, given in re.findall(r"segray\.(\w+)\((.*)\)", calls):
        flags = eval(f"dict({given})")
        stages._resolved(name, flags, flags.pop("data", None))


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """In small: smaller frames, and an epoch instead of twenty."""
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((Path(__file__).parents[1] / "docs/tutorials/quickstart.ipynb").read_text())
    known = {}
    for cell in notebook["cells"]:
        text = "".join(cell["source"]).replace("96x128", "32x48").replace("--train 48", "--train 8")
        if text.startswith("!segray "):
            cli.main(shlex.split(text)[1:], standalone_mode=False)
        elif cell["cell_type"] == "code":
            exec(text.replace("epochs=20", "epochs=1"), known)
    assert known["frame"].mask.shape == (32, 48)
    assert known["scores"].miou > 0


def test_results_are_what_label_writes(here, model):
    """The same model on the same frames, by itself and through a plan and its parts."""
    labels = segray.open_labels("labels/street")
    for i, (result, labelled) in enumerate(
        zip(model.predict(sorted(Path("frames").iterdir()), batch_size=3), labels.frames(), strict=True)
    ):
        assert np.array_equal(result.mask, labelled.mask)
        assert np.array_equal(labels.mask(i), labelled.mask)
        assert np.array_equal(result.image, labelled.image)
        assert np.array_equal(result.confidence, labelled.confidence)
        assert labelled.source.endswith(f"frames/{i:03}.jpg")
        assert labelled.row["entropy_mean"] >= 0
        assert sum(result.shares.values()) == pytest.approx(1)


def test_an_image_may_be_a_path_a_picture_or_an_array(here, model):
    by_path = model.predict("frames/000.jpg")
    with Image.open("frames/000.jpg") as picture:
        others = model.predict([Path("frames/000.jpg"), picture, np.asarray(picture), picture.convert("RGBA")])
    assert all(np.array_equal(by_path.mask, other.mask) for other in others)
    assert repr(by_path).startswith("<Result frames/000.jpg: 96×128, ")
    turned = Image.fromarray(by_path.image)
    turned.getexif()[0x0112] = 3
    assert np.array_equal(model.predict(turned).image, by_path.image[::-1, ::-1])


def test_frames_of_a_video_come_in_order_of_time(here, model):
    results = list(model.predict("drive.mp4", every=4, batch_size=2))
    assert [(result.source, result.time_s) for result in results] == [
        ("drive.mp4#frame=0", 0.0), ("drive.mp4#frame=4", 0.4), ("drive.mp4#frame=8", 0.8),
    ]  # fmt: skip
    assert np.array_equal(results[1].mask, model.predict("drive.mp4#frame=4").mask)
    assert len(list(model.predict("drive.mp4", fps=5))) == 5


GREY = np.zeros((4, 6), np.uint8)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (np.zeros((4, 6, 3)), r"float64 \[4, 6, 3\] was given; .*: \(255 \* image\).*values in 0–1\.$"),
        (np.zeros((4, 6, 3), np.int64), r"an image is uint8 RGB \[height, width, 3\]\.$"),
        (GREY, r"np.stack\(\[image\] \* 3, axis=-1\) makes it from grey\.$"),
        (np.zeros((4, 6, 4), np.uint8), r"image\[..., :3\] leaves alpha out\.$"),
        (np.zeros((3, 4, 6), np.uint8), r"image.transpose\(1, 2, 0\) makes it from channels first\.$"),
        (np.zeros((2, 4, 6, 3), np.uint8), r"give a list of images, as list\(images\)\.$"),
        (np.zeros((0, 6, 3), np.uint8), r"an image is uint8 RGB"),
        (Image.fromarray(np.zeros((4, 6), np.uint16)), r"mode I;16 was given; give one of 8 bits a channel"),
        ("gone.png", r"^gone.png does not exist; it was moved or deleted, or its name is mistyped\.$"),
        (None, r"^NoneType is no image: give a path, a PIL image or an array; an image is uint8 RGB"),
        (b"\xff\xd8", r"^bytes is no image: give a path"),
        ([["frames/000.jpg"]], r"^list is no image: give a path"),
        (torch.zeros(3, 4, 6, dtype=torch.uint8), r"image.transpose\(1, 2, 0\) makes it from channels first\.$"),
        (Image.new("RGB", (0, 0)), r"an image is uint8 RGB"),
        (["drive.mp4"], r"is a video; model.predict\(video, every=1\) labels each of its frames\.$"),
        ("drive.mp4", r"is a video; model.predict\(video, every=1\) labels each of its frames\.$"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_the_rule(here, model, image, said):
    with pytest.raises(SegrayError, match=said):
        model.predict(image)


def test_a_picture_that_pillow_cannot_decode_is_an_error_of_data(here, model, tmp_path):
    (tmp_path / "cut.jpg").write_bytes(Path("frames/000.jpg").read_bytes()[:900])
    with pytest.raises(DataError, match=r"^A PIL image cannot be decoded: image file is truncated"):
        model.predict(Image.open(tmp_path / "cut.jpg"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch_size": 0}, r"^batch_size is 0; give a whole number of images, from 1 on\.$"),
        ({"batch_size": "8"}, r"^batch_size is '8'; give a whole number"),
        ({"every": 0}, r"label\.every is 0; input should be greater than or equal to 1"),
        ({"every": 1.5}, r"label\.every is 1\.5; input should be a valid integer"),
        ({"fps": 0}, r"label\.fps is 0; input should be greater than 0"),
        ({"fps": float("nan")}, r"label\.fps is nan"),
        ({"every": 3, "fps": 2}, r"label\.every is 3 and label\.fps 2; give one of them\.$"),
    ],
)
def test_a_number_of_frames_that_cannot_be_is_refused_at_once(here, model, given, said):
    """Else a list would be labelled as an empty one, and a video without its frames."""
    with pytest.raises(ConfigError, match=said):
        model.predict("drive.mp4" if given.keys() & {"every", "fps"} else ["frames/000.jpg"], **given)


def test_a_video_that_is_gone_is_an_error_of_data(here, model):
    with pytest.raises(DataError, match=r"^gone\.mp4 does not exist; it was moved or deleted"):
        next(model.predict("gone.mp4", every=1))


@pytest.mark.parametrize("device", ["gpu", "mps", 0])
def test_a_device_of_another_kind_is_refused(here, device):
    with pytest.raises(ConfigError, match=rf"^device is '{device}'; give cpu, cuda, or one of several GPUs"):
        segray.load("runs/street/best", device=device)


def test_results_are_compared_as_objects(here, model):
    result = model.predict("frames/000.jpg")
    assert result != model.predict("frames/000.jpg")
    assert len({result, result}) == 1


def test_only_a_video_has_every_nth_frame(model):
    for image in (np.stack([GREY] * 3, -1), "frames/000.jpg"):
        with pytest.raises(
            ConfigError, match=r"^every and fps choose frames of a video; give its path, or leave them out"
        ):
            model.predict(image, every=2)


def test_a_result_is_drawn_with_its_legend_and_saved_as_class_indices(here, model, tmp_path):
    result = model.predict("frames/000.jpg")
    assert result.plot(legend=False).size == (128, 96)
    assert result.plot().size > (128, 96)
    assert result._repr_png_().startswith(b"\x89PNG")
    result.save(tmp_path / "mask.png")
    assert np.array_equal(decode_mask((tmp_path / "mask.png").read_bytes()), result.mask)
    with pytest.raises(ConfigError, match=r"a mask is saved as \.png, as JPEG would change its classes\.$"):
        result.save("mask.jpg")


def test_rows_of_labels_are_chosen_by_an_expression(here):
    labels = segray.open_labels("labels/street")
    table = labels.to_arrow(["uri"], where=pc.field("frame_index").is_null())
    assert table.column_names == ["uri"]
    assert len(table) == len(labels) == 4
    assert list(labels.frames(where=pc.field("status") == "error")) == []
    assert "mask" not in labels.to_arrow().column_names
    assert labels.unfinished is None
    with pytest.raises(DataError, match=r"^Labels have no column mIoU; they have input_id, "):
        labels.to_arrow(["mIoU"])
    assert labels.to_arrow([]).column_names == []


def test_labels_of_which_a_part_is_gone_are_said_to_be_unfinished(here, tmp_path, caplog):
    shutil.copytree(here / "labels/street", tmp_path / "street")
    next((tmp_path / "street/labels").iterdir()).unlink()
    labels = segray.open_labels(tmp_path / "street")
    assert labels.unfinished is not None
    assert caplog.messages == [f"{tmp_path}/street is not finished: {labels.unfinished}"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"columns": "uri"}, r"^columns is 'uri'; give a list, as \['uri'\]\.$"),
        ({"where": "miou > 0.5"}, r"^where is 'miou > 0\.5'; give an expression, as pyarrow\.compute\.field"),
        (
            {"where": pc.field("mIoU") > 0},
            r"^where is \(mIoU > 0\); the labels cannot be filtered by it: .*mIoU[^\n]*$",
        ),
        ({"where": pc.field("uri") > 0}, r"^where is \(uri > 0\); the labels cannot be filtered by it: "),
    ],
)
def test_a_choice_of_rows_that_cannot_be_is_one_line(here, given, said):
    with pytest.raises(DataError, match=said):
        segray.open_labels("labels/street").to_arrow(**given)


def test_a_damaged_mask_is_an_error_and_metrics_alone_are_no_frames(here, tmp_path, loaded):
    for name in ("png", "none"):
        settings = settings_of([here / "frames"], mask_format=name)
        plan = make_plan(str(tmp_path / name), settings, streets.LABEL_SPACE)
        label_all(plan, loaded._predictor)
    assert list(segray.open_labels(tmp_path / "none").frames()) == []
    (part,) = (tmp_path / "png/labels").iterdir()
    table = pq.read_table(part)
    masks = [{**mask, "bytes": mask["bytes"][:60]} for mask in table["mask"].to_pylist()]
    at = table.schema.get_field_index("mask")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(masks, table.schema.field(at).type)), part)
    with pytest.raises(DataError, match=r"parquet#row=0"):
        list(segray.open_labels(tmp_path / "png").frames())


def test_masks_are_scored_as_every_command_does(here, tmp_path):
    true = [np.array([[0, 0, 1, 255]], np.uint8), np.array([[2, 1]], np.uint8)]
    pred = [np.array([[0, 1, 1, 2]], np.uint8), np.array([[2, 1]], np.uint8)]
    scores = segray.evaluate(iter(pred), iter(true), names=["road", "sky", "car", "tree"])
    assert scores.class_iou[:3] == pytest.approx([1 / 2, 2 / 3, 1])
    assert np.isnan(scores.class_iou[3])
    for i, mask in enumerate(true):
        Image.fromarray(mask).save(tmp_path / f"{i}.png")
    assert segray.evaluate(sorted(tmp_path.iterdir()), true, names=["road", "sky", "car"]).miou == 1


def test_undecided_pixels_are_misses_of_their_class_as_in_every_command():
    true, pred = np.array([[0, 0, 0, 1, 255]], np.uint8), np.array([[0, 255, 255, 1, 255]], np.uint8)
    scores = segray.evaluate([pred], [true], names=["road", "sky"])
    assert scores.class_iou == pytest.approx([1 / 3, 1])
    assert scores.pixel_accuracy == 1 / 2
    scores = segray.evaluate([np.array([[1, 0]])], [np.array([[1, 1]])], names=["void", "road"], ignore_index=0)
    assert scores.class_iou == pytest.approx([np.nan, 1 / 2], nan_ok=True)


def test_results_pictures_and_other_void_ids_are_scored(here, model):
    results = model.predict(sorted(Path("frames").iterdir()))
    pictures = [Image.fromarray(result.mask) for result in results]
    assert segray.evaluate(results, pictures, names=model.names).pixel_accuracy == 1
    true = np.array([[0, -100]])
    assert segray.evaluate([GREY[:1, :2]], [true], names=["road"], ignore_index=-100).pixel_accuracy == 1


@pytest.mark.parametrize(
    ("pred", "true", "said"),
    [
        ([GREY], [], r"^There are more predictions than true masks; give pairs\.$"),
        ([], [], r"^No masks were given"),
        ([GREY], [GREY.T], r"^Pair 0 has masks of \(4, 6\) and \(6, 4\); they must have one size\.$"),
        ([GREY + 2], [GREY], r"^Pair 0: the predicted mask has class 2, and names has 2\.$"),
        ([GREY], [GREY.astype(int) - 1], r"^Pair 0: the true mask has class -1, and names has 2\.$"),
        ([None], [GREY], r"^A mask of object \[\] was given"),
        (None, [GREY], r"^Predictions and true masks are lists"),
        ("a.png", "b.png", r"^Predictions and true masks are lists, in the same order; give \[mask\] for one\.$"),
        (["gone.png"], [GREY], r"^gone\.png does not exist"),
        ([GREY.astype(float)], [GREY], r"^A mask of float64 \[4, 6\] was given; a mask holds classes as integers"),
    ],
)
def test_masks_that_cannot_be_scored_are_refused(pred, true, said):
    with pytest.raises(DataError, match=said):
        segray.evaluate(pred, true, names=["road", "sky"])


@pytest.mark.parametrize("names", ["road,sky", 2, {0: "road", 1: "sky"}, {"road", "sky"}])
def test_names_that_are_no_list_are_refused(names):
    with pytest.raises(
        DataError, match=r"^names is .*; give a list in the order of the classes, as \['road', 'sky'\]\.$"
    ):
        segray.evaluate([GREY], [GREY], names=names)


def test_undecided_pixels_are_misses_also_where_void_has_another_id():
    true, pred = np.array([[0, 0, 1, 11]], np.uint8), np.array([[0, 255, 1, 255]], np.uint8)
    assert segray.evaluate([pred], [true], names=["road", "sky"], ignore_index=11).class_iou == [1 / 2, 1]


def test_a_data_set_of_pairs_is_checked(here):
    with pytest.raises(DataError, match=r"^1 image and 0 masks were given; give one mask for each image\.$"):
        segray.Dataset.from_pairs(["a.png"], [], ["road"])
    with pytest.raises(DataError, match=r"a\.png was given twice; name each image once\.$"):
        segray.Dataset.from_pairs(["a.png", "./a.png"], ["b.png", "c.png"], ["road"])
    with pytest.raises(DataError, match=r"x\.png is to be validated on and is none of the images"):
        segray.Dataset.from_pairs(["a.png"], ["b.png"], ["road"], val=["x.png"])
    data = segray.Dataset.from_pairs(["1/a.png", "2/a.png"], ["b.png", "c.png"], {7: "road", 8: "sky"}, val=["2/a.png"])
    assert [ref.sample_id for ref in data.splits["train"]] == ["1/a.png"]
    assert data.label_space.id_map == {7: 0, 8: 1, 255: 255}
    assert data.label_space.names == ("road", "sky")


PAIRS = (["a.png", "b.png"], ["c.png", "d.png"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("a.png", "b.png", ["road"]), r"^Images and masks are lists of paths, as sorted"),
        ((*PAIRS, "road"), r"^names is 'road'; give a list of names"),
        ((*PAIRS, [1, 2]), r"^names is \[1, 2\]; give a list of names"),
        ((*PAIRS, {"road": 0}), r"^names is {'road': 0}; give a list of names"),
        ((*PAIRS, {"0": "road"}), r"^names is {'0': 'road'}; its keys are the ids in the masks, whole numbers from 0"),
        ((*PAIRS, ["road", "road"]), r"every class needs a name of its own\.$"),
        ((*PAIRS, {"road", "sky"}), r"^names is \{'.*'\}; give a list of names"),  # a set has no order
        ((*PAIRS, 2), r"^names is 2; give a list of names"),
        (([GREY, GREY], [GREY, GREY], ["road"]), r"^Images and masks are lists of paths, as sorted"),
        ((3, 4, ["road"]), r"^Images and masks are lists of paths, as sorted"),
    ],
)
def test_pairs_that_would_be_read_wrongly_are_refused(given, said):
    with pytest.raises(DataError, match=said):
        segray.Dataset.from_pairs(*given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"void": [0]}, r"^Id 0 is void and road; leave it out of void, or name classes as {id: name}\.$"),
        ({"val": 1.5}, r"^val is 1\.5; give a share between 0 and 1, or the images to validate on\.$"),
        ({"val": float("nan")}, r"^val is nan; give a share"),
        ({"val": []}, r"^No frames are left for val, of 2; give more images, or another val\.$"),
        ({"val": PAIRS[0]}, r"^No frames are left for train, of 2"),
        ({"colors": [(1, 2, 300)]}, r"^\(1, 2, 300\) is no colour; give red, green and blue from 0 to 255"),
        ({"colors": ["#fff"]}, r"^'#fff' is no colour"),
        ({"colors": [(0.5, 0.25, 0.5)]}, r"^\(0\.5, 0\.25, 0\.5\) is no colour"),
        ({"void": 255}, r"^void is 255; give the ids of void pixels, as \[11, 255\]\.$"),
        ({"void": "11"}, r"^void is '11'; give the ids"),
        ({"val": None}, r"^val is None; give a share between 0 and 1, or the images to validate on\.$"),
    ],
)
def test_options_of_pairs_are_checked(given, said):
    with pytest.raises(DataError, match=said):
        segray.Dataset.from_pairs(*PAIRS, ["road"], **given)


def test_pairs_come_from_any_list():
    """As a column of a table, an array, or a generator."""
    images, masks = PAIRS
    data = segray.Dataset.from_pairs(np.array(images), (mask for mask in masks), ["road"], val="b.png", void=[9])
    assert [ref.sample_id for ref in data.splits["val"]] == ["b.png"]
    assert data.label_space.id_map == {0: 0, 9: 255, 255: 255}
    ids = (np.uint8(raw) for raw in (9, 10))
    assert segray.Dataset.from_pairs(*PAIRS, ["road"], void=ids).label_space.id_map == {0: 0, 9: 255, 10: 255, 255: 255}
    binary = segray.Dataset.from_pairs(*PAIRS, {0: "other", 255: "road"}, colors=np.array([[1, 2, 3], [4, 5, 6]]))
    assert binary.label_space.id_map == {0: 0, 255: 1}
    assert binary.label_space.colors == ((1, 2, 3), (4, 5, 6))


def test_settings_change_the_classes_of_pairs(here):
    images, masks = (sorted(map(str, (here / "streets" / name).iterdir())) for name in ("train", "trainannot"))
    data = segray.Dataset.from_pairs(images, masks, NAMES)
    settings = {"data.id_map": {11: 255, "#FF0000": "car"}, "data.class_map": {"pole": None}, "data.size": (32, 48)}
    space = plan_data(load(None, settings), data).label_space
    assert space.names == tuple(name for name in NAMES if name != "pole")
    assert (space.id_map[11], space.id_map[2]) == (255, 255)
    assert space.id_map[color_id(255, 0, 0)] == space.names.index("car")


def test_paths_and_numbers_of_any_kind_are_settings():
    def resolved(name, **flags):
        return stages._resolved(name, flags, None)[0]

    assert resolved("train", out=Path("runs/x"), lr=np.float32(0.5)).train.out == "runs/x"
    assert resolved("label", model=Path("best"), input=Path("frames")).label.inputs == ["frames"]
    assert resolved("train", batch_size=np.int64(4), epochs=np.int64(2)).train.batch_size == 4
    assert resolved("sweep", lr=np.float32(0.5)).sweep.learning_rates == [0.5]
    assert resolved("sweep", lr="1e-4..1e-2", encoder="a,b").sweep.learning_rates == "1e-4..1e-2"
    assert resolved("sweep", lr=iter((1e-3, 1e-2))).sweep.learning_rates == [1e-3, 1e-2]
    assert resolved("sweep", against=Path("a,b/best")).sweep.against == ["a,b/best"]
    assert resolved("sweep", against=[Path("a"), "hf:o/n"]).sweep.against == ["a", "hf:o/n"]
    with pytest.raises(ConfigError, match=r"^settings is 'train\.loss=dice'; give a dict by key"):
        segray.train(settings="train.loss=dice")


def test_an_unknown_flag_is_refused_with_the_nearest(here):
    with pytest.raises(ConfigError, match=r"^segray\.train\(\) knows no learning_rat\. "):
        segray.train(learning_rat=1)
    for name, flag, said in (
        ("label", "inputs", "Did you mean input?"),
        ("train", "learning_rate", "Did you mean lr?"),
        ("train", "imgsz", "Did you mean size?"),
        ("train", "optimizer", "Use settings={'train.optimizer': …}."),
        ("sweep", "resume", "The same call again resumes."),
    ):
        with pytest.raises(ConfigError) as error:
            getattr(segray, name)(**{flag: 1})
        assert str(error.value) == f"segray.{name}() knows no {flag}. {said}"


def test_progress_is_that_of_the_command(here, tmp_path, capsys):
    images, masks = (sorted(map(str, (here / "streets" / name).iterdir())) for name in ("train", "trainannot"))
    segray.train(
        data=segray.Dataset.from_pairs(images, masks, NAMES, void=[11]), arch="unet-plain", epochs=1, workers=0,
        batch_size=2, size="32x48", settings={"model.options": {"channels": 4}}, out=str(tmp_path / "run"),
    )  # fmt: skip
    said = capsys.readouterr().out
    for text in ("Training on 1 CPU worker", "epoch 1/1", "The model is in"):
        assert text in said


def test_import_loads_nothing_and_lists_everything():
    code = "import sys, segray; assert {'load', 'train'} <= set(dir(segray)); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "ray", "click", "segray.api"} & set(loaded.stdout.split())
    with pytest.raises(AttributeError):
        segray.nothing  # noqa: B018
