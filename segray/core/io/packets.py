"""What the packets of a video tell by their stamps alone, without being decoded."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import pairwise
from statistics import median
from typing import Any, NamedTuple


class Packet(NamedTuple):
    pts: int | None
    dts: int | None
    is_keyframe: bool
    is_corrupt: bool
    pos: int | None


def name_frames(stamps: Sequence[int | None]) -> bool:
    return None not in stamps and len(set(stamps)) == len(stamps)


def torn(packets: Sequence[Packet], begins_cut: bool) -> set[int | None]:
    """Return the stamps of packets that lack a part, and of those up to the next keyframe."""
    found: set[int | None] = set()
    lost, cut, restart = False, begins_cut, None
    for packet in packets:
        if packet.is_corrupt or cut:
            lost = True
        elif packet.is_keyframe and lost:
            lost, restart = False, packet.pts
        cut = packet.is_corrupt
        if lost or (restart is not None and packet.pts is not None and packet.pts < restart):
            found.add(packet.pts)
    return found


def with_swallowed(
    shown: list[tuple[Any, bool]], packets: Sequence[Packet], damaged: Collection[int | None] | None = None
) -> list[tuple[Any, bool]]:
    """Add what a decoder makes no frame of, as of some damaged packets: frames behind it keep their numbers.

    shown: the stamp of each frame that was decoded, and whether it is sound; sorted. It is returned as it is where the
    packets without a frame are no damage: sound frames follow before the next keyframe. damaged: of a stream in which
    packets may be second fields, stamps of those at which the decoder met an error; without one before it, a packet
    without a frame is such a field.
    """
    is_sound = dict(shown)
    if not name_frames([packet.pts for packet in packets]):
        return shown
    near = gone = False
    for packet in packets:
        has_none, is_lost = packet.pts not in is_sound, is_sound.get(packet.pts) is False
        near = is_lost or packet.pts in (damaged or ()) or (near and (has_none or not packet.is_keyframe))
        gone = has_none or (gone and not packet.is_keyframe)
        if (damaged is not None and has_none and not near) or (gone and is_sound.get(packet.pts)):
            return shown
    return sorted(is_sound.items() | {(packet.pts, False) for packet in packets if packet.pts not in is_sound})


def rises(packets: Sequence[Packet], format_name: str, most: int) -> bool:
    """Say whether times of decoding never go back, as they do where one recording is appended to another.

    Matroska keeps those of presentation alone, and FFmpeg guesses the others, wrongly behind damage: there no frame may
    be shown before one that is stored `most` packets earlier.
    """
    if format_name == "matroska,webm":
        pts = [packet.pts for packet in packets if packet.pts is not None]
        return all(before <= after for before, after in zip(pts, pts[most:], strict=False))
    return all(before <= after for before, after in pairwise(p.dts for p in packets if p.dts is not None))


def jumps(packets: Sequence[Packet], format_name: str) -> bool:
    """Say whether times of decoding leap forward as those of presentation do not, which are the same numbers later.

    Matroska keeps the latter alone: there each leap counts.
    """
    dts = [packet.dts for packet in packets if packet.dts is not None]
    pts = sorted(packet.pts for packet in packets if packet.pts is not None)
    if format_name == "matroska,webm":
        steps = [after - before for before, after in pairwise(pts)]
        return bool(steps) and max(steps) > 1.5 * median(steps)
    steps = [after - before for before, after in pairwise(dts)]
    if len(pts) != len(dts) or not steps or max(steps) <= 1.5 * median(steps):
        return False
    delay = bisect_right(dts, pts[0]) - 1
    return dts[delay:] != pts[: len(pts) - delay]


def held_back(packets: Sequence[Packet], most: int) -> int:
    """Count how many frames at most are stored before one that is shown before them; with a B-pyramid two."""
    if not most:
        return 0
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    in_turn = sorted(range(len(stamps)), key=stamps.__getitem__)
    # Where the stamps of joined recordings begin again, as many as a decoder may hold back.
    return min(most, max(2, max((number - turn for turn, number in enumerate(in_turn)), default=0)))
