"""Video files: which frames there are, and the frames themselves, in the order in which a player shows them.

A frame is named by its index in that order. Where a file's time stamps (pts) can be trusted they are the key by which
any frame is found after a seek, and a listing of the packets tells all of them without decoding one. Where they cannot
(a packet has none, two have the same, a container that keeps none or keeps them in the order of decoding), the video is
decoded from its beginning, once to number the frames and again for each span of them.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect_right, insort
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import chain, pairwise
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition

from segray.core import storage
from segray.errors import DataError

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".ogv"}
    | {".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob", ".h264", ".264", ".hevc", ".h265", ".265"}
)

# Containers that hold their frames themselves. FFmpeg goes by what a file holds, not by its name: a playlist (concat,
# HLS) would have it read other files, a session description (SDP) listen on a port.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,mxf,mjpeg,gif,dv,nut"

TRUSTED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"})  # keep times of presentation
BY_DECODING_TIME = frozenset({"avi", "asf"})  # keep one time a packet: right where frames are not reordered

PROBE = 16  # packets that are decoded to see whether stamps name frames: as many as H.264 and HEVC can reorder

# A seek can land after the time that was asked: mp4 is searched by decoding order, and .ts between keyframes
# (of 60 frames of HEVC in mp4, every eighth was lost, and all of .ts), or at a keyframe from which the first frames
# cannot be decoded yet (intra refresh). None: from the beginning, without a seek.
SEEK_EARLY_S = (0, 2, 20, None)

# A keyframe of H.264 need not stand alone: with intra refresh the picture is whole one keyframe later, and with open
# groups a decoder that starts there may miss what it is told to forget, and call that an error. It starts so many
# keyframes earlier.
RUN_IN = 2

# FFmpeg looks for the encoder's name in the stream's first packet, to decode what old ones wrote as these meant it.
NAMED_AT_FIRST = frozenset({"h264", "mpeg4"})
PALETTES = frozenset({"pal8", "monow", "monob"})  # come with the first packet alone

LOST_FRAME = "this frame cannot be decoded; it is damaged, or refers to a frame that is."  # of a row, after its file

SHORTER_S = 2.0  # by which a stated length may exceed the frames


class _DamagedError(Exception):
    """Where FFmpeg marks a packet or a frame and goes on."""


# What reading raises inside a damaged file; IndexError is PyAV's for a packet of a stream that was not announced.
DAMAGE = (av.FFmpegError, EOFError, IndexError, _DamagedError)


@dataclass(frozen=True)
class VideoIndex:
    """Every frame in the order of presentation; keyframes and lost are indices into it.

    times_s: from the first frame.
    pts: in the stream's ticks; None where stamps do not name the frames, which are then found by their index.
    lost: frames that are known to be damaged already.
    damage: what is missing after the last frame, where the file says or shows that it was longer.
    streams: so many videos the file holds; these are the frames of one.
    """

    times_s: tuple[float, ...]
    keyframes: tuple[int, ...]
    pts: tuple[int, ...] | None
    lost: frozenset[int] = frozenset()
    damage: str | None = None
    streams: int = 1

    @property
    def keys(self) -> Sequence[int]:
        """What read_frames finds each frame by."""
        return range(len(self.times_s)) if self.pts is None else self.pts


class Frame(NamedTuple):
    """key as in the index; image_hwc uint8 RGB [H, W, 3], upright."""

    key: int
    image_hwc: np.ndarray


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_corrupt: bool


class _Tag(NamedTuple):
    """What a packet hands on to its frame. A new object each: PyAV keeps them by id(), and loses a number's."""

    number: int


def _number_of(frame: Any, latest: int) -> int:
    """Of the packet that a frame is from; where the decoder does not tell, the latest."""
    number: int = frame.opaque.number if frame.opaque else latest
    return number


class _Shown(NamedTuple):
    """A frame's turn. frame: None for one that is damaged; pts is then its packet's."""

    frame: av.VideoFrame | None
    pts: int | None


