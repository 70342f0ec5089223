"""Video files: which frames there are, and the frames themselves, in the order in which a player shows them.

A frame is named by its index in that order. Where a file's time stamps (pts) can be trusted they are the key by which
any frame is found after a seek, and a listing of the packets tells all of them without decoding one. Where they cannot
(a packet has none, two have the same, they go back, a container keeps none or keeps them in the order of decoding), the
video is decoded from its beginning, once to number the frames and again for each span of them.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from itertools import pairwise
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type

from segray.core.clock import moved
from segray.core.io import storage
from segray.core.io.decoding import (
    DAMAGE,
    SEEK_EARLY_S,
    Damage,
    Run,
    check_moves,
    check_table,
    checksum,
    decode_around,
    decode_fast,
    find_damage,
    frames_of,
    number_frames,
    open_video,
    start,
    start_at,
    video_stream,
    video_streams,
)
from segray.core.io.headers import is_hidden, may_hold_fields
from segray.core.io.hollow import BY_TABLE, Hollow
from segray.core.io.missing_bytes import missing_bytes
from segray.core.io.packets import Packet, held_back, jumps, name_frames, rises, torn, with_swallowed
from segray.core.io.video_index import Start, VideoIndex
from segray.errors import DataError

TRUSTED = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts", "flv"})  # keep times of presentation
BY_DECODING_TIME = frozenset({"avi", "asf"})  # keep one time a packet: right where frames are not reordered

IN_PARTS = frozenset({"mpegts", "mpeg", "mxf"})  # of a cut file of these, the last frame may lack its end

PROBE = 16  # packets that are decoded to see whether stamps name frames: as many as H.264 and HEVC can reorder

NEVER_SO_MANY = 1 << 29  # what writers of AVI that cannot go back put for the number of frames
SHORTER_S = 2.0  # seconds by which a stated length may exceed the frames


class VideoFrame(NamedTuple):
    """key as in the index; image_hwc uint8 RGB [H, W, 3], upright."""

    key: int
    image_hwc: np.ndarray


class _Upright:
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


@dataclass
class _Listing:
    """What a file tells without being decoded, except for its first packets.

    rises: times of decoding never go back, as they do where one recording is appended to another.
    jumps: they leap forward, maybe between a frame and those that are shown before it, which then have later stamps.
    of_fields: packets may be the second fields of frames.
    unsure: how many frames at the end of a cut file may follow a missing one, or lack a part.
    """

    packets: list[Packet]
    format: str
    time_base: float
    step_s: float
    reorders: bool
    rises: bool
    jumps: bool
    agrees: bool
    of_fields: bool
    begins_cut: bool
    unsure: int
    damage: str | None
    streams: int


def index_video(uri: str) -> VideoIndex:
    """List the frames of the video stream, up to the first damage of the container, if any.

    DataError when there is no video stream, or no frame in it.
    """
    check_table(uri)
    listing = _list(uri)
    stamps = [packet.pts for packet in listing.packets]
    if len(stamps) < 2:  # FFmpeg takes some pictures for a video of one frame
        check_moves(uri)
    if not stamps:
        raise DataError(f"{uri} holds no video frame.")
    starts: list[Start] = []
    in_order = listing.format in TRUSTED or (listing.format == "avi" and all(p.is_keyframe for p in listing.packets))
    if in_order and listing.agrees and listing.rises and not listing.jumps and name_frames(stamps):
        lacking = torn(listing.packets, listing.begins_cut)
        shown = [(pts, pts not in lacking) for pts in sorted(pts for pts in stamps if pts is not None)]
    else:
        shown, starts, damaged = _number(uri, listing.begins_cut)
        if not shown:
            check_moves(uri)
            raise DataError(f"{uri} holds no video frame that can be decoded.")
        in_order = listing.format in TRUSTED or (listing.format in BY_DECODING_TIME and not listing.reorders)
        sound = [pts for pts, is_sound in shown if is_sound]
        in_order = in_order and listing.rises and name_frames([pts for pts, _ in shown]) and sound == sorted(sound)
        if in_order:
            shown = with_swallowed(sorted(shown), listing.packets, damaged if listing.of_fields else None)
    keys = {packet.pts for packet in listing.packets if packet.is_keyframe}
    lost = frozenset(i for i, (_, is_sound) in enumerate(shown) if not is_sound or i >= len(shown) - listing.unsure)
    starts = [] if in_order else [at for at in starts if at.frame < min(lost, default=len(shown))]
    by_index = (0, *(at.frame for at in starts))
    return VideoIndex(
        times_s=tuple(_times_s([pts for pts, _ in shown], listing)),
        keyframes=tuple(i for i, (pts, _) in enumerate(shown) if pts in keys) if in_order else by_index,
        pts=tuple(pts for pts, _ in shown) if in_order else None,
        lost=lost,
        starts=tuple(starts),
        damage=listing.damage,
        streams=listing.streams,
    )


def _list(uri: str) -> _Listing:
    packets: list[Packet] = []
    ends_s: list[float] = []
    probe, damage, last, hollow = _Probe(), None, None, Hollow()
    with open_video(uri, hollow) as container:
        stream = video_stream(container, uri, threads="NONE")
        try:
            for packet in container.demux(stream if stream.duration else _timed(container)):
                moved()
                if packet.pts is not None and packet.time_base:
                    ends_s.append(float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not stream or not packet.size:
                    continue
                last = packet.pos if packet.pos is not None else last
                if len(packets) < PROBE:
                    probe.feed(packet)
                if _is_one(packet):
                    packets.append(Packet(packet.pts, packet.dts, packet.is_keyframe, packet.is_corrupt, packet.pos))
                    if len(packets) == PROBE:
                        hollow.hollow_out(container, stream)
        except DAMAGE as error:  # the frames before it are good
            damage = f"{uri} cannot be read to its end: {storage.reason(error)}."
        if container.format.name in BY_TABLE:
            packets = _keyframes_by_table(packets, stream)
        rate = stream.average_rate or stream.guessed_rate
        step_s = float(1 / rate) if rate else 1 / 25
        if packets and damage is None:
            damage = _shorter(container, stream, packets, max(ends_s, default=0.0), step_s, uri) or _cut(
                uri, container.format.name, stream, last
            )
        reorders = bool(stream.codec_context.has_b_frames)
        of_fields = may_hold_fields(stream.codec_context.name, stream.codec_context.extradata or b"")
        in_parts = container.format.name in IN_PARTS
        return _Listing(
            packets=packets,
            format=container.format.name,
            time_base=float(stream.time_base),
            step_s=step_s,
            reorders=reorders,
            rises=rises(packets, container.format.name, PROBE),
            jumps=reorders and jumps(packets, container.format.name),
            agrees=probe.agrees(stream) and not of_fields,
            of_fields=of_fields,
            begins_cut=container.format.name == "mpegts" and _begins_cut(uri),
            unsure=held_back(packets, PROBE if reorders else 0) + in_parts if damage else 0,
            damage=damage,
            streams=len(video_streams(container)),
        )


def _keyframes_by_table(packets: list[Packet], stream: Any) -> list[Packet]:
    """Take what a file's table says of keyframes, which is what seeks go by; a parser of packets may find more."""
    said = {entry.pos: entry.is_keyframe for entry in stream.index_entries}
    return [packet._replace(is_keyframe=said.get(packet.pos, packet.is_keyframe)) for packet in packets]


