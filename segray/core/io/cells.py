"""Encoded images in the rows of a Parquet file, read in order and few at a time, however long its row groups are.

A row group has no index: what is before a row is read too. So a reader that has given some rows waits for who wants the
next ones of the same file, as neighbouring shards do, and goes on from there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.core.io import inputs, storage
from segray.errors import DataError

ROWS, BUFFER = 16, 1 << 20  # rows in memory, and bytes that are read from the file at a time
IDLE = 8  # readers that wait in a process: it labels about as many shards at once


def read_images(uri: str, rows: Sequence[int], stamp: str | None = None) -> Iterator[bytes | None]:
    """Read the encoded images in these rows of a Parquet file; rows must be in order. None for an empty cell.

    stamp: the file's, which the caller has checked; without one, no reader of an earlier call goes on. Raises DataError
    for rows that the file does not have, and what pyarrow raises for a damaged file.
    """
    waiting = _waiting_in(os.getpid())
    reader = (waiting.take(uri, stamp, rows[0]) if stamp else None) or _Reader(uri)
    whole = False
    try:
        for row in rows:
            image = reader.cell(row)
            whole = row == rows[-1]  # before the last one is given: who has it may not ask again
            yield image
    finally:
        if stamp and whole and rows[-1] < reader.last:
            waiting.put(uri, stamp, reader)
        else:
            reader.close()


class _Reader:
    """An open file, from whose row groups batches of ROWS rows are read."""

    def __init__(self, uri: str) -> None:
        self._uri, self._opened = uri, storage.open_read(uri)
        # Else all of a column in a row group is read at once.
        self._file = pq.ParquetFile(self._opened, buffer_size=BUFFER, pre_buffer=False)
        self._column = inputs.image_column(self._file.schema_arrow)
        groups = (self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups))
        self._firsts = np.cumsum([0, *groups])  # first row of each row group, and the end of the last
        self._group, self.first = -1, 0  # first: of the rows in self._cells
        self._cells = pa.array([], pa.binary())
        self._batches: Iterator[pa.RecordBatch] = iter(())

    def goes_on_to(self, row: int) -> bool:
        """Say whether a row is ahead in the row group that is being read."""
        return self._group == self._group_of(row) and self.first <= row

    @property
    def last(self) -> int:
        return int(self._firsts[-1]) - 1

    def cell(self, row: int) -> bytes | None:
        if row > self.last:
            raise DataError(f"{self._uri} has no row {row}; it has {self._firsts[-1]}, from 0 on.")
        if not self.goes_on_to(row):
            self._group = self._group_of(row)
            self.first, self._cells = int(self._firsts[self._group]), self._cells[:0]
            self._batches = self._file.iter_batches(ROWS, row_groups=[self._group], columns=[self._column])
        while row >= self.first + len(self._cells):
            self.first += len(self._cells)
            batch = next(self._batches, None)
            if batch is None:
                raise DataError(f"{self._uri} has fewer rows than it says.")
            self._cells = batch.column(0)
        cell = self._cells[row - self.first].as_py()
        image: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
        return image

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._firsts, row, "right")) - 1

    def close(self) -> None:
        self._opened.close()


class _Waiting:
    """Readers that wait for the next rows, of which each is used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._readers: list[tuple[str, str, _Reader]] = []  # the longest waiting first

    def take(self, uri: str, stamp: str, row: int) -> _Reader | None:
        """Take the reader of the file that is the nearest before a row, in the same row group; None where none is."""
        with self._lock:
            before = [one for one in self._readers if one[:2] == (uri, stamp) and one[2].goes_on_to(row)]
            if not before:
                return None
            nearest = max(before, key=lambda one: one[2].first)
            self._readers.remove(nearest)
            return nearest[2]

    def put(self, uri: str, stamp: str, reader: _Reader) -> None:
        with self._lock:
            self._readers.append((uri, stamp, reader))
            left = self._readers.pop(0)[2] if len(self._readers) > IDLE else None
        if left:
            left.close()


@lru_cache(maxsize=1)
def _waiting_in(process: int) -> _Waiting:
    """Return this process's readers: a forked process would move the file of the one that it comes from."""
    return _Waiting()
