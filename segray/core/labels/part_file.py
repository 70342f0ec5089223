"""Label rows, one after the other → the bytes of their part, in row groups that are read alone."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq

from segray.core.labels.schema import NOTHING, ROW_SCHEMA, Labelled, LabelRow, failed
from segray.core.labels.totals import Totals
from segray.core.samples import LabelSpace

GROUP_ROWS = 64  # rows of a row group: who wants one mask reads those of so many frames
MOST_BYTES = 2**31 - 2**24  # of masks and maps: readers join a column to an array of 2 GiB, and one PUT takes 5 GB
FULL = (
    "the masks before it fill its part; --retry-errors labels it in another, and a lower label.shard_size avoids that."
)
# Columns with few distinct values; a dictionary of masks would be a copy of them.
REPEATED = ["uri", "video_uri", "status", "error_code", "error_message", "model_id", "plan_id"]
PAGE_VALUES = 8  # values after which a page may end: a page of masks has about a megabyte
HUGGINGFACE = {"info": {"features": {name: {"_type": "Image"} for name in ("mask", "confidence")}}}  # for the Hub


class PartFile:
    """A part in the making. Nothing has its name before it is whole: a writer that failed would leave a short file.

    Beside the bytes that are written, memory holds GROUP_ROWS rows. totals: of the rows so far.
    """

    def __init__(self, space: LabelSpace) -> None:
        self.totals = Totals.empty(space.num_classes)
        self._space, self._bytes = space, 0
        self._waiting: list[LabelRow] = []
        self._sink = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._sink,
            ROW_SCHEMA.with_metadata({"huggingface": json.dumps(HUGGINGFACE)}),
            compression="zstd",
            use_dictionary=REPEATED,
            write_batch_size=PAGE_VALUES,
        )

    def add(self, labelled: Labelled) -> None:
        """Add a row; one whose mask has no room becomes an error, which `--retry-errors` plans for another part."""
        if self._bytes + _size(labelled.row) > MOST_BYTES:
            labelled = Labelled({**labelled.row, **NOTHING, **failed("part_full", f"{labelled.row['uri']}: {FULL}")})
        self._bytes += _size(labelled.row)
        self.totals.count(labelled)
        self._waiting.append(labelled.row)
        if len(self._waiting) == GROUP_ROWS:
            self._write()

    def finish(self) -> bytes:
        """Write what waits, and the totals; return the whole file."""
        if self._waiting:
            self._write()
        about = {"totals": self.totals.to_dict(), "label_space": self._space.to_dict()}
        self._writer.add_key_value_metadata({"segray": json.dumps(about)})
        self._writer.close()
        return self._sink.getvalue()  # the buffer itself, which is not copied

    def _write(self) -> None:
        group = pa.Table.from_pylist(self._waiting, ROW_SCHEMA)
        self._waiting.clear()
        self._writer.write_table(group, row_group_size=GROUP_ROWS)


def _size(row: LabelRow) -> int:
    pictures = sum(len(picture["bytes"]) for picture in (row["mask"], row["confidence"]) if picture is not None)
    return pictures + (5 * len(row["mask_rle"]["values"]) if row["mask_rle"] is not None else 0)