@dataclass
class _Listing:
    """What a file tells without being decoded, but for its first packets."""

    packets: list[_Packet]
    format: str
    time_base: float
    step_s: float
    reorders: bool
    agrees: bool
    begins_cut: bool
    damage: str | None
    streams: int


def index_video(uri: str) -> VideoIndex:
    """List the frames of the video stream, up to the first damage of the container, if any.

    DataError when there is no video stream, or no frame in it.
    """
    listing = _list(uri)
    stamps = [packet.pts for packet in listing.packets]
    if not stamps:
        raise DataError(f"{uri} holds no video frame.")
    in_order = listing.format in TRUSTED or (listing.format == "avi" and all(p.is_keyframe for p in listing.packets))
    if in_order and listing.agrees and _name_frames(stamps):
        torn = _torn(listing)
        shown = [(pts, pts not in torn) for pts in sorted(pts for pts in stamps if pts is not None)]
    else:
        shown = _number(uri, listing.begins_cut)
        if not shown:
            raise DataError(f"{uri} holds no video frame that can be decoded.")
        in_order = listing.format in TRUSTED or (listing.format in BY_DECODING_TIME and not listing.reorders)
        sound = [pts for pts, is_sound in shown if is_sound]
        in_order = in_order and _name_frames([pts for pts, _ in shown]) and sound == sorted(sound)
        if in_order:
            shown.sort()
    keys = {packet.pts for packet in listing.packets if packet.is_keyframe}
    return VideoIndex(
        times_s=tuple(_times_s([pts for pts, _ in shown], listing)),
        keyframes=tuple(i for i, (pts, _) in enumerate(shown) if pts in keys) if in_order else (0,),
        pts=tuple(pts for pts, _ in shown) if in_order else None,
        lost=frozenset(i for i, (_, is_sound) in enumerate(shown) if not is_sound),
        damage=listing.damage,
        streams=listing.streams,
    )


def _name_frames(stamps: Sequence[int | None]) -> bool:
    return None not in stamps and len(set(stamps)) == len(stamps)


def _torn(listing: _Listing) -> set[int | None]:
    """The stamps of packets that lack a part, and of those up to the next keyframe."""
    torn: set[int | None] = set()
    lost, cut, restart = False, listing.begins_cut, None
    for packet in listing.packets:
        if packet.is_corrupt or cut:
            lost = True
        elif packet.is_keyframe and lost:
            lost, restart = False, packet.pts
        cut = packet.is_corrupt
        if lost or (restart is not None and packet.pts is not None and packet.pts < restart):
            torn.add(packet.pts)
    return torn


def _list(uri: str) -> _Listing:
    packets: list[_Packet] = []
    ends_s: list[float] = []
    probe, damage, last = _Probe(), None, 0
    with _open(uri) as container:
        stream = _stream(container, uri, threads="NONE")
        try:
            for packet in container.demux(stream if stream.duration else _timed(container)):
                if packet.pts is not None and packet.time_base:
                    ends_s.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not stream or not packet.size:
                    continue
                if len(packets) < PROBE:
                    probe.feed(packet)
                if not packet.is_discard:
                    packets.append(_Packet(packet.pts, packet.dts, packet.is_keyframe, packet.is_corrupt))
                    last = max(last, packet.duration or 0)
        except DAMAGE as error:  # the frames before it are good
            damage = f"{uri} cannot be read to its end: {storage.reason(error)}."
        rate = stream.average_rate or stream.guessed_rate
        step_s = float(1 / rate) if rate else 1 / 25
        if packets and damage is None:
            damage = _shorter(container, stream, packets, max(ends_s, default=0.0), step_s, uri)
        return _Listing(
            packets=packets,
            format=container.format.name,
            time_base=float(stream.time_base),
            step_s=step_s,
            reorders=bool(stream.codec_context.has_b_frames),
            agrees=probe.agrees(stream),
            begins_cut=container.format.name == "mpegts" and _begins_cut(uri),
            damage=damage,
            streams=len(_videos(container)),
        )


