"""A part is made row group by row group: of 64 rows, in little more memory than it has bytes."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.core.data import streets
from segray.core.io import locators, storage
from segray.core.io.masks import encode_mask
from segray.core.labels import part_file
from segray.core.labels.part_file import PartFile
from segray.core.labels.schema import NOTHING, ROW_SCHEMA, UNSCORED, Labelled
from segray.errors import DataError

SPACE = streets.LABEL_SPACE
NOISE = np.random.default_rng(0)


def labelled(i, mask):
    origin = dict.fromkeys(("video_uri", "frame_index", "pts", "time_s", "truth_uri"))
    origin |= {"input_id": f"{i:016x}", "uri": f"drives/{i}.jpg", "model_id": "model", "plan_id": "plan"}
    return Labelled({**origin, **NOTHING, **UNSCORED, "mask": {"bytes": mask, "path": f"{i:016x}.png"}})


def part_of(rows):
    part = PartFile(SPACE)
    for row in rows:
        part.add(row)
    return part.finish()


def test_a_row_group_has_64_rows():
    data = part_of(labelled(i, b"mask %d" % i) for i in range(150))
    file = pq.ParquetFile(pa.BufferReader(data))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [64, 64, 22]
    assert file.schema_arrow == ROW_SCHEMA
    assert file.read_row_group(1)["mask"][0].as_py() == {"bytes": b"mask 64", "path": f"{64:016x}.png"}


def test_a_part_is_made_in_little_more_memory_than_its_masks_have():
    rows, size = 1000, 20_000
    ours = pa.proxy_memory_pool(before := pa.default_memory_pool())
    pa.set_memory_pool(ours)
    tracemalloc.start()
    try:
        data = part_of(labelled(i, NOISE.bytes(size)) for i in range(rows))
        python_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)
    assert len(data) > rows * size
    assert python_bytes + ours.max_memory() < 1.3 * rows * size


def test_a_mask_for_which_a_part_has_no_room_is_an_error_row(monkeypatch):
    monkeypatch.setattr(part_file, "MOST_BYTES", 100)
    part = PartFile(SPACE)
    for i, size in enumerate((60, 50, 40, 200)):
        part.add(labelled(i, bytes(size)))
    assert (part.totals.rows, part.totals.errors) == (4, {"part_full": 2})
    rows = pq.read_table(pa.BufferReader(part.finish())).to_pylist()
    assert [len(row["mask"]["bytes"]) if row["mask"] else row["error_code"] for row in rows] == [
        60, "part_full", 40, "part_full",
    ]  # fmt: skip
    assert rows[1]["error_message"] == (
        "drives/1.jpg: the masks before it fill its part; --retry-errors labels it in another, and a lower "
        "label.shard_size avoids that."
    )


def masks_of(count):
    return [NOISE.integers(0, 3, (40, 50), np.uint8) for _ in range(count)]


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_a_mask_is_read_with_its_row_group_alone(kind, tmp_path, request, monkeypatch):
    uri = str(tmp_path / "part.parquet") if kind == "local" else f"{request.getfixturevalue('s3')}/one.parquet"
    masks = masks_of(200)
    storage.create(uri, part_of(labelled(i, encode_mask(mask, SPACE.colors)) for i, mask in enumerate(masks)))
    groups, iter_batches = [], pq.ParquetFile.iter_batches

    def watched(self, *args, row_groups, **more):
        groups.extend(row_groups)
        return iter_batches(self, *args, row_groups=row_groups, **more)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    for i in (70, 199, 100, 0, 198):
        np.testing.assert_array_equal(locators.read_mask(f"{uri}#row={i}"), masks[i])
    assert groups == [1, 3, 0]
    with pytest.raises(DataError) as error:
        locators.read_mask(f"{uri}#row=200")
    assert str(error.value) == f"{uri} has no row 200; it has 200, from 0 on."
