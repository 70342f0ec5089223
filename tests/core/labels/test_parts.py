"""The labelling protocol without Ray: every planned row once, whatever the inputs are."""

import json
import math
import os
import re

import datasets
import duckdb
import numpy as np
import pandas
import polars
import pyarrow.parquet as pq
import pytest
import torch
from labelled import label_all, label_shard, plan_rows, settings_of
from PIL import Image
from torch.nn import functional

from segray.core import metrics
from segray.core.data import streets
from segray.core.infer.predictor import Predictor
from segray.core.io import storage
from segray.core.io.locators import mask_of
from segray.core.io.masks import decode_mask, encode_mask
from segray.core.labels import parts, planning, quality
from segray.core.labels.folder import LabelFolder
from segray.core.labels.plan import PlanReader, check_same, load_plans
from segray.core.labels.planning import make_plan
from segray.core.transforms import fit, normalize, to_float
from segray.errors import DataError, ModelError, OutputExists

SPACE = streets.LABEL_SPACE


@pytest.fixture(scope="session")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("parts") / "town", train=0, val=6, size=(48, 64), video_s=1.0)


@pytest.fixture(scope="session")
def predictor(tiny_bundle):
    return Predictor(str(tiny_bundle))


@pytest.fixture(autouse=True)
def short_spans(monkeypatch):
    """A video of one keyframe is cut at the shard size all the same."""
    monkeypatch.setattr(planning, "LONGEST", 1)


def planned(out, *inputs, **more):
    return make_plan(str(out), settings_of(inputs, **more), SPACE)


def rows_of(plan):
    return pq.read_table(storage.join(plan.out, "labels")).to_pylist()


def part(plan, shard):
    return pq.read_table(storage.open_read(plan.part_uri(shard)))


@pytest.fixture(params=["local", "s3"])
def out(request, tmp_path):
    return str(tmp_path / "out") if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_every_image_and_frame_has_one_whole_row(town, predictor, out):
    plan = planned(out, town / "val", town / "video.mp4")
    receipts = label_all(plan, predictor)
    assert (plan.rows, plan.shards, sum(receipt.rows for receipt in receipts)) == (16, 4, 16)
    assert not LabelFolder([plan]).missing().any()
    planned_ids = [row["input_id"] for row in plan_rows(plan)]
    written = [row for k in range(plan.shards) for row in part(plan, k).to_pylist()]
    assert [row["input_id"] for row in written] == planned_ids
    assert len(set(planned_ids)) == 16
    assert [row["frame_index"] for row in written] == [None] * 6 + list(range(10))
    assert [row["time_s"] for row in written[6:]] == pytest.approx([i / 10 for i in range(10)])
    summary = parts.finish([plan], {"seconds": 1.0})
    assert (summary["rows"], summary["ok"], summary["errors"], summary["scores"]) == (16, 16, {}, None)
    assert sum(summary["class_pixels"]) == 16 * 48 * 64
    assert parts.verify(load_plans(out)) == []


