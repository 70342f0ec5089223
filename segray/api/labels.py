"""A folder of labels → its rows as tables, its masks, and its frames."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray.api.results import Place, Result, in_unit_range
from segray.core.formatting import counted
from segray.core.io import locators
from segray.core.labels.folder import LabelFolder, mask_place
from segray.core.labels.schema import ROW_SCHEMA
from segray.errors import DataError, in_a_line

log = logging.getLogger("segray")

MASKS = ("mask", "mask_rle", "confidence")  # columns that are large
EMPTY = pa.table({"part": pa.array([], pa.dictionary(pa.int32(), pa.string())), "row": pa.array([], pa.int64())})
COLUMNS = tuple(name for name in ROW_SCHEMA.names if name not in MASKS)


def open_labels(place: Place) -> Labels:
    """Open what `segray label` wrote, local or in a bucket, also while its run is unfinished.

    Where parts are not there yet, or are gone, a warning says so. Raises DataError where there are no labels.

    >>> labels = segray.open_labels("labels/street")
    >>> len(labels), labels.names[:2]
    (4, ('sky', 'building'))
    """
    folder = LabelFolder.open(os.fspath(place))
    if left := folder.unfinished:
        log.warning(f"{os.fspath(place)} is not finished: {left}")
    return Labels(folder)


class Labels:
    """The rows of a folder of labels that count: one a frame, in the order of the plan; of a repeated row the last.

    names: the classes, in the order of their indices in a mask. unfinished: what is left to do, or None.
    """

    def __init__(self, folder: LabelFolder) -> None:
        self._folder = folder
        self.names = folder.space.names
        self.unfinished = folder.unfinished

    def __len__(self) -> int:
        return sum(map(len, self._folder.tables([])))

    def to_arrow(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """Read rows as an Arrow table: all columns of the schema but the masks, or those that are named.

        where: an expression over columns, as pyarrow.compute.field("entropy_mean") > 0.5.

        >>> labels.to_arrow(["uri", "entropy_mean"]).column_names
        ['uri', 'entropy_mean']
        """
        if isinstance(columns, str):
            raise DataError(f"columns is {columns!r}; give a list, as [{columns!r}].")
        wanted = list(COLUMNS if columns is None else dict.fromkeys(columns))
        tables = [table.select(wanted) for table in self._tables(wanted, where)]
        return pa.concat_tables([pa.schema([ROW_SCHEMA.field(name) for name in wanted]).empty_table(), *tables])

    def to_pandas(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> Any:
        """Read rows as to_arrow() does, as a data frame; this needs pandas."""
        return self.to_arrow(columns, where).to_pandas()

    def mask(self, i: int) -> np.ndarray:
        """Read the class of each pixel of row i, uint8 [H, W]. Raises DataError for a row without a mask."""
        places = self._places
        return locators.read_mask(mask_place(places.slice(range(len(places))[i], 1).to_pylist()[0]))

    def frames(self, where: pc.Expression | None = None) -> Iterator[Result]:
        """Give the labelled frames as results, which read their images when these are asked for.

        Rows without a mask, such as errors, are left out. A damaged mask is a DataError, and so is an image that has
        changed since then.

        >>> [result.mask.shape for result in labels.frames()]
        [(96, 128), (96, 128), (96, 128), (96, 128)]
        """
        if self._folder.plans[0].settings["mask_format"] == "none":
            return
        stamps = self._folder.stamps()
        for table in self._tables(COLUMNS, where):
            for row in table.to_pylist():
                place = mask_place(row)
                del row["part"], row["row"]
                if row["height_px"] is None:
                    continue
                yield Result(
                    locators.read_mask(place),
                    self._folder.space,
                    partial(locators.read_image, locators.image_place(row), stamp=stamps.get(row["input_id"])),
                    in_unit_range(locators.read_confidence(place)),
                    locators.image_place(row),
                    row["time_s"],
                    row,
                )

    def _tables(self, columns: Sequence[str], where: pc.Expression | None) -> Iterator[pa.Table]:
        """Give the rows by part, with the columns that the expression may name."""
        if unknown := [name for name in columns if name not in ROW_SCHEMA.names]:
            raise DataError(f"Labels have no column {unknown[0]}; they have {', '.join(ROW_SCHEMA.names)}.")
        if where is not None and not isinstance(where, pc.Expression):
            raise DataError(f"where is {where!r}; give an expression, as pyarrow.compute.field('entropy_mean') > 0.5.")
        read = columns if where is None else list(dict.fromkeys([*columns, *COLUMNS]))
        for table in self._folder.tables(read):
            try:
                yield table if where is None else table.filter(where)
            except pa.ArrowException as error:
                raise DataError(
                    f"where is {where}; the labels cannot be filtered by it: {in_a_line(error)}."
                ) from error

    @cached_property
    def _places(self) -> pa.Table:
        names = (
            table.set_column(0, "part", table["part"].dictionary_encode()) for table in self._folder.tables([])
        )  # a name a part, and not a row
        return pa.concat_tables([EMPTY, *names])

    def __repr__(self) -> str:
        return f"<Labels {self._folder.place}: {counted(self._folder.planned, 'row')}, {len(self.names)} classes>"
