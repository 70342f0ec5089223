"""A file read by ranges, each a round trip: few bytes after a seek, and more the longer reading goes on."""

from __future__ import annotations

import io
import os
from typing import Any

LEAST, MOST = 64 << 10, 8 << 20  # bytes that are asked for at once


class ReadAhead(io.RawIOBase):
    """Read another raw file in pieces that grow to a quarter of what was read since the last seek.

    So a header or a frame costs little, a whole file few requests, and what nobody wanted is a fifth at most. A seek
    forward by less than a piece is none, as from one packet of a video past those of its sound.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._at = self._run = 0
        self._data, self._begin = b"", 0  # the last piece, and where it begins

    @property
    def failed(self) -> Any:
        return self._raw.failed

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = self._raw.seek(self._at + offset) if whence == os.SEEK_CUR else self._raw.seek(offset, whence)
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = self._begin + len(self._data)
        if not self._begin <= self._at < end:
            piece = max(LEAST, min(MOST, self._run // 4))
            if not 0 <= self._at - end < piece:
                piece, self._run = LEAST, 0
            self._raw.seek(self._at)
            self._data, self._begin = self._raw.read(max(piece, len(buffer))), self._at
            self._run += len(self._data)
        start = self._at - self._begin
        data = memoryview(self._data)[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def readall(self) -> bytes:
        self._raw.seek(self._at)
        data: bytes = self._raw.read()
        self._at += len(data)
        return data
