"""A video file's packets → frames: opened, searched by time, decoded by threads, or around damage by one.

FFmpeg conceals damage: it fills in what it lacks and goes on. Here a frame that is damaged or may refer to one that is
counts as lost, as far as the decoder can tell, and it is the same frame in every run.
"""

from __future__ import annotations

import os
from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any, NamedTuple
from zlib import crc32

import av
from av.stream import Disposition

from segray.core.clock import moved
from segray.core.io import storage
from segray.core.io.headers import lacks_picture, stands_alone
from segray.core.io.hollow import Hollow
from segray.core.io.images import still_kind
from segray.core.io.sample_table import stated_packets
from segray.core.io.video_index import Start
from segray.errors import DataError

# Containers that hold their frames themselves. FFmpeg goes by what a file holds, not by its name: a playlist (concat,
# HLS) would have it read other files, a session description (SDP) listen on a port.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,av1,obu,ivf,flv,asf,ogg,mxf,mjpeg,gif,dv,nut"

# A decoder keeps up to 16 frames that others refer to, and one a thread. 67 megapixels are 8192×8192.
MAX_FRAME_PIXELS = 1 << 26
LIMIT = {"max_pixels": str(MAX_FRAME_PIXELS)}

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
# Containers that hold no index, and whose packets can be read from any byte on.
BY_BYTE = frozenset({"mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc"})
PALETTES = frozenset({"pal8", "monow", "monob"})  # come with the first packet alone


class _DamagedError(Exception):
    """Where FFmpeg marks a packet or a frame and goes on."""


# What reading raises inside a damaged file; IndexError is PyAV's for a packet of a stream that was not announced.
DAMAGE = (av.FFmpegError, EOFError, IndexError, _DamagedError)


def metadata_options(version: str) -> dict[str, Any]:
    """Return the option that lets av.open() accept texts that are not UTF-8: PyAV 19 always does, and has no option."""
    return {"metadata_errors": "ignore"} if int(version.partition(".")[0]) < 19 else {}


@contextmanager
def open_video(uri: str, hollow: Hollow | None = None, **options: str) -> Iterator[Any]:
    """Open a container. A place that could not be read is a StorageError, also where FFmpeg took it for damage.

    hollow: through which the file is then read.
    """
    with storage.open_read(uri) as file:
        try:
            container = av.open(
                hollow.of(file) if hollow else file,
                mode="r",
                options=LIMIT,  # opening decodes the first frames
                container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": "", **options},
                **metadata_options(av.__version__),
            )
        except (av.FFmpegError, OSError, ValueError) as error:
            storage.raise_failure(file)
            check_moves(uri)
            raise DataError(f"{uri} is not a video that can be read: {storage.reason(error)}.") from error
        with container:
            yield container
        storage.raise_failure(file)


def check_table(uri: str) -> None:
    """Raise DataError where an mp4 or mov states more packets than it has bytes; FFmpeg takes memory for each."""
    with storage.open_read(uri) as file:
        size = file.seek(0, os.SEEK_END)
        if stated_packets(file, size) > size:
            raise DataError(f"{uri} states more packets than its {size:,} bytes can hold; it is damaged or hostile.")


def check_moves(uri: str) -> None:
    """Raise DataError where a file begins like a picture: PNG, also an animated one, JPEG, AVIF and so on."""
    with storage.open_read(uri) as file:
        if still := still_kind(file.read(16)):
            an = "an" if still == "AVIF" else "a"
            raise DataError(f"{uri} is {an} {still} picture and no video; give it a picture's suffix.")


