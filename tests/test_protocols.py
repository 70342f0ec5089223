"""Scores by published protocols: hand-made masks, and the very files that cityscapesScripts scores as well."""

import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled import label_all, settings_of
from PIL import Image

from segray.config import load
from segray.core import metrics
from segray.core.data import camvid, carvana, cityscapes, voc
from segray.core.infer.predictor import Prediction
from segray.core.labels import parts
from segray.core.labels.folder import LabelFolder
from segray.core.labels.planning import make_plan
from segray.core.samples import LabelSpace
from segray.core.scoring.protocols import more_scores, protocol_of, scored_counts
from segray.errors import ConfigError, DataError
from segray.stages.evaluate import evaluate
from segray.stages.report import report

SIZE = (24, 40)
FRAMES = ("aachen_000000_000019", "aachen_000001_000019", "bochum_000000_000019")


class Guesses:
    """A model that draws its masks: any class, in blocks; seeded by the frame."""

    def __init__(self, classes, confidence=None):
        self.classes, self.confidence, self.lock = classes, confidence, threading.RLock()

    def prepare(self, image_hwc):
        return image_hwc

    def predict(self, prepared, sizes, clock=None):
        masks = [blocks(int(frame[0, 0, 0]) + 99, self.classes) for frame in prepared]
        maps = [None if self.confidence is None else np.full(SIZE, self.confidence, np.uint8)] * len(masks)
        return [Prediction(mask, 0.5, 0.5, 0.5, one) for mask, one in zip(masks, maps, strict=True)]