def _cut(uri: str, format_name: str, stream: Any, last: int | None) -> str | None:
    """Return a sentence when the file has fewer bytes than it should. last: where the stream's last packet begins."""
    missing = missing_bytes(uri, format_name, stream, last)
    ends = {"mpegts": "its last packet", "mpeg": "its last packet", "mxf": "its last packet or its footer"}
    end = ends.get(format_name, "the file that its header states")
    return f"{uri} ends {missing:,} byte{'s' * (missing > 1)} before the end of {end}; it was cut." if missing else None


def _begins_cut(uri: str) -> bool:
    """Say whether a .ts has lost packets of its first frame: FFmpeg reports them only if it does not parse frames."""
    with open_video(uri, fflags="+noparse") as container, suppress(*DAMAGE, StopIteration):
        return bool(next(container.demux(video_stream(container, uri))).is_corrupt)
    return False


def _is_one(packet: Any) -> bool:
    """Say whether a packet is of a frame that is shown: an edit list may cut it off, and some are there for others."""
    return not packet.is_discard and not is_hidden(packet.stream.codec_context.name, packet)


class _Probe:
    """Decode the first packets: does each give the frame of its stamp, and in the order of their stamps?"""

    def __init__(self) -> None:
        self.stamps: list[int | None] = []
        self.shown: list[int | None] = []
        self.failed = False

    def feed(self, packet: Any) -> None:
        if self.failed:
            return
        if _is_one(packet):
            self.stamps.append(packet.pts)
        try:
            self._see(frames_of(packet.stream, packet))
        except av.FFmpegError:
            self.failed = True

    def agrees(self, stream: Any) -> bool:
        try:
            self._see(frames_of(stream, None))
        except av.FFmpegError:
            return False
        if self.failed:
            return False  # damage tells nothing of the stamps
        return None not in self.stamps and sorted(pts for pts in self.stamps if pts is not None) == self.shown

    def _see(self, frames: list[Any]) -> None:
        self.shown += [frame.pts for frame in frames]


