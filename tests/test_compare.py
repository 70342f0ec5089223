"""Whether two evaluations differ by more than noise: known answers."""

import json
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray import cli
from segray.cli import terminal
from segray.core import metrics
from segray.core.io.masks import decode_mask
from segray.core.scoring import bootstrap
from segray.errors import DataError, OutputExists
from segray.stages.compare import compare

CLASSES = ("road", "car", "sky")


def run(folder, accuracy, classes=CLASSES, frames=40, seed=0, pixels=900):
    """An evaluation's folder, of frames whose pixels are right with this probability."""
    rng, rows, total = np.random.default_rng(seed), [], 0
    for i in range(frames):
        truth = np.arange(pixels) % len(classes)
        pred = np.where(rng.random(pixels) < accuracy, truth, (truth + 1) % len(classes))
        counts = metrics.confusion_matrix(truth, pred, len(classes) + 1)[: len(classes)]
        total, cells = total + counts, np.flatnonzero(counts)
        values = {"cells": cells, "pixels": counts.ravel()[cells]}
        rows.append({"sample_id": f"val/{i:03}", "miou": metrics.scores(counts).miou, **values})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "images.parquet")
    scores = {"classes": list(classes), "scores": metrics.scores(total).to_dict()}
    (folder / "scores.json").write_text(json.dumps(scores))
    return str(folder)


def test_a_run_does_not_differ_from_itself(tmp_path):
    a = run(tmp_path / "a", 0.8)
    found = compare(a, a)
    assert found["miou"]["difference"] == found["miou"]["low"] == found["miou"]["high"] == 0
    assert (found["miou"]["b_better"], found["miou"]["verdict"], found["images"]) == (0, 0, [])


def test_a_better_run_is_called_better_and_a_worse_one_worse(tmp_path):
    a, b = run(tmp_path / "a", 0.7), run(tmp_path / "b", 0.8, seed=1)
    found = compare(a, b, out=str(tmp_path / "out"))
    mean = found["miou"]
    assert mean["difference"] == pytest.approx(mean["b"] - mean["a"])
    assert 0 < mean["low"] < mean["difference"] < mean["high"]
    assert (mean["b_better"], mean["verdict"]) == (1, 1)
    assert {one["verdict"] for one in found["classes"].values()} == {1}
    assert compare(b, a)["miou"]["verdict"] == -1
    assert len(found["images"]) == 10
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == found
    assert compare(a, b, out=str(tmp_path / "out")) == found


def test_another_comparison_is_kept_unless_overwrite_is_given(tmp_path):
    a, b, out = run(tmp_path / "a", 0.7), run(tmp_path / "b", 0.8, seed=1), tmp_path / "out"
    compare(a, b, out=str(out))
    before = (out / "compare.json").read_bytes()
    with pytest.raises(OutputExists) as error:
        compare(b, a, out=str(out))
    assert str(error.value) == (
        f"{out} holds a comparison with other settings (a was {a}, is {b}; b was {b}, is {a}). "
        "Give another --out, or --overwrite to begin anew."
    )
    assert (out / "compare.json").read_bytes() == before
    assert compare(b, a, out=str(out), overwrite=True)["a"] == b
    with pytest.raises(OutputExists, match=r"a holds files that are no comparison; give another --out\.$"):
        compare(a, b, out=a, overwrite=True)


def test_equal_models_with_other_luck_are_within_noise(tmp_path):
    mean = compare(run(tmp_path / "a", 0.8), run(tmp_path / "b", 0.8, seed=1))["miou"]
    assert mean["low"] < 0 < mean["high"]
    assert mean["verdict"] == 0


