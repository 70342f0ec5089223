"""Places: local paths and s3:// URIs; reading, listing, and creating a file that must not exist yet.

Only these two kinds are opened, because fsspec would also follow http://, zip:: and file-reading
references that a URI in a list could smuggle in. S3 credentials come from the environment, a profile or
a role, as botocore finds them, and are never part of a URI.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from segray.errors import InputChanged, InputMissing, StorageError

# botocore's own, as for missing credentials or a server that does not answer, are no OSErrors.
FAILURES = (OSError, BotoCoreError, ClientError)


@dataclass(frozen=True)
class Entry:
    """One stored file. stamp changes when the content does: the etag on S3, mtime in ns on a disk."""

    uri: str
    size: int
    stamp: str


def is_s3(uri: str) -> bool:
    return uri.startswith("s3://")


def check_uri(uri: str) -> str:
    """The URI if it is an absolute or relative local path or s3://bucket/key; StorageError otherwise."""
    if "\0" in uri or not uri:
        raise StorageError("An empty path, or one with a NUL in it, cannot be opened.")
    if is_s3(uri):
        bucket = uri[5:].split("/", 1)[0]
        if not bucket or "@" in bucket or ":" in bucket or "?" in bucket or "::" in uri:
            raise StorageError(f"{uri!r} is not s3://bucket/key; credentials come from the environment.")
        return uri
    if "://" in uri or "::" in uri:
        raise StorageError(f"{uri!r}: only local paths and s3:// are read. Copy the data to one of them.")
    return uri


def absolute(uri: str) -> str:
    """A URI that means the same in every working directory."""
    return check_uri(uri).rstrip("/") if is_s3(uri) else str(Path(check_uri(uri)).expanduser().absolute())


def join(root: str, *names: str) -> str:
    return "/".join([root.rstrip("/"), *names])


def name_of(uri: str) -> str:
    """The last part of a path or key."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def stem_of(uri: str) -> str:
    """The last part without its suffix."""
    return name_of(uri).rsplit(".", 1)[0]


def filesystem(uri: str) -> Any:
    """The fsspec file system of a checked URI, local or s3fs; made where it is used, never pickled.

    Without s3fs's cache of listings, which does not see what other processes create, change and delete.
    """
    import fsspec

    check_uri(uri)
    return fsspec.filesystem("s3", use_listings_cache=False) if is_s3(uri) else fsspec.filesystem("file")


def read_bytes(uri: str) -> bytes:
    """A whole file. StorageError names the place and the reason."""
    try:
        if is_s3(uri):
            return filesystem(uri).cat_file(uri)
        return Path(check_uri(uri)).read_bytes()
    except FAILURES as error:
        raise StorageError(f"{uri} cannot be read: {reason(error)}.") from error


def open_read(uri: str) -> Any:
    """A seekable binary file for reading."""
    try:
        return filesystem(uri).open(uri, "rb") if is_s3(uri) else Path(check_uri(uri)).open("rb")
    except FAILURES as error:
        raise StorageError(f"{uri} cannot be read: {reason(error)}.") from error


def read_unchanged(uri: str, stamp: str) -> bytes:
    """A whole file, if it is still the one with this stamp; InputChanged or InputMissing otherwise."""
    if is_s3(uri):
        return _read_s3_if(uri, stamp)
    check_unchanged(uri, stamp)
    data = read_bytes(uri)
    check_unchanged(uri, stamp)
    return data


def check_unchanged(uri: str, stamp: str) -> None:
    """InputChanged when the file's stamp is another one, InputMissing when there is no file."""
    try:
        now = stat(uri).stamp
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise InputMissing(f"{uri} is gone since the plan was made.") from error
        raise
    if now != stamp:
        raise InputChanged(_changed(uri))


def _changed(uri: str) -> str:
    return f"{uri} has changed since the plan was made; label it anew with another --out."


def _read_s3_if(uri: str, etag: str) -> bytes:
    bucket, _, key = uri[5:].partition("/")
    fs = filesystem(uri)
    try:
        import fsspec.asyn

        async def get() -> bytes:
            answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, IfMatch=etag)
            return await answer["Body"].read()

        return fsspec.asyn.sync(fs.loop, get)
    except FileNotFoundError as error:
        raise InputMissing(f"{uri} is gone since the plan was made.") from error
    except FAILURES as error:
        if _http_status(error) == 412:
            raise InputChanged(_changed(uri)) from error
        raise StorageError(f"{uri} cannot be read: {reason(error)}.") from error


def exists(uri: str) -> bool:
    try:
        return filesystem(uri).exists(uri)
    except FAILURES as error:
        raise StorageError(f"{uri} cannot be read: {reason(error)}.") from error


