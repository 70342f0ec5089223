"""Bytes that memory need not hold: kept in a temporary file, and read again from where they lie."""

from __future__ import annotations

import os
import tempfile
from threading import Lock
from typing import Any

import pyarrow as pa

from segray.core.io.failures import reason
from segray.errors import StorageError

Place = tuple[int, int]  # where bytes begin and end in the file


class Spool:
    """A file of this process's own. It has no name: the system removes it with the process, however that ends."""

    def __init__(self) -> None:
        self._file: Any = tempfile.TemporaryFile(prefix="segray-rows-", buffering=0)  # noqa: SIM115
        self._appending, self.end = Lock(), 0

    def append(self, data: pa.Buffer, what: str) -> Place:
        """Keep bytes. StorageError where the disk is full, which names `what`: the masks of a.parquet."""
        with self._appending:
            begin, self.end = self.end, self.end + data.size
        try:
            view, at = memoryview(data), begin
            while view:  # a disk that is nearly full takes a part, and no error tells
                taken = os.pwrite(self._file.fileno(), view, at)
                view, at = view[taken:], at + taken
        except OSError as error:
            raise StorageError(
                f"{tempfile.gettempdir()} cannot hold {what}: {reason(error)}. Give segray another folder for what it "
                "keeps for a while: TMPDIR=FOLDER."
            ) from error
        return begin, begin + data.size

    def read(self, place: Place) -> pa.Buffer:
        begin, end = place
        return pa.py_buffer(os.pread(self._file.fileno(), end - begin, begin))