def test_the_interval_is_that_of_the_normal_approximation():
    rng, true = np.random.default_rng(0), np.full((400, 1), 1000)
    hits = [rng.binomial(1000, share, (400, 1)) for share in (0.6, 0.62)]
    a, b = (np.stack([hit, true, hit], axis=2) for hit in hits)  # nothing but misses: IoU is hits over 1000
    found = bootstrap.compare(a, b)["miou"]
    error = (hits[1] - hits[0]).std() / 1000 / np.sqrt(400)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_a_class_that_no_image_has_is_undefined():
    counts = np.array([[[3, 5, 4], [0, 0, 0]]] * 6)
    found = bootstrap.compare(counts, counts, draws=50)
    assert found["classes"][1] is None
    assert found["miou"]["difference"] == 0


def test_a_single_image_says_nothing_of_noise():
    a = np.array([[[500, 900, 600], [300, 400, 800]], [[500, 900, 600], [0, 0, 0]]])
    b = a + np.array([100, 0, 0])
    assert bootstrap.compare(a[:1], b[:1], draws=50)["miou"] is None
    found = bootstrap.compare(a, b * (a > 0), draws=50)  # only one image has the second class
    assert found["classes"][0] is not None
    assert found["classes"][1] is None
    assert found["miou"] is not None


def test_five_hundred_images_of_nineteen_classes_take_seconds():
    counts = np.random.default_rng(0).integers(0, 1000, (2, 500, 19, 3))
    counts[..., 1:] += 1000
    start = time.monotonic()
    bootstrap.compare(*counts)
    assert time.monotonic() - start < 20


def test_other_frames_classes_or_truth_are_one_line(tmp_path):
    a = run(tmp_path / "a", 0.8)
    for name, more, words in (
        ("frames", {"frames": 39}, "1 frame is in one alone, such as val/039"),
        ("classes", {"classes": ("road", "car", "van")}, r"their classes differ \(3 and 3; sky, van\)"),
        ("truth", {"pixels": 903}, r"val/000 has other ground truth \(900 labelled pixels and 903\)"),
    ):
        with pytest.raises(DataError, match=words):
            compare(a, run(tmp_path / name, 0.8, **more))
    with pytest.raises(DataError, match=r"holds no scores\.json"):
        compare(a, str(tmp_path / "nothing"))


def test_the_command_prints_the_verdict(tmp_path, monkeypatch, capsys):
    a, b = run(tmp_path / "a", 0.7), run(tmp_path / "b", 0.8, seed=1)
    monkeypatch.setattr("sys.argv", ["segray", "compare", a, b, "--images", "2"])
    monkeypatch.setattr(terminal.console, "width", 120)
    cli.main()
    out = capsys.readouterr().out
    assert "B is better (+0." in out
    assert "The images that changed most" in out


@pytest.mark.slow
def test_the_changed_images_are_drawn_where_both_runs_can_be_looked_at_again(tmp_path, tiny_bundle):
    from segray.config import load
    from segray.core.data import streets
    from segray.stages.evaluate import evaluate

    town = streets.write(tmp_path / "town", train=1, val=3, size=(48, 64), video_s=0)
    for folder, suffix in (("val", "jpg"), ("valannot", "png")):
        (town / folder / f"street_050000.{suffix}").rename(
            town / folder / os.fsdecode(b"no UTF-8 \xff." + suffix.encode())
        )
    settings = load(
        None,
        {"data.format": "streets", "data.root": str(town), "evaluate.model": str(tiny_bundle), "evaluate.pictures": 3},
    )
    evaluate(settings.changed({"evaluate.out": str(tmp_path / "a")}))
    evaluate(settings.changed({"evaluate.out": str(tmp_path / "b"), "infer.flip": True}))
    found = compare(str(tmp_path / "a"), str(tmp_path / "b"), out=str(tmp_path / "out"))
    assert found["no_picture"] is None
    assert (tmp_path / "out" / "changed.png").exists()
    rows = pq.read_table(tmp_path / "a" / "images.parquet").to_pylist()
    odd = next(row for row in rows if row["sample_id"] == "val/no UTF-8 \\udcff")
    assert decode_mask(odd["truth"]["bytes"]).shape == (48, 64)