def test_masks_are_palette_pngs_at_source_size_and_counted(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val")
    label_all(plan, predictor)
    for row in rows_of(plan):
        mask = decode_mask(row["mask"]["bytes"])
        assert mask.shape == (row["height_px"], row["width_px"]) == (48, 64)
        assert np.bincount(mask.ravel(), minlength=11).tolist() == row["class_pixels"]
        assert 0 < row["confidence_mean"] <= 1
        assert 0 <= row["entropy_mean"] <= 1


def test_scores_are_those_of_all_pixels_together(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val", truth=town / "valannot")
    label_all(plan, predictor)
    rows = rows_of(plan)
    truths = [SPACE.apply(decode_mask(storage.read_bytes(row["truth_uri"])), "") for row in rows]
    masks = [decode_mask(row["mask"]["bytes"]) for row in rows]
    expected = metrics.confusion_matrix(np.stack(truths), np.stack(masks), 11)
    summary = parts.finish([plan], {})
    assert summary["confusion"] == expected.tolist()
    assert summary["scores"] == metrics.scores(expected).to_dict()


def test_a_bad_input_is_a_row_and_its_neighbours_are_fine(town, predictor, tmp_path):
    frames = tmp_path / "in"
    frames.mkdir()
    good = sorted((town / "val").iterdir())
    for i, data in enumerate((good[0].read_bytes(), b"", b"text", good[1].read_bytes()[:900], good[2].read_bytes())):
        (frames / f"{i}.jpg").write_bytes(data)
    (frames / "clip.mp4").write_bytes(b"no video")
    plan = planned(tmp_path / "out", frames)
    (frames / "4.jpg").unlink()
    label_all(plan, predictor)
    rows = rows_of(plan)
    assert [(row["status"], row["error_code"]) for row in rows] == [
        ("ok", None),
        *[("error", "decode_error")] * 3,
        ("error", "input_missing"),
        ("error", "decode_error"),
    ]
    assert rows[1]["error_message"] == f"{frames}/1.jpg is not an image: cannot identify image file."
    assert parts.finish([plan], {})["errors"] == {"decode_error": 4, "input_missing": 1}
    assert parts.verify([plan]) == []
    assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 5


def test_an_image_with_a_damaged_exif_block_is_labelled_with_a_note(town, predictor, tmp_path):
    frames = tmp_path / "in"
    frames.mkdir()
    picture = Image.open(next(iter(sorted((town / "val").iterdir()))))
    picture.save(frames / "a.png")
    picture.save(frames / "b.png", exif=b"Exif\0\0garbage, and more of it")
    plan = planned(tmp_path / "out", frames)
    label_all(plan, predictor)
    whole, damaged = rows_of(plan)
    assert (whole["status"], whole["error_code"]) == ("ok", None)
    assert (damaged["status"], damaged["error_code"], damaged["error_message"]) == (
        "ok",
        "exif_damaged",
        f"{frames}/b.png has a damaged EXIF block, which may say that it is rotated; its pixels are taken as stored.",
    )
    assert damaged["class_pixels"] == whole["class_pixels"]
    summary = parts.finish([plan], {})
    assert (summary["ok"], summary["errors"], summary["notes"]) == (2, {}, {"exif_damaged": 1})
    assert parts.verify([plan]) == []
    assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 0


NAMES = [b"new\nline.png", "🚗.png".encode(), b"=cmd.png", b"<script>.png", b"a::b.png", b"\xff\xfe.png", b"\xff.mp4"]


def test_any_name_on_a_disk_is_labelled_or_an_error_row(town, predictor, tmp_path):
    frames = tmp_path / "in"
    frames.mkdir()
    for name in NAMES:
        (frames / os.fsdecode(name)).write_bytes(next((town / "val").iterdir()).read_bytes())
    plan = planned(tmp_path / "out", frames)
    label_all(plan, predictor)
    rows = {storage.name_of(row["uri"]): row for row in rows_of(plan)}
    assert {name: row["error_message"] for name, row in rows.items()} == {
        "new\nline.png": None,
        "🚗.png": None,
        "=cmd.png": None,
        "<script>.png": None,
        "a::b.png": None,
        "\\xff\\xfe.png": None,
        "\\xff.mp4": f"{frames}/\\xff.mp4 is a JPEG picture and no video; give it a picture's suffix.",
    }
    parts.finish([plan], {})
    assert parts.verify([plan]) == []


def test_frames_before_the_damage_of_a_video_are_labelled(town, predictor, tmp_path):
    """The video is cut after the plan was made, with its time stamp kept: the plan knows of 10 frames."""
    video = tmp_path / "a.mkv"
    remux(town / "video.mp4", video)
    plan = planned(tmp_path / "out", video)
    before = video.stat()
    video.write_bytes(video.read_bytes()[: before.st_size * 6 // 10])
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    label_all(plan, predictor)
    rows = rows_of(plan)
    assert [row["frame_index"] for row in rows] == list(range(10))
    assert (rows[0]["status"], rows[9]["status"]) == ("ok", "error")
    assert {row["error_message"] for row in rows if row["status"] == "error"} == {
        f"{video}: this frame cannot be decoded; it is damaged, or refers to a frame that is."
    }


def remux(source, target):
    import av

    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.size:
                packet.stream = stream
                write.mux(packet)


@pytest.mark.parametrize(("change", "code"), [("touch", "input_changed"), ("unlink", "input_missing")])
def test_a_video_that_changed_or_went_since_the_plan_is_error_rows(town, predictor, tmp_path, change, code):
    video = tmp_path / "a.mp4"
    video.write_bytes((town / "video.mp4").read_bytes())
    plan = planned(tmp_path / "out", video)
    os.utime(video, ns=(0, 0)) if change == "touch" else video.unlink()
    label_all(plan, predictor)
    assert [row["error_code"] for row in rows_of(plan)] == [code] * 10


def test_an_input_that_changed_since_the_plan_is_not_labelled(town, predictor, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    plan = planned(tmp_path / "out", tmp_path / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    label_all(plan, predictor)
    (row,) = rows_of(plan)
    assert (row["status"], row["error_code"], row["mask"]) == ("error", "input_changed", None)
    assert row["error_message"] == (
        f"{tmp_path}/a.png has changed since the plan was made; label it anew with another --out."
    )


def test_a_truth_that_does_not_fit_is_an_error_and_counts_nowhere(town, predictor, tmp_path):
    (tmp_path / "truth").mkdir()
    for i, frame in enumerate(sorted((town / "val").iterdir())):
        size, value = ((8, 8), 3) if i == 0 else ((64, 48), 40) if i == 1 else ((64, 48), 3)
        Image.new("L", size, value).save(tmp_path / "truth" / f"{frame.stem}.png")
    plan = planned(tmp_path / "out", town / "val", truth=tmp_path / "truth")
    label_all(plan, predictor)
    rows = rows_of(plan)
    assert [row["error_code"] for row in rows] == ["truth_error"] * 2 + [None] * 4
    assert all(row["mask"] for row in rows)
    assert rows[0]["error_message"] == f"{rows[0]['truth_uri']} is (8, 8), its image (48, 64) (height, width)."
    assert rows[1]["error_message"] == (
        f"{rows[1]['truth_uri']} has class id 40; the label space knows 0–11. "
        "Map it in data.id_map, to a class or to 255 for void."
    )
    assert rows[0]["miou"] is None
    assert np.sum(parts.finish([plan], {})["confusion"]) == 4 * 48 * 64


def test_labelling_a_shard_twice_changes_nothing(town, predictor, out):
    plan = planned(out, town / "val")
    label_all(plan, predictor)
    before = storage.read_bytes(plan.part_uri(0))
    again = label_all(plan, predictor)
    assert [receipt.created for receipt in again] == [False, False]
    assert storage.read_bytes(plan.part_uri(0)) == before


def test_a_resumed_run_writes_what_an_uninterrupted_one_does(town, predictor, tmp_path):
    whole = planned(tmp_path / "whole", town / "val", town / "video.mp4")
    label_all(whole, predictor)
    stopped = planned(tmp_path / "stopped", town / "val", town / "video.mp4")
    for k in (3, 0):
        label_shard(stopped, k, predictor)
    assert LabelFolder([stopped]).missing().tolist() == [False, True, True, False]
    for k in (1, 2):
        label_shard(stopped, k, predictor)
    for k in range(4):
        assert storage.read_bytes(stopped.part_uri(k)) == storage.read_bytes(whole.part_uri(k))
    assert parts.finish([stopped], {}) == parts.finish([whole], {})


def test_what_killed_writers_left_goes_when_a_run_is_finished(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val")
    label_all(plan, predictor)
    old, young = (tmp_path / "labels" / f".part-00000.parquet.{name}.tmp" for name in ("old", "young"))
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    parts.finish([plan], {})
    assert (old.exists(), young.exists()) == (False, True)


def test_a_part_of_another_plan_is_not_done(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val")
    storage.create(plan.part_uri(0).replace(plan.plan_id[:8], "01234567"), b"another's")
    storage.create(f"{plan.part_uri(0)}.tmp", b"half")
    for name in ("part-0", "part-²", "part-00099", "sub/part-00000", ""):  # no names of ours
        storage.create(plan.part_uri(0).replace("part-00000", name), b"another's")
    assert LabelFolder([plan]).missing().all()


def test_a_failure_while_a_part_is_built_leaves_nothing(town, predictor, tmp_path, monkeypatch):
    plan = planned(tmp_path, town / "val")
    monkeypatch.setattr(pq.ParquetWriter, "write_table", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        label_all(plan, predictor)
    assert LabelFolder([plan]).missing().all()
    assert storage.list_files(storage.join(plan.out, "labels")) == []


def test_the_plan_is_the_same_for_the_same_inputs_and_refuses_others(town, tmp_path):
    plan = planned(tmp_path / "a", town / "val", town / "video.mp4", every=3)
    assert planned(tmp_path / "b", town / "val", town / "video.mp4", every=3).plan_id == plan.plan_id
    frames = [row["frame_index"] for row in plan_rows(plan)]
    assert frames == [None] * 6 + [0, 3, 6, 9]
    with pytest.raises(OutputExists) as error:
        check_same(plan, {**plan.settings, "every": 2, "model_id": "other"})
    assert str(error.value) == (
        f"{tmp_path}/a was made with other settings (every was 3, is 2; model_id was model, is other). "
        "Give another --out, or --overwrite."
    )


def test_of_two_plans_that_race_the_first_one_stays_whole(town, tmp_path, monkeypatch):
    """The second lists one frame more, and is frozen between the listing and the writing of the first."""
    frames = tmp_path / "in"
    frames.mkdir()
    names = sorted((town / "val").iterdir())
    (frames / "0.jpg").write_bytes(names[0].read_bytes())
    write_rows, others = planning._write_rows, []

    def meanwhile(*arguments):
        monkeypatch.setattr(planning, "_write_rows", write_rows)
        (frames / "1.jpg").write_bytes(names[1].read_bytes())
        others.append(planned(tmp_path / "out", frames))
        return write_rows(*arguments)

    monkeypatch.setattr(planning, "_write_rows", meanwhile)
    plan = planned(tmp_path / "out", frames)
    assert plan == others[0] == load_plans(str(tmp_path / "out"))[0]
    assert len(PlanReader(plan).shard(0)) == plan.rows == 2


def test_a_plan_needs_something_to_label(town, tmp_path):
    (tmp_path / "empty").mkdir()
    for inputs, truth, text in (
        (
            tmp_path / "none",
            None,
            f"{tmp_path}/none does not exist; give an image, a video, a folder or glob of them, or a list.",
        ),
        (tmp_path / "empty", None, f"No image, video or Parquet file of images found in {tmp_path}/empty."),
        (
            town / "val",
            town / "videoannot",
            f"No mask in {town}/videoannot has the file name of an image; masks pair by path or by file name.",
        ),
    ):
        with pytest.raises(DataError) as error:
            planned(tmp_path / "out", inputs, truth=truth)
        assert str(error.value) == text
    assert load_plans(str(tmp_path / "out")) == []


def test_an_input_given_twice_is_planned_once(town, tmp_path):
    assert planned(tmp_path, town / "val", town / "val", sorted((town / "val").iterdir())[0]).rows == 6


def test_verify_finds_each_break_of_the_promise(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val", shard_size=2)
    label_all(plan, predictor)
    assert parts.verify([plan]) == ["_SUCCESS is missing: the run is not finished, and the same command resumes"]
    parts.finish([plan], {})
    names = [tmp_path / "labels" / storage.name_of(plan.part_uri(k)) for k in range(3)]
    whole = [name.read_bytes() for name in names]

    names[0].unlink()
    assert parts.verify([plan]) == [f"{names[0].name} is missing"]
    names[0].write_bytes(whole[1])
    assert parts.verify([plan]) == [f"{names[0].name} holds 2 rows that are not the plan's 2"]
    names[0].write_bytes(whole[0][:-9])
    assert parts.verify([plan])[0].startswith(f"{names[0].name} cannot be read: ")
    table = pq.read_table(names[2]).replace_schema_metadata(pq.read_metadata(names[2]).metadata)
    column = table["mask"].to_pylist()
    black = encode_mask(np.zeros((48, 64), np.uint8), SPACE.colors)
    changed = table.set_column(
        table.schema.get_field_index("mask"), table.schema.field("mask"), [[{**column[0], "bytes": black}, column[1]]]
    )
    names[0].write_bytes(whole[0])
    pq.write_table(changed, names[2])
    row = rows_of(plan)[4]
    assert parts.verify([plan]) == [f"{names[2].name}: the mask of {row['input_id']} is not what its row says"]

    broken = [[{**column[0], "bytes": b"no PNG"}, column[1]]]
    pq.write_table(table.set_column(table.schema.get_field_index("mask"), table.schema.field("mask"), broken), names[2])
    assert parts.verify([plan]) == [
        f"{names[2].name}: the mask of {row['input_id']} cannot be read: it is not an image: cannot identify image file.",
        f"{names[2].name}: its totals are not those of its rows",
    ]
    pandas.read_parquet(names[2]).to_parquet(names[2])
    assert parts.verify([plan]) == [f"{names[2].name} has other columns than a part"]

    names[2].write_bytes(whole[2])
    said = json.loads((tmp_path / "_SUCCESS").read_text())
    (tmp_path / "_SUCCESS").write_text(json.dumps({**said, "ok": 5}))
    assert parts.verify([plan]) == ["_SUCCESS says ok 5, the parts 6"]


def test_a_sample_of_the_parts_is_always_the_same_and_what_is_missing_is_found_all_the_same(
    town, predictor, tmp_path, monkeypatch
):
    plan = planned(tmp_path, town / "val", shard_size=1)
    label_all(plan, predictor)
    parts.finish([plan], {})
    read, seen, verify_part = [], [], parts._verify_part
    monkeypatch.setattr(parts, "_verify_part", lambda *given: read.append(given[2]) or verify_part(*given))
    for _ in range(2):
        assert parts.verify([plan], lambda *progress: seen.append(progress), sample=0.4) == []
    assert read[:3] == read[3:] == sorted(set(read))
    assert seen == [(3, 3)] * 2  # 0.4 of 6 parts are 3
    storage.remove(plan.part_uri(min(set(range(6)) - set(read))))
    assert parts.verify([plan], sample=0.01) == [
        f"{storage.name_of(plan.part_uri(min(set(range(6)) - set(read))))} is missing"
    ]


def test_verify_names_a_damaged_or_missing_file_of_a_plan_and_reads_the_parts_of_the_others(
    town, predictor, tmp_path, monkeypatch
):
    monkeypatch.setattr(planning, "FILE_ROWS", 2)
    plan = planned(tmp_path, town / "val", shard_size=1)
    label_all(plan, predictor)
    parts.finish([plan], {})
    first, _, last = [tmp_path / "_segray" / file.name for file in plan.files]
    whole, read, verify_part = first.read_bytes(), [], parts._verify_part
    monkeypatch.setattr(parts, "_verify_part", lambda *given: read.append(given[2]) or verify_part(*given))
    damaged = f"{first.name} is damaged: its hash is not the one in plan-00000.json"
    for at in (9, len(whole) // 2, len(whole) - 9):
        first.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert parts.verify([plan]) == [damaged]
    first.write_bytes(b"")
    last.unlink()
    read.clear()
    (tmp_path / "labels" / storage.name_of(plan.part_uri(2))).unlink()
    assert parts.verify([plan]) == [
        f"{storage.name_of(plan.part_uri(2))} is missing",
        damaged,
        f"{last} cannot be read: No such file or directory",
    ]
    assert read == [3]


def test_a_plan_that_is_no_json_is_one_line(town, tmp_path):
    plan = planned(tmp_path, town / "val")
    place = tmp_path / "_segray" / "plan-00000.json"
    place.write_bytes(place.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"^{re.escape(plan.json_uri)} is not JSON: .*Restore it"):
        load_plans(plan.out)


def test_verify_survives_any_flipped_byte(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val", shard_size=2)
    label_all(plan, predictor)
    parts.finish([plan], {})
    name = tmp_path / "labels" / storage.name_of(plan.part_uri(0))
    whole, found = name.read_bytes(), 0
    places = np.random.default_rng(0).integers([0] * 40 + [len(whole) - 4000] * 40, len(whole))  # many in the footer
    for at in places:
        flipped = bytearray(whole)
        flipped[at] ^= 0xFF
        name.write_bytes(flipped)
        found += bool(parts.verify([plan]))
    assert found > 20  # a figure that differs, or a byte that nobody reads, is not noticed


def test_duckdb_reads_the_parts_and_the_hub_sees_images(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val")
    label_all(plan, predictor)
    query = f"select count(*), min(octet_length(mask.bytes)), sum(list_sum(class_pixels)) from '{tmp_path}/labels/*.parquet'"
    count, smallest, pixels = duckdb.sql(query).fetchall()[0]
    assert (count, smallest > 50, pixels) == (6, True, 6 * 48 * 64)
    schema = pq.read_schema(tmp_path / "labels" / storage.name_of(plan.part_uri(0)))
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["mask"] == {"_type": "Image"}
    frame = pandas.read_parquet(tmp_path / "labels")
    assert frame["status"].tolist() == ["ok"] * 6
    assert decode_mask(frame["mask"][0]["bytes"]).shape == (48, 64)


@pytest.mark.parametrize("mask_format", ["png", "rle"])
def test_polars_pandas_and_datasets_read_the_parts(town, predictor, tmp_path, mask_format):
    """With errors among the rows, whose columns are null; `datasets` shows masks as images."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "torn.jpg").write_bytes(b"")
    plan = planned(tmp_path / "out", town / "val", tmp_path / "in", mask_format=mask_format)
    label_all(plan, predictor)
    places = f"{tmp_path}/out/labels/*.parquet"
    frame = polars.read_parquet(places)
    assert frame["class_pixels"].list.sum().drop_nulls().to_list() == [48 * 64] * 6
    assert frame.filter(polars.col("status") == "error")["error_code"].to_list() == ["decode_error"]
    assert pandas.read_parquet(tmp_path / "out" / "labels")["status"].value_counts()["ok"] == 6
    rows = datasets.load_dataset("parquet", data_files=places, cache_dir=str(tmp_path / "cache"))["train"]
    masks = [np.asarray(row["mask"]) if mask_format == "png" else mask_of(row) for row in rows if row["status"] == "ok"]
    for mask, row in zip(masks, [row for row in rows if row["status"] == "ok"], strict=True):
        assert np.bincount(mask.ravel(), minlength=11).tolist() == row["class_pixels"]
    assert [row["mask"] for row in rows if row["status"] == "error"] == [None]


def test_overwriting_takes_only_what_labelling_wrote(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val")
    label_all(plan, predictor)
    (tmp_path / "notes.txt").write_text("mine")
    parts.clear(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_flicker_is_the_share_of_pixels_that_differ_from_the_frame_before(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "video.mp4")
    label_all(plan, predictor)
    rows = rows_of(plan)
    masks = [decode_mask(row["mask"]["bytes"]) for row in rows]
    for i, row in enumerate(rows):
        expected = None if i == 0 else float((masks[i] != masks[i - 1]).mean())  # also where a shard begins
        assert row["flicker_share"] == expected


def test_a_frame_that_no_gpu_holds_is_a_row_and_its_batch_is_fine(town, tiny_bundle, tmp_path, monkeypatch):
    predictor = Predictor(str(tiny_bundle))
    plan = planned(tmp_path, town / "val", shard_size=6)
    see, marked = predictor._see, []

    def full(jobs):
        marked.extend(job.seen_hwc for job in jobs[:1] if not marked)
        if any(job.seen_hwc is marked[0] for job in jobs):
            raise torch.OutOfMemoryError
        return see(jobs)

    monkeypatch.setattr(predictor, "_see", full)
    label_all(plan, predictor)
    rows = rows_of(plan)
    assert [row["error_code"] for row in rows] == ["out_of_memory", *[None] * 5]
    assert "does not fit into the memory of cpu with a single frame of 32×48" in rows[0]["error_message"]


def test_a_frame_of_which_a_model_makes_no_numbers_is_a_row_and_its_batch_is_fine(
    town, tiny_bundle, tmp_path, monkeypatch
):
    """As in fp16, whose largest number is 65504. All its pixels would be of class 0."""
    predictor = Predictor(str(tiny_bundle))
    plan = planned(tmp_path, town / "val", shard_size=6)
    forward, marked = predictor._forward, []

    def overflowing(batch):
        marked.extend(frame.clone() for frame in batch[:1] if not marked)
        logits = forward(batch)
        for frame, one in zip(batch, logits, strict=True):
            if torch.equal(frame, marked[0]):
                one[3, 0, 0] = torch.inf
        return logits

    monkeypatch.setattr(predictor, "_forward", overflowing)
    label_all(plan, predictor)
    rows = rows_of(plan)
    assert [row["error_code"] for row in rows] == ["model_error", *[None] * 5]
    assert (
        rows[0]["error_message"] == "unet over resnet18 gives logits that are no numbers, in fp32. Check its weights."
    )
    predictor.dtype = torch.float16
    with pytest.raises(ModelError, match=r"no numbers, in fp16\. Larger numbers have room in fp32: --set infer\.prec"):
        predictor._numbers([math.nan, 0.0, 0.0])


def test_figures_of_masks_small_enough_to_check_by_eye():
    mask = np.array([[0, 0, 1], [0, 0, 1]], np.uint8)
    assert quality.boundary_share(mask) == pytest.approx(2 / 6)  # the two zeros beside the ones
    assert quality.boundary_share(np.zeros((1, 1), np.uint8)) == 0
    assert quality.flicker_share(mask, np.zeros_like(mask)) == pytest.approx(2 / 6)


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (32, 48), (200, 20)])
def test_a_mask_is_the_highest_logit_at_source_size(predictor, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    (prediction,) = predictor.predict([predictor.prepare(image)], [size])
    assert prediction.mask_hw.shape == size
    assert prediction.mask_hw.dtype == np.uint8
    seen = normalize(to_float(torch.from_numpy(np.stack([fit(image, (32, 48))]))))
    with torch.inference_mode():
        padded = predictor.model(functional.pad(seen, (0, 16)))[..., :48]
    logits = functional.interpolate(padded, size, mode="bilinear", align_corners=False)[0].numpy()
    assert (prediction.mask_hw != logits.argmax(0)).mean() < 0.001


def test_figures_of_confidence_are_those_of_the_softmax():
    from segray.core.infer.logit_maps import metrics_of

    logits = torch.tensor([[[[0.0, 9.0]], [[0.0, -9.0]]]])  # one pixel torn between two classes, and one that is sure
    confidence, entropy, low = metrics_of(logits)[0].tolist()
    assert (confidence, entropy, low) == (pytest.approx(0.75, abs=1e-4), pytest.approx(0.5, abs=1e-4), 0.5)


def test_scores_add_up_over_shards_as_over_pixels(town, predictor, tmp_path):
    """The same frames in shards of 1 and of 6: parts differ, totals do not."""
    summaries = []
    for size in (1, 6):
        plan = planned(tmp_path / str(size), town / "val", truth=town / "valannot", shard_size=size)
        label_all(plan, predictor)
        summaries.append(parts.finish([plan], {}))
    for key in ("rows", "ok", "errors", "class_pixels", "confusion", "scores", "baseline_miou"):
        assert summaries[0][key] == summaries[1][key]
