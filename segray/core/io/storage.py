"""Places: local paths, s3://, gs:// and az:// URIs; reading, listing, and creating a file that must not exist yet.

Only these are opened, because fsspec would also follow http://, zip:: and file-reading references that a URI in a list
could smuggle in. Credentials come from the environment, a profile or a role, and are never part of a URI.
"""

from __future__ import annotations

import io
import json
import mmap
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segray.core.io import disk, objects, read_ahead
from segray.core.io.disk import temporary_beside
from segray.core.io.failures import OWN_ERRNOS, StoreFailure, http_status, one_line, printable, reason
from segray.core.io.paths import (
    Entry,
    above_glob,
    absolute,
    check_uri,
    folder_of,
    in_bucket,
    is_glob,
    is_hidden,
    join,
    local,
    name_of,
    normal,
    not_hidden,
    real,
    stem_of,
)
from segray.core.io.read_ahead import ReadAhead
from segray.errors import DataError, InputChanged, InputMissing, InputUnreadable, StorageError

__all__ = [
    "Entry",
    "above_glob",
    "absolute",
    "check_unchanged",
    "create",
    "exists",
    "folder_of",
    "in_bucket",
    "is_glob",
    "is_hidden",
    "iter_files",
    "join",
    "list_files",
    "local",
    "move",
    "name_of",
    "normal",
    "not_hidden",
    "open_read",
    "parse_json",
    "printable",
    "raise_failure",
    "read_bytes",
    "read_json",
    "read_unchanged",
    "reading_input",
    "real",
    "reason",
    "refuses_to_overwrite",
    "remove",
    "replace",
    "stat",
    "stem_of",
    "temporary_beside",
]

# What is one object's own fault, as OWN_ERRNOS are of one file.
OWN_CODES = frozenset(
    {
        *("AccessDenied", "InvalidObjectState", "KeyTooLongError", "MethodNotAllowed"),  # S3's
        "forbidden",  # Google's
        *("AuthorizationFailure", "AuthorizationPermissionMismatch", "BlobArchived", "BlobBeingRehydrated"),  # Azure's
    }
)


def read_bytes(uri: str) -> bytes:
    """Read a whole file. StorageError names the place and the reason."""
    with one_line(uri, "read"):
        return objects.get(uri) if in_bucket(uri) else disk.regular_file(uri).read_bytes()


def read_json(uri: str) -> Any:
    """Read a JSON file. StorageError where it cannot be read, DataError where it is not JSON."""
    return parse_json(read_bytes(uri), uri)


