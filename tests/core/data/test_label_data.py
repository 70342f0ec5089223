"""segray's own labels as training data: a teacher's masks, with what it was not sure of left out."""

import re
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import videos
from click.testing import CliRunner
from labelled import label_all, settings_of
from PIL import Image

from segray.api.labels import open_labels
from segray.cli import cli
from segray.config import load
from segray.core.data import open_dataset, read_sample, split_refs, streets
from segray.core.data.check import check
from segray.core.infer.predictor import Predictor
from segray.core.io import images, locators, storage
from segray.core.io.locators import read_image
from segray.core.io.masks import decode_mask
from segray.core.labels import parts
from segray.core.labels.plan import load_plans
from segray.core.labels.planning import make_plan
from segray.core.scoring.sources import LabelFrames
from segray.errors import DataError
from segray.sections.labelling import InferSection
from segray.sections.training import DataSection
from segray.stages.report import render
from segray.stages.status import status


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("label-data") / "streets", train=6, val=2, size=(48, 64), video_s=0.6)


@pytest.fixture(scope="module")
def labelled(town, tiny_bundle, tmp_path_factory):
    def make(*inputs, maps=True):
        out = str(tmp_path_factory.mktemp("labels") / "out")
        predictor = Predictor(str(tiny_bundle), infer=InferSection(), confidence_maps=maps)
        plan = make_plan(out, settings_of([town / i for i in inputs]), predictor.label_space)
        label_all(plan, predictor)
        parts.finish([plan], {})
        return out

    return make


def test_rows_are_frames_with_the_teachers_masks(labelled, town):
    out = labelled("train", "video.mp4")
    dataset = open_dataset(DataSection(format="labels", root=out, val_share=0.4))
    refs = [ref for split in dataset.splits.values() for ref in split]
    assert len(refs) == 6 + 6
    assert dataset.label_space.names == streets.LABEL_SPACE.names
    rows = {row["input_id"]: row for shard in (0, 1, 2, 3) for row in _part(out, shard)}
    for ref in refs:
        sample = read_sample(ref, dataset.label_space, None)
        assert sample.image_hwc.shape == (48, 64, 3)
        assert np.bincount(sample.mask_hw.ravel(), minlength=11).tolist() == rows[ref.sample_id]["class_pixels"]
    frames = [ref.image for ref in refs if "#frame=" in ref.image]
    assert len(frames) == 6
    homes = {split for split, members in dataset.splits.items() for ref in members if "#frame=" in ref.image}
    assert len(homes) == 1  # neighbours in one video are in one split


def _part(out, shard):
    (plan,) = load_plans(out)
    return pq.read_table(storage.open_read(plan.part_uri(shard))).to_pylist() if shard < plan.shards else []


def test_a_lone_video_is_cut_in_time(labelled):
    dataset = open_dataset(DataSection(format="labels", root=labelled("video.mp4"), val_share=0.34))
    last = [int(ref.image.split("=")[1]) for ref in dataset.splits["val"]]
    assert [int(ref.image.split("=")[1]) for ref in dataset.splits["train"]] == [0, 1, 2, 3]
    assert last == [4, 5]


def test_rows_and_pixels_below_a_confidence_are_left_out(labelled):
    out = labelled("train")
    rows = [row for shard in (0, 1) for row in _part(out, shard)]
    middle = float(np.median([row["confidence_mean"] for row in rows]))
    dataset = open_dataset(DataSection(format="labels", root=out, min_confidence=middle))
    assert sum(len(refs) for refs in dataset.splits.values()) == 3
    pixel = open_dataset(DataSection(format="labels", root=out, min_pixel_confidence=middle))
    shares = [(read_sample(ref, pixel.label_space, None).mask_hw == 255).mean() for ref in split_refs(pixel, "train")]
    assert 0.1 < np.mean(shares) < 0.9
    with pytest.raises(DataError, match=r"^None of 6 rows in .* has a confidence of 1\.0; lower it\.$"):
        open_dataset(DataSection(format="labels", root=out, min_confidence=1.0))


def test_the_least_pixel_confidence_drops_nothing(labelled):
    dataset = open_dataset(DataSection(format="labels", root=labelled("train"), min_pixel_confidence=1e-7))
    sample = read_sample(split_refs(dataset, "train")[0], dataset.label_space, None)
    assert not (sample.mask_hw == 255).any()


