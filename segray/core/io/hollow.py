"""A video file without what its packets hold: enough to list them, where a table tells all of them beforehand.

An mp4 states in its moov box where each packet lies, when it is shown, and whether it is a keyframe. FFmpeg gives
packets of these codecs the same stamps whatever is in them, but reads them all. Here it reads zeros, which cost neither
disk nor network.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from contextlib import suppress
from typing import Any

BY_TABLE = frozenset({"mov,mp4,m4a,3gp,3g2,mj2"})
# Of which FFmpeg's parser only looks for keyframes. Of VP9 and AV1 it may also divide packets.
WHOLE = frozenset({"h264", "hevc", "mpeg4", "mjpeg", "prores"})


class Hollow:
    """A file to be read by FFmpeg, of which some spans are zeros from the call of hollow_out() on."""

    def __init__(self) -> None:
        self._file: Any = None
        self._at = 0
        self._begins: list[int] = []
        self._ends: list[int] = []

    def of(self, file: Any) -> Hollow:
        """Take the file that is to be read."""
        self._file = file
        with suppress(AttributeError):
            self.name = file.name  # by which FFmpeg guesses the format of a file that does not tell
        return self

    def hollow_out(self, container: Any, stream: Any) -> None:
        """Read no packet any more, if the container tells where all of them lie, and all lie within the file."""
        if container.format.name not in BY_TABLE or stream.codec_context.name not in WHOLE or not stream.duration:
            return
        entries = (entry for one in container.streams for entry in one.index_entries)
        spans = sorted((entry.pos, entry.pos + entry.size) for entry in entries)
        if not spans or spans[0][0] < 0 or max(end for _, end in spans) > self._file.seek(0, os.SEEK_END):
            return
        begins, ends = [spans[0][0]], [spans[0][1]]
        for begin, end in spans[1:]:
            if begin > ends[-1]:
                begins.append(begin)
                ends.append(end)
            ends[-1] = max(ends[-1], end)
        self._begins, self._ends = begins, ends

    def read(self, size: int = -1) -> bytes:
        span = bisect_right(self._begins, self._at) - 1
        if span >= 0 and self._at < self._ends[span]:
            data = bytes(min(size, self._ends[span] - self._at))
        else:
            if span + 1 < len(self._begins):
                size = min(size, self._begins[span + 1] - self._at)
            self._file.seek(self._at)
            data = self._file.read(size)
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = self._at + offset if whence == os.SEEK_CUR else self._file.seek(offset, whence)
        return self._at

    def tell(self) -> int:
        return self._at
