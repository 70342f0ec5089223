"""The frames and classes that a run began with, as its folder keeps them, and how they differ from those of now.

    OUT/frames.jsonl   the label space, then a line a frame: [split, id, bytes of the image, bytes of the mask]

Bytes come from listings, as no file is read. A file in a folder that may not be listed has none, and counts as the
same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from segray.core.io import storage
from segray.core.io.locators import file_of
from segray.core.samples import LabelSpace, SampleRef
from segray.errors import StorageError

FRAMES = "frames.jsonl"
LISTINGS = 8  # folders that are listed at once


def frame_list(splits: Mapping[str, Sequence[SampleRef]], space: LabelSpace) -> bytes:
    """Return the content of frames.jsonl for these splits."""
    refs = [(split, ref) for split, members in splits.items() for ref in members]
    sizes = _sizes(file_of(place) for _, ref in refs for place in (ref.image, ref.mask))
    rows = [
        [split, ref.sample_id, *(sizes.get(file_of(place)) for place in (ref.image, ref.mask))] for split, ref in refs
    ]
    return "".join(json.dumps(line) + "\n" for line in (space.to_dict(), *rows)).encode()


def differences(before: bytes, now: bytes) -> list[str]:
    """Say what changed between two lists, in words; [] where they have the same frames and classes.

    >>> before = b'{}\\n["train", "a", 9, 9]\\n["train", "b", 9, 9]\\n'
    >>> differences(before, b'{}\\n["train", "b", 9, 8]\\n["val", "c", 9, 9]\\n')
    ['frames: 1 added, 1 removed, 1 changed']
    """
    (old_space, old), (space, new) = map(_read, (before, now))
    counts = {
        "added": len(new.keys() - old.keys()),
        "removed": len(old.keys() - new.keys()),
        "changed": sum(_differ(old[key], new[key]) for key in old.keys() & new.keys()),
    }
    told = ", ".join(f"{count} {how}" for how, count in counts.items() if count)
    lines = [f"frames: {told}"] if told else []
    return lines + ["the ids of its classes changed"] * (old_space != space)


def _read(data: bytes) -> tuple[object, dict[tuple[str, str], list[int | None]]]:
    space, *rows = map(json.loads, data.splitlines())
    return space, {(split, name): sizes for split, name, *sizes in rows}


def _differ(old: list[int | None], new: list[int | None]) -> bool:
    return any(None not in (a, b) and a != b for a, b in zip(old, new, strict=True))


def _sizes(files: Iterable[str]) -> dict[str, int]:
    """Return the files' sizes in bytes, as far as their folders can be listed."""
    with ThreadPoolExecutor(LISTINGS) as pool:
        listed = pool.map(_sizes_in, sorted({storage.folder_of(file) for file in files}))
    return {file: size for found in listed for file, size in found.items()}


def _sizes_in(folder: str) -> dict[str, int]:
    try:
        return {entry.uri: entry.size for entry in storage.iter_files(folder, deep=False)}
    except StorageError:
        return {}
