"""What a user names becomes rows of a plan: every kind of input, on a disk and on S3, once each."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled import label_all, plan_rows, settings_of
from PIL import Image
from test_video import write as write_video

from segray.core import inputs, parts, storage
from segray.core import plan as planning
from segray.core.ahead import ahead
from segray.core.datasets import places, streets
from segray.core.plan import check_same, load_plans, make_plan
from segray.core.predictor import Predictor
from segray.errors import DataError, OutputExists

SPACE = streets.LABEL_SPACE
NAMES = ("a.png", "b/c.JPG", "b/d d.png", "b/.hidden.png", "b/notes.md", "e/f.mp4")


def picture(value=0, kind="PNG"):
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (value, 0, 0)).save(out, kind)
    return out.getvalue()


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    """A folder with NAMES in it, on a disk or in a bucket."""
    top = str(tmp_path / "in") if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}/in"
    for i, name in enumerate(NAMES):
        storage.create(f"{top}/{name}", picture(i))
    return top


@pytest.fixture(scope="module")
def predictor(tiny_bundle):
    return Predictor(str(tiny_bundle))


def found(*places, without=""):
    return [os.fsdecode(name) for name in inputs.find_inputs(places, without)["name"].to_pylist()]


def planned(out, *places, **more):
    return make_plan(str(out), settings_of(places, **more), SPACE)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.png", "b/c.JPG", "b/d d.png", "e/f.mp4"]),
        ("/b", ["b/c.JPG", "b/d d.png"]),
        ("/a.png", ["a.png"]),
        ("/*.png", ["a.png"]),
        ("/**/*.png", ["a.png", "b/d d.png"]),
        ("/?/[c-e]*", ["b/c.JPG", "b/d d.png"]),
    ],
)
def test_folders_files_and_globs(root, pattern, names):
    assert found(root + pattern) == [f"{root}/{name}" for name in names]


def test_images_come_before_videos_and_each_once(root):
    assert found(f"{root}/e", f"{root}/a.png", root) == [
        *(f"{root}/{name}" for name in ("a.png", "b/c.JPG", "b/d d.png")), f"{root}/e/f.mp4",
    ]  # fmt: skip


def test_a_folder_that_the_labels_lie_in_is_no_input(root):
    storage.create(f"{root}/out/labels/part.png", picture())
    assert f"{root}/out/labels/part.png" not in found(root, without=f"{root}/out")


def test_a_name_with_signs_of_a_glob_is_a_name(tmp_path):
    (tmp_path / "a[1]*.png").write_bytes(picture())
    (tmp_path / "a1.png").write_bytes(picture())
    assert found(f"{tmp_path}/a[1]*.png") == [f"{tmp_path}/a[1]*.png"]


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_lists_name_files_relative_or_whole_and_missing_ones_keep_their_row(root, kind, tmp_path):
    names = [f"{root}/a.png", "b/c.JPG", "gone.png", f"{root}/a.png"]
    if kind == "txt":
        data = "\r\n".join([*names, ""]).encode()
    elif kind == "jsonl":
        data = "\n".join([json.dumps({"uri": names[0], "x": 1}), *map(json.dumps, names[1:])]).encode()
    else:
        sink = io.BytesIO()
        pq.write_table(pa.table({"number": [1, 2, 3, 4], "path": names}), sink)
        data = sink.getvalue()
    storage.create(f"{root}/list.{kind}", data)
    plan = planned(tmp_path / "out", f"{root}/list.{kind}")
    assert [(row["uri"], row["error_code"]) for row in plan_rows(plan)] == [
        (f"{root}/a.png", None),
        (f"{root}/b/c.JPG", None),
        (f"{root}/gone.png", "input_missing"),
    ]


def test_what_a_list_must_not_name_is_a_row_with_the_reason(tmp_path, predictor):
    names = ["http://169.254.169.254/a.png", "simplecache::file:///etc/passwd", "s3://k:s@b/a.png", "", '"\\ud800.png"']
    (tmp_path / "list.jsonl").write_text("\n".join([*map(json.dumps, names[:3]), "", names[4]]))
    plan = planned(tmp_path / "out", tmp_path / "list.jsonl")
    label_all(plan, predictor)
    summary = parts.finish([plan], {})
    assert (summary["rows"], summary["ok"]) == (4, 0)
    assert parts.verify([plan]) == []
    messages = pq.read_table(tmp_path / "out" / "errors.parquet")["error_message"].to_pylist()
    assert sum("only local paths and s3:// are read" in text for text in messages) == 2


@pytest.mark.parametrize(
    ("line", "text"),
    [("{", "line 2 is not JSON"), ("{}", "line 2 names no file; give it under one of the keys uri, path")],
)
def test_a_list_that_is_none_is_one_line(tmp_path, line, text):
    (tmp_path / "list.jsonl").write_text(f'"a.png"\n{line}\n')
    with pytest.raises(DataError, match=text):
        found(f"{tmp_path}/list.jsonl")


@pytest.mark.parametrize("kind", ["hub", "binary"])
def test_images_inside_parquet_are_rows_of_it(root, kind, tmp_path, predictor):
    cells = [picture(i) for i in range(5)]
    cells[3] = None
    image = cells if kind == "binary" else [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(cells)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": image, "text": list("abcde")}), sink, row_group_size=2)
    storage.create(f"{root}/p/images.parquet", sink.getvalue())
    plan = planned(tmp_path / "out", f"{root}/p", shard_size=3)
    label_all(plan, predictor)
    rows = [row for shard in range(plan.shards) for row in pq.read_table(plan.part_uri(shard)).to_pylist()]
    assert [(row["frame_index"], row["status"]) for row in rows] == list(enumerate(["ok", "ok", "ok", "error", "ok"]))
    assert rows[3]["error_message"] == f"{root}/p/images.parquet, row 3 is empty."
    assert places.read_image(places.image_place(rows[4]))[0, 0].tolist() == [4, 0, 0]
    assert list(inputs.read_images(f"{root}/p/images.parquet", [1, 2, 4])) == [cells[1], cells[2], cells[4]]


def test_a_parquet_without_images_or_torn_is_an_error_row(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"number": [1]}), folder / "numbers.parquet")
    (folder / "torn.parquet").write_bytes(b"PAR1")
    rows = plan_rows(planned(tmp_path / "out", folder))
    assert [row["error_code"] for row in rows] == ["decode_error"] * 2
    assert rows[0]["error"].endswith("numbers.parquet has no column called image, nor one other of encoded images.")


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    """20 frames at uneven times: 10 in the first second, 10 in the following four; a keyframe every 5."""
    path = tmp_path_factory.mktemp("drive") / "drive.mp4"
    write_video(path, pts=[*range(10), *range(10, 50, 4)], g="5", sc_threshold="0")
    return path


@pytest.mark.parametrize(
    ("more", "frames"),
    [
        ({}, list(range(20))),
        ({"every": 6}, [0, 6, 12, 18]),
        ({"fps": 1.0}, [0, 10, 13, 15, 18]),  # at 0, 1, 2.2, 3 and 4.2 s: the first at or after each second
        ({"fps": 1000.0}, list(range(20))),
        ({"limit": 7}, list(range(7))),
    ],
)
def test_frames_of_a_video_by_number_or_by_time(drive, tmp_path, more, frames):
    rows = plan_rows(planned(tmp_path / "out", drive, **more))
    assert [row["frame_index"] for row in rows] == frames
    assert [row["before_pts"] for row in rows] == [None, *(row["pts"] for row in rows[:-1])]


def test_spans_of_a_video_begin_at_keyframes(drive, tmp_path):
    plan = planned(tmp_path / "out", drive, shard_size=4)
    assert [row["frame_index"] for row in plan_rows(plan) if row["shard"] == 1] == [5, 6, 7, 8, 9]
    assert plan.shards == 4


def test_a_video_that_was_cut_before_the_plan_has_its_frames_and_a_row_that_says_so(drive, tmp_path, predictor):
    whole = tmp_path / "whole.mkv"
    write_video(whole, pts=range(0, 60, 2))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    plan = planned(tmp_path / "out", tmp_path / "in")
    label_all(plan, predictor)
    summary = parts.finish([plan], {})
    assert summary["errors"] == {"video_truncated": 1}
    assert 5 < summary["ok"] < 30
    (message,) = pq.read_table(tmp_path / "out" / "errors.parquet")["error_message"].to_pylist()
    assert "s of the 5.9 s that its header states; it was cut." in message
    assert parts.verify([plan]) == []


def test_a_sample_is_a_share_and_the_same_every_time(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(400):
        (folder / f"{i}.png").touch()
    some = [row["uri"] for row in plan_rows(planned(tmp_path / "a", folder, sample=0.25))]
    assert 70 < len(some) < 130
    more = [row["uri"] for row in plan_rows(planned(tmp_path / "b", folder, sample=0.5))]
    assert set(some) < set(more)
    with pytest.raises(DataError, match="Nothing is left of 400 files"):
        planned(tmp_path / "c", folder, sample=1e-9)


def test_shards_grow_with_the_number_of_inputs(tmp_path, monkeypatch):
    monkeypatch.setattr("segray.core.plan.MOST_SHARDS", 2)
    (tmp_path / "in").mkdir()
    for i in range(300):
        (tmp_path / "in" / f"{i}.png").touch()
    assert planned(tmp_path / "out", tmp_path / "in", shard_size=None).shards == 2


def test_new_inputs_are_a_further_plan_and_old_parts_stay(tmp_path, predictor):
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    for name in ("a.png", os.fsdecode(b"\xff.png")):
        (folder / name).write_bytes(picture(1))
    first = planned(out, folder)
    label_all(first, predictor)
    assert parts.finish([first], {})["rows"] == 2
    assert make_plan(out, first.settings, SPACE, [first]) is None  # nothing is new

    (folder / "b.png").write_bytes(picture(2))
    before = storage.read_bytes(first.part_uri(0))
    (tmp_path / "truth").mkdir()  # of the new ones, none needs a mask
    second = make_plan(out, first.settings | {"truth": str(tmp_path / "truth")}, SPACE, [first])
    assert [row["uri"] for row in plan_rows(second)] == [f"{folder}/b.png"]
    assert load_plans(out) == [first, second]
    assert parts.read_summary([first, second]) is None  # _SUCCESS spoke of the first alone
    label_all(second, predictor)
    assert parts.finish([first, second], {})["rows"] == 3
    assert parts.verify(load_plans(out)) == []
    assert storage.read_bytes(first.part_uri(0)) == before


def test_of_two_extensions_that_race_both_find_their_inputs_planned(tmp_path, monkeypatch):
    out, folders = str(tmp_path / "out"), [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
        (folder / "1.png").write_bytes(picture())
    first = planned(out, folders[0])
    write_rows, theirs = planning._write_rows, []

    def meanwhile(*arguments):
        monkeypatch.setattr(planning, "_write_rows", write_rows)
        theirs.append(make_plan(out, settings_of([folders[1]]), SPACE, [first]))
        return write_rows(*arguments)

    monkeypatch.setattr(planning, "_write_rows", meanwhile)
    mine = make_plan(out, settings_of([folders[1], folders[2]]), SPACE, [first])
    assert load_plans(out) == [first, *theirs, mine]
    assert [row["uri"] for row in plan_rows(mine)] == [f"{folders[2]}/1.png"]


def test_failed_inputs_are_tried_again_as_a_further_plan(tmp_path, predictor, drive):
    folder, out = tmp_path / "in", str(tmp_path / "out")
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png", "d.mp4"):
        (folder / name).write_bytes(picture() if name == "a.png" else b"torn")
    first = planned(out, folder)
    label_all(first, predictor)
    assert parts.finish([first], {})["errors"] == {"decode_error": 3}

    (folder / "b.png").write_bytes(picture())
    (folder / "d.mp4").write_bytes(drive.read_bytes())
    failed = parts.failed_rows([first])
    assert {row["uri"].rpartition("/")[2] for row in failed.values()} == {"b.png", "c.png", "d.mp4"}
    second = make_plan(out, first.settings, SPACE, [first], failed)
    label_all(second, predictor)
    summary = parts.finish([first, second], {})
    assert (summary["rows"], summary["ok"], summary["errors"]) == (1 + 1 + 1 + 20, 22, {"decode_error": 1})
    assert pq.read_table(tmp_path / "out" / "errors.parquet")["uri"].to_pylist() == [f"{folder}/c.png"]
    assert parts.verify([first, second]) == []
    ok = [row for row in pq.read_table(tmp_path / "out" / "labels").to_pylist() if row["status"] == "ok"]
    assert len({row["input_id"] for row in ok}) == len(ok) == 22
    assert summary["class_pixels"] == np.sum([row["class_pixels"] for row in ok], axis=0).tolist()

    third = make_plan(out, first.settings, SPACE, [first, second], parts.failed_rows([first, second]))
    label_all(third, predictor)
    assert parts.finish([first, second, third], {})["errors"] == {"decode_error": 1}


def test_what_was_made_with_other_settings_is_refused_by_name(tmp_path):
    (tmp_path / "a.png").write_bytes(picture())
    plan = planned(tmp_path / "out", tmp_path / "a.png", mean=[0.5, 0.5, 0.5])
    with pytest.raises(OutputExists, match=r"\(mean was \[0.5, 0.5, 0.5\], is \[0, 0, 0\]\)\. Give another --out"):
        check_same(plan, {**plan.settings, "mean": [0, 0, 0]})
    with pytest.raises(OutputExists, match="or --extend for further inputs"):
        check_same(plan, {**plan.settings, "inputs": ["elsewhere"]})


def test_runs_of_ids_give_the_mask_back(tmp_path, predictor):
    (tmp_path / "a.png").write_bytes(picture())
    masks = {}
    for kind in ("png", "rle", "none"):
        plan = planned(tmp_path / kind, tmp_path / "a.png", mask_format=kind)
        label_all(plan, predictor)
        parts.finish([plan], {})
        assert parts.verify([plan]) == []
        (row,) = pq.read_table(tmp_path / kind / "labels").to_pylist()
        masks[kind] = places.mask_of(row)
    assert np.array_equal(masks["png"], masks["rle"])
    assert masks["none"] is None


def test_work_ahead_keeps_its_order_and_its_errors():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        assert list(ahead(pool, lambda i: i * i, range(20), 3)) == [i * i for i in range(20)]
        with pytest.raises(ZeroDivisionError):
            list(ahead(pool, lambda i: 1 // i, [1, 0], 1))