def video_stream(container: Any, uri: str, *, threads: str = "AUTO", strict: bool = True) -> Any:
    """Return the best video stream. strict: what the decoder takes for damage is an error."""
    videos = video_streams(container)
    if not videos:
        raise DataError(f"{uri} holds no video stream.")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_FRAME_PIXELS:
        raise DataError(f"{uri} is {width}×{height}; at most {MAX_FRAME_PIXELS // 10**6} megapixels a frame are read.")
    stream.thread_type = threads
    if threads == "NONE":
        stream.codec_context.thread_count = 1  # libdav1d has threads of its own
    stream.codec_context.options = {**LIMIT, "err_detect": "explode"} if strict else LIMIT
    stream.codec_context.copy_opaque = True
    return stream


def video_streams(container: Any) -> list[Any]:
    """List the video streams that can be decoded; not a cover or thumbnail, which is a stream of one picture."""
    stills = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails
    return [s for s in container.streams.video if s.codec_context is not None and not s.disposition & stills]


class _Tag(NamedTuple):
    """What a packet hands to its frame. Each gets a new object: PyAV keeps them by id(), and loses plain numbers."""

    number: int


def _number_of(frame: Any, latest: int) -> int:
    """Return the number of the packet that a frame is from; where the decoder does not tell, the latest."""
    number: int = frame.opaque.number if frame.opaque else latest
    return number


class Shown(NamedTuple):
    """One position in the output. frame: None for a lost one. number: of its packet in the run, where it is known."""

    frame: av.VideoFrame | None
    pts: int | None
    number: int | None


class Run(NamedTuple):
    """Packets from a keyframe on. settled: the stamp of the keyframe from which errors count; None: of the first."""

    packets: Iterator[Any]
    settled: int | None = None


def decode_fast(stream: Any, run: Run) -> Iterator[Shown]:
    """Decode packets to frames, in order. Damage is an error, which several threads raise a few frames later."""
    settled, number, shown = run.settled is None, -1, -1
    for packet in chain(run.packets, [None]):
        if packet is not None:
            if not packet.size:
                continue
            number += 1
            packet.opaque = _Tag(number)
            settled = settled or packet.pts == run.settled
        try:
            frames = frames_of(stream, packet)
            if any(frame.is_corrupt for frame in frames) or _is_hurt(stream, packet):
                raise _DamagedError
        except DAMAGE:
            if settled:
                raise
            continue
        for frame in frames:
            shown = max(shown, _number_of(frame, number))
            yield Shown(frame, frame.pts, frame.opaque and frame.opaque.number)
    # At the end threads hand over frames and errors together, of which PyAV gives the frames before the first error.
    # The last packet may also be the second field of a frame.
    if shown < number and stream.codec_context.thread_count != 1:
        raise _DamagedError


class Numbered(NamedTuple):
    """Stamps of the frames in order, and where decoding can start; is_whole: no damage was met."""

    stamps: list[int | None]
    starts: list[Start]
    is_whole: bool


def number_frames(uri: str) -> Numbered:
    """Decode from the beginning, up to damage if there is any, and number the frames.

    Several threads decode, then one again from the last start on, since several do not tell of all errors at the end.
    """
    with open_video(uri) as container:
        stamps, starts = _number_fast(container, video_stream(container, uri))
    start = starts[-1] if starts else None
    tail = _number_surely(uri, start)
    if tail is None:  # a container without an index
        start, starts, tail = None, [], _number_surely(uri, None)
    assert tail is not None
    return Numbered(stamps[: start.frame if start else 0] + tail[0], starts, tail[1])


def _number_fast(container: Any, stream: Any) -> tuple[list[int | None], list[Start]]:
    keys: dict[int, tuple[int, int | None]] = {}
    bytes_seen: Counter[int | None] = Counter()  # several packets may begin in one of the container's

    def noted() -> Iterator[Any]:
        for number, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
            bytes_seen[packet.pos] += 1
            if number and packet.is_keyframe and packet.pos is not None and _stands_alone(stream, packet):
                keys[number] = packet.pos, packet.dts
            yield packet

    stamps: list[int | None] = []
    starts: list[Start] = []
    with suppress(*DAMAGE):
        for frame, pts, number in decode_fast(stream, Run(noted())):
            if number in keys and frame is not None and stream.codec_context.pix_fmt not in PALETTES:
                starts.append(Start(len(stamps), *keys.pop(number), checksum(frame)))
            stamps.append(pts)
    return stamps, [start for start in starts if bytes_seen[start.byte] == 1]


