"""Which frames of finished labels are worth a look: the right ones, spread over videos and folders."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from labelled import label_all, settings_of
from PIL import Image

from segray.cli import cli
from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.labels.planning import make_plan
from segray.core.labels.schema import ROW_SCHEMA
from segray.errors import ConfigError, DataError, OutputExists
from segray.stages.select import select, write, write_pictures


def frame(uri, time_s=None, shares=(1.0, 0.0), **values):
    video = {"video_uri": uri, "frame_index": round(10 * time_s)} if time_s is not None else {}
    return (
        {"input_id": f"{uri}{time_s}", "uri": uri, "time_s": time_s, "class_shares": shares, "status": "ok"}
        | video
        | values
    )


@pytest.fixture
def labels(tmp_path):
    """A label folder whose part holds the rows that are given."""

    def make(rows):
        (tmp_path / "in").mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / "in" / "a.png")
        plan = make_plan(str(tmp_path / "out"), settings_of([tmp_path / "in"]), streets.LABEL_SPACE)
        (tmp_path / "out" / "labels").mkdir()
        pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), plan.part_uri(0))
        return str(tmp_path / "out")

    return make


def test_the_most_uncertain_come_first_and_errors_never(labels):
    rows = [frame(f"/{name}/1.png", entropy_mean=entropy) for name, entropy in (("a", 0.1), ("b", 0.9), ("c", 0.5))]
    place = labels([*rows, {"input_id": "x", "uri": "/d/4.png", "status": "error"}])
    assert [row["uri"] for row in select(place, "uncertainty", 2)] == ["/b/1.png", "/c/1.png"]
    assert len(select(place, "uncertainty", 9)) == 3


def test_each_video_has_its_best_before_another_has_its_second(labels):
    rows = [frame("/a.mp4", i / 10, flicker_share=0.9 - i / 100) for i in range(60)]
    rows += [frame("/b.mp4", i / 10, flicker_share=None if i == 0 else 0.1) for i in range(60)]
    place = labels(rows)
    picks = select(place, "flicker", 3, apart=2.0)
    assert [(row["video_uri"], row["time_s"]) for row in picks] == [("/a.mp4", 0.0), ("/a.mp4", 2.0), ("/b.mp4", 0.1)]
    assert [row["time_s"] for row in select(place, "flicker", 9, apart=0) if row["video_uri"] == "/a.mp4"][:3] == [
        0,
        0.1,
        0.2,
    ]


def test_neighbours_in_a_folder_are_apart_too(labels):
    place = labels([frame(f"/a/{i}.png", entropy_mean=1 - i / 10) for i in range(6)])
    assert [row["uri"] for row in select(place, "uncertainty", 3, apart=2)] == ["/a/0.png", "/a/2.png", "/a/4.png"]


def test_a_frame_with_what_others_lack_is_rare(labels):
    place = labels([frame(f"/{i}/a.png", shares=(1.0, 0.0)) for i in range(9)] + [frame("/9/a.png", shares=(0.9, 0.1))])
    best, second = select(place, "rare-class", 2)
    assert best["uri"] == "/9/a.png"
    assert best["score"] == pytest.approx((0.9 / 0.99 + 0.1 / 0.01) / 2)
    assert second["score"] == pytest.approx((1 / 0.99 + 0) / 2)


def test_bad_questions_are_one_line(labels, tmp_path):
    with pytest.raises(DataError, match="holds no labels; give the --out of segray label"):
        select(str(tmp_path / "none"), "flicker", 3)
    place = labels([frame("/a/1.png", entropy_mean=0.1)])
    with pytest.raises(DataError, match=r"No frame in .* has a flicker_share"):
        select(place, "flicker", 3)
    with pytest.raises(ConfigError, match=r"'uncertain' is not an order of frames\. Did you mean uncertainty"):
        select(place, "uncertain", 3)


def test_pictures_and_lists_of_real_labels(tiny_bundle, tmp_path):
    town = streets.write(tmp_path / "town", train=0, val=3, size=(48, 64), video_s=0.5)
    out = str(tmp_path / "out")
    plan = make_plan(out, settings_of([town / "val", town / "video.mp4"]), streets.LABEL_SPACE)
    label_all(plan, Predictor(str(tiny_bundle)))
    rows = select(out, "rare-class", 5, apart=0.1)
    image = next(row["uri"] for row in rows if row["uri"].endswith(".jpg"))
    Image.new("RGB", (64, 48)).save(image)
    problems = write_pictures(rows, out, tmp_path / "look")
    assert problems == [f"{image} has changed since the plan was made; label it anew with another --out."]
    drawn = sorted(path.name for path in (tmp_path / "look").iterdir())
    assert len(drawn) + len(problems) == 5
    assert np.asarray(Image.open(tmp_path / "look" / drawn[-1])).shape == (48, 128, 3)
    for suffix in ("jsonl", "parquet"):
        write(rows, f"{tmp_path}/picks.{suffix}")
    lines = [json.loads(line) for line in (tmp_path / "picks.jsonl").read_text().splitlines()]
    assert lines == pq.read_table(tmp_path / "picks.parquet").to_pylist()
    assert [line["input_id"] for line in lines] == [row["input_id"] for row in rows]


@pytest.mark.parametrize("taken", ["--out", "--pictures"])
def test_a_list_and_pictures_that_are_there_are_replaced_when_that_is_asked_for(labels, tmp_path, taken):
    place, look, picks = labels([frame(f"{tmp_path}/in/a.png", entropy_mean=0.1)]), tmp_path / "look", "picks.jsonl"
    look.mkdir()
    mine = tmp_path / picks if taken == "--out" else look / "001.png"
    mine.write_text("mine")
    args = ["select", place, "--out", str(tmp_path / picks), "--pictures", str(look)]
    found = CliRunner().invoke(cli, args).exception
    assert isinstance(found, OutputExists)
    assert str(found) == f"{mine} exists already. Choose another {taken}, or pass --overwrite."
    assert mine.read_text() == "mine"
    CliRunner().invoke(cli, [*args, "--overwrite"], catch_exceptions=False)
    assert (tmp_path / picks).read_text().startswith('{"input_id": ')
