"""Video files: which frames there are, and the frames themselves, by presentation time.

A frame is named by its index in presentation order and keyed by its time stamp (pts), since a constant
frame rate is a promise that files do not keep. Demuxing the packets lists all of them without decoding one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import av
import numpy as np

from segray.core import storage
from segray.errors import DataError

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov", ".avi", ".webm", ".m4v", ".ts", ".mpg", ".mpeg"})

# Containers that hold their frames themselves. FFmpeg goes by what a file holds, not by its name: a playlist (concat,
# HLS) would have it read other files, a session description (SDP) listen on a port.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,mxf,mjpeg,gif,dv,nut"

# A seek can land after the time that was asked: mp4 is searched by decoding order, and .ts between keyframes
# (of 60 frames of HEVC in mp4, every eighth was lost, and all of .ts). None: from the beginning, without a seek.
SEEK_EARLY_S = (0, 2, 20, None)

SHORTER_S = 2.0  # by which a stated length may exceed the frames: sound runs on, and the last frame lasts a while

# What reading raises inside a damaged file; IndexError is PyAV's for a packet of a stream that was not announced.
DAMAGE = (av.FFmpegError, EOFError, IndexError)


@dataclass(frozen=True)
class VideoIndex:
    """Time stamps of every frame in presentation order; keyframes are indices into it.

    pts: in units of time_base seconds, relative to nothing; time_s(i) counts from the first frame.
    damage: what is missing after the last frame, where the file says or shows that it was longer.
    """

    pts: tuple[int, ...]
    keyframes: tuple[int, ...]
    time_base: float
    damage: str | None = None

    def time_s(self, index: int) -> float:
        return (self.pts[index] - self.pts[0]) * self.time_base


class Frame(NamedTuple):
    """pts as in the index; image_hwc uint8 RGB [H, W, 3], upright."""

    pts: int
    image_hwc: np.ndarray


def index_video(uri: str) -> VideoIndex:
    """Read the packet headers of the first video stream, up to the first damage, if any.

    DataError when there is no video stream, or no frame in it.
    """
    with _open(uri) as container:
        stream = _stream(container, uri)
        packets, damage = [], None
        try:
            for packet in container.demux(stream):
                if packet.pts is not None and packet.size and not packet.is_discard:
                    packets.append((packet.pts, packet.is_keyframe))
        except DAMAGE as error:  # the frames before it are good
            damage = f"{uri} cannot be read to its end: {storage.reason(error)}."
        packets.sort()
        time_base = float(stream.time_base)
        if packets and damage is None:
            damage = _shorter(container, stream, packets[-1][0] - packets[0][0], uri)
    if not packets:
        raise DataError(f"{uri} holds no video frame with a time stamp.")
    return VideoIndex(
        pts=tuple(pts for pts, _ in packets),
        keyframes=tuple(i for i, (_, is_keyframe) in enumerate(packets) if is_keyframe),
        time_base=time_base,
        damage=damage,
    )


def _shorter(container: Any, stream: Any, length: int, uri: str) -> str | None:
    """A sentence when the frames end long before the length that the file's header states.

    FFmpeg reads a file that was cut without a word (of an mkv's 60 frames, 19 came and no error).
    """
    found_s = float(length * stream.time_base)
    stated_s = (
        float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / av.time_base
    )
    if stated_s - found_s <= max(SHORTER_S, 0.02 * stated_s):
        return None
    return f"{uri} ends at {found_s:.1f} s of the {stated_s:.1f} s that its header states; it was cut."


def read_frames(uri: str, pts: Sequence[int], *, strict: bool = False) -> Iterator[Frame]:
    """The frames with these time stamps, in order of time; one that cannot be decoded is left out.

    Decoding starts at a keyframe at or before the first and ends at the last. Behind damage it goes on from the next
    keyframe: what lies between refers to what is lost. DataError when the file cannot be opened as a video.

    strict: by one thread, which tells of damage where it is; by several it is told some frames later.
    """
    wanted = set(pts)
    if not wanted:
        return
    first, last, damaged = min(wanted), max(wanted), False
    for early_s in SEEK_EARLY_S:
        with _open(uri) as container:
            stream = _stream(container, uri)
            stream.thread_type = "NONE" if strict else "AUTO"
            packets = _packets(container, stream, first, early_s)
            if packets is None:
                continue
            try:
                for frame in _around_damage(stream, packets) if strict else _decoded(packets):
                    if frame.pts in wanted:
                        wanted.discard(frame.pts)  # a damaged file was seen to give one time stamp twice
                        first = frame.pts
                        yield Frame(frame.pts, _upright(frame))
                    if not wanted or (frame.pts is not None and frame.pts > last):
                        return
            except DAMAGE:
                damaged = True
        if damaged and not strict:
            yield from read_frames(uri, [pts for pts in wanted if pts >= first], strict=True)
        return  # the caller sees which frames are missing, and writes a row for each


def _decoded(packets: Iterator[Any]) -> Iterator[Any]:
    return (frame for packet in packets for frame in packet.decode())


def _around_damage(stream: Any, packets: Iterator[Any]) -> Iterator[Any]:
    """The frames before each packet that cannot be decoded, and those from the next keyframe on."""
    decoder, lost, since = stream.codec_context, False, None
    for packet in packets:
        if lost and not packet.is_keyframe:
            continue
        try:
            frames = packet.decode()
            since, lost = (packet.pts if lost else since), False
        except av.FFmpegError:
            frames, lost = decoder.decode(None), True  # those that wait for their turn were whole
            decoder.flush_buffers()
        yield from (frame for frame in frames if since is None or (frame.pts is not None and frame.pts >= since))


def _packets(container: Any, stream: Any, first: int, early_s: float | None) -> Iterator[Any] | None:
    """Packets from a keyframe at or before `first`; None where seeking to `early_s` before it finds none."""
    packets = container.demux(stream)
    if early_s is None:
        return packets
    if container.format.name == "mpeg":
        return None  # not every packet of .mpg has a time stamp, and those filled in differ after a seek
    try:
        container.seek(first - round(early_s / stream.time_base), stream=stream, backward=True)
        key = next((packet for packet in packets if packet.is_keyframe), None)
    except DAMAGE:
        return None
    return chain([key], packets) if key is not None and key.pts is not None and key.pts <= first else None


def _upright(frame: Any) -> np.ndarray:
    image = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # degrees counter-clockwise, from the display matrix
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


@contextmanager
def _open(uri: str) -> Iterator[Any]:
    """The container. A place that could not be read is a StorageError, also where FFmpeg took it for damage."""
    with storage.open_read(uri) as file:
        try:
            container = av.open(file, mode="r", options={"format_whitelist": CONTAINERS})
        except (av.FFmpegError, OSError, ValueError) as error:
            storage.raise_failure(file)
            raise DataError(f"{uri} is not a video that can be read: {storage.reason(error)}.") from error
        with container:
            yield container
        storage.raise_failure(file)


def _stream(container: Any, uri: str) -> Any:
    if not container.streams.video:
        raise DataError(f"{uri} holds no video stream.")
    return container.streams.video[0]