def _number_surely(uri: str, begin: Start | None) -> tuple[list[int | None], bool] | None:
    """Decode in one thread, from a start or the beginning on, up to damage; return stamps and whether there was none.

    None: the start is not found.
    """
    stamps: list[int | None] = []
    with open_video(uri) as container:
        stream = video_stream(container, uri, threads="NONE")
        run = start_at(container, stream, begin) if begin else Run(container.demux(stream))
        if run is None:
            return None
        try:
            for frame, pts, number in decode_fast(stream, run):
                if begin and not stamps:  # what is shown before the keyframe is another run's
                    if number != 0:
                        continue
                    if frame is None or checksum(frame) != begin.checksum:
                        return None
                stamps.append(pts)
        except DAMAGE:
            return (stamps, False) if stamps or not begin else None
    return (stamps, True) if stamps or not begin else None


def checksum(frame: av.VideoFrame) -> int:
    return crc32(frame.to_ndarray(format="rgb24").tobytes())


def decode_around(stream: Any, run: Run, damage: Damage) -> Iterator[Shown]:
    """Decode packets to frames, in order, with a decoder that goes on after damage as well as it can."""
    for number, packet in enumerate(chain(_until_damage(run.packets), [None])):
        if packet is not None:
            if not packet.size:
                continue
            packet.opaque = _Tag(number)
        for frame in frames_of(stream, packet, lenient=True):
            is_sound = damage.spares(_number_of(frame, number), frame.pts)
            yield Shown(frame if is_sound else None, frame.pts, frame.opaque and frame.opaque.number)


def frames_of(stream: Any, packet: Any, *, lenient: bool = False) -> list[Any]:
    """Return the decoder's frames for a packet; for None, the end, those still held. lenient: [] for damage."""
    moved()
    try:
        frames: list[Any] = stream.codec_context.decode(packet)
        return frames
    except EOFError:  # drained already
        return []
    except av.FFmpegError:
        if lenient:
            return []
        raise


def find_damage(
    uri: str, wanted: set[int] | None = None, early_s: float | None = None, begins_cut: bool = False
) -> Damage:
    """Find damage around the wanted time stamps, or anywhere, with a strict decoder in one thread, which locates it.

    begins_cut: the first frame is known to lack a part.
    """
    damage, first, last = Damage(), min(wanted or [0]), max(wanted or [0])
    with open_video(uri) as container:
        stream = video_stream(container, uri, threads="NONE")
        run = start(container, stream, first, early_s)
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
            sound, cut = not cut and not _lacks_picture(stream, packet), packet is not None and packet.is_corrupt
            try:
                frames = frames_of(stream, packet)
            except av.FFmpegError:
                frames, sound = [], False
            if not settled:
                continue
            if not sound or cut:
                damage.add(number)
                damage.stamps.add(None if packet is None else packet.pts)
            elif packet is not None and packet.is_keyframe:
                damage.keyframes.append(_Keyframe(number, packet.pts, _stands_alone(stream, packet)))
            for frame in frames:
                if frame.is_corrupt:
                    damage.add(_number_of(frame, number))
            if wanted and any(frame.pts is not None and frame.pts > last for frame in frames):
                break
    return damage


class _Keyframe(NamedTuple):
    number: int
    pts: int | None
    alone: bool


