"""The labelling protocol without Ray: every planned row once, whatever the inputs are."""

import json

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segray.core import images, metrics, parts, storage
from segray.core.datasets import streets
from segray.core.plan import PlanReader, check_same, load_plan, make_plan, plan_settings
from segray.core.predictor import Predictor
from segray.errors import OutputExists

SPACE = streets.LABEL_SPACE


@pytest.fixture(scope="session")
def town(tmp_path_factory):
    return streets.write(tmp_path_factory.mktemp("parts") / "town", train=0, val=6, size=(48, 64), video_s=1.0)


@pytest.fixture(scope="session")
def predictor(tiny_bundle):
    return Predictor(str(tiny_bundle))


def planned(out, *inputs, truth=None, every=1, shard_size=4):
    settings = plan_settings([str(place) for place in inputs], truth and str(truth), every, shard_size, "model")
    return make_plan(str(out), settings, SPACE)


def labelled(plan, predictor):
    reader = PlanReader(plan.out)
    return [parts.label_shard(plan, reader.shard(k), k, predictor, batch_size=3) for k in range(plan.shards)]


def rows_of(plan):
    return pq.read_table(storage.join(plan.out, "labels")).to_pylist()


@pytest.fixture(params=["local", "s3"])
def out(request, tmp_path):
    return str(tmp_path / "out") if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


def test_every_image_and_frame_has_one_whole_row(town, predictor, out):
    plan = planned(out, town / "val", town / "video.mp4")
    receipts = labelled(plan, predictor)
    assert (plan.rows, plan.shards, sum(receipt.rows for receipt in receipts)) == (16, 5, 16)
    assert parts.done_shards(plan) == set(range(5))
    summary = parts.finish(plan, {"seconds": 1.0})
    assert (summary["rows"], summary["ok"], summary["errors"], summary["scores"]) == (16, 16, {}, None)
    assert sum(summary["class_pixels"]) == 16 * 48 * 64
    assert parts.verify(load_plan(out)) == []