def _begins_cut(uri: str) -> bool:
    """Whether a .ts has lost packets of its first frame: of that one FFmpeg tells where it does not look for frames."""
    with _open(uri, fflags="+noparse") as container, suppress(*DAMAGE, StopIteration):
        return bool(next(container.demux(_stream(container, uri))).is_corrupt)
    return False


class _Probe:
    """Decode the first packets: does each give the frame of its stamp, and in the order of their stamps?"""

    def __init__(self) -> None:
        self.stamps: list[int | None] = []
        self.shown: list[int | None] = []
        self.interlaced = self.failed = False

    def feed(self, packet: Any) -> None:
        if self.failed:
            return
        if not packet.is_discard:
            self.stamps.append(packet.pts)
        try:
            self._see(packet.decode())
        except av.FFmpegError:
            self.failed = True

    def agrees(self, stream: Any) -> bool:
        try:
            self._see(_frames_of(stream, None))
        except av.FFmpegError:
            return False
        if self.failed:
            return False  # damage tells nothing of the stamps
        if self.interlaced and stream.codec_context.name == "h264":
            return False  # at any place two packets may be the two fields of a frame
        return None not in self.stamps and sorted(pts for pts in self.stamps if pts is not None) == self.shown

    def _see(self, frames: list[Any]) -> None:
        self.shown += [frame.pts for frame in frames]
        self.interlaced |= any(frame.interlaced_frame for frame in frames)


def _number(uri: str, begins_cut: bool) -> list[tuple[Any, bool]]:
    """The stamp of each frame, by decoding from the beginning, and whether the frame is sound."""
    if not begins_cut:
        with _open(uri) as container, suppress(*DAMAGE):
            stream = _stream(container, uri)
            return [(pts, True) for _, pts in _decode_fast(stream, _Run(container.demux(stream)))]
    damage = _find_damage(uri, begins_cut=begins_cut)
    with _open(uri) as container:
        stream = _stream(container, uri, threads="NONE", strict=False)
        shown = _decode_around(stream, _Run(container.demux(stream)), damage)
        return [(pts, frame is not None) for frame, pts in shown]


def _times_s(stamps: Sequence[int | None], listing: _Listing) -> list[float]:
    """Seconds from the first frame. Where stamps repeat or are absent, frames follow each other at the usual rate."""
    if not _name_frames(stamps):
        dts = [packet.dts for packet in listing.packets]
        if _name_frames(dts) and len(dts) == len(stamps):
            stamps = dts
    if _name_frames(stamps):
        given = sorted(stamp for stamp in stamps if stamp is not None)
        return [(stamp - given[0]) * listing.time_base for stamp in given]
    times: list[float] = []
    shift: float | None = None
    for stamp in stamps:
        after = times[-1] + listing.step_s if times else 0.0
        if stamp is None:
            times.append(after)
            continue
        if shift is None or stamp * listing.time_base + shift < after - listing.step_s / 2:
            shift = after - stamp * listing.time_base
        times.append(stamp * listing.time_base + shift)
    return times


def _timed(container: Any) -> list[Any]:
    return [stream for stream in container.streams if stream.type in ("video", "audio", "subtitle")]


def _shorter(container: Any, stream: Any, packets: list[_Packet], end_s: float, step_s: float, uri: str) -> str | None:
    """A sentence when the frames end long before the length that the file's header states.

    FFmpeg reads a file that was cut without a word (of an mkv's 60 frames, 19 came and no error). end_s: of the last
    packet of any stream.
    """
    stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
    tick = float(stream.time_base)
    slack_s = max((after - before for before, after in pairwise(stamps)), default=0) * tick
    if container.format.name == "avi":  # the length that FFmpeg tells of is that of the file as it is
        found_s, stated_s = len(packets) * step_s, stream.frames * step_s
    elif stream.duration:
        found_s, stated_s = (stamps[-1] - stamps[0]) * tick if stamps else 0.0, stream.duration * tick
    elif container.format.name in ("matroska,webm", "flv", "asf"):  # of the longest stream, as sound may be
        found_s, stated_s = end_s, (container.duration or 0) / av.time_base
    else:
        return None
    if stated_s - found_s <= max(SHORTER_S, 0.02 * stated_s, 1.5 * slack_s):
        return None
    return f"{uri} ends at {found_s:.1f} s of the {stated_s:.1f} s that its header states; it was cut."