class Damage:
    """Damaged packets, and the frames that are lost with them.

    The frame of a damaged packet and those up to the next keyframe, which refer to it, are lost; so are those that are
    decoded after that keyframe and shown before it. Of keyframes that do not stand alone it takes two: between them
    the picture is refreshed stripe by stripe.
    """

    def __init__(self) -> None:
        self.hurt: list[int] = []  # numbers of packets, in order of decoding
        self.stamps: set[int | None] = set()  # of packets at which an error was met
        self.keyframes: list[_Keyframe] = []
        self._restarts: dict[int, _Keyframe | None] = {}
        self._back: set[int] = set()

    def add(self, number: int) -> None:
        insort(self.hurt, number)

    def spares(self, number: int, pts: int | None) -> bool:
        """Say whether a packet's frame is sound; must be called in the order of presentation."""
        at = bisect_right(self.hurt, number)
        if not at:
            return True
        hurt = self.hurt[at - 1]
        if hurt not in self._restarts:
            self._restarts[hurt] = self._behind(hurt)
        restart = self._restarts[hurt]
        if restart is None or number < restart.number:
            return False
        if number == restart.number or (pts is not None and restart.pts is not None and pts >= restart.pts):
            self._back.add(restart.number)
        return restart.number in self._back

    def _behind(self, hurt: int) -> _Keyframe | None:
        later = [key for key in self.keyframes if key.number > hurt]
        alone = next((i for i, key in enumerate(later) if key.alone), 1)
        return later[min(alone, 1)] if len(later) > min(alone, 1) else None


def _is_hurt(stream: Any, packet: Any) -> bool:
    return packet is not None and (packet.is_corrupt or _lacks_picture(stream, packet))


def _lacks_picture(stream: Any, packet: Any) -> bool:
    return packet is not None and lacks_picture(stream.codec_context.name, packet)


def _stands_alone(stream: Any, packet: Any) -> bool:
    decoder = stream.codec_context
    return stands_alone(decoder.name, bytes(packet), decoder.extradata or b"")


def _until_damage(packets: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from packets
    except DAMAGE:
        return


def start_at(container: Any, stream: Any, at: Start) -> Run | None:
    """Return the packets from this keyframe on; None where seeking does not find it."""
    packets, landed = container.demux(stream), False
    try:
        _name_encoder(stream, packets)
        if container.format.name in BY_BYTE:
            container.seek(at.byte, unsupported_byte_offset=True)
        elif at.ticks is not None:
            container.seek(at.ticks, stream=stream)
        for packet in packets:
            landed |= packet.pos == at.byte
            if landed and packet.is_keyframe and packet.size:  # what is left of the frame before it may come first
                return Run(chain([packet], packets))
            if packet.pos is not None and packet.pos > at.byte:
                break
    except DAMAGE:
        pass
    return None


def _name_encoder(stream: Any, packets: Iterator[Any]) -> None:
    if stream.codec_context.name in NAMED_AT_FIRST:
        with suppress(av.FFmpegError):
            stream.codec_context.decode(next(packets))


def start(container: Any, stream: Any, first: int, early_s: float | None) -> Run | None:
    """Return packets from a keyframe at or before `first`; None where seeking to `early_s` before it finds none."""
    decoder, packets = stream.codec_context, container.demux(stream)
    if early_s is None:
        return Run(packets)
    if decoder.pix_fmt in PALETTES:
        return None

    def keyframe(last: int, early_s: float) -> Any:
        """Seek to so many seconds before `last`; return the keyframe found there, unless it lies after `last`."""
        container.seek(last - round(early_s / stream.time_base), stream=stream, backward=True)
        key = next((packet for packet in packets if packet.is_keyframe), None)
        return key if key is not None and key.pts is not None and key.pts <= last else None

    settled = None
    try:
        _name_encoder(stream, packets)
        key = keyframe(first, early_s)
        for _ in range(RUN_IN):
            if key is None or _stands_alone(stream, key):
                settled = None
                break
            settled = key.pts
            key = next((found for more_s in SEEK_EARLY_S[:-1] if (found := keyframe(settled - 1, more_s))), None)
    except (*DAMAGE, StopIteration):
        return None
    return None if key is None else Run(chain([key], packets), settled)