def test_masks_are_palette_pngs_at_source_size_and_counted(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val")
    labelled(plan, predictor)
    for row in rows_of(plan):
        mask = images.decode_mask(row["mask"]["bytes"])
        assert mask.shape == (row["height_px"], row["width_px"]) == (48, 64)
        assert np.bincount(mask.ravel(), minlength=11).tolist() == row["class_pixels"]
        assert 0 < row["confidence_mean"] <= 1
        assert 0 <= row["entropy_mean"] <= 1


def test_scores_are_those_of_all_pixels_together(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val", truth=town / "valannot")
    labelled(plan, predictor)
    rows = rows_of(plan)
    truths = [SPACE.apply(images.decode_mask(storage.read_bytes(row["truth_uri"])), "") for row in rows]
    masks = [images.decode_mask(row["mask"]["bytes"]) for row in rows]
    expected = metrics.confusion_matrix(np.stack(truths), np.stack(masks), 11)
    summary = parts.finish(plan, {})
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
    labelled(plan, predictor)
    rows = rows_of(plan)
    assert [(row["status"], row["error_code"]) for row in rows] == [
        ("ok", None),
        *[("error", "decode_error")] * 3,
        ("error", "input_missing"),
        ("error", "decode_error"),
    ]
    assert rows[1]["error_message"] == f"{frames}/1.jpg is not an image: cannot identify image file."
    assert parts.finish(plan, {})["errors"] == {"decode_error": 4, "input_missing": 1}
    assert parts.verify(plan) == []
    assert pq.read_table(tmp_path / "out" / "errors.parquet").num_rows == 5


def test_an_input_that_changed_since_the_plan_is_not_labelled(town, predictor, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    plan = planned(tmp_path / "out", tmp_path / "a.png")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    labelled(plan, predictor)
    assert rows_of(plan)[0]["error_code"] == "input_changed"


def test_a_truth_that_does_not_fit_is_an_error_and_counts_nowhere(town, predictor, tmp_path):
    (tmp_path / "truth").mkdir()
    for i, frame in enumerate(sorted((town / "val").iterdir())):
        size, value = ((8, 8), 3) if i == 0 else ((64, 48), 40) if i == 1 else ((64, 48), 3)
        Image.new("L", size, value).save(tmp_path / "truth" / f"{frame.stem}.png")
    plan = planned(tmp_path / "out", town / "val", truth=tmp_path / "truth")
    labelled(plan, predictor)
    rows = rows_of(plan)
    assert [row["error_code"] for row in rows] == ["truth_error"] * 2 + [None] * 4
    assert all(row["mask"] for row in rows)
    assert np.sum(parts.finish(plan, {})["confusion"]) == 4 * 48 * 64


def test_labelling_a_shard_twice_changes_nothing(town, predictor, out):
    plan = planned(out, town / "val")
    labelled(plan, predictor)
    before = storage.read_bytes(plan.part_uri(0))
    again = labelled(plan, predictor)
    assert [receipt.created for receipt in again] == [False, False]
    assert storage.read_bytes(plan.part_uri(0)) == before


def test_a_failure_while_a_part_is_built_leaves_nothing(town, predictor, tmp_path, monkeypatch):
    plan = planned(tmp_path, town / "val")
    monkeypatch.setattr(parts.pq, "write_table", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        labelled(plan, predictor)
    assert parts.done_shards(plan) == set()
    assert storage.list_files(storage.join(plan.out, "labels")) == []


def test_the_plan_is_the_same_for_the_same_inputs_and_refuses_others(town, tmp_path):
    plan = planned(tmp_path / "a", town / "val", town / "video.mp4", every=3)
    assert planned(tmp_path / "b", town / "val", town / "video.mp4", every=3).plan_id == plan.plan_id
    frames = [row["frame_index"] for k in range(plan.shards) for row in PlanReader(plan.out).shard(k)]
    assert frames == [None] * 6 + [0, 3, 6, 9]
    with pytest.raises(OutputExists) as error:
        check_same(plan, {**plan.settings, "every": 2, "model_id": "other"})
    assert str(error.value) == (
        f"{tmp_path}/a was made with other settings (every was 3, is 2; model_id was model, is other). "
        "Give another --out, or --overwrite."
    )


def test_verify_finds_each_break_of_the_promise(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val", shard_size=2)
    labelled(plan, predictor)
    assert parts.verify(plan) == ["_SUCCESS is missing: the run is not finished"]
    parts.finish(plan, {})
    names = [tmp_path / "labels" / storage.name_of(plan.part_uri(k)) for k in range(3)]
    whole = [name.read_bytes() for name in names]

    names[0].unlink()
    assert parts.verify(plan) == [f"{names[0].name} is missing"]
    names[0].write_bytes(whole[1])
    assert parts.verify(plan) == [f"{names[0].name} holds 2 rows that are not the plan's 2"]
    names[0].write_bytes(whole[0][:-9])
    assert parts.verify(plan)[0].startswith(f"{names[0].name} cannot be read: ")
    table = pq.read_table(names[2])
    column = table["mask"].to_pylist()
    black = images.encode_mask(np.zeros((48, 64), np.uint8), SPACE.colors)
    changed = table.set_column(
        table.schema.get_field_index("mask"), table.schema.field("mask"), [[{**column[0], "bytes": black}, column[1]]]
    )
    names[0].write_bytes(whole[0])
    pq.write_table(changed, names[2])
    assert len(parts.verify(plan)) == 2  # the row's mask, and the part's totals


def test_duckdb_reads_the_parts_and_the_hub_sees_images(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val")
    labelled(plan, predictor)
    query = f"select count(*), min(octet_length(mask.bytes)), sum(list_sum(class_pixels)) from '{tmp_path}/labels/*.parquet'"
    count, smallest, pixels = duckdb.sql(query).fetchall()[0]
    assert (count, smallest > 50, pixels) == (6, True, 6 * 48 * 64)
    schema = pq.read_schema(tmp_path / "labels" / storage.name_of(plan.part_uri(0)))
    assert json.loads(schema.metadata[b"huggingface"])["info"]["features"]["mask"] == {"_type": "Image"}


def test_overwriting_takes_only_what_labelling_wrote(town, predictor, tmp_path):
    plan = planned(tmp_path, town / "val")
    labelled(plan, predictor)
    (tmp_path / "notes.txt").write_text("mine")
    parts.clear(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
