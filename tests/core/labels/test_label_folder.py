"""Which rows of a label folder count, and what is said of one that is unfinished or torn."""

import io
from pathlib import Path

import numpy as np
import pytest
import videos
from labelled import label_all, label_shard, settings_of
from PIL import Image

from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.io import locators, storage
from segray.core.labels import parts
from segray.core.labels.folder import LabelFolder
from segray.core.labels.planning import make_plan
from segray.errors import DataError
from segray.stages.status import status

SPACE = streets.LABEL_SPACE


def picture(seed=0):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def labels(tmp_path, tiny_bundle):
    """Two frames of which one is torn, labelled; the torn one mended, and planned again but not labelled yet."""
    folder, predictor = tmp_path / "in", Predictor(str(tiny_bundle))
    folder.mkdir()
    (folder / "a.png").write_bytes(picture())
    (folder / "b.png").write_bytes(b"torn")
    first = make_plan(str(tmp_path / "out"), settings_of([folder], shard_size=1), SPACE)
    label_all(first, predictor)
    parts.finish([first], {})
    (folder / "b.png").write_bytes(picture(1))
    second = make_plan(first.out, first.settings, SPACE, [first], LabelFolder([first]).failed_rows())
    return first, second, predictor


def named(folder):
    return [(storage.name_of(row["uri"]), row["status"]) for row in folder.rows(["uri", "status"])]


def test_a_failed_row_stops_counting_once_it_is_planned_again(labels):
    first, second, predictor = labels
    folder = LabelFolder.open(first.out)
    assert (folder.planned, folder.shards, folder.missing().tolist()) == (2, 3, [False, False, True])
    assert named(folder) == [("a.png", "ok")]
    assert (folder.totals()[0].rows, folder.totals()[0].errors) == (1, {})
    assert folder.unfinished == (
        "1 of its 3 parts are not labelled yet. The segray label command that wrote it resumes there."
    )
    label_shard(second, 0, predictor)
    assert named(LabelFolder.open(first.out)) == [("a.png", "ok"), ("b.png", "ok")]
    assert LabelFolder.open(first.out).unfinished.startswith("its totals are not written yet.")
    parts.finish([first, second], {})
    assert LabelFolder.open_finished(first.out).summary["rows"] == 2
    assert named(LabelFolder([first])) == [("a.png", "ok"), ("b.png", "error")]  # as it was before the second plan


def test_a_part_that_somebody_removed_is_missed_and_labelled_again(labels):
    first, second, predictor = labels
    label_shard(second, 0, predictor)
    parts.finish([first, second], {"images_per_s": 1.0})
    assert LabelFolder.open_finished(first.out).parts
    Path(first.part_uri(0)).unlink()
    gone = "1 of its 3 parts are gone. The segray label command that wrote it resumes there."
    with pytest.raises(DataError) as error:
        LabelFolder.open_finished(first.out)
    assert str(error.value) == f"{first.out} is not finished: {gone}"
    assert not status(first.out).finished
    label_shard(first, 0, predictor)
    assert LabelFolder.open(first.out).unfinished is None


@pytest.mark.parametrize("between", [(), (b"torn",), (b"torn", b"torn")])
def test_of_a_cut_video_that_is_whole_again_no_frame_is_labelled_twice_and_no_error_is_left(
    tmp_path, plain_bundle, between
):
    """Also if it could not be opened when it was tried again before, and if it has no more frames than before."""
    whole = Path(videos.write(tmp_path / "whole.mkv", pts=range(20), **videos.B_FRAMES)).read_bytes()
    video, out, predictor = tmp_path / "drive.mkv", str(tmp_path / "out"), Predictor(str(plain_bundle))
    plans = []
    for content in (whole[:-10], *between, whole):
        video.write_bytes(content)
        failed = LabelFolder(plans).failed_rows() if plans else None
        plans.append(make_plan(out, settings_of([video]), SPACE, plans, failed))
        label_all(plans[-1], predictor)
        if content is not whole:
            assert LabelFolder(plans).totals()[0].errors.total()
    folder = LabelFolder(plans)
    assert (folder.planned, folder.totals()[0].rows, folder.totals()[0].errors) == (20, 20, {})
    frames = [frame for _, rows in folder.by_part(["frame_index"]) for frame in rows["frame_index"].to_pylist()]
    assert sorted(frames) == list(range(20))


def test_a_video_that_could_not_be_opened_is_one_row_that_its_frames_replace(tmp_path, plain_bundle):
    video, predictor = tmp_path / "in" / "drive.mp4", Predictor(str(plain_bundle))
    video.parent.mkdir()
    video.write_bytes(b"torn")
    first = make_plan(str(tmp_path / "out"), settings_of([video], shard_size=1), SPACE)
    label_all(first, predictor)
    parts.finish([first], {})
    videos.write(video, pts=range(5))
    second = make_plan(first.out, first.settings, SPACE, [first], LabelFolder([first]).failed_rows())
    assert LabelFolder([first, second]).planned == 5
    assert (status(first.out).frames, status(first.out).errors) == (0, 0)
    label_all(second, predictor)
    assert (status(first.out).frames, status(first.out).errors) == (5, 0)
    assert parts.finish([first, second], {})["rows"] == status(first.out).frames == 5


def test_a_row_says_where_its_mask_is(labels):
    first, _, _ = labels
    (row,) = LabelFolder.open(first.out).rows(["class_pixels"])
    mask_hw = locators.read_mask(row["place"])
    assert mask_hw.shape == (32, 48)
    assert np.bincount(mask_hw.ravel(), minlength=SPACE.num_classes).tolist() == row["class_pixels"]


def test_what_is_no_labels_or_torn_is_one_line(labels, tmp_path):
    with pytest.raises(DataError, match=r"in holds no labels; give the --out of"):
        LabelFolder.open(str(tmp_path / "in"))
    first, _, _ = labels
    (tmp_path / "out" / "labels" / storage.name_of(first.part_uri(0))).write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"part-00000-of-00002-\w+\.parquet cannot be read: .*\. Remove it and run"):
        list(LabelFolder.open(first.out).rows(["uri"]))
