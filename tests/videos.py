"""Videos as cameras, recorders and old programs write them: each a few kilobytes, made when a test asks for it."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from segray.core.io.decoding import metadata_options

HEIGHT, WIDTH = 48, 64
TICKS = 90_000  # a second of MPEG's clock

B_FRAMES = {"bf": "3", "preset": "medium", "x264-params": "b-adapt=0:b-pyramid=normal:mbtree=0"}
OPEN_GROUPS = {"bf": "3", "x264-params": "open-gop=1:keyint=8:bframes=3:b-adapt=0"}
INTRA_REFRESH = {"x264-params": "intra-refresh=1:keyint=8:bframes=0", "height": 240, "width": 320}
HEVC = {"codec": "libx265", "bf": "3", "x265-params": "log-level=none"}
VP9 = {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"}
UNEVEN = [0, 1, 2, 5, 6, 11, *range(12, 36)]


def has(codec: str) -> bool:
    """Whether this PyAV can write it."""
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A texture that moves to the right and grows brighter: no two of 100 are alike."""
    texture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8) // 4
    return np.roll(texture, 2 * number, axis=1) + np.uint8(number * 7 % 180)


@contextmanager
def usual_priority() -> Iterator[None]:
    """Undo what libsvtav1 does where root runs it: its thread and all that it starts go before every other process."""
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


@usual_priority()
def write(
    path: Path | str,
    codec: str = "libx264",
    pts: Iterable[int] = range(30),
    *,
    pix_fmt: str = "yuv420p",
    fps: int = 0,
    height: int = HEIGHT,
    width: int = WIDTH,
    tags: dict[str, str] | None = None,
    sound_s: float = 0,
    container_options: dict[str, str] | None = None,
    **options: str,
) -> str:
    """Frames at these times, a keyframe every 8, at 10 ticks a second (25 for MPEG-2, which has no 10)."""
    fps = fps or (25 if codec == "mpeg2video" else 10)
    with av.open(str(path), "w", options=container_options or {}) as container:
        container.metadata.update(tags or {})
        stream = container.add_stream(codec, rate=fps, options={"g": "8", **options})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, fps)
        sound = container.add_stream("libopus", rate=48000) if sound_s else None
        for number, time in enumerate(pts):
            frame = _frame(picture(number, height, width), pix_fmt)
            frame.pts, frame.time_base = time, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            for start in range(0, round(sound_s * 48000), 960):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="stereo")
                samples.sample_rate, samples.pts, samples.time_base = 48000, start, Fraction(1, 48000)
                container.mux(sound.encode(samples))
            container.mux(sound.encode())
    return str(path)


def copy(source: str, target: str) -> None:
    """Put the packets of a video into another container, as `ffmpeg -c copy` does."""
    with av.open(source) as given, av.open(target, "w") as taken:
        stream = taken.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                packet.stream = stream
                taken.mux(packet)


def _frame(image_hwc: np.ndarray, pix_fmt: str) -> av.VideoFrame:
    if pix_fmt != "pal8":
        return av.VideoFrame.from_ndarray(image_hwc, format="rgb24")
    ramp = np.arange(256, dtype=np.uint8)
    palette = np.stack([np.full_like(ramp, 255), ramp, 255 - ramp, ramp // 2], axis=1)
    return av.VideoFrame.from_ndarray((image_hwc[..., 0], palette), format="pal8")


def straight(uri: str) -> list[np.ndarray]:
    """What one decoder in one thread gives from the first frame to the last, with no seek: the right answer."""
    with av.open(uri, **metadata_options(av.__version__)) as container:
        video = container.streams.best("video")
        video.thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video)]


class Unit(NamedTuple):
    """An encoded frame or field in Annex B; stamps in TICKS."""

    data: bytes
    pts: int | None
    dts: int | None


def h264_units(count: int = 30, fps: int = 25, **options: str) -> list[Unit]:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, fps), Fraction(fps)
    encoder.options = {"g": "8", **B_FRAMES, **options}
    packets = []
    for number in range(count):
        frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24").reformat(format="yuv420p")
        frame.pts, frame.time_base = number, Fraction(1, fps)
        packets += encoder.encode(frame)
    packets += encoder.encode()
    tick = TICKS // fps
    return [Unit(bytes(p), TICKS + tick * (p.pts or 0), TICKS + tick * (p.dts or 0)) for p in packets]


