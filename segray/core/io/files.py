"""The files of a listing, in order of kind and name, however many they are: sorted in pieces, which are merged.

They lie compressed in a temporary file; memory holds PIECE of them at most, and where batches of CHUNK begin and end.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from segray.core.io.spool import Place, Spool

IMAGE, TABLE, VIDEO = KINDS = 0, 1, 2  # the order in which files are labelled
FILES = pa.schema(
    [
        ("kind", pa.int8()),
        ("name", pa.binary()),  # as the file system has it: a name on a disk need not be UTF-8
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("error_code", pa.string()),
        ("error", pa.string()),
    ]
)
CHUNK = 10_000  # rows of a batch
PIECE = 50 * CHUNK  # rows that are sorted in memory
PACKED = pa.ipc.IpcWriteOptions(compression="zstd")


class Found(NamedTuple):
    """A row of FILES. error: why it cannot be labelled, where that is known already."""

    kind: int
    name: bytes
    size: int
    stamp: str
    error_code: str | None = None
    error: str | None = None


class _Run:
    """Batches in order, of names that rise from each to the next."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.last = b""


class _Kind:
    """The files of one kind: runs, and those that continue none and are still to be sorted."""

    def __init__(self) -> None:
        self.runs: list[_Run] = []
        self.loose: list[pa.RecordBatch] = []
        self.count = self.waiting = 0


class Files:
    """Rows of FILES, to be given by batches in order. settle() must be called once after the last add()."""

    def __init__(self) -> None:
        self._spool = Spool()
        self._kinds = {kind: _Kind() for kind in KINDS}

    def __len__(self) -> int:
        return sum(kind.count for kind in self._kinds.values())

    def count(self, kind: int) -> int:
        return self._kinds[kind].count

    def add(self, found: Iterable[Found]) -> None:
        """Add some files, in any order; what is listed in order needs not be sorted."""
        found = list(found)
        for kind in {one.kind for one in found}:
            rows = [one for one in found if one.kind == kind]
            names = [one.name for one in rows]
            columns = zip(zip(*rows, strict=True), FILES, strict=True)
            batch = pa.record_batch([pa.array(values, field.type) for values, field in columns], FILES)
            mine = self._kinds[kind]
            if not mine.runs:
                mine.runs.append(_Run())
            mine.count += len(batch)
            if names[0] > mine.runs[-1].last and all(map(operator.lt, names, names[1:])):
                self._append(mine.runs[-1], batch)
                continue
            mine.loose.append(batch)
            mine.waiting += len(batch)
            if mine.waiting >= PIECE:
                self._sort(mine)

    def settle(self) -> int:
        """Bring all into order, and return how many were named more than once, of which one is kept."""
        before = len(self)
        for kind in self._kinds.values():
            self._sort(kind)
            if len(kind.runs) > 1:
                runs, kind.runs, kind.count = kind.runs, [_Run()], 0
                for batch in self._merged(runs):
                    self._append(kind.runs[0], batch)
                    kind.count += len(batch)
        return before - len(self)

    def batches(self, kind: int) -> Iterator[pa.RecordBatch]:
        """Give the files of a kind in order of name."""
        for run in self._kinds[kind].runs:
            yield from map(self._read, run.places)

    def __iter__(self) -> Iterator[Found]:
        for batch in chain.from_iterable(map(self.batches, KINDS)):
            yield from map(Found._make, zip(*(column.to_pylist() for column in batch.columns), strict=True))

    def mark(self) -> int:
        """Return what keep() takes for the files that are added from now on."""
        for kind in self._kinds.values():
            self._sort(kind)
        return self._spool.end

    def keep(self, kept: Callable[[pa.RecordBatch], pa.Array | None], since: int = 0) -> int:
        """Leave out those files that kept() says False of, and return how many; None stands for True of all.

        since: a mark(), to look at those alone that were added after it.
        """
        before = len(self)
        for kind in self._kinds.values():
            self._sort(kind)
            for run in kind.runs:
                places, run.places = run.places, []
                for place in places:
                    batch = None if place[0] < since else self._read(place)
                    mask = None if batch is None else kept(batch)
                    if batch is None or mask is None:
                        run.places.append(place)
                        continue
                    left = batch.filter(mask)
                    kind.count += len(left) - len(batch)
                    if len(left):
                        self._append(run, left)
        return before - len(self)

    def _append(self, run: _Run, batch: pa.RecordBatch) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, FILES, options=PACKED) as writer:
            writer.write_batch(batch)
        run.places.append(self._spool.append(sink.getvalue(), "the list of inputs"))
        run.last = batch["name"][-1].as_py()

    def _read(self, place: Place) -> pa.RecordBatch:
        with pa.ipc.open_stream(self._spool.read(place)) as reader:
            return reader.read_next_batch()

    def _sort(self, kind: _Kind) -> None:
        """Make a run of what waits."""
        if not kind.loose:
            return
        table = pa.Table.from_batches(kind.loose, FILES).sort_by("name").combine_chunks()
        kind.loose, kind.waiting = [], 0
        kind.runs.append(_Run())
        for batch in table.to_batches(CHUNK):
            self._append(kind.runs[-1], batch)

    def _merged(self, runs: list[_Run]) -> Iterator[pa.RecordBatch]:
        """Merge runs, and leave out a name that was there before."""
        heads = [_Head(map(self._read, run.places)) for run in runs if run.places]
        last = None
        while heads:
            end = min(head.last for head in heads)
            table = pa.concat_tables([head.take(end) for head in heads]).sort_by("name").combine_chunks()
            names = table["name"]
            is_new = pa.concat_arrays([pa.array([names[0].as_py() != last]), *_differ(names)])
            last = names[-1].as_py()
            yield from table.filter(is_new).combine_chunks().to_batches(CHUNK)
            heads = [head for head in heads if len(head.rows)]


def _differ(names: pa.ChunkedArray) -> list[pa.Array]:
    chunks: list[pa.Array] = pc.not_equal(names.slice(1), names.slice(0, len(names) - 1)).chunks
    return chunks


class _Head:
    """The next rows of a run."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._next()

    def _next(self) -> None:
        batch = next(self._batches, None)
        self.rows = FILES.empty_table() if batch is None else pa.Table.from_batches([batch])
        self.last: bytes = self.rows["name"][-1].as_py() if len(self.rows) else b""

    def take(self, end: bytes) -> pa.Table:
        """Take the rows up to a name."""
        count = len(self.rows) if self.last <= end else pc.sum(pc.less_equal(self.rows["name"], end)).as_py() or 0
        taken, self.rows = self.rows.slice(0, count), self.rows.slice(count)
        if not len(self.rows):
            self._next()
        return taken
