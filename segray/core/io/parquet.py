"""Parquet files that are opened and read; a damaged one is a DataError."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.core.io import storage
from segray.errors import DataError

BUFFER = 1 << 20  # bytes


@contextmanager
def opened(uri: str, ahead: int | None = None, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. DataError for a torn one, even if that shows only while it is read.

    ahead: see storage.open_read().
    """
    try:
        with storage.open_read(uri, ahead) as file:
            yield pq.ParquetFile(file, **options)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise DataError(f"{uri} cannot be read: {reason}. Remove it and run again what wrote it.") from error


def read(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns, or all, of a whole file, and of S3 no more than these columns."""
    with opened(uri, ahead=0, pre_buffer=True) as file:
        return file.read(columns=columns).replace_schema_metadata()


def batches(uri: str, rows: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read columns, or all, in batches of `rows` rows, and no more of the file ahead than a buffer."""
    with opened(uri, buffer_size=BUFFER, pre_buffer=False) as file:
        yield from file.iter_batches(rows, columns=columns)