def test_a_part_is_read_once_whatever_the_order_of_its_rows(labelled, monkeypatch):
    """20 accesses of 6 rows in 3 parts."""
    out = labelled("train")
    opened = []
    open_read = storage.open_read
    monkeypatch.setattr(storage, "open_read", lambda uri, *ahead: opened.append(uri) or open_read(uri, *ahead))
    dataset = open_dataset(DataSection(format="labels", root=out, min_pixel_confidence=0.01))
    refs = [ref for split in dataset.splits.values() for ref in split]
    opened.clear()
    locators._rows_of.cache_clear()
    rows = {row["input_id"]: row for shard in range(3) for row in _part(out, shard)}
    opened.clear()
    for i in np.random.default_rng(0).integers(0, len(refs), 20):
        mask_hw = locators.read_mask(refs[i].mask.partition(",")[0])
        assert np.array_equal(mask_hw, decode_mask(rows[refs[i].sample_id]["mask"]["bytes"]))
    assert len(opened) == len(set(opened)) == len({ref.mask.partition("#")[0] for ref in refs})


def test_a_video_that_lost_a_labelled_frame_is_one_line(town):
    with pytest.raises(DataError, match=r"video\.mp4#frame=999 is past the end of the video, which has"):
        read_image(f"{town}/video.mp4#frame=999")


def test_pixel_confidence_needs_its_maps(labelled):
    dataset = open_dataset(DataSection(format="labels", root=labelled("train", maps=False), min_pixel_confidence=0.5))
    with pytest.raises(
        DataError, match=r"has no confidence map for data\.min_pixel_confidence; label again with --set"
    ):
        read_sample(split_refs(dataset, "train")[0], dataset.label_space, None)


@pytest.mark.parametrize("name", ["a.png", "a.mp4", "a.parquet"])
def test_a_frame_that_has_changed_since_it_was_labelled_is_not_trained_on(labelled, tmp_path, name):
    """Another picture of the same size would be taught with the mask of the one before."""
    path = tmp_path / name
    image_hwc = np.zeros((48, 64, 3), np.uint8)

    def write(image_hwc):
        if name.endswith("mp4"):
            videos.write(path, pts=range(4))
        elif name.endswith("parquet"):
            cell = {"bytes": images.encode_image(image_hwc), "path": "a.png"}
            pq.write_table(pa.table({"image": [cell, cell]}), path)
        else:
            Image.fromarray(image_hwc).save(path)

    write(image_hwc)
    out = labelled(path)
    dataset = open_dataset(DataSection(format="labels", root=out))
    refs = [ref for split in dataset.splits.values() for ref in split]
    assert read_sample(refs[0], dataset.label_space, None).image_hwc.shape == (48, 64, 3)
    time.sleep(0.02)  # as long as a tick of the clock by which files are stamped
    write(image_hwc + 9)
    expected = rf"^{path} has changed since the plan was made; label it anew with another --out\.$"
    with pytest.raises(DataError, match=expected):
        read_sample(refs[0], dataset.label_space, None)
    with pytest.raises(DataError, match=expected):
        _ = next(open_labels(out).frames()).image
    assert any(re.search(expected, problem) for problem in check(dataset, ()).problems)


def test_labels_that_are_not_finished_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no labels; give the --out of segray label\.$"):
        open_dataset(DataSection(format="labels", root=str(tmp_path)))


def test_an_extension_that_was_interrupted_is_named_by_every_reader(labelled, town, tmp_path):
    out = labelled("train", "video.mp4")
    (first,) = load_plans(out)
    further = make_plan(out, first.settings | {"inputs": [str(town / "val")]}, first.label_space, [first])
    line = f"{out} is not finished: 1 of its 3 parts are not labelled yet. The segray label command that wrote it resumes there."
    scored = load(None, {"evaluate.model": out, "evaluate.truth": str(town / "trainannot")})
    for read in (lambda: open_dataset(DataSection(format="labels", root=out)), lambda: LabelFrames(scored)):
        with pytest.raises(DataError) as told:
            read()
        assert str(told.value) == line
    for command in (["select", out], ["overlay", out, "--video", str(tmp_path / "video.mp4")]):
        assert line in CliRunner().invoke(cli, command).output.splitlines()
    assert parts.verify([first, further]) == [
        f"{storage.name_of(further.part_uri(0))} is missing",
        "_SUCCESS speaks of the plans before the last: the run is not finished, and the same command resumes",
    ]
    assert not status(out).finished
    assert "<b>Unfinished:</b> 2 of 3 parts are there" in render([out])
