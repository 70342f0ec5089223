"""Pictures of a frame and of a labelled video: the right masks over the right frames, at their times."""

import os
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from labelled import label_all, settings_of
from PIL import Image
from videos import KINDS, straight, write

from segray.config import load
from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.io import locators
from segray.core.io.drawing import enlarged, legend, legend_for
from segray.core.io.masks import overlay
from segray.core.labels.planning import make_plan
from segray.core.samples import LabelSpace
from segray.errors import ConfigError, DataError, OutputExists
from segray.stages.show import overlay_video, show

COLORS = streets.LABEL_SPACE.colors


def planned(out, source, **more):
    return make_plan(str(out), settings_of([source], **more), streets.LABEL_SPACE)


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("town") / "streets", train=1, val=1, size=(64, 96), video_s=1.0)


def test_one_frame_gives_its_map_and_its_overlay(town, tiny_bundle, tmp_path):
    place = f"{town}/video.mp4#frame=3"
    map_, over = show(place, load(None, {"label.model": str(tiny_bundle)}), str(tmp_path))
    assert map_ == f"{tmp_path}/video.mp4-frame3-map.png"
    mask_hw, frame = np.asarray(Image.open(map_)), locators.read_image(place)
    assert mask_hw.shape == (64, 96)
    assert mask_hw.max() < len(COLORS)
    drawn = np.asarray(Image.open(over))
    times, panel = legend_for((64, 96), streets.LABEL_SPACE)
    assert np.array_equal(drawn[:, : 96 * times], enlarged(overlay(frame, mask_hw, COLORS), times))
    assert np.array_equal(drawn[:, 96 * times :], panel)
    with pytest.raises(OutputExists) as error:
        show(place, load(None, {"label.model": "none"}), str(tmp_path))
    assert str(error.value) == f"{map_} exists already. Choose another --out, or pass --overwrite."


def test_a_frame_of_a_video_is_named_by_its_number(tmp_path):
    with pytest.raises(ConfigError) as error:
        show("drive.mp4", load(None, {"label.model": "none"}), str(tmp_path))
    assert str(error.value) == "drive.mp4 is a video; name one of its frames, such as 'drive.mp4#frame=0'."


def test_a_folder_is_answered_with_what_can_be_shown(tmp_path):
    with pytest.raises(ConfigError, match=rf"^{tmp_path} is a folder; name one of its images. Pictures of labels are "):
        show(str(tmp_path), load(None, {"label.model": "none"}), str(tmp_path))


def test_a_labelled_video_is_rendered_at_its_own_times(town, tiny_bundle, tmp_path):
    label_all(planned(tmp_path / "labels", town / "video.mp4", every=2, shard_size=2), Predictor(str(tiny_bundle)))
    out, totals = tmp_path / "deep" / "over.mp4", []
    assert (
        overlay_video(str(tmp_path / "labels"), str(out), progress=lambda _, total: totals.append(total))
        == len(totals)
        == totals[0]
    )
    with av.open(str(out)) as container:
        frames = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    with av.open(str(town / "video.mp4")) as container:
        times = [float(frame.time) for frame in container.decode(video=0)][::2]
    assert [time for time, _ in frames] == pytest.approx([time - times[0] for time in times], abs=1e-3)
    predictor = Predictor(str(tiny_bundle))
    source = locators.read_image(f"{town}/video.mp4#frame=4")
    (found,) = predictor.predict([predictor.prepare(source)], [source.shape[:2]])
    expected = overlay(source, found.mask_hw, COLORS).astype(int)
    times, _ = legend_for((64, 96), streets.LABEL_SPACE)
    small = [picture[::times, : 96 * times : times].astype(int) for _, picture in frames]
    differences = [np.abs(picture - expected).mean() for picture in small]
    assert differences[2] == min(differences) < 12  # of 255: H.264 is not exact


@pytest.mark.parametrize("sizes", [((48, 64), (64, 96)), ((64, 96), (48, 64))])
def test_frames_of_a_video_that_changes_its_size_are_shown_whole(sizes, tiny_bundle, tmp_path):
    halves = [
        write(tmp_path / f"{i}.ts", pts=range(8 * i, 8 * i + 8), height=height, width=width)
        for i, (height, width) in enumerate(sizes)
    ]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/both.ts").write_bytes(b"".join(Path(half).read_bytes() for half in halves))
    predictor = Predictor(str(tiny_bundle))
    label_all(planned(tmp_path / "labels", tmp_path / "in"), predictor)
    assert overlay_video(str(tmp_path / "labels"), str(tmp_path / "over.mp4")) > 8  # some at the seam may be lost
    (height, width), (times, _) = sizes[0], legend_for(sizes[0], streets.LABEL_SPACE)
    with av.open(str(tmp_path / "over.mp4")) as container:
        *_, last = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
    source = locators.read_image(f"{tmp_path}/in/both.ts#frame=15")
    (found,) = predictor.predict([predictor.prepare(source)], [source.shape[:2]])
    expected = Image.fromarray(overlay(source, found.mask_hw, COLORS)).resize((width, height))
    small = Image.fromarray(last[:, : width * times]).resize((width, height))
    grey = [np.asarray(picture.convert("L")).astype(float).ravel() for picture in (small, expected)]
    assert np.corrcoef(*grey)[0, 1] > 0.5


