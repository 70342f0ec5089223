"""Images in a Parquet file whose rows are one group: each is read once, whoever asks for which of them."""

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segray.core.io import cells, storage
from segray.core.io.cells import read_images
from segray.errors import DataError

SIZE = 20_000


@pytest.fixture
def table(tmp_path):
    """400 images in groups of `rows`, of which each tenth is missing; the bytes that are read are counted."""
    cells._waiting_in.cache_clear()

    def write(rows=400):
        images = [None if i % 10 == 9 else os.urandom(SIZE) for i in range(400)]
        uri = str(tmp_path / f"{rows}.parquet")
        schema = pa.schema([("image", pa.binary())])
        # Pages of some rows each, as files of large images have them.
        with pq.ParquetWriter(uri, schema, compression="none", write_batch_size=8) as file:
            file.write_table(pa.table([pa.array(images, pa.binary())], schema=schema), row_group_size=rows)
        return uri, images, storage.stat(uri).stamp

    return write


@pytest.fixture
def count(monkeypatch):
    """Of each file that is opened, the bytes that were read."""
    counts, open_read = [], storage.open_read

    def opened(uri, ahead=None):
        file, at = open_read(uri), len(counts)
        counts.append(0)
        read = file.read

        class Counted:
            closed = False

            def __getattr__(self, name):
                return getattr(file, name)

            def read(self, *args):
                data = read(*args)
                counts[at] += len(data)
                return data

        return Counted()

    monkeypatch.setattr(cells.storage, "open_read", opened)
    return counts


def test_neighbouring_shards_read_a_row_group_once(table, count):
    uri, images, stamp = table()
    for start in range(0, 400, 50):
        assert list(read_images(uri, range(start, start + 50), stamp)) == images[start : start + 50]
    assert len(count) == 1
    assert sum(count) < 1.1 * Path(uri).stat().st_size


def test_few_rows_are_in_memory_however_long_a_group_is(table):
    uri, images, stamp = table()
    ours = pa.proxy_memory_pool(before := pa.default_memory_pool())
    pa.set_memory_pool(ours)
    try:
        for image, wanted in zip(read_images(uri, range(400), stamp), images, strict=True):
            assert image == wanted
    finally:
        pa.set_memory_pool(before)
    assert ours.max_memory() < 8 * cells.BUFFER


def test_any_rows_in_any_order_of_calls_and_threads_are_right(table):
    uri, images, stamp = table(rows=120)
    draw = random.Random(0)
    asked = [sorted(draw.sample(range(400), draw.randint(1, 60))) for _ in range(60)]
    with ThreadPoolExecutor(8) as pool:
        for rows, found in zip(asked, pool.map(lambda rows: list(read_images(uri, rows, stamp)), asked), strict=True):
            assert found == [images[row] for row in rows]
    assert len(cells._waiting_in(os.getpid())._readers) <= cells.IDLE


def test_a_file_without_a_stamp_or_with_another_one_is_opened_anew(table, count):
    uri, images, stamp = table()
    for seen in (None, None, stamp, "other", stamp):
        assert list(read_images(uri, [0, 1], seen)) == images[:2]
    assert len(count) == 4  # the last goes on with the reader of the third
    assert max(count) < 3 * cells.BUFFER


def test_a_row_that_is_not_there_is_one_line(table):
    uri, _, _ = table()
    with pytest.raises(DataError) as error:
        list(read_images(uri, [400]))
    assert str(error.value) == f"{uri} has no row 400; it has 400, from 0 on."
