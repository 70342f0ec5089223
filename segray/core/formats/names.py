"""Source URIs → names in an export: the source tree below the inputs' common folder, and no name twice."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from segray.core.labels.plan import Plan, PlanReader


class Names:
    """drives/day1/a.jpg → day1/a, frame 120 of drives/b.mp4 → b/000120.

    Where a.jpg and a.png, or A.jpg, would share a name, both keep their suffix; where they still do, each gets eight
    digits of its URI's hash. So does a video with the name of a folder.
    """

    def __init__(self, plans: list[Plan]) -> None:
        rows = pa.concat_tables([PlanReader(plan).columns(["uri", "frame_index"]) for plan in plans])
        framed = pc.is_valid(rows["frame_index"])
        files = pc.unique(rows["uri"].filter(pc.invert(framed)))
        videos = pc.unique(rows["uri"].filter(framed))
        ends = pc.min_max(pa.chunked_array([files, videos])).as_py()
        self.root = posixpath.commonprefix([ends["min"], ends["max"]]).rpartition("/")[0]
        # A folder as its name and a slash, so that a.mp4 is not a.jpg, but is the folder a/.
        folders = {f"{posixpath.dirname(self.below(uri.as_py()))}/".lower() for uri in files}
        self._shared: set[str] = set()
        self._still_shared: set[str] = set()
        sources = [(uri.as_py(), end) for uris, end in ((files, ""), (videos, "/")) for uri in uris]
        self._shared = _doubled((*(self._stem(*source) for source in sources), *folders))
        self._still_shared = _doubled((*(self._whole(*source) for source in sources), *folders))

    def below(self, uri: str) -> str:
        """Return the URI from the common folder on, as a path that cannot leave the folder that it is put into."""
        uri = re.sub(r"[\x00-\x1f\x7f]", "_", uri.removeprefix(f"{self.root}/"))
        return "/".join(part if part.strip(".") else "_" for part in uri.strip("/").split("/"))

    def name(self, uri: str, frame_index: int | None) -> str:
        """Return the name of a frame, without suffix."""
        end = "" if frame_index is None else "/"
        name = self._whole(uri, end)
        if name.lower() in self._still_shared:
            name = f"{name.removesuffix('/')}~{hashlib.sha256(uri.encode()).hexdigest()[:8]}{end}"
        return name if frame_index is None else f"{name}{frame_index:06}"

    def _stem(self, uri: str, end: str) -> str:
        return posixpath.splitext(self.below(uri))[0] + end

    def _whole(self, uri: str, end: str) -> str:
        stem = self._stem(uri, end)
        return self.below(uri) + end if stem.lower() in self._shared else stem


def _doubled(names: Iterable[str]) -> set[str]:
    """Find names that occur twice, ignoring case: disks may not tell upper and lower case apart."""
    counts = pc.value_counts(pa.array((name.lower() for name in names), pa.string()))
    return set(counts.field("values").filter(pc.greater(counts.field("counts"), 1)).to_pylist())
