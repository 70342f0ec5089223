"""Objects in a bucket, on whichever store: listed, read by ranges, written, and created exclusively."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Callable, Iterator
from mmap import mmap
from typing import Any

from segray.core.io import azure, gcs, s3
from segray.core.io.failures import http_status, one_line, printable
from segray.core.io.paths import Entry, check_uri, scheme_of
from segray.core.io.stores import Place, Store, Stored
from segray.errors import InputChanged, SegrayError, StorageError

STORES: dict[str, Store] = {"s3": s3, "gs": gcs, "az": azure}


def store_of(uri: str) -> Store:
    return STORES[scheme_of(uri)]


def place_of(uri: str) -> Place:
    """Split s3://bucket/a/b into Place("bucket", "a/b")."""
    bucket, _, key = check_uri(uri)[5:].partition("/")
    return Place(bucket, key)


def get(uri: str, stamp: str | None = None, span: tuple[int, int] | None = None) -> bytes:
    return store_of(uri).get(place_of(uri), stamp, span)


def head(uri: str) -> Entry:
    return _entry(uri, store_of(uri).head(place_of(uri)))


def put(uri: str, data: bytes | mmap) -> None:
    store_of(uri).put(place_of(uri), data)


def create(uri: str, data: bytes) -> bool:
    token = uuid.uuid4().hex
    store, place = store_of(uri), place_of(uri)
    with one_line(uri, "created"):
        try:
            store.put(place, data, token)
        except OSError as error:
            if http_status(error) != 412:
                raise
            # A PUT that was carried out and whose answer was lost is refused when it is sent again: it is ours.
            return store.head(place).token == token
    return True


def exists(uri: str) -> bool:
    """Say whether there is an object, or a folder: a bucket, or a prefix with something below it."""
    store, place = store_of(uri), place_of(uri)
    try:
        if place.key and not place.key.endswith("/"):
            return bool(store.head(place))
    except FileNotFoundError:
        pass
    try:
        page = store.page(place.bucket, prefix_of(place.key), most=1)
    except FileNotFoundError:
        return False
    return not place.key or bool(page.objects)


def remove(root: str) -> None:
    keys = [place_of(entry.uri).key for entry in iter_files(root, markers=True)]
    if keys:
        store_of(root).delete(place_of(root).bucket, keys)


def prefix_of(key: str) -> str:
    """Return the prefix of all keys below a folder, given with or without its slash; "" is the whole bucket."""
    return key.rstrip("/") + "/" if key.rstrip("/") else ""


def iter_files(
    root: str, enter: Callable[[str], bool] | None = None, *, deep: bool = True, markers: bool = False
) -> Iterator[Entry]:
    """List page by page.

    markers: also the keys that end in a slash, with which some programs mark folders.
    """
    store, (bucket, key) = store_of(root), place_of(root)
    top = f"{scheme_of(root)}://{bucket}/"
    nothing, after = True, None
    below = prefix_of(key)
    entered: dict[str, bool] = {below: True}

    def wanted(folder: str) -> bool:
        """Say whether a prefix below the root is to be listed, with all the folders that it is in."""
        if enter is None:
            return True
        if folder not in entered:
            place = folder[:-1]  # not without all of its slashes: a key may hold empty steps
            entered[folder] = wanted(place[: place.rfind("/") + 1]) and enter(top + place)
        return entered[folder]

    with one_line(root, "listed"):
        while True:
            page = store.page(bucket, below, after, deep=deep)
            for found in page.objects:
                nothing = False
                if (markers or not found.key.endswith("/")) and wanted(found.key[: found.key.rfind("/") + 1]):
                    yield _entry(top + found.key, found)
            nothing, after = nothing and not page.folders, page.after
            if not after:
                break
        if nothing and key.rstrip("/"):
            try:
                yield head(root.rstrip("/"))
            except FileNotFoundError:
                return


def _entry(uri: str, stored: Stored) -> Entry:
    return Entry(uri, stored.size, stored.stamp, stored.modified_s)


class ObjectFile(io.RawIOBase):
    """An object read by ranges, each of them from the version that was there at first.

    After an error every read fails: FFmpeg may read on after one, which would leave a hole in a video.
    """

    def __init__(self, uri: str) -> None:
        self._at = 0
        self.failed: SegrayError | None = None
        self._entry = head(uri)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._entry.size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:  # which RawIOBase does by 8 kB
        return self._next(self._entry.size)

    def _next(self, most: int) -> bytes:
        if self.failed:
            raise self.failed
        start, end = self._at, min(self._at + most, self._entry.size)
        if start >= end:
            return b""
        uri = self._entry.uri
        try:
            with one_line(uri, "read"):
                data = get(uri, self._entry.stamp, (start, end))
        except StorageError as error:
            replaced = InputChanged(printable(f"{uri} was replaced while it was read."))
            self.failed = replaced if http_status(error) == 412 else error
            raise self.failed from error.__cause__
        self._at = end
        return data