# MPEG transport stream, ISO/IEC 13818-1: packets of 188 bytes, in which PES packets lie.


def transport_stream(pes: Sequence[Unit]) -> bytes:
    """One H.264 stream, a PES packet each; pts and dts None leave the stamps out."""
    counter = 0
    out = [_ts_packet(0, 0, _section(_PAT), start=True), _ts_packet(0x1000, 0, _section(_PMT), start=True)]
    for unit in pes:
        data = _pes_header(unit.pts, unit.dts) + unit.data
        for at in range(0, len(data), 184 - 8):
            pcr = unit.dts if at == 0 else None
            out.append(_ts_packet(0x100, counter, data[at : at + 184 - 8], start=at == 0, pcr=pcr))
            counter += 1
    return b"".join(out)


_PAT = bytes([0x00, 0xB0, 13, 0, 1, 0xC1, 0, 0, 0, 1, 0xF0, 0x00])  # program 1 has its map in pid 0x1000
_PMT = bytes([0x02, 0xB0, 18, 0, 1, 0xC1, 0, 0, 0xE1, 0x00, 0xF0, 0, 0x1B, 0xE1, 0x00, 0xF0, 0])  # H.264 in 0x100


def _section(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 0x80000000 else 0)) & 0xFFFFFFFF
    whole = b"\0" + data + crc.to_bytes(4, "big")
    return whole + b"\xff" * (176 - len(whole))


def _ts_packet(pid: int, counter: int, data: bytes, *, start: bool, pcr: int | None = None) -> bytes:
    """Each with an adaptation field of 8 bytes or more, which takes the clock and the stuffing."""
    clock = b"\x10" + struct.pack(">Q", pcr << 15 | 0x7E00)[2:] if pcr is not None else b"\x00"
    field = clock + b"\xff" * (183 - len(data) - len(clock))
    return bytes([0x47, start << 6 | pid >> 8, pid & 0xFF, 0x30 | counter % 16, len(field)]) + field + data


def _pes_header(pts: int | None, dts: int | None) -> bytes:
    stamps = b""
    if pts is not None:
        stamps = _stamp(pts, 3) + _stamp(dts, 1) if dts is not None and dts != pts else _stamp(pts, 2)
    flags = {0: 0x00, 5: 0x80, 10: 0xC0}[len(stamps)]
    return b"\0\0\1\xe0\0\0\x80" + bytes([flags, len(stamps)]) + stamps


def _stamp(ticks: int, mark: int) -> bytes:
    first, middle, last = ticks >> 30, ticks >> 15 & 0x7FFF, ticks & 0x7FFF
    return bytes([mark << 4 | first << 1 | 1]) + struct.pack(">HH", middle << 1 | 1, last << 1 | 1)


# H.264 by hand, ITU-T H.264 (7.3): pictures of I_PCM macroblocks, some as frames and some as two fields each,
# which libx264 cannot write and camcorders do (PAFF).


