"""Scores of a bundle on labelled frames, from outside."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from segray import cli
from segray.cli import terminal
from segray.config import load
from segray.core import formatting, metrics
from segray.core.data import open_dataset, read_sample, split_refs, streets
from segray.core.infer.predictor import Predictor
from segray.core.io import storage
from segray.core.io.masks import decode_mask
from segray.core.models import bundle
from segray.core.models.info import read_info
from segray.core.samples import LabelSpace
from segray.core.scoring import calibration, pictures
from segray.core.training.checkpoint import read_settings
from segray.errors import ConfigError, DataError, OutputExists, StorageError
from segray.pages.gallery import TITLES
from segray.stages.compare import compare
from segray.stages.evaluate import choose, evaluate
from segray.stages.report import report


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("evaluate") / "streets", train=2, val=5, size=(48, 64), video_s=0)


@pytest.fixture
def config(town, tiny_bundle, tmp_path):
    values = {
        "data.format": "streets",
        "data.root": str(town),
        "evaluate.model": str(tiny_bundle),
        "evaluate.out": str(tmp_path / "out"),
    }
    return load(None, values | {"evaluate.batch_size": 2})


def test_scores_are_those_of_the_predicted_masks(config, tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_bundle.parent)
    result = evaluate(config.changed({"evaluate.model": "best"}))
    # The page names the model as it was given, and the settings say where it is.
    assert (result["model"], read_settings(config.evaluate.out).evaluate.model) == ("best", str(tiny_bundle))
    predictor = Predictor(config.evaluate.model)
    dataset = open_dataset(config.data)
    confusion = 0
    for ref in split_refs(dataset, "val"):
        sample = read_sample(ref, dataset.label_space, None)
        pred = predictor.predict([predictor.prepare(sample.image_hwc)], [sample.mask_hw.shape])[0].mask_hw
        confusion = confusion + metrics.confusion_matrix(sample.mask_hw, pred, 11)
    got = np.array(result["confusion"])
    assert np.abs(got[:, :-1] - confusion).sum() <= 4  # ties, as batches differ
    assert not got[:, -1].any()
    assert result["scores"]["miou"] == pytest.approx(metrics.scores(confusion).miou, abs=1e-3)
    rows = pq.read_table(tmp_path / "out" / "images.parquet").to_pylist()
    assert len(rows) == result["frames"] == 5
    assert [row["miou"] for row in rows] == sorted(row["miou"] for row in rows)
    assert result["scores"]["image_miou"] == pytest.approx(np.mean([row["miou"] for row in rows]))
    assert json.loads((tmp_path / "out" / "scores.json").read_text()) == result
    assert Image.open(tmp_path / "out" / "frames.png").size[0] > 1000


def test_a_model_without_data_is_scored_on_its_own(config, tiny_bundle, tmp_path, caplog):
    shutil.copytree(tiny_bundle, tmp_path / "best")
    info = json.loads((tmp_path / "best/segray.json").read_text())
    own = config.data.model_dump(mode="json")
    (tmp_path / "best/segray.json").write_text(json.dumps(info | {"config": {"data": own}}))
    given = load(None, {"evaluate.model": str(tmp_path / "best"), "evaluate.out": str(tmp_path / "out")})
    result = evaluate(given.changed({"evaluate.pictures": 0}))
    assert (result["frames"], result["scored"]) == (5, "streets val")
    root = config.data.root
    assert f"No data is named; the model is scored on its own: --format streets --data {root}." in caplog.messages
    assert read_settings(str(tmp_path / "out")).data.root == root
    with pytest.raises(ConfigError, match=r"^No data is given; "):
        evaluate(given.changed({"evaluate.model": str(tiny_bundle)}))


@pytest.mark.slow
def test_an_evaluation_and_a_comparison_may_be_on_s3(config, tmp_path, s3):
    places = [f"{s3}/evaluated/{name}" for name in "ab"]
    result = evaluate(config)
    for place in places:
        assert evaluate(config.changed({"evaluate.out": place})) == result
        assert storage.read_json(f"{place}/scores.json") == result
    assert compare(*places, out=f"{s3}/compared")["miou"]["difference"] == 0
    page = Path(report([*places, f"{s3}/compared"], str(tmp_path / "page.html"))).read_text()
    assert f"{result['scores']['miou']:.3f}" in page
    with pytest.raises(OutputExists, match=r"evaluate.batch_size was 2, is 3"):
        evaluate(config.changed({"evaluate.out": places[0], "evaluate.batch_size": 3}))
    assert not (tmp_path / "s3:").exists()


def test_frames_worth_a_look_keep_truth_and_prediction_for_the_report(config, tmp_path):
    result = evaluate(config.changed({"evaluate.pictures": 1}))
    rows = pq.read_table(tmp_path / "out" / "images.parquet").to_pylist()
    assert "worst" in rows[0]["shown"]
    assert "best" in rows[-1]["shown"]
    assert sum(len(row["shown"]) for row in rows) == 5  # best, worst, right, wrong, uncertain
    for row in rows:
        assert (row["truth"] is None) == (row["prediction"] is None) == (row["shown"] == [])
    truth, pred = (decode_mask(rows[0][name]["bytes"]) for name in ("truth", "prediction"))
    assert metrics.scores(metrics.confusion_matrix(truth, pred, 11)).miou == pytest.approx(rows[0]["miou"], abs=1e-3)
    page = Path(report([config.evaluate.out], str(tmp_path / "page.html"))).read_text()
    assert all(TITLES[name].lower() in page.lower() for row in rows for name in row["shown"])
    assert formatting.score(result["scores"]["miou"]) in page
    assert page.count("<img") == 5 * sum(row["shown"] != [] for row in rows)


def test_dollars_in_names_are_no_formula(tmp_path):
    space = LabelSpace(("a$^$", "sky"), ((0, 0, 0), (9, 9, 9)))
    lines = [[("img_$1_$2", np.zeros((4, 6, 3)))]]
    pictures.draw(str(tmp_path / "frames.png"), lines, space, {0, 1})
    assert (tmp_path / "frames.png").stat().st_size > 0


@pytest.mark.parametrize("mious", [[0.5], [0.1, 0.2, 0.3], [0.0] * 3])
def test_of_few_frames_none_is_both_best_and_worst(mious):
    rows = [{"miou": miou, "shown": []} for miou in mious]
    choose(rows, 4)
    assert sorted(row["shown"] for row in rows) == [["best"]] * -(-len(rows) // 2) + [["worst"]] * (len(rows) // 2)


def test_a_threshold_turns_pixels_into_misses(config):
    plain, strict = evaluate(config), evaluate(config.changed({"infer.threshold": 0.9}), overwrite=True)
    assert strict["undecided_share"] > 0
    assert np.sum(strict["confusion"]) == np.sum(plain["confusion"])
    assert strict["scores"]["pixel_accuracy"] < plain["scores"]["pixel_accuracy"]
    assert strict["baseline_miou"] == plain["baseline_miou"]  # which is of the ground truth alone
    nothing = evaluate(config.changed({"infer.threshold": 0.999}), overwrite=True)
    assert (nothing["undecided_share"], nothing["baseline_miou"]) == (1, plain["baseline_miou"])


def test_classes_are_matched_by_name(config):
    merged = evaluate(config.changed({"data.class_map": {"bicyclist": None}}))
    assert merged["not_covered"] == []
    assert sum(merged["confusion"][10]) == 0


def test_classes_without_a_common_name_are_one_line(config):
    names = dict.fromkeys(streets.LABEL_SPACE.names, "thing")
    with pytest.raises(
        DataError, match=r"^The model's classes \(sky, building, .*\) and the data's \(thing, …\) have no"
    ):
        evaluate(config.changed({"data.class_map": names}))


def test_an_evaluation_that_fails_leaves_nothing_that_refuses_the_corrected_command(config, tmp_path):
    with pytest.raises(DataError, match=r"^No pixel of the ground truth of streets val has a class"):
        evaluate(config.changed({"data.id_map": dict.fromkeys(range(11), 255)}))
    assert not (tmp_path / "out").exists()


def test_no_model_is_one_line(config):
    with pytest.raises(ConfigError, match=r"^evaluate\.model is not given"):
        evaluate(config.changed({"evaluate.model": None}))


def test_the_command_prints_a_table_by_class(config, monkeypatch, capsys):
    section = config.evaluate
    args = [
        "segray",
        "evaluate",
        section.model,
        "--format",
        "streets",
        "--data",
        config.data.root,
        "--out",
        section.out,
        "--flip",
    ]
    monkeypatch.setattr("sys.argv", args)
    monkeypatch.setattr(terminal.console, "width", 120)
    cli.main()
    out = capsys.readouterr().out
    assert "boundary" in out
    assert "bicyclist" in out
    assert "the best constant guess has mIoU" in out
    assert out.endswith(f"Next: segray report {section.out} --out {section.out}.html\n")


def test_the_calibration_error_is_the_gap_of_confidence_and_accuracy():
    logits = np.log(np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]], np.float32))
    # two at 0.9, one right: 0.4 apart; two at 0.6, both right: 0.4 apart
    assert calibration.ece(logits, np.array([0, 1, 1, 1], np.uint8)) == pytest.approx(0.4, abs=1e-6)
    # one bin holds both, 0.9 on average, all wrong; the other is 0.1 apart
    assert calibration.ece(logits, np.array([1, 1, 1, 0], np.uint8)) == pytest.approx((0.9 + 0.1) / 2, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 3.0, 12.0])
def test_a_known_temperature_is_found_again(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (200_000, 5)).astype(np.float32)
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(1).astype(np.uint8)  # drawn from their softmax
    assert calibration.fit(logits * np.float32(temperature), truth) == pytest.approx(temperature, rel=0.02)
    assert calibration.ece(logits * np.float32(temperature), truth, temperature) < 0.005


def test_pixels_are_drawn_from_labelled_ones_and_again_the_same():
    truth = np.full((6, 5), 255, np.uint8)
    truth[2:4] = 7
    points = calibration.sample_pixels(truth, 4, seed=1)
    assert set(points[:, 0]) <= {2, 3}
    assert len(np.unique(points, axis=0)) == 4
    assert np.array_equal(points, calibration.sample_pixels(truth, 4, seed=1))
    assert len(calibration.sample_pixels(truth, 100, seed=1)) == 10
    assert calibration.sample_pixels(np.full((6, 5), 255, np.uint8), 4, seed=1).shape == (0, 2)
    assert calibration.pixels_a_frame(2000, 150) * 2000 * 150 <= calibration.VALUES


@pytest.fixture
def sharp(tiny_bundle, town, tmp_path):
    """A bundle that knows how often each class is, nearly nothing else, and is three times too sure of it."""
    model, info = bundle.load(str(tiny_bundle))
    dataset = open_dataset(load(None, {"data.format": "streets", "data.root": str(town)}).data)
    masks = [read_sample(ref, dataset.label_space, None).mask_hw for ref in split_refs(dataset, "val")]
    counts = np.bincount(np.concatenate(masks, axis=None), minlength=256)[:11] + 1
    with torch.no_grad():
        model.segmentation_head[0].weight.mul_(0.1)
        model.segmentation_head[0].bias.copy_(3 * torch.from_numpy(counts / counts.sum()).log())
    bundle.save(tmp_path / "sharp", model, info)
    return str(tmp_path / "sharp")


@pytest.mark.slow
def test_calibration_softens_confidence_and_keeps_masks(config, sharp, tmp_path):
    changes = {"evaluate.model": sharp, "evaluate.calibrate": True}
    before = evaluate(config.changed({"evaluate.model": sharp, "evaluate.out": str(tmp_path / "before")}))
    info = read_info(sharp)
    fitted = evaluate(config.changed(changes))
    after = evaluate(config.changed({"evaluate.model": sharp, "evaluate.out": str(tmp_path / "after")}))
    fit = fitted["calibration"]
    now = read_info(sharp)
    assert fit["ece_before"] == before["scores"]["ece"]
    assert fit["ece_after"] < fit["ece_before"] / 2
    assert after["scores"]["ece"] == pytest.approx(fit["ece_after"], abs=1e-4)
    assert before["confusion"] == fitted["confusion"] == after["confusion"]
    assert (now.temperature, now.model_id) == (fit["temperature"], fit["model_id"])
    assert now.temperature == pytest.approx(3, rel=0.1)
    assert now.model_id != info.model_id
    assert now.weights_sha256 == info.weights_sha256
    assert now.calibration == {key: fit[key] for key in ("split", "pixels", "ece_before", "ece_after")}
    assert (fit["split"], fit["pixels"]) == ("val", np.sum(before["confusion"]))
    again = evaluate(config.changed(changes | {"evaluate.out": str(tmp_path / "again")}))["calibration"]
    assert again["temperature"] == pytest.approx(now.temperature, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"infer.flip": True}, "evaluate.calibrate fits predictions of whole frames; leave out --window, --flip, infer.scales."),
        ({"infer.window": "32x32"}, "evaluate.calibrate fits predictions of whole frames; leave out --window, --flip, infer.scales."),
        ({"infer.threshold": 0.5}, "evaluate.calibrate changes what infer.threshold means; leave it out, and evaluate again."),
        ({"evaluate.model": "deeplabv3-coco"}, "evaluate.calibrate would change deeplabv3-coco for all who use it on this machine. Make your own bundle of it first: segray import deeplabv3-coco --out models/deeplabv3-coco"),
    ],
)  # fmt: skip
def test_calibration_refuses_other_looks(config, settings, line):
    with pytest.raises(ConfigError) as error:
        evaluate(config.changed({"evaluate.calibrate": True} | settings))
    assert str(error.value) == line


def test_a_bundle_that_cannot_be_written_is_found_before_frames_are_scored(config, monkeypatch):
    def refuse(uri, data):
        raise StorageError(f"{uri} cannot be written: Read-only file system.")

    monkeypatch.setattr(bundle.storage, "replace", refuse)
    with pytest.raises(StorageError, match="Read-only"):
        evaluate(config.changed({"evaluate.calibrate": True}), progress=lambda more, total: pytest.fail("too late"))


def test_a_frame_without_labels_has_no_say_in_calibration(config, town, tmp_path):
    shutil.copytree(town, tmp_path / "town")
    first = sorted((tmp_path / "town" / "valannot").iterdir())[0]
    mask = Image.open(first)
    mask.paste(11, (0, 0, *mask.size))  # void, as in CamVid
    mask.save(first)
    result = evaluate(config.changed({"data.root": str(tmp_path / "town")}))
    assert np.sum(result["confusion"]) <= 4 * 48 * 64
    assert 0 < result["scores"]["ece"] < 1


def test_the_command_shows_the_calibration(config, sharp, monkeypatch, capsys):
    args = [
        "segray",
        "evaluate",
        sharp,
        "--format",
        "streets",
        "--data",
        config.data.root,
        "--out",
        config.evaluate.out,
        "--calibrate",
    ]
    monkeypatch.setattr("sys.argv", args)
    monkeypatch.setattr(terminal.console, "width", 120)
    cli.main()
    out = capsys.readouterr().out
    assert f"Calibrated on val; the model's id is now {read_info(sharp).model_id}" in out
    assert "error before" in out
