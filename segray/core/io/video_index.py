"""What is known of a video once it was listed: known without FFmpeg, which only reading a video needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".flv", ".wmv", ".asf", ".ogv", ".mxf", ".dv"}
    | {".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".m2v", ".vob", ".h264", ".264", ".hevc", ".h265", ".265"}
)

LOST_FRAME = "this frame cannot be decoded; it is damaged, or refers to a frame that is."  # of a row, after its file


class Start(NamedTuple):
    """A keyframe from which a video can be decoded whose frames are known by their index alone.

    frame: its index. byte: where its packet stands in the file. ticks: its time of decoding. checksum: of its pixels.
    """

    frame: int
    byte: int
    ticks: int | None
    checksum: int


@dataclass(frozen=True)
class VideoIndex:
    """Every frame in the order of presentation; keyframes and lost are indices into it.

    times_s: from the first frame.
    pts: in the stream's ticks; None where stamps do not name the frames, which are then found by their index.
    lost: frames that are known to be damaged already.
    starts: keyframes of such a video from which frames up to the first lost one can be decoded, but for the first.
    damage: what is missing after the last frame, where the file says or shows that it was longer.
    streams: how many videos the file holds; these are the frames of one.
    """

    times_s: tuple[float, ...]
    keyframes: tuple[int, ...]
    pts: tuple[int, ...] | None
    lost: frozenset[int] = frozenset()
    starts: tuple[Start, ...] = ()
    damage: str | None = None
    streams: int = 1

    def start_of(self, frame: int) -> Start | None:
        """Return where to begin decoding for a frame of a video without usable stamps; None: at the beginning."""
        if not self.starts or frame >= min(self.lost, default=len(self.times_s)):
            return None  # behind damage a decoder that began elsewhere may count otherwise
        at = bisect_right(self.starts, frame, key=lambda start: start.frame)
        return self.starts[at - 1] if at else None

    @property
    def keys(self) -> Sequence[int]:
        """The key by which read_frames finds each frame."""
        return range(len(self.times_s)) if self.pts is None else self.pts