class _Outcome(Enum):
    DONE = auto()
    MISSED = auto()  # the first frames wanted were not there: an earlier seek may find them
    DAMAGED = auto()


def read_frames(uri: str, keys: Sequence[int], *, by_index: bool = False) -> Iterator[Frame]:
    """The frames with these time stamps, in order of time; one that cannot be decoded is left out.

    Decoding starts at a keyframe at or before the first and ends at the last. Behind damage it goes on from the next
    keyframe: what lies between refers to what is lost. DataError when the file cannot be opened as a video.

    by_index: keys are indices, and decoding starts at the beginning. Frames that the index calls lost are not asked.
    """
    wanted = set(keys)
    if not wanted:
        return
    for early_s in (None,) if by_index else SEEK_EARLY_S:
        outcome = yield from _read(uri, wanted, by_index, early_s)
        if outcome is _Outcome.DAMAGED:
            damage = _Damage() if by_index else _find_damage(uri, wanted, early_s)
            outcome = yield from _read(uri, wanted, by_index, early_s, damage)
        if outcome is _Outcome.DONE:
            return  # the caller sees which frames are missing, and writes a row for each


def _read(
    uri: str, wanted: set[int], by_index: bool, early_s: float | None, damage: _Damage | None = None
) -> Generator[Frame, None, _Outcome]:
    """One try. What is found leaves `wanted`. damage: what is known of it; None: to be found."""
    latest: int | None = None  # that was found
    first, last, upright = min(wanted), max(wanted), _Turn()
    with _open(uri) as container:
        stream = _stream(container, uri, threads="NONE" if damage else "AUTO", strict=damage is None)
        run = _start(container, stream, first, early_s)
        if run is None:
            return _Outcome.MISSED
        shown = _decode_around(stream, run, damage) if damage else _decode_fast(stream, run)
        hurt = bool(damage and damage.hurt)
        try:
            for number, (frame, pts) in enumerate(shown):
                key = number if by_index else pts
                if frame is None or key is None:
                    continue
                if latest is None and not hurt and early_s is not None and key > first:
                    return _Outcome.MISSED
                if key in wanted and (latest is None or key > latest):  # a damaged file was seen to go back in time
                    latest = key
                    wanted.discard(key)
                    yield Frame(key, upright(frame))
                if not wanted or key > last:
                    return _Outcome.DONE
        except DAMAGE:
            wanted -= {key for key in wanted if latest is not None and key < latest}  # its turn is over
            return _Outcome.DAMAGED if wanted else _Outcome.DONE
    return _Outcome.MISSED if latest is None and not hurt else _Outcome.DONE


class _Run(NamedTuple):
    """Packets from a keyframe on. settled: the stamp of the keyframe from which errors count; None: of the first."""

    packets: Iterator[Any]
    settled: int | None = None


def _decode_fast(stream: Any, run: _Run) -> Iterator[_Shown]:
    """The frames of packets, in order. Damage is an error: threads tell of it some frames later, or not at all."""
    settled = run.settled is None
    for packet in chain(run.packets, [None]):
        if packet is not None:
            if not packet.size:
                continue
            settled = settled or packet.pts == run.settled
        try:
            frames = _frames_of(stream, packet)
            if any(frame.is_corrupt for frame in frames) or (packet is not None and packet.is_corrupt):
                raise _DamagedError
        except DAMAGE:
            if settled:
                raise
            continue
        yield from (_Shown(frame, frame.pts) for frame in frames)


