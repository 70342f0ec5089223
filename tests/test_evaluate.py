"""Scores of a bundle on labelled frames, from outside."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray import cli, terminal
from segray.config import load
from segray.core import metrics
from segray.core.datasets import open_dataset, read_sample, split_refs, streets
from segray.core.predictor import Predictor
from segray.errors import ConfigError, DataError
from segray.evaluate import evaluate


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("evaluate") / "streets", train=2, val=5, size=(48, 64), video_s=0)


@pytest.fixture
def config(town, tiny_bundle, tmp_path):
    values = {"data.root": str(town), "evaluate.model": str(tiny_bundle), "evaluate.out": str(tmp_path / "out")}
    return load(None, values | {"evaluate.batch_size": 2})


def test_scores_are_those_of_the_predicted_masks(config, tmp_path):
    result = evaluate(config)
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


def test_a_threshold_turns_pixels_into_misses(config):
    plain, strict = evaluate(config), evaluate(config.changed({"infer.threshold": 0.9}), overwrite=True)
    assert strict["undecided_share"] > 0
    assert np.sum(strict["confusion"]) == np.sum(plain["confusion"])
    assert strict["scores"]["pixel_accuracy"] < plain["scores"]["pixel_accuracy"]


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


def test_no_model_is_one_line(config):
    with pytest.raises(ConfigError, match=r"^evaluate\.model is not given"):
        evaluate(config.changed({"evaluate.model": None}))


def test_the_command_prints_a_table_by_class(config, monkeypatch, capsys):
    section = config.evaluate
    args = ["segray", "evaluate", section.model, "--data", config.data.root, "--out", section.out, "--flip"]
    monkeypatch.setattr("sys.argv", args)
    monkeypatch.setattr(terminal.console, "width", 120)
    cli.main()
    out = capsys.readouterr().out
    assert "boundary" in out
    assert "bicyclist" in out
    assert "the best constant guess has mIoU" in out