def blocks(seed, classes):
    few = np.random.default_rng(seed).integers(0, classes, (SIZE[0] // 2, SIZE[1] // 2)).astype(np.uint8)
    return few.repeat(2, axis=0).repeat(2, axis=1)


@pytest.fixture
def city(tmp_path):
    """Three frames in Cityscapes' layout; their truth holds all 34 labels."""
    for i, name in enumerate(FRAMES):
        folders = [tmp_path / "city" / kind / "val" / name.split("_")[0] for kind in ("leftImg8bit", "gtFine")]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE[::-1], (i, 0, 0)).save(folders[0] / f"{name}_leftImg8bit.png")
        Image.fromarray(blocks(i, 34)).save(folders[1] / f"{name}_gtFine_labelIds.png")
    return tmp_path / "city"


@pytest.fixture
def labels(city, tmp_path):
    """Finished labels of those frames, by a model of these classes."""

    def make(space, truth=None, confidence=None, **more):
        settings = settings_of([city / "leftImg8bit"], truth, **more)
        plan = make_plan(str(tmp_path / "labels"), settings, space)
        label_all(plan, Guesses(space.num_classes, confidence))
        parts.finish([plan], {})
        return plan.out

    return make


def settings(place, tmp_path, **more):
    values = {"evaluate.model": place, "evaluate.out": str(tmp_path / "out"), "evaluate.pictures": 1}
    return load(None, values | {key.replace("__", "."): str(value) for key, value in more.items()})


def by_cityscapes_scripts(city, masks):
    """cityscapesScripts' own result for files of labelIds."""
    scripts = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    scripts.args.evalInstLevelScore, scripts.args.JSONOutput, scripts.args.quiet = False, False, True
    truths = sorted(map(str, city.glob("gtFine/val/*/*_labelIds.png")))
    scripts.args.predictionPath, scripts.args.predictionWalk = str(masks), None
    return scripts.evaluateImgLists([scripts.getPrediction(scripts.args, one) for one in truths], truths, scripts.args)


@pytest.mark.parametrize("space", [cityscapes.LABEL_SPACE, cityscapes.LABEL_SPACE_34], ids=["19", "34"])
def test_cityscapes_scripts_gives_the_same_of_the_same_files(city, labels, tmp_path, space):
    place = labels(space)
    result = evaluate(settings(place, tmp_path, data__format="cityscapes", data__root=city))
    ids = np.array([[name for name, _, _ in cityscapes.LABELS].index(name) for name in space.names], np.uint8)
    (tmp_path / "masks").mkdir()
    for row in pq.read_table(f"{place}/labels").to_pylist():
        path = tmp_path / "masks" / f"{row['uri'].rsplit('/', 1)[1].removesuffix('_leftImg8bit.png')}_pred.png"
        path.write_bytes(row["mask"]["bytes"])
        if space.num_classes == 19:  # their files hold labelIds; those of 34 classes are segray's as they are
            Image.fromarray(ids[np.array(Image.open(path))]).save(path)
    theirs = by_cityscapes_scripts(city, tmp_path / "masks")
    assert result["protocol"] == "cityscapes"
    assert len(result["classes"]) == 19
    for name, iou in zip(result["classes"], result["scores"]["class_iou"], strict=True):
        assert iou == pytest.approx(theirs["classScores"][name], abs=1e-9)
    assert result["scores"]["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-9)
    for name, iou in result["scores"]["category_iou"].items():
        assert iou == pytest.approx(theirs["categoryScores"][name], abs=1e-9)
    assert (result["undecided_share"] > 0) == (space.num_classes == 34)


def test_the_city_is_a_condition_that_comes_free(city, labels, tmp_path):
    result = evaluate(settings(labels(cityscapes.LABEL_SPACE), tmp_path, data__format="cityscapes", data__root=city))
    assert {name: one["frames"] for name, one in result["conditions"]["city"].items()} == {"aachen": 2, "bochum": 1}
    rows = pq.read_table(tmp_path / "out" / "images.parquet").to_pylist()
    assert sorted(row["city"] for row in rows) == ["aachen", "aachen", "bochum"]


def test_labels_are_scored_by_a_folder_by_data_and_by_their_own_truth_alike(city, labels, tmp_path):
    place = labels(cityscapes.LABEL_SPACE, truth=city / "gtFine")
    own = evaluate(settings(place, tmp_path))
    folder = evaluate(settings(place, tmp_path, evaluate__truth=city / "gtFine", evaluate__out=tmp_path / "folder"))
    data = evaluate(
        settings(place, tmp_path, data__format="cityscapes", data__root=city, evaluate__out=tmp_path / "data")
    )
    assert own["confusion"] == folder["confusion"] == data["confusion"]
    assert own["frames"] == 3
    summed = LabelFolder.open(place).summary
    assert np.array(own["confusion"])[:, :-1].tolist() == summed["confusion"]
    assert own["scores"]["ece"] is own["reliability"] is None
    assert (tmp_path / "out" / "frames.png").exists()
    assert not (tmp_path / "out" / "reliability.png").exists()


def test_runs_of_ids_are_scored_as_masks_are(city, labels, tmp_path):
    place = labels(cityscapes.LABEL_SPACE, truth=city / "gtFine", mask_format="rle")
    assert evaluate(settings(place, tmp_path))["frames"] == 3


def test_confidence_maps_give_a_reliability_curve(city, labels, tmp_path):
    place = labels(cityscapes.LABEL_SPACE, truth=city / "gtFine", confidence=204)  # 0.8
    result = evaluate(settings(place, tmp_path))
    (one,) = result["reliability"]
    assert one["confidence"] == pytest.approx(0.8, abs=1e-6)
    assert one["accuracy"] == pytest.approx(result["scores"]["pixel_accuracy"])
    assert one["share"] == 1
    assert result["scores"]["ece"] == pytest.approx(0.8 - one["accuracy"], abs=1e-6)
    assert (tmp_path / "out" / "reliability.png").exists()


def test_truth_without_a_label_is_said(city, labels, tmp_path):
    place = labels(cityscapes.LABEL_SPACE)
    Image.fromarray(blocks(5, 34)).save(city / "gtFine" / "val" / "bochum" / "bochum_000009_000019_gtFine_labelIds.png")
    result = evaluate(settings(place, tmp_path, evaluate__truth=city / "gtFine"))
    assert (result["frames"], result["missing"]) == (3, ["val/bochum/bochum_000009_000019"])


def test_labels_without_truth_are_one_line(labels, tmp_path):
    place = labels(cityscapes.LABEL_SPACE)
    with pytest.raises(ConfigError) as error:
        evaluate(settings(place, tmp_path))
    assert (
        str(error.value) == f"{place} was labelled without ground truth; give --truth FOLDER, or --format and --data."
    )
    for truth, said in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "holds no mask")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(DataError) as error:
            evaluate(settings(place, tmp_path, evaluate__truth=truth))
        assert str(error.value) == f"{truth} {said}; give the folder that holds the masks."


def test_a_table_gives_scores_by_its_columns(city, labels, tmp_path):
    place = labels(cityscapes.LABEL_SPACE, truth=city / "gtFine")
    table = tmp_path / "weather.csv"
    rows = zip(FRAMES, ("rain", "sun", "rain"), (1, 2, 2), ("day", "night", "day"), strict=True)
    lines = (f"{n}_leftImg8bit.png,{','.join(map(str, values))}\n" for n, *values in rows)
    table.write_text("file_name,weather,camera,time_s\n" + "".join(lines))
    result = evaluate(settings(place, tmp_path, evaluate__conditions=table))
    found = result["conditions"]
    assert {value: one["frames"] for value, one in found["weather"].items()} == {"rain": 2, "sun": 1}
    assert {value: one["frames"] for value, one in found["camera"].items()} == {"1": 1, "2": 2}
    sunny = [r for r in pq.read_table(tmp_path / "out" / "images.parquet").to_pylist() if r["weather"] == "sun"]
    assert sunny[0]["miou"] == found["weather"]["sun"]["miou"]
    # A frame of a video has a time_s as well, a number, which the page shows.
    assert "night" in Path(report([str(tmp_path / "out")], str(tmp_path / "page.html"))).read_text()
    table.write_text("file_name,weather\nother.png,rain\n")
    with pytest.raises(
        DataError, match=r"^No row of .*weather\.csv is of a scored frame: its file_name is such as other"
    ):
        evaluate(settings(place, tmp_path, evaluate__conditions=table, evaluate__out=tmp_path / "b"))


def test_each_data_set_has_its_protocol():
    spaces = {"cityscapes": cityscapes, "camvid": camvid, "voc": voc, "binary": carvana}
    for name, module in spaces.items():
        assert protocol_of(module.LABEL_SPACE, module.LABEL_SPACE.names).name == name
    assert protocol_of(cityscapes.LABEL_SPACE, ("road", "car")).name == "by name"
    assert protocol_of(LabelSpace(voc.NAMES, voc.LABEL_SPACE.colors), ("a",)).names == ("a",)


def test_a_class_that_is_not_scored_is_a_miss_and_no_false_alarm():
    truth, pred = np.array([[0, 0, 1, 255]], np.uint8), np.array([[0, 2, 1, 2]], np.uint8)
    counts = scored_counts(
        metrics.confusion_with_undecided(truth, pred, 3), ("road", "car", "parking"), ("road", "car")
    )
    assert counts.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_binary_says_the_foreground_alone():
    protocol = protocol_of(carvana.LABEL_SPACE, carvana.LABEL_SPACE.names)
    assert more_scores(protocol, np.array([[6, 1, 0], [1, 2, 0]])) == {"foreground_iou": 0.5, "foreground_dice": 4 / 6}