def stat(uri: str) -> Entry:
    """Size and stamp of one file."""
    try:
        if is_s3(uri):
            return _s3_entry(filesystem(uri).info(uri, refresh=True))
        info = Path(check_uri(uri)).stat()
        return Entry(uri, info.st_size, str(info.st_mtime_ns))
    except FAILURES as error:
        raise StorageError(f"{uri} cannot be read: {reason(error)}.") from error


def list_files(root: str) -> list[Entry]:
    """Every file at or below `root`, sorted by URI; a single file lists itself; [] where there is nothing."""
    if not is_s3(root):
        top = str(Path(check_uri(root)))
        is_file = os.path.isfile(top)  # noqa: PTH113, as Path.is_file raises for a name that is too long
        return [stat(top)] if is_file else sorted(_walk(top), key=lambda entry: entry.uri)
    try:
        found = filesystem(root).find(root, detail=True).values()
    except FAILURES as error:
        raise StorageError(f"{root} cannot be listed: {reason(error)}.") from error
    # While a prefix gets its first object, find() was seen to return the prefix itself: names are filtered.
    return [_s3_entry(info) for info in found if info["type"] == "file" and not info["name"].endswith("/")]


def create(uri: str, data: bytes) -> bool:
    """Create a file with exactly these bytes, whole or not at all; False when the name was taken before.

    Local: written beside, synced, then hard-linked, as link() refuses a taken name where rename() replaces it.
    S3: one PutObject with `If-None-Match: *`. Two racing writers: one gets True.
    """
    return _create_s3(uri, data) if is_s3(uri) else _create_local(Path(check_uri(uri)), data)


def replace(uri: str, data: bytes) -> None:
    """Write a file whole, over whatever was there; readers see the old one or the new one."""
    try:
        if is_s3(uri):
            filesystem(uri).pipe_file(uri, data)
            return
        target = Path(check_uri(uri))
        temporary = _write_beside(target, data)
        try:
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except FAILURES as error:
        raise StorageError(f"{uri} cannot be written: {reason(error)}.") from error


def remove(root: str) -> None:
    """Delete a file or a folder with all below it; nothing to delete is fine."""
    fs = filesystem(root)
    try:
        if not is_s3(root):
            if fs.exists(root):
                fs.rm(root, recursive=True)
            return
        # fs.rm takes a name for a pattern: for out[1] it deletes out1.
        import fsspec.asyn

        uris = [entry.uri for entry in list_files(root)]
        for start in range(0, len(uris), 1000):  # as many as one DeleteObjects takes
            fsspec.asyn.sync(fs.loop, fs._bulk_delete, uris[start : start + 1000])
    except FAILURES as error:
        raise StorageError(f"{root} cannot be deleted: {reason(error)}.") from error


def reason(error: BaseException) -> str:
    """An error's own words on one line, without the path that the message names already."""
    if isinstance(error, FileNotFoundError) and not error.strerror and error.__cause__ is None:
        return "No such file"  # s3fs says the key and nothing else
    text = getattr(error, "strerror", None) or str(error)  # FFmpeg's errors have one, and are no OSErrors
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _walk(top: str, above: frozenset[str] = frozenset()) -> Iterator[Entry]:
    # scandir, as one undecodable name makes pyarrow's listing of the whole folder fail.
    real = os.path.realpath(top)
    if real in above:
        return  # a link to a folder that it stands in
    try:
        for entry in os.scandir(top):
            if entry.is_dir():
                yield from _walk(entry.path, above | {real})
            elif entry.is_file():
                info = entry.stat()
                yield Entry(entry.path, info.st_size, str(info.st_mtime_ns))
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{top} cannot be listed: {reason(error)}.") from error


def _s3_entry(info: dict[str, Any]) -> Entry:
    return Entry(f"s3://{info['name']}", int(info["size"]), str(info.get("ETag", "")).strip('"'))


def _write_beside(target: Path, data: bytes) -> Path:
    """A synced temporary file in the target's folder; its name is unique to this attempt, and not a .parquet."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {reason(error)}.") from error


def _create_local(target: Path, data: bytes) -> bool:
    if os.path.lexists(target):
        return False
    temporary = _write_beside(target, data)
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"{target} cannot be created exclusively: {reason(error)}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return True


def _create_s3(uri: str, data: bytes) -> bool:
    bucket, _, key = uri[5:].partition("/")
    fs = filesystem(uri)
    try:
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
    except FAILURES as error:
        if isinstance(error, FileExistsError) or _http_status(error) == 412:
            return False
        raise StorageError(f"{uri} cannot be created: {reason(error)}.") from error
    return True


def _http_status(error: BaseException) -> int | None:
    """The store's answer: s3fs turns 412 into different errors, by its body; botocore's own is the cause."""
    answer = getattr(error, "response", None) or getattr(error.__cause__, "response", None) or {}
    return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
