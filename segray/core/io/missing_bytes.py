"""A video file → the bytes that it lacks at its end, by what its container says of itself.

Whoever copies or records a file may stop before its end, and FFmpeg reads what is there without a word.
"""

from __future__ import annotations

import math
import os
import re
import struct
from typing import Any

from segray.core.io import storage
from segray.core.io.hollow import BY_TABLE

HEAD = 1 << 16  # bytes that contain a header with the length
PACKS = 1 << 18  # bytes that contain some packs of a program stream; one of .vob has 2,048

ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")  # File Properties (ASF specification, 3.2)
BROADCAST = 1  # its flag: the length was not known when the header was written
NEVER_SO_LONG = 0x7FFFFFFF  # length written by AVI writers that cannot seek back


def missing_bytes(uri: str, format_name: str, stream: Any, last: int | None) -> int:
    """Return how many bytes the file is too short; 0 where it is whole or unknown.

    stream: must be fully read. last: where its last packet begins, if that is known.
    """
    with storage.open_read(uri) as file:
        size: int = file.seek(0, os.SEEK_END)
        if format_name in BY_TABLE:
            return max(0, max((entry.pos + entry.size for entry in stream.index_entries), default=0) - size)
        file.seek(0)
        head = file.read(HEAD)
        match format_name:
            case "matroska,webm":
                end = _segment_end(head)
            case "avi":
                end = _riff_end(file)
            case "asf":
                end = _asf_size(head)
            case "flv":
                end = _flv_size(head)
            case "mpegts":
                end = _ts_end(file, head, size)
            case "mpeg":
                end = _pack_end(file, size)
            case "mxf":
                end = max(_footer(head), _klv_end(file, last) if last is not None else 0)
            case _:
                end = 0
    return max(0, end - size)


def _segment_end(head: bytes) -> int:
    """Find the end of Matroska's segment, the one element after the EBML header, which holds all others."""
    at, size = _ebml_size(head, 4)
    if size is None or head[at + size : at + size + 4] != b"\x18\x53\x80\x67":
        return 0
    at, size = _ebml_size(head, at + size + 4)
    return 0 if size is None else at + size


def _ebml_size(head: bytes, at: int) -> tuple[int, int | None]:
    """Return where the size that begins at `at` ends, and the size; None: not known (RFC 8794, 4 and 6.2)."""
    length = 9 - head[at].bit_length()
    unknown = (1 << 7 * length) - 1
    size = int.from_bytes(head[at : at + length], "big") & unknown
    return at + length, None if size == unknown else size


def _riff_end(file: Any) -> int:
    """Find the end of an AVI: it has one RIFF per gigabyte or so, one after the other."""
    at = end = 0
    while file.seek(at) == at and (chunk := file.read(8))[:4] == b"RIFF" and len(chunk) == 8:
        size = int.from_bytes(chunk[4:], "little")
        if size >= NEVER_SO_LONG:
            return 0
        end = at + 8 + size
        at = end + size % 2
    return end


def _asf_size(head: bytes) -> int:
    at = head.find(ASF_FILE)
    if at < 0 or len(head) < at + 92 or struct.unpack_from("<I", head, at + 88)[0] & BROADCAST:
        return 0
    return int(struct.unpack_from("<Q", head, at + 40)[0])


def _flv_size(head: bytes) -> int:
    """Read the size from a number in FLV's onMetaData."""
    at = head.find(b"\0\x08filesize\0")
    if at < 0 or len(head) < at + 19:
        return 0
    size = struct.unpack_from(">d", head, at + 11)[0]
    return int(size) if math.isfinite(size) else 0


def _ts_end(file: Any, head: bytes, size: int) -> int:
    """Find the end of a transport stream: of its last packet that has begun; other bytes at the end are no packet."""
    packet = _ts_packet(head)
    begun = size - size % packet
    file.seek(begun + packet % 188)  # m2ts has 4 bytes of time before a packet
    return begun + packet if file.read(1) == b"G" else 0


def _ts_packet(head: bytes) -> int:
    """Return the packet size in bytes; each begins with 0x47, in m2ts after 4 bytes of time; 1 where none is seen."""
    if head[0:1] == head[188:189] == b"G":
        return 188
    return 192 if head[4:5] == head[196:197] == b"G" else 1


def _pack_end(file: Any, size: int) -> int:
    """Find the end of a program stream's last packet: each states its length (ISO/IEC 13818-1, 2.5.3)."""
    file.seek(max(0, size - PACKS))
    tail = file.read(PACKS)
    for pack in re.finditer(b"\0\0\1\xba", tail):
        at = pack.start()
        while tail.startswith(b"\0\0\1", at) and tail[at + 3 : at + 4] > b"\xb9":
            at += _pack_length(tail[at : at + 14])
        if at >= len(tail):
            return size - len(tail) + at
    return 0


def _pack_length(begin: bytes) -> int:
    """Return the length in bytes of the pack header or packet that begins so; of a header that is cut, its shortest."""
    if begin[3] != 0xBA:
        return 6 + int.from_bytes(begin[4:6], "big")
    if begin[4:5] < b"\x40":  # MPEG-1
        return 12
    return 14 + (begin[13] & 7 if len(begin) > 13 else 0)


def _klv_end(file: Any, at: int) -> int:
    """Find the end of an MXF element: a key of 16 bytes, its length, its value (SMPTE 336)."""
    file.seek(at + 16)
    length: bytes = file.read(9)
    if not length:
        return at + 17
    if length[0] < 0x80:
        return at + 17 + length[0]
    count = length[0] & 0x7F
    return at + 17 + count + int.from_bytes(length[1 : 1 + count], "big")


def _footer(head: bytes) -> int:
    """Return where an MXF file has the first byte of its footer, behind all frames; 0: it states none (SMPTE 377)."""
    at = head.find(b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02\x01\x01\x02")  # the header's partition pack
    if at < 0 or len(head) < at + 57:
        return 0
    pack = at + 17 + (head[at + 16] & 0x7F if head[at + 16] >= 0x80 else 0)
    footer = int(struct.unpack_from(">Q", head, pack + 24)[0])
    return footer + 1 if footer else 0
