"""What a writer works with: a labelled frame, the job that it belongs to, and files that appear whole."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from segray.core.io import storage
from segray.core.io.locators import mask_in
from segray.core.prefetch import FETCHES, ahead
from segray.core.samples import LabelSpace
from segray.errors import StorageError

if TYPE_CHECKING:
    from segray.core.labels.schema import LabelRow

PIECE = re.compile(r"(\d+)-(\d+)\.jsonl")
STATE = "_export"  # folder of OUT: what the export is of, and a piece a finished part
TOTALS = '{"totals": '  # begins the last line of a piece


@dataclass(frozen=True)
class LabelledFrame:
    """name: the frame's own in this export, without suffix: day1/a, or drive/000120 of a video.

    picture: where its image is below the images' folder, such as day1/a.jpg. image: the image as it is stored, a video
    frame's as PNG; None where it was not asked for. row: its label row.
    """

    name: str
    picture: str
    row: LabelRow
    image: bytes | None = None

    @cached_property
    def mask_hw(self) -> np.ndarray:
        """Decode the class ids, uint8 [H, W]; 255 is void."""
        return mask_in(self.row, f"the mask of {self.name}")

    @property
    def image_facts(self) -> dict[str, Any]:
        """Return the image's facts with COCO's keys."""
        return {"file_name": self.picture, "height": self.row["height_px"], "width": self.row["width_px"]}


@dataclass(frozen=True)
class Options:
    """min_area: pixels of the smallest instance. image_root: before the images' names, in place of where they are.

    images: whether images are written too, below OUT/images. grey: whether masks are grey and not palette PNGs.
    """

    images: bool = False
    min_area: int = 64
    image_root: str = ""
    grey: bool = False


@dataclass(frozen=True)
class Job:
    """Where an export goes, a folder on a disk or in a bucket, and what holds for all of its frames."""

    out: str
    space: LabelSpace
    options: Options = Options()

    def put(self, name: str, data: bytes) -> None:
        """Write a file below OUT as a whole, over one that a stopped run left."""
        storage.replace(storage.join(self.out, name), data)

    def read(self, name: str) -> bytes:
        return storage.read_bytes(storage.join(self.out, name))

    def writing(self, name: str, mode: str = "w") -> AbstractContextManager[IO[Any]]:
        """Open a file below OUT; see replacing()."""
        return replacing(storage.join(self.out, name), mode)

    @property
    def pieces(self) -> list[str]:
        """List the names of the parts' pieces below OUT, in the order of the labels."""
        names = (storage.name_of(entry.uri) for entry in storage.iter_files(storage.join(self.out, STATE), deep=False))
        found = [match for name in names if (match := PIECE.fullmatch(name))]
        return [f"{STATE}/{match[0]}" for match in sorted(found, key=lambda match: (int(match[1]), int(match[2])))]

    def records(self) -> Iterator[dict[str, Any]]:
        """Give the records of all parts, in the order of the labels."""
        return (json.loads(line) for line in self._lines() if not line.startswith(TOTALS))

    def totals(self) -> Iterator[dict[str, Any]]:
        """Give the totals of each part."""
        return (json.loads(line)["totals"] for line in self._lines() if line.startswith(TOTALS))

    def _lines(self) -> Iterator[str]:
        with ThreadPoolExecutor(FETCHES) as pool:  # a piece has the records of one part
            for data in ahead(pool, self.read, self.pieces, FETCHES):
                yield from data.decode().splitlines()


class Writer(Protocol):
    """made: files and folders of OUT that are its own. uses: options that change them. pictures: whether it needs them.

    result: what to open, below OUT. note: what a person should know of the result.
    """

    made: tuple[str, ...]
    uses: tuple[str, ...]
    pictures: bool
    result: str
    note: str

    def __init__(self, job: Job) -> None: ...

    def part(self, name: str, frames: Iterator[LabelledFrame]) -> Iterator[dict[str, Any]]: ...

    def join(self) -> None: ...


@contextmanager
def replacing(uri: str, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that gets its name when the block ends; if the block fails, no file is left.

    What goes into a bucket is written below TMPDIR first.
    """
    beside = Path(tempfile.gettempdir(), "segray-export") if storage.in_bucket(uri) else Path(uri)
    temporary = storage.temporary_beside(beside)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        storage.move(temporary, uri)
    except OSError as error:
        raise StorageError(f"{uri} cannot be written: {storage.reason(error)}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_items(file: IO[str], items: Iterable[Any]) -> None:
    """Write a JSON list, with one item in memory at a time."""
    before = "[\n"
    for item in items:
        file.write(before + json.dumps(item))
        before = ",\n"
    file.write("]" if before != "[\n" else "[]")


def write_object(file: IO[str], fields: dict[str, Any]) -> None:
    """Write a JSON object; values that are iterators are written as lists, item by item."""
    before = "{"
    for key, value in fields.items():
        file.write(f"{before}{json.dumps(key)}: ")
        if isinstance(value, Iterator):
            write_items(file, value)
        else:
            file.write(json.dumps(value))
        before = ",\n"
    file.write("}\n")
