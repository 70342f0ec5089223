"""Files of a folder, or of a zip as annotation tools give out: by their paths below it, and no larger than is sane."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

from segray.core.io import storage
from segray.core.io.images import IMAGE_SUFFIXES
from segray.errors import DataError

MOST_TEXT = 2 << 30  # bytes of annotations: COCO's largest file has 0.5 GB
MOST_PICTURE = 512 << 20
STATES = ("_convert", "_export", "_segray")
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


class Files:
    """The files at or below a folder, or in a zip. names: their paths below it, in order.

    digest: of the sizes and stamps of all but images.
    """

    def __init__(self, uri: str) -> None:
        self.uri = storage.absolute(uri)
        if not storage.exists(self.uri):
            raise DataError(f"{self.uri} does not exist; give the folder or the file that holds the annotations.")
        self.zip: zipfile.ZipFile | None = None
        if self.uri.lower().endswith(".zip"):
            self.zip = _opened(self.uri)
        if self.zip is None:
            found = storage.list_files(self.uri, _is_theirs)
            self.names: Sequence[str] = [entry.uri[len(self.uri) + 1 :] for entry in found if entry.uri != self.uri]
        else:
            found = [storage.stat(self.uri)]
            self.names = sorted(
                {_checked(info.filename, self.uri) for info in self.zip.infolist() if not info.is_dir()}
            )
        told = [[one.uri, one.size, one.stamp] for one in found if not one.uri.lower().endswith(tuple(IMAGE_SUFFIXES))]
        self.digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def place(self, name: str) -> str:
        """Return a file's path for people, and where it is in a folder the place itself."""
        return storage.join(self.uri, name)

    def named(self, *suffixes: str) -> list[str]:
        """List the files that end so, whatever their case."""
        return [name for name in self.names if name.lower().endswith(suffixes)]

    @property
    def images(self) -> list[str]:
        suffixes = tuple(IMAGE_SUFFIXES)
        return [name for name in self.named(*suffixes) if not any(map(storage.is_hidden, name.split("/")))]

    def read(self, name: str, most: int = MOST_PICTURE) -> bytes:
        """Read a whole file. DataError for one of more than `most` bytes, and for a damaged zip."""
        size = self.zip.getinfo(name).file_size if self.zip else storage.stat(self.place(name)).size
        if size > most:
            raise DataError(f"{self.place(name)} has {size} bytes; at most {most} are read of such a file.")
        if self.zip is None:
            return storage.read_bytes(self.place(name))
        try:
            return self.zip.read(name)
        except DAMAGED as error:
            raise DataError(f"{self.place(name)} cannot be read: {storage.reason(error)}. Export it again.") from error

    def text(self, name: str) -> str:
        """Read a text of UTF-8. DataError for another encoding."""
        try:
            return self.read(name, MOST_TEXT).decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(f"{self.place(name)} is not UTF-8 text; save it as UTF-8.") from None

    @functools.lru_cache(maxsize=1)  # noqa: B019  # what was looked at is read next, and one object of these is made
    def json(self, name: str) -> Any:
        """Read a JSON file; the last one that was read is kept."""
        try:
            return storage.parse_json(self.read(name, MOST_TEXT), self.place(name))
        except RecursionError:
            raise DataError(f"{self.place(name)} is nested deeper than annotations are.") from None


def _is_theirs(folder: str) -> bool:
    """Say whether a folder is neither a system's nor one in which segray keeps the state of its own work."""
    return storage.not_hidden(folder) and storage.name_of(folder) not in STATES


def _opened(uri: str) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(
            io.BytesIO(storage.read_bytes(uri)) if storage.in_bucket(uri) else storage.open_read(uri)
        )
    except DAMAGED as error:
        raise DataError(f"{uri} is no whole zip: {storage.reason(error)}. Export it again.") from error


def _checked(name: str, uri: str) -> str:
    """Return the path of an entry that lies in its zip. DataError for one that leads out of it."""
    if name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
        raise DataError(f"{uri} holds {name!r}, a path that leads out of the zip; it is not read.")
    return name