def _decode_around(stream: Any, run: _Run, damage: _Damage) -> Iterator[_Shown]:
    """The frames of packets, in order, by a decoder that goes on behind damage as well as it can."""
    for number, packet in enumerate(chain(_until_damage(run.packets), [None])):
        if packet is not None:
            if not packet.size:
                continue
            packet.opaque = _Tag(number)
        for frame in _frames_of(stream, packet, lenient=True):
            yield _Shown(frame if damage.spares(_number_of(frame, number), frame.pts) else None, frame.pts)


def _frames_of(stream: Any, packet: Any, *, lenient: bool = False) -> list[Any]:
    try:
        frames: list[Any] = stream.codec_context.decode(packet)
        return frames
    except EOFError:  # drained already
        return []
    except av.FFmpegError:
        if lenient:
            return []
        raise


def _find_damage(
    uri: str, wanted: set[int] | None = None, early_s: float | None = None, begins_cut: bool = False
) -> _Damage:
    """By a strict decoder in one thread, which tells of damage where it is."""
    damage = _Damage()
    with _open(uri) as container:
        stream = _stream(container, uri, threads="NONE")
        run = _start(container, stream, min(wanted or [0]), early_s)
        if run is None:
            return damage
        cut, settled = begins_cut, run.settled is None
        for number, packet in enumerate(chain(_until_damage(run.packets), [None])):
            if packet is not None:
                if not packet.size:
                    continue
                packet.opaque = _Tag(number)
                settled = settled or packet.pts == run.settled
            # Of .ts FFmpeg marks the frame before that of which a packet is lost, as it ends where the next one begins.
            sound, cut = not cut, packet is not None and packet.is_corrupt
            try:
                frames = _frames_of(stream, packet)
            except av.FFmpegError:
                frames, sound = [], False
            if not settled:
                continue
            if not sound or cut:
                damage.add(number)
            elif packet is not None and packet.is_keyframe:
                damage.keyframes.append(_Keyframe(number, packet.pts, _stands_alone(stream, packet)))
            for frame in frames:
                if frame.is_corrupt:
                    damage.add(_number_of(frame, number))
            if wanted and any(frame.pts is not None and frame.pts > max(wanted) for frame in frames):
                break
    return damage


class _Keyframe(NamedTuple):
    number: int
    pts: int | None
    alone: bool


class _Damage:
    """Packets that are damaged, and so the frames that are.

    The frame of a damaged packet and those up to the next keyframe, which refer to it, are lost; so are those that are
    decoded after that keyframe and shown before it. Of keyframes that do not stand alone it takes two: between them
    the picture is refreshed stripe by stripe.
    """

    def __init__(self) -> None:
        self.hurt: list[int] = []  # numbers of packets, in order of decoding
        self.keyframes: list[_Keyframe] = []
        self._back: set[int] = set()

    def add(self, number: int) -> None:
        insort(self.hurt, number)

    def spares(self, number: int, pts: int | None) -> bool:
        """Whether a packet's frame is sound; to be asked in the order of presentation."""
        at = bisect_right(self.hurt, number)
        if not at:
            return True
        restart = self._behind(self.hurt[at - 1])
        if restart is None or number < restart.number:
            return False
        if number == restart.number or (pts is not None and restart.pts is not None and pts >= restart.pts):
            self._back.add(restart.number)
        return restart.number in self._back

    def _behind(self, hurt: int) -> _Keyframe | None:
        later = [key for key in self.keyframes if key.number > hurt]
        alone = next((i for i, key in enumerate(later) if key.alone), 1)
        return later[min(alone, 1)] if len(later) > min(alone, 1) else None


