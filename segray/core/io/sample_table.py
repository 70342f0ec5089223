"""An mp4 or mov → how many packets it states, before memory is taken for them.

A track or fragment of packets of one size states their number alone, for each of which FFmpeg takes some 150 bytes,
however short the file is: ISO/IEC 14496-12, 8.7.3 and 8.8.8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

# Boxes in which FFmpeg looks for others, and how deep.
INSIDE = frozenset(b"moov trak mdia minf stbl dinf edts udta tref wave mvex moof traf".split())
DEPTH = 10
COUNTS = {b"stsz": 8, b"trun": 4}  # where a box states how many packets there are
MOST_BOXES = 10_000_000  # as fragments of one frame have in ten hours
NEVER_SO_MANY = 1 << 64


def stated_packets(file: Any, size: int) -> int:
    """Return the packets of all tracks together, 0 for files of other kinds. NEVER_SO_MANY where it cannot be told."""
    return sum(_packets(file, 0, size, iter(range(MOST_BOXES)), DEPTH))


def _packets(file: Any, at: int, end: int, left: Iterator[int], deeper: int) -> Iterator[int]:
    while at + 8 <= end:
        kind, body, after = _box(file, at, end)
        if after < body:
            return
        if next(left, None) is None or kind == b"cmov":  # a compressed header may hold anything
            yield NEVER_SO_MANY
            return
        if kind in COUNTS:
            file.seek(body + COUNTS[kind])
            yield int.from_bytes(file.read(4), "big")
        elif kind in INSIDE and deeper:
            yield from _packets(file, body, after, left, deeper - 1)
        at = after


def _box(file: Any, at: int, end: int) -> tuple[bytes, int, int]:
    """Return a box's kind, and where its content begins and ends."""
    file.seek(at)
    head = file.read(16).ljust(16, b"\0")
    length, kind = struct.unpack(">I4s", head[:8])
    if length == 1:
        return kind, at + 16, min(at + int.from_bytes(head[8:], "big"), end)
    return kind, at + 8, end if length == 0 else min(at + length, end)