def _number(uri: str, begins_cut: bool) -> tuple[list[tuple[Any, bool]], list[Start], set[int | None]]:
    """Return each frame's stamp and whether it is sound, by decoding from the beginning; known starts; and the stamps
    of packets that are damaged.
    """
    starts: list[Start] = []
    if not begins_cut:
        stamps, starts, is_whole = number_frames(uri)
        if is_whole:
            return [(pts, True) for pts in stamps], starts, set()
    damage = find_damage(uri, begins_cut=begins_cut)
    with open_video(uri) as container:
        stream = video_stream(container, uri, threads="NONE", strict=False)
        shown = decode_around(stream, Run(container.demux(stream)), damage)
        return [(pts, frame is not None) for frame, pts, _ in shown], starts, damage.stamps


def _times_s(stamps: Sequence[int | None], listing: _Listing) -> list[float]:
    """Return seconds from the first frame. Where stamps repeat, go back or are absent, the usual rate is assumed."""
    if not name_frames(stamps):
        dts = [packet.dts for packet in listing.packets]
        if name_frames(dts) and len(dts) == len(stamps):
            stamps = dts
    if listing.rises and name_frames(stamps):
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


def _shorter(container: Any, stream: Any, packets: list[Packet], end_s: float, step_s: float, uri: str) -> str | None:
    """Return a sentence when the frames end long before the length that the file's header states.

    FFmpeg reads a truncated file without an error (of an mkv's 60 frames, 19 came). end_s: of the last
    packet of any stream.
    """
    stamps = sorted(packet.pts for packet in packets if packet.pts is not None)
    tick = float(stream.time_base)
    slack_s = max((after - before for before, after in pairwise(stamps)), default=0) * tick
    if container.format.name == "avi":  # the length that FFmpeg tells of is that of the file as it is
        if stream.frames >= NEVER_SO_MANY:
            return None
        found_s, stated_s = len(packets) * step_s, stream.frames * step_s
    elif stream.duration:
        found_s = end_s - stamps[0] * tick if stamps else len(packets) * step_s
        stated_s = stream.duration * tick
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


def read_frames(
    uri: str, keys: Sequence[int], *, by_index: bool = False, begin: Start | None = None
) -> Iterator[VideoFrame]:
    """Give the frames with these time stamps, in order of time; one that cannot be decoded is left out.

    Decoding starts at a keyframe at or before the first and ends at the last. Behind damage it goes on from the next
    keyframe: frames in between refer to lost ones. DataError when the file cannot be opened as a video.

    by_index: keys are indices, and decoding starts at `begin`, as the index has it for the first of them, or at the
    beginning. Frames that the index calls lost must not be asked for.
    """
    wanted = set(keys)
    if not wanted:
        return
    tries: tuple[Start | float | None, ...] = SEEK_EARLY_S
    if by_index:
        tries = (begin, None) if begin else (None,)
    for where in tries:
        outcome = yield from _read(uri, wanted, by_index, where)
        if outcome is _Outcome.DAMAGED:
            damage = Damage() if by_index or isinstance(where, Start) else find_damage(uri, wanted, where)
            outcome = yield from _read(uri, wanted, by_index, where, damage)
        if outcome is _Outcome.DONE:
            return  # the caller sees which frames are missing, and writes a row for each


def _read(
    uri: str, wanted: set[int], by_index: bool, where: Start | float | None, damage: Damage | None = None
) -> Generator[VideoFrame, None, _Outcome]:
    """Try once. Frames that are found leave `wanted`. damage: what is known of it; None: to be found."""
    latest: int | None = None  # that was found
    first, last, upright = min(wanted), max(wanted), _Upright()
    begin = where if isinstance(where, Start) else None
    index = None if begin else 0  # of the next frame
    with open_video(uri) as container:
        stream = video_stream(container, uri, threads="NONE" if damage else "AUTO", strict=damage is None)
        run = start_at(container, stream, where) if isinstance(where, Start) else start(container, stream, first, where)
        if run is None:
            return _Outcome.MISSED
        shown = decode_around(stream, run, damage) if damage else decode_fast(stream, run)
        hurt = bool(damage and damage.hurt)
        try:
            for frame, pts, number in shown:
                if index is None and begin:  # what is shown before the keyframe is another run's
                    if number != 0:
                        continue
                    if frame is None or checksum(frame) != begin.checksum:
                        return _Outcome.MISSED
                    index = begin.frame
                key = index if by_index else pts
                index = None if index is None else index + 1
                if frame is None or key is None:
                    continue
                if latest is None and not hurt and where is not None and key > first:
                    return _Outcome.MISSED
                if key in wanted and (latest is None or key > latest):  # a damaged file was seen to go back in time
                    latest = key
                    wanted.discard(key)
                    yield VideoFrame(key, upright(frame))
                if not wanted or key > last:
                    return _Outcome.DONE
        except DAMAGE:
            wanted -= {key for key in wanted if latest is not None and key < latest}  # its turn is over
            return _Outcome.DAMAGED if wanted else _Outcome.DONE
    return _Outcome.MISSED if latest is None and not hurt else _Outcome.DONE