def _stands_alone(stream: Any, packet: Any) -> bool:
    """Whether all frames behind a keyframe can be decoded from it: of H.264, an IDR picture."""
    if stream.codec_context.name != "h264":
        return True
    data, extra = bytes(packet), stream.codec_context.extradata or b""
    if extra[:1] != b"\1":  # Annex B: start codes
        return any(found[1][0] & 31 == 5 for found in re.finditer(b"\0\0\1(.)", data, re.DOTALL))
    at, length = 0, (extra[4] & 3) + 1
    while at + length < len(data):
        if data[at + length] & 31 == 5:
            return True
        at += length + int.from_bytes(data[at : at + length], "big")
    return False


def _until_damage(packets: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from packets
    except DAMAGE:
        return


def _start(container: Any, stream: Any, first: int, early_s: float | None) -> _Run | None:
    """Packets from a keyframe at or before `first`; None where seeking to `early_s` before it finds none."""
    decoder, packets = stream.codec_context, container.demux(stream)
    if early_s is None:
        return _Run(packets)
    if decoder.pix_fmt in PALETTES:
        return None

    def keyframe(last: int, early_s: float) -> Any:
        """Where a seek to so many seconds before `last` lands, if that is not behind it."""
        container.seek(last - round(early_s / stream.time_base), stream=stream, backward=True)
        key = next((packet for packet in packets if packet.is_keyframe), None)
        return key if key is not None and key.pts is not None and key.pts <= last else None

    settled = None
    try:
        if decoder.name in NAMED_AT_FIRST:
            with suppress(av.FFmpegError):
                decoder.decode(next(packets))
        key = keyframe(first, early_s)
        for _ in range(RUN_IN):
            if key is None or _stands_alone(stream, key):
                settled = None
                break
            settled = key.pts
            key = next((found for more_s in SEEK_EARLY_S[:-1] if (found := keyframe(settled - 1, more_s))), None)
    except (*DAMAGE, StopIteration):
        return None
    return None if key is None else _Run(chain([key], packets), settled)


class _Turn:
    """Frames as a player shows them, by the display matrix: x' = a·x + c·y, y' = b·x + d·y."""

    def __init__(self) -> None:
        self._angle: float | None = None
        self._matrix = (1, 0, 0, 1)

    def __call__(self, frame: Any) -> np.ndarray:
        # The angle does not tell of mirrors. Not at each frame: one whose side data were looked at is freed late.
        if self._angle != frame.rotation:
            self._angle, data = frame.rotation, frame.side_data.get(Type.DISPLAYMATRIX)
            a, b, _, c, d = (1, 0, 0, 0, 1) if data is None else struct.unpack_from("=5i", bytes(data))
            self._matrix = (a, b, c, d)
        image: np.ndarray = frame.to_ndarray(format="rgb24")
        across, b, c, down = self._matrix
        if abs(b) > abs(across):
            image, across, down = image.transpose(1, 0, 2), c, b
        elif across > 0 and down > 0:
            return image
        return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])


@contextmanager
def _open(uri: str, **options: str) -> Iterator[Any]:
    """The container. A place that could not be read is a StorageError, also where FFmpeg took it for damage."""
    with storage.open_read(uri) as file:
        try:
            container = av.open(
                file,
                mode="r",
                container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": "", **options},
                metadata_errors="ignore",
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            storage.raise_failure(file)
            raise DataError(f"{uri} is not a video that can be read: {storage.reason(error)}.") from error
        with container:
            yield container
        storage.raise_failure(file)


def _stream(container: Any, uri: str, *, threads: str = "AUTO", strict: bool = True) -> Any:
    """The best video stream. strict: what the decoder takes for damage is an error."""
    videos = _videos(container)
    if not videos:
        raise DataError(f"{uri} holds no video stream.")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    stream.thread_type = threads
    if strict:
        stream.codec_context.options = {"err_detect": "explode"}
    stream.codec_context.copy_opaque = True
    return stream


def _videos(container: Any) -> list[Any]:
    """The video streams that can be decoded; not a cover or a thumbnail, which are streams of one picture."""
    stills = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
    return [s for s in container.streams.video if s.codec_context is not None and not s.disposition & stills]
