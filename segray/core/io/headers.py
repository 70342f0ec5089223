"""What the headers of encoded frames tell and FFmpeg does not hand on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

IDR, SPS = 5, 7  # types of NAL units, ITU-T H.264, table 7-1
# A picture in MPEG-1 and MPEG-2 begins with its header and has slices (ISO/IEC 13818-2, table 6-1), in MPEG-4 it begins
# with that of its plane (14496-2, table 6-3).
PICTURES = {
    **dict.fromkeys(("mpeg1video", "mpeg2video"), re.compile(b"\0\0\1\0.+?\0\0\1[\1-\xaf]", re.DOTALL)),
    "mpeg4": re.compile(b"\0\0\1\xb6"),
}
# What begins the parameters of a sequence, which some recorders put into packets of their own, and its end.
SETTINGS = {
    **dict.fromkeys(("mpeg1video", "mpeg2video"), re.compile(b"\0\0\1[\xb2\xb3\xb5\xb7\xb8]")),
    "mpeg4": re.compile(b"\0\0\1[\0-\x2f\xb0-\xb5]"),
}
FEW = 256  # bytes of the longest packet of parameters
SHORT = 19  # bytes of the longest packet that FFmpeg takes for no picture of its own
# Profiles whose parameters begin with the format of their chroma (7.3.2.1.1).
WITH_CHROMA = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})


def stands_alone(codec: str, packet: bytes, extradata: bytes) -> bool:
    """Say whether all frames after a keyframe can be decoded from it: for H.264, whether it is an IDR picture."""
    if codec != "h264":
        return True
    if extradata[:1] != b"\1" or len(extradata) < 5:
        return any(found[1][0] & 31 == IDR for found in re.finditer(b"\0\0\1(.)", packet, re.DOTALL))
    at, length = 0, (extradata[4] & 3) + 1
    while at + length < len(packet):
        if packet[at + length] & 31 == IDR:
            return True
        at += length + int.from_bytes(packet[at : at + length], "big")
    return False


def is_hidden(codec: str, packet: Any) -> bool:
    """Say whether a frame is there for others to refer to and is not shown, as VP8's alternate ones (RFC 6386, 9.1).

    No keyframe is hidden, as one of zeros would be.
    """
    return codec == "vp8" and bytes(packet)[0] & 0x11 == 0x01


def lacks_picture(codec: str, packet: Any) -> bool:
    """Say whether a packet of MPEG holds no picture, of which its decoder says nothing: it is damaged.

    Short ones may stand for the picture before them, or hold parameters alone.
    """
    if codec not in PICTURES or packet.size <= SHORT:
        return False
    data = bytes(packet)
    return not PICTURES[codec].search(data) and not (len(data) <= FEW and SETTINGS[codec].match(data))


def may_hold_fields(codec: str, extradata: bytes) -> bool:
    """Say whether two packets of an H.264 stream may be the two fields of a frame, at any place. True where unknown."""
    if codec != "h264":
        return False
    parameters = [unit for unit in _stored_units(extradata) if unit and unit[0] & 31 == SPS]
    return not parameters or any(map(_allows_fields, parameters))


def _stored_units(extradata: bytes) -> Iterator[bytes]:
    """Give the NAL units of an mp4's or mkv's avcC box (ISO/IEC 14496-15, 5.3.3), or of a stream with start codes."""
    if extradata[:1] != b"\1":
        yield from extradata.split(b"\0\0\1")[1:]
    elif len(extradata) > 7:
        at = 6
        for _ in range(extradata[5] & 31):
            end = at + 2 + int.from_bytes(extradata[at : at + 2], "big")
            yield extradata[at + 2 : end]
            at = end


def _allows_fields(unit: bytes) -> bool:
    """Return whether frame_mbs_only_flag is 0 in a set of sequence parameters; True where it cannot be read."""
    bits = _Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))
    try:
        profile = bits.fixed(24) >> 16  # with constraints and level
        bits.number()
        if profile in WITH_CHROMA:
            _skip_chroma(bits)
        bits.number()
        order = bits.number()
        if order == 0:
            bits.number()
        elif order == 1:
            bits.fixed(1)
            bits.number(), bits.number()
            for _ in range(bits.number()):
                bits.number()
        bits.number()
        bits.fixed(1)
        bits.number(), bits.number()  # width and height
        return bits.fixed(1) == 0
    except (ValueError, IndexError):
        return True


def _skip_chroma(bits: _Bits) -> None:
    chroma = bits.number()
    if chroma == 3:
        bits.fixed(1)
    bits.number(), bits.number()
    bits.fixed(1)
    if not bits.fixed(1):
        return
    for one in range(12 if chroma == 3 else 8):  # scaling lists, 7.3.2.1.1.1
        if bits.fixed(1):
            last = following = 8
            for _ in range(16 if one < 6 else 64):
                if following:
                    code = bits.number()
                    following = (last + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
                last = following or last


class _Bits:
    """Bits that are read one after the other; ValueError or IndexError at their end."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._at = 0

    def fixed(self, count: int) -> int:
        self._at += count
        return int(self._bits[self._at - count : self._at], 2)

    def number(self) -> int:
        """Read ue(v), 9.1."""
        zeros = self._bits.index("1", self._at) - self._at
        self._at += zeros
        return self.fixed(zeros + 1) - 1