def parse_json(data: bytes, source: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{source} is not JSON: {error}. Restore it, or leave its folder out.") from error


def open_read(uri: str, ahead: int | None = None) -> Any:
    """Open a seekable binary file for reading; in a bucket, InputChanged when the object is replaced meanwhile.

    ahead: bytes that a store is asked for at once, 0 for those alone that are read; None: few at first, and more the
    longer reading goes on.
    """
    with one_line(uri, "read"):
        if not in_bucket(uri):
            return disk.regular_file(uri).open("rb")
        file = objects.ObjectFile(uri)
        if ahead is None:
            return io.BufferedReader(ReadAhead(file), read_ahead.LEAST)
        return io.BufferedReader(file, ahead) if ahead else file


def raise_failure(file: Any) -> None:
    """Raise the error that ended a read of an open file, where a library such as FFmpeg went on without it."""
    failed = getattr(getattr(file, "raw", None), "failed", None)
    if failed is not None:
        raise failed


def read_unchanged(uri: str, stamp: str) -> bytes:
    """Read a whole file, if it still has this stamp; InputChanged or InputMissing otherwise."""
    with reading_input(uri):
        if in_bucket(uri):
            with one_line(uri, "read"):
                return objects.get(uri, stamp)
        check_unchanged(uri, stamp)
        data = read_bytes(uri)
        check_unchanged(uri, stamp)
        return data


def check_unchanged(uri: str, stamp: str) -> None:
    """Raise InputChanged when the file's stamp is another one, InputMissing when there is no file."""
    with reading_input(uri):
        now = stat(uri).stamp
    if now != stamp:
        raise InputChanged(_changed(uri))


def exists(uri: str) -> bool:
    """Say whether there is a file or folder; in a bucket, folders are prefixes with something below them."""
    with one_line(uri, "read"):
        if not in_bucket(uri):
            return os.path.exists(check_uri(uri))  # noqa: PTH110, as Path.exists raises for a name that is too long
        return objects.exists(uri)


def stat(uri: str) -> Entry:
    """Return size and stamp of one file. StorageError for a folder, a pipe or a device."""
    with one_line(uri, "read"):
        if in_bucket(uri):
            return objects.head(uri)
        info = Path(check_uri(uri)).stat()
        disk.check_regular(info)
        return Entry(uri, info.st_size, str(info.st_mtime_ns), info.st_mtime)


def list_files(root: str, enter: Callable[[str], bool] | None = None, *, deep: bool = True) -> list[Entry]:
    """List every file at or below `root`, sorted by URI; a single file lists itself; [] where there is nothing."""
    return sorted(iter_files(root, enter, deep=deep), key=lambda entry: entry.uri)


def iter_files(
    root: str,
    enter: Callable[[str], bool] | None = None,
    on_odd: Callable[[str], None] = lambda place: None,
    on_unlisted: Callable[[StorageError], None] | None = None,
    *,
    deep: bool = True,
) -> Iterator[Entry]:
    """Give the files of list_files() one by one, in no promised order and with bounded memory.

    enter: whether to list what is in a folder below the root; not deep: in none of them. on_odd gets what is neither
    file nor folder: links to nothing, pipes, devices. on_unlisted gets the error of a folder below the root that may
    not be listed; without it, that error is raised.
    """
    if in_bucket(root):
        return objects.iter_files(root, enter, deep=deep)
    top = str(Path(check_uri(root)))
    is_file = os.path.isfile(top)  # noqa: PTH113, as Path.is_file raises for a name that is too long
    below = enter if deep else lambda folder: False
    return iter([stat(top)]) if is_file else disk.walk(top, below, on_odd, on_unlisted)


def create(uri: str, data: bytes) -> bool:
    """Create a file with exactly these bytes, whole or not at all; False when the name was taken before.

    Local: written beside, synced, then hard-linked, as link() refuses a taken name where rename() replaces it.
    In a bucket: one request that fails where the name is taken. Two racing writers: one gets True.
    """
    return objects.create(uri, data) if in_bucket(uri) else disk.create(Path(check_uri(uri)), data)


def refuses_to_overwrite(out: str) -> bool:
    """Say whether create() is exclusive below `out`: a disk always is; a bucket is tested by two writes."""
    if not in_bucket(out):
        return True
    probe = join(out, "_segray", f"probe-{uuid.uuid4().hex}")
    try:
        return create(probe, b"1") and not create(probe, b"2")
    finally:
        with suppress(StorageError):  # who labels needs no right to delete; the probe is one byte
            remove(probe)


def replace(uri: str, data: bytes) -> None:
    """Write a whole file, replacing what was there; readers see the old file or the new one."""
    with one_line(uri, "written"):
        if in_bucket(uri):
            objects.put(uri, data)
            return
        target = Path(check_uri(uri))
        temporary = disk.write_beside(target, data)
        try:
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def move(path: Path, uri: str) -> None:
    """Give a whole local file its place, on the same disk or in a bucket, where it replaces what was there."""
    with one_line(uri, "written"):
        if not in_bucket(uri):
            path.replace(check_uri(uri))
        elif path.stat().st_size:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                objects.put(uri, data)
        else:
            objects.put(uri, b"")


def remove(root: str) -> None:
    """Delete a file or a folder with all below it; nothing to delete is fine."""
    with one_line(root, "deleted"):
        if not in_bucket(root):
            path = Path(check_uri(root))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        objects.remove(root)


@contextmanager
def reading_input(uri: str) -> Iterator[None]:
    """Turn a StorageError inside into a DataError where it is this file's own fault: gone, changed, or unreadable.

    It stays a StorageError where others cannot be read either: the store is gone, or credentials have expired.
    """
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise InputMissing(
                printable(f"{uri} does not exist; it was moved or deleted, or its name is mistyped.")
            ) from error
        if http_status(error) == 412:
            raise InputChanged(_changed(uri)) from error
        if _is_own_fault(uri, error.__cause__):
            raise InputUnreadable(str(error)) from error
        raise


def _is_own_fault(uri: str, cause: BaseException | None) -> bool:
    if not isinstance(cause, StoreFailure):  # without a cause, it is a URI that is not opened
        return cause is None or isinstance(cause, UnicodeError) or getattr(cause, "errno", None) in OWN_ERRNOS
    if cause.code != "403":
        return cause.code in OWN_CODES
    try:  # S3's answers to HEAD have no code: a GET's says whether it is the file or the credentials
        return bool(objects.get(uri, span=(0, 1)))
    except StoreFailure as error:
        return error.code in OWN_CODES


def _changed(uri: str) -> str:
    return printable(f"{uri} has changed since the plan was made; label it anew with another --out.")