def test_a_video_is_whole_or_not_there_and_a_slideshow_is_called_so(town, tiny_bundle, tmp_path, caplog):
    label_all(planned(tmp_path / "labels", town / "video.mp4", every=6), Predictor(str(tiny_bundle)))

    def stop(more, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        overlay_video(str(tmp_path / "labels"), str(tmp_path / "new" / "over.mp4"), progress=stop)
    assert list((tmp_path / "new").iterdir()) == []
    assert caplog.messages == [
        f"{tmp_path}/new/over.mp4 is a slideshow: its labels are 0.6 s apart. Label more frames for a moving one."
    ]
    with pytest.raises(ConfigError, match=r"^over\.gif ends in none of \.mp4, \.mov, \.mkv; name such a file\.$"):
        overlay_video(str(tmp_path / "labels"), "over.gif")


def test_a_legend_has_every_class_in_its_colour():
    for height in (40, 64, 720):
        panel = legend(height, streets.LABEL_SPACE)
        seen = set(map(tuple, panel.reshape(-1, 3).tolist()))
        assert set(COLORS) <= seen
        assert len(panel) == height
        assert panel.shape[1] % 2 == 0


@pytest.mark.parametrize(
    ("size", "count", "times"), [((64, 96), 11, 2), ((720, 960), 11, 1), ((512, 683), 150, 1), ((24, 32), 1, 3)]
)
def test_a_legend_is_no_wider_than_its_frame_which_is_enlarged_only_where_it_is_tiny(size, count, times):
    space = LabelSpace(tuple(f"class {i}" for i in range(count)), ((1, 2, 3),) * count)
    found, panel = legend_for(size, space)
    assert found == times
    assert panel.shape[0] == size[0] * times
    assert panel.shape[1] <= size[1] * times


def test_a_video_that_has_changed_is_not_drawn_over(town, plain_bundle, tmp_path):
    video = tmp_path / "drive.mp4"
    video.write_bytes((town / "video.mp4").read_bytes())
    label_all(planned(tmp_path / "labels", video, every=6), Predictor(str(plain_bundle)))
    os.utime(video, (0, 0))
    with pytest.raises(DataError) as error:
        overlay_video(str(tmp_path / "labels"), str(tmp_path / "over.mp4"))
    assert str(error.value) == f"{video} has changed since the plan was made; label it anew with another --out."
    assert not (tmp_path / "over.mp4").exists()


def test_regions_are_outlined_in_their_colour():
    mask_hw = np.array([[0, 0, 1, 1], [0, 0, 1, 255]], np.uint8)
    image_hwc = np.full((2, 4, 3), 100, np.uint8)
    drawn = overlay(image_hwc, mask_hw, [(200, 0, 0), (0, 200, 0)])
    assert drawn[..., 0].tolist() == [[150, 200, 50, 0], [150, 200, 0, 100]]


def test_a_video_whose_stamps_name_no_frames_is_labelled_and_shown_by_the_number_of_its_frames(tiny_bundle, tmp_path):
    """Most packets of such a .vob have no time stamp. A frame's flicker is that of the one before, also across shards."""
    video = tmp_path / "a.vob"
    KINDS["h264 with B-frames.vob"](video)
    predictor, rows = Predictor(str(tiny_bundle)), {}
    for size in (1, 64):  # several shards, and one
        label_all(planned(tmp_path / str(size), video, shard_size=size), predictor)
        table = pq.read_table(tmp_path / str(size) / "labels").sort_by("frame_index")
        rows[size] = table.select(
            ["frame_index", "pts", "time_s", "status", "class_pixels", "flicker_share"]
        ).to_pylist()
    assert rows[1] == rows[64]
    assert [row["frame_index"] for row in rows[1]] == list(range(30))
    assert {row["pts"] for row in rows[1]} == {None}
    assert [row["time_s"] for row in rows[1]] == pytest.approx([i / 25 for i in range(30)])
    assert [i for i, row in enumerate(rows[1]) if row["flicker_share"] is None] == [0]
    assert np.array_equal(locators.read_image(f"{video}#frame=20"), straight(str(video))[20])
    assert overlay_video(str(tmp_path / "1"), str(tmp_path / "over.mp4")) == 30


def test_labels_without_a_video_or_with_several_are_refused_by_name(town, tiny_bundle, tmp_path):
    predictor = Predictor(str(tiny_bundle))
    label_all(planned(tmp_path / "frames", town / "val"), predictor)
    with pytest.raises(DataError, match="has no labelled frame of a video"):
        overlay_video(str(tmp_path / "frames"), str(tmp_path / "over.mp4"))
    for name in ("a", "b"):
        (tmp_path / "drives" / name).mkdir(parents=True)
        (tmp_path / "drives" / name / "x.mp4").write_bytes((town / "video.mp4").read_bytes())
    label_all(planned(tmp_path / "labels", tmp_path / "drives", every=5), predictor)
    with pytest.raises(DataError, match=r"holds 2 videos .*; name one with --input"):
        overlay_video(str(tmp_path / "labels"), str(tmp_path / "over.mp4"))
    assert overlay_video(str(tmp_path / "labels"), str(tmp_path / "over.mp4"), "b/x.mp4") > 0
    labelled = tmp_path / "drives" / "b" / "x.mp4"
    with pytest.raises(OutputExists, match=r"b/x\.mp4 is the labelled video itself; choose another --video\."):
        overlay_video(str(tmp_path / "labels"), str(labelled), "b/x.mp4")
    assert labelled.read_bytes() == (town / "video.mp4").read_bytes()
