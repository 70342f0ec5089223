"""Objects on S3: listed, read by ranges, written, and created exclusively."""

from __future__ import annotations

import errno
import io
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from mmap import mmap
from typing import Any

from segray.core.io import s3
from segray.core.io.failures import one_line, printable
from segray.core.io.paths import Entry, check_uri
from segray.errors import InputChanged, SegrayError, StorageError

UPLOAD_PART_BYTES = 1 << 28  # in memory at a time; S3 takes 10,000 of at most 5 GB
TOKEN = "segray-token"  # object metadata: which call of create() an object comes from


def key_of(uri: str) -> dict[str, str]:
    """Split s3://bucket/a/b into {"Bucket": "bucket", "Key": "a/b"}."""
    bucket, _, key = check_uri(uri)[5:].partition("/")
    return {"Bucket": bucket, "Key": key}


def get(uri: str, **conditions: str) -> bytes:
    data: bytes = s3.request("get_object", **key_of(uri), **conditions)["Body"]
    return data


def prefix_of(key: str) -> str:
    """Return the prefix of all keys below a folder, given with or without its slash; "" is the whole bucket."""
    return key.rstrip("/") + "/" if key.rstrip("/") else ""


def iter_files(
    root: str, enter: Callable[[str], bool] | None = None, *, deep: bool = True, markers: bool = False
) -> Iterator[Entry]:
    """List by pages of 1000 keys; s3fs's find() holds all of them and can return a prefix as a file.

    markers: also the keys that end in a slash, with which some programs mark folders.
    """
    bucket, key = key_of(root).values()
    more: dict[str, str] | None = {} if deep else {"Delimiter": "/"}
    nothing = True
    below = prefix_of(key)
    entered: dict[str, bool] = {below: True}

    def wanted(folder: str) -> bool:
        """Say whether a prefix below the root is to be listed, with all the folders that it is in."""
        if enter is None:
            return True
        if folder not in entered:
            place = folder[:-1]  # not without all of its slashes: a key may hold empty steps
            entered[folder] = wanted(place[: place.rfind("/") + 1]) and enter(f"s3://{bucket}/{place}")
        return entered[folder]

    with one_line(root, "listed"):
        while more is not None:
            page = s3.request("list_objects_v2", Bucket=bucket, Prefix=below, **more)
            for found in page.get("Contents", ()):
                nothing = False
                name = found["Key"]
                if (markers or not name.endswith("/")) and wanted(name[: name.rfind("/") + 1]):
                    yield entry_of(f"s3://{bucket}/{name}", found["Size"], found)
            nothing = nothing and "CommonPrefixes" not in page
            token = page.get("NextContinuationToken")
            more = {**more, "ContinuationToken": token} if token else None
        if nothing and key.rstrip("/"):
            try:
                head = s3.request("head_object", Bucket=bucket, Key=key.rstrip("/"))
            except FileNotFoundError:
                return
            yield entry_of(root.rstrip("/"), head["ContentLength"], head)


def entry_of(uri: str, size: int, answer: dict[str, Any]) -> Entry:
    return Entry(uri, size, answer["ETag"].strip('"'), answer["LastModified"].timestamp())


class ObjectFile(io.RawIOBase):
    """An object read by ranges, each of them from the version that was there at first.

    After an error every read fails: FFmpeg may read on after one, which would leave a hole in a video.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._at = uri, 0
        self.failed: SegrayError | None = None
        head = s3.request("head_object", **key_of(uri))
        self._size: int = head["ContentLength"]
        self._etag: str = head["ETag"]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:  # which RawIOBase does by 8 kB
        return self._next(self._size)

    def _next(self, most: int) -> bytes:
        if self.failed:
            raise self.failed
        start, end = self._at, min(self._at + most, self._size)
        if start >= end:
            return b""
        try:
            with one_line(self._uri, "read"):
                data = get(self._uri, Range=f"bytes={start}-{end - 1}", IfMatch=self._etag)
        except StorageError as error:
            replaced = InputChanged(printable(f"{self._uri} was replaced while it was read."))
            self.failed = replaced if s3.http_status(error) == 412 else error
            raise self.failed from error.__cause__
        self._at = end
        return data


def put(uri: str, data: bytes | mmap) -> None:
    """Write in one request, or as a multipart upload, which becomes visible when it is complete."""
    key = key_of(uri)
    if len(data) <= UPLOAD_PART_BYTES:
        s3.request("put_object", **key, Body=data[:])
        return
    upload = {**key, "UploadId": s3.request("create_multipart_upload", **key)["UploadId"]}
    try:
        parts: list[dict[str, Any]] = []
        for start in range(0, len(data), UPLOAD_PART_BYTES):
            number = {"PartNumber": len(parts) + 1}
            sent = s3.request("upload_part", **upload, **number, Body=data[start : start + UPLOAD_PART_BYTES])
            parts.append({**number, "ETag": sent["ETag"]})
        s3.request("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
    except BaseException:
        with suppress(*s3.failures()):  # what was sent is paid for until it is aborted
            s3.request("abort_multipart_upload", **upload)
        raise


def create(uri: str, data: bytes) -> bool:
    token = uuid.uuid4().hex
    with one_line(uri, "created"):
        try:
            s3.request("put_object", **key_of(uri), Body=data, IfNoneMatch="*", Metadata={TOKEN: token})
        except s3.failures() as error:
            if s3.http_status(error) != 412:
                raise
            # A PUT that was carried out and whose answer was lost is refused when it is sent again: it is ours.
            return bool(s3.request("head_object", **key_of(uri))["Metadata"].get(TOKEN) == token)
    return True
