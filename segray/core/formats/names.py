"""Source URIs → names in an export: the source tree below the inputs' common folder, and no name twice."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow.compute as pc

from segray.core.labels.plan import Plan, PlanReader

EMPTY = np.empty(0, np.uint64)


class Names:
    """drives/day1/a.jpg → day1/a, frame 120 of drives/b.mp4 → b/000120.

    Where a.jpg and a.png, or A.jpg, would share a name, both keep their suffix; where they still do, each gets eight
    digits of its URI's hash. So does a video with the name of a folder.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.root = _root(plans)
        self._shared = self._still_shared = EMPTY
        self._shared = self._doubled(plans, self._stem)
        if len(self._shared):
            self._still_shared = self._doubled(plans, self._whole)

    def _doubled(self, plans: Sequence[Plan], name: Callable[[str, str], str]) -> np.ndarray:
        """Return the hashes of names that two sources have, or a source and a folder of images, sorted.

        Case is ignored, as disks may not tell upper and lower case apart. 16 bytes a source are kept meanwhile.
        """
        sources, names, folders = [EMPTY], [EMPTY], [EMPTY]
        for uris, end in _sources(plans):
            sources.append(_hashes(f"{uri}{end}" for uri in uris))  # by which each counts once
            names.append(_hashes(name(uri, end).lower() for uri in uris))
            if not end:  # a folder as its name and a slash, so that a.mp4 is not a.jpg, but is the folder a/
                folders.append(np.unique(_hashes({f"{posixpath.dirname(self.below(uri))}/".lower() for uri in uris})))
        _, firsts = np.unique(np.concatenate(sources), return_index=True)
        once = np.concatenate([np.concatenate(names)[firsts], np.unique(np.concatenate(folders))])
        once.sort()
        return np.unique(once[1:][once[1:] == once[:-1]])

    def below(self, uri: str) -> str:
        """Return the URI from the common folder on, as a path that cannot leave the folder that it is put into."""
        uri = re.sub(r"[\x00-\x1f\x7f]", "_", uri.removeprefix(f"{self.root}/"))
        return "/".join(part if part.strip(".") else "_" for part in uri.strip("/").split("/"))

    def name(self, uri: str, frame_index: int | None) -> str:
        """Return the name of a frame, without suffix."""
        end = "" if frame_index is None else "/"
        name = self._whole(uri, end)
        if _has(self._still_shared, name):
            name = f"{name.removesuffix('/')}~{hashlib.sha256(uri.encode()).hexdigest()[:8]}{end}"
        return name if frame_index is None else f"{name}{frame_index:06}"

    def _stem(self, uri: str, end: str) -> str:
        return posixpath.splitext(self.below(uri))[0] + end

    def _whole(self, uri: str, end: str) -> str:
        stem = self._stem(uri, end)
        return self.below(uri) + end if _has(self._shared, stem) else stem


def _sources(plans: Sequence[Plan]) -> Iterator[tuple[list[str], str]]:
    """Give the files of the plans by batches, with "" for images and "/" for what holds frames."""
    for plan in plans:
        for rows in PlanReader(plan).batches(["uri", "frame_index"]):
            framed = pc.is_valid(rows["frame_index"])
            yield pc.unique(rows["uri"].filter(pc.invert(framed))).to_pylist(), ""
            yield pc.unique(rows["uri"].filter(framed)).to_pylist(), "/"


def _root(plans: Sequence[Plan]) -> str:
    """Return the folder that all sources have in common."""
    ends = [
        pc.min_max(rows["uri"]).as_py() for plan in plans for rows in PlanReader(plan).batches(["uri"]) if len(rows)
    ]
    first, last = min(end["min"] for end in ends), max(end["max"] for end in ends)
    root: str = posixpath.commonprefix([first, last]).rpartition("/")[0]
    return root


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _hashes(names: Iterable[str]) -> np.ndarray:
    return np.fromiter(map(_hash, names), np.uint64)


def _has(hashes: np.ndarray, name: str) -> bool:
    """Say whether sorted hashes hold that of a name. Two names with one hash would keep their suffixes for nothing."""
    if not len(hashes):
        return False
    value = np.uint64(_hash(name.lower()))
    at = int(np.searchsorted(hashes, value))
    return at < len(hashes) and bool(hashes[at] == value)