class _Bits:
    def __init__(self) -> None:
        self.bits = ""

    def u(self, count: int, value: int) -> _Bits:
        self.bits += f"{value:0{count}b}" if count else ""
        return self

    def ue(self, *values: int) -> _Bits:
        for value in values:
            code = f"{value + 1:b}"
            self.bits += "0" * (len(code) - 1) + code
        return self

    def align(self, bit: str = "0") -> _Bits:
        self.bits += bit * (-len(self.bits) % 8)
        return self

    def raw(self, data: bytes) -> _Bits:
        self.bits += "".join(f"{byte:08b}" for byte in data)
        return self

    def nal(self, header: int) -> bytes:
        """With its stop bit, and a 3 after each two zeros that a start code could be taken for."""
        self.bits += "1"
        self.align()
        data = int(self.bits, 2).to_bytes(len(self.bits) // 8, "big")
        out, zeros = bytearray(), 0
        for byte in data:
            if zeros == 2 and byte <= 3:
                out.append(3)
                zeros = 0
            out.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([header]) + bytes(out)


def paff_units(
    count: int = 24, fps: int = 25, keyint: int = 8, of_fields: Callable[[int], bool] = lambda number: number % 3 < 2
) -> list[Unit]:
    """Some pictures are two fields, which have a time stamp each, the others one frame; no reordering.

    Every `keyint`-th begins with an IDR field or frame; all others are of P slices whose macroblocks are I_PCM too.
    """
    wide, high = 2, 2  # macroblocks
    sps = _Bits().u(8, 77).u(8, 0).u(8, 30).ue(0, 0, 0, 4, 1).u(1, 0).ue(wide - 1, high // 2 - 1)
    sps.u(1, 0).u(1, 0).u(1, 1).u(1, 0).u(1, 1)  # fields allowed, no MBAFF, direct 8×8, no cropping, VUI:
    sps.u(4, 0).u(1, 1).u(32, 1).u(32, 2 * fps).u(1, 1).u(4, 0)  # its timing, in fields
    pps = _Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0).u(1, 1).u(2, 0)
    headers = sps.nal(0x67) + pps.nal(0x68)
    units = []
    for number in range(count):
        grey = picture(number, 16 * high, 16 * wide)[..., 0] | 1
        fields = of_fields(number)
        for bottom, rows in enumerate([grey[0::2], grey[1::2]] if fields else [grey]):
            idr = number % keyint == 0 and not bottom
            bits = _Bits().ue(0, 7 if idr else 5, 0).u(4, number % keyint).u(1, int(fields))
            if fields:
                bits.u(1, bottom)
            if idr:
                bits.ue(number // keyint % 2)
            bits.u(8, 2 * (number % keyint) + bottom).u(2, 0)  # no reordering or none of the IDR's marks
            bits.u(0 if idr else 1, 0).ue(0).ue(1)
            for y in range(0, len(rows), 16):
                for x in range(0, 16 * wide, 16):
                    bits.ue(*([25] if idr else [0, 5 + 25])).align()
                    bits.raw(rows[y : y + 16, x : x + 16].tobytes() + b"\x80" * 128)
            at = TICKS + number * TICKS // fps + bottom * TICKS // (2 * fps)
            data = b"\0\0\0\1\x09\xf0" + headers * idr + bits.nal(0x65 if idr else 0x61)
            units.append(Unit(data, at, at))
    return units


def joined(units: Sequence[Unit], count: int) -> list[Unit]:
    """So many frames in one PES packet, which has the stamps of its first."""
    groups = [units[at : at + count] for at in range(0, len(units), count)]
    return [Unit(b"".join(unit.data for unit in group), group[0].pts, group[0].dts) for group in groups]


def _old_x264(path: Path) -> None:
    """H.264 4:4:4 that names an encoder of before a fault in 8×8 blocks was mended: FFmpeg decodes it as that meant it.

    At this quantiser the frames from the 23rd on differ by it, and no error tells.
    """
    write(path, pts=range(24), pix_fmt="yuv444p", qp="29", **{"x264-params": "8x8dct=1:aq-mode=0:no-deblock=1"})
    data = path.read_bytes()
    at = data.index(b"x264 - core ") + len(b"x264 - core ")
    path.write_bytes(data[:at] + b"142" + data[at + 3 :])


def hide(path: Path, number: int) -> None:
    """Mark a frame of VP8 as one that others refer to and that is not shown; its packet keeps its time stamp."""
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = [bytes(packet) for packet in container.demux(video=0)][number]
    data[data.index(packet)] &= ~0x10
    path.write_bytes(data)


def _latin_tag(path: Path) -> None:
    write(path, tags={"title": "fahrt"})
    path.write_bytes(path.read_bytes().replace(b"fahrt", b"f\xe4hrt"))


def _cover_first(path: Path) -> None:
    """A picture in the header (covr), before the track, as the first of two video streams."""
    write(path)
    encoder = av.CodecContext.create("png", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 16, 16, "rgb24", Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
    png = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode()])
    cover = _atom(b"ilst", _atom(b"covr", _atom(b"data", struct.pack(">II", 14, 0) + png)))
    handler = _atom(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    tags = _atom(b"udta", _atom(b"meta", bytes(4) + handler + cover))
    data = path.read_bytes()
    at = data.index(b"moov") - 4  # it is the file's last atom, so that no offset changes
    header_end = at + 8 + int.from_bytes(data[at + 8 : at + 12], "big")
    path.write_bytes(data[:at] + _atom(b"moov", data[at + 8 : header_end] + tags + data[header_end:]))


def _atom(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", 8 + len(data)) + name + data


def _ts(units: Callable[[], Sequence[Unit]]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(transport_stream(units()))


def _written(**options: object) -> Callable[[Path], object]:
    return lambda path: write(path, **options)  # type: ignore[arg-type]


KINDS: dict[str, Callable[[Path], object]] = {
    "h264 with B-frames.mp4": _written(**B_FRAMES),
    "h264 with B-frames.mkv": _written(**B_FRAMES),
    "h264 with B-frames.mov": _written(**B_FRAMES),
    "h264 with B-frames.m4v": _written(**B_FRAMES),
    "h264 with B-frames.3gp": _written(**B_FRAMES),
    "h264 with B-frames.flv": _written(**B_FRAMES),
    "h264 with B-frames.ts": _written(**B_FRAMES),
    "h264 with B-frames.m2ts": _written(**B_FRAMES),
    "h264 with B-frames.avi": _written(**B_FRAMES),
    "h264 with B-frames.vob": _written(fps=25, **B_FRAMES),
    "h264 with B-frames.h264": _written(fps=25, **B_FRAMES),
    "h264 with open groups.mp4": _written(**OPEN_GROUPS),
    "h264 with open groups.ts": _written(**OPEN_GROUPS),
    "h264 with intra refresh.mp4": _written(**INTRA_REFRESH),
    "h264 with intra refresh.ts": _written(**INTRA_REFRESH),
    "h264 with intra refresh.h264": _written(fps=25, **INTRA_REFRESH),
    "h264 interlaced.mts": _written(fps=25, **B_FRAMES | {"x264-params": "tff=1"}),
    "h264 of frames and fields.mts": _ts(paff_units),
    "h264 444 of an old x264.mp4": _old_x264,
    "h264.mkv": _written(),
    "hevc.mp4": _written(**HEVC),
    "hevc.hevc": _written(fps=25, **HEVC),
    "mpeg4.mp4": _written(codec="mpeg4"),
    "mpeg4.avi": _written(codec="mpeg4"),
    "mpeg4 with B-frames.mp4": _written(codec="mpeg4", bf="2"),
    "mpeg4 with B-frames.avi": _written(codec="mpeg4", bf="2"),
    "mpeg4 with B-frames.mkv": _written(codec="mpeg4", bf="2"),
    "mpeg2.mkv": _written(codec="mpeg2video", bf="2"),
    "mpeg2.mpg": _written(codec="mpeg2video", bf="2"),
    "mpeg2.vob": _written(codec="mpeg2video", bf="2"),
    "mpeg2.mxf": _written(codec="mpeg2video", bf="2"),
    "mpeg2.ts": _written(codec="mpeg2video", bf="2"),
    "av1.mp4": _written(codec="libsvtav1", **{"svtav1-params": "lookahead=0", "preset": "12"}),
    "prores.mov": _written(codec="prores_ks", pix_fmt="yuv422p10le"),
    "dv.avi": _written(codec="dvvideo", fps=25, height=576, width=720),
    "mjpeg.avi": _written(codec="mjpeg", pix_fmt="yuvj420p"),
    "palette.avi": _written(codec="rawvideo", pix_fmt="pal8"),
    "palette.mov": _written(codec="rawvideo", pix_fmt="pal8"),
    "black and white.avi": _written(codec="rawvideo", pix_fmt="monob"),
    "vp8.webm": _written(codec="libvpx", **{"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1"}),
    "vp9.webm": _written(**VP9),
    "vp9.mkv": _written(**VP9),
    "wmv2.wmv": _written(codec="wmv2"),
    "uneven.mkv": _written(pts=UNEVEN),
    "uneven with B-frames.mp4": _written(pts=UNEVEN, **B_FRAMES),
    "late.mp4": _written(pts=range(50, 80), **B_FRAMES),
    "late.mkv": _written(pts=range(50, 80), **B_FRAMES),
    "a frame every 5 s.mkv": _written(pts=range(0, 500, 50)),
    "a frame every 5 s.mp4": _written(pts=range(0, 500, 50)),
    "longer sound.mkv": _written(sound_s=9.0),
    "longer sound.webm": _written(sound_s=9.0, **VP9),
    "several frames a PES packet.ts": _ts(lambda: joined(h264_units(), 5)),
    "last packet without a stamp.ts": _ts(lambda: [*h264_units()[:-1], Unit(h264_units()[-1].data, None, None)]),
    "tag that is not UTF-8.mp4": _latin_tag,
    "tag that is not UTF-8.mkv": _latin_tag,
    "cover first.mp4": _cover_first,
}
CODECS = {
    "av1": "libsvtav1",
    "hevc": "libx265",
    "vp9": "libvpx-vp9",
    "vp8": "libvpx",
}  # those that a PyAV may lack, by how names begin
