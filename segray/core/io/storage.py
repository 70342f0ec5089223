"""Places: local paths and s3:// URIs; reading, listing, and creating a file that must not exist yet.

Only these two kinds are opened, because fsspec would also follow http://, zip:: and file-reading
references that a URI in a list could smuggle in. S3 credentials come from the environment, a profile or
a role, as botocore finds them, and are never part of a URI.

Every request to S3 goes through s3.request(), which tries again for RETRY_FOR_S what may pass: a busy or broken
server, a connection lost, a body cut or damaged. s3fs keeps the connections; its own retries are off.
"""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import re
import shutil
import stat as modes
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from segray.core.io import s3
from segray.errors import (
    ConfigError,
    DataError,
    InputChanged,
    InputMissing,
    InputUnreadable,
    SegrayError,
    StorageError,
    shortened,
)

READ_AHEAD = 8 << 20  # bytes that an open file on S3 asks for at once
UPLOAD_PART_BYTES = 1 << 30  # S3 takes 5 GB in one request
TOKEN = "segray-token"  # object metadata: which call of create() an object comes from

# What is one input's own fault, and no reason to think that others cannot be read either.
OWN_ERRNOS = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)
OWN_CODES = frozenset({"AccessDenied", "InvalidObjectState", "KeyTooLongError", "MethodNotAllowed"})
# Folders that systems and tools make beside one's own; those that begin with a dot, as .ipynb_checkpoints, are known.
SYSTEM = frozenset(
    {
        *("$recycle.bin", "system volume information", "__macosx", "lost+found"),
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"),  # of Synology's and QNAP's servers
    }
)
NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


@dataclass(frozen=True)
class Entry:
    """One stored file. stamp changes when the content does: the etag on S3, mtime in ns on a disk."""

    uri: str
    size: int
    stamp: str
    modified_s: float  # Unix time


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
    if not uri.startswith("/") and ("://" in uri or "::" in uri):
        raise StorageError(f"{uri!r}: only local paths and s3:// are read. Copy the data to one of them.")
    return uri


def absolute(uri: str) -> str:
    """A URI that means the same in every working directory, in one spelling."""
    return check_uri(uri).rstrip("/") if is_s3(uri) else normal(str(Path(check_uri(uri)).expanduser().absolute()))


def normal(path: str) -> str:
    """An absolute local path without `.`, `..` and `//`.

    >>> normal("/drives/day1/../day2//./a.jpg")
    '/drives/day2/a.jpg'
    """
    whole = "/"
    for part in path.split("/"):
        if part == "..":  # above a link is the folder that holds what the link leads to
            whole = os.path.dirname(os.path.realpath(whole) if os.path.islink(whole) else whole)  # noqa: PTH120, PTH114
        elif part not in ("", "."):
            whole = f"{whole.rstrip('/')}/{part}"
    return whole


def real(uri: str) -> str:
    """A place below its folder's own name, where links lead to the folder."""
    return uri if is_s3(uri) else join(_real_folder(folder_of(uri)), name_of(uri))


@lru_cache(maxsize=4096)
def _real_folder(folder: str) -> str:
    return os.path.realpath(folder)


def local(uri: str, what: str) -> Path:
    """A place as a path, for what is written to disks alone; ConfigError for one on S3. what: "a video"."""
    if is_s3(uri):
        raise ConfigError(f"{uri}: {what} is written to a local disk. Name a place there, and copy it afterwards.")
    return Path(check_uri(uri)).expanduser()


def join(root: str | Path, *names: str) -> str:
    return "/".join([str(root).rstrip("/"), *names])


def name_of(uri: str) -> str:
    """The last part of a path or key."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def folder_of(uri: str) -> str:
    """What a path or key lies in; '' for a name alone."""
    return uri.rstrip("/").rpartition("/")[0]


def stem_of(uri: str) -> str:
    """The last part without its suffix."""
    return name_of(uri).rsplit(".", 1)[0]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is a system's or a tool's, as .ipynb_checkpoints, ._a.jpg or @eaDir."""
    return name.startswith(".") or name.lower() in SYSTEM


def not_hidden(folder: str) -> bool:
    """iter_files(enter=not_hidden) leaves out what lies in hidden folders."""
    return not is_hidden(name_of(folder))


def read_bytes(uri: str) -> bytes:
    """A whole file. StorageError names the place and the reason."""
    with _one_line(uri, "read"):
        return _get_s3(uri) if is_s3(uri) else _file(uri).read_bytes()


def read_json(uri: str) -> Any:
    """What a JSON file holds. StorageError where it cannot be read, DataError where it is none."""
    return parse_json(read_bytes(uri), uri)


def parse_json(data: bytes, source: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{source} is not JSON: {error}. Restore it, or leave its folder out.") from error


def open_read(uri: str) -> Any:
    """A seekable binary file for reading; on S3, InputChanged when the object is replaced meanwhile."""
    with _one_line(uri, "read"):
        return io.BufferedReader(_S3File(uri), READ_AHEAD) if is_s3(uri) else _file(uri).open("rb")


def raise_failure(file: Any) -> None:
    """Raise what a read of an open file failed with, where a library between went on without it, as FFmpeg does."""
    failed = getattr(getattr(file, "raw", None), "failed", None)
    if failed is not None:
        raise failed


def read_unchanged(uri: str, stamp: str) -> bytes:
    """A whole file, if it is still the one with this stamp; InputChanged or InputMissing otherwise."""
    with reading_input(uri):
        if is_s3(uri):
            with _one_line(uri, "read"):
                return _get_s3(uri, IfMatch=stamp)
        check_unchanged(uri, stamp)
        data = read_bytes(uri)
        check_unchanged(uri, stamp)
        return data


def check_unchanged(uri: str, stamp: str) -> None:
    """InputChanged when the file's stamp is another one, InputMissing when there is no file."""
    with reading_input(uri):
        now = stat(uri).stamp
    if now != stamp:
        raise InputChanged(_changed(uri))


def exists(uri: str) -> bool:
    """Whether there is a file, or a folder; on S3 that is a bucket, or a prefix with something below it."""
    with _one_line(uri, "read"):
        if not is_s3(uri):
            return os.path.exists(check_uri(uri))  # noqa: PTH110, as Path.exists raises for a name that is too long
        place = _key(uri)
        try:
            if place["Key"] and not place["Key"].endswith("/"):
                return bool(s3.request("head_object", **place))
        except FileNotFoundError:
            pass
        try:
            page = s3.request("list_objects_v2", Bucket=place["Bucket"], Prefix=_below(place["Key"]), MaxKeys=1)
        except FileNotFoundError:
            return False
        return not place["Key"] or "Contents" in page


def stat(uri: str) -> Entry:
    """Size and stamp of one file. StorageError for a folder, a pipe or a device."""
    with _one_line(uri, "read"):
        if is_s3(uri):
            head = s3.request("head_object", **_key(uri))
            return _entry_s3(uri, head["ContentLength"], head)
        info = Path(check_uri(uri)).stat()
        _check_regular(info)
        return Entry(uri, info.st_size, str(info.st_mtime_ns), info.st_mtime)


def list_files(root: str, enter: Callable[[str], bool] | None = None, *, deep: bool = True) -> list[Entry]:
    """Every file at or below `root`, sorted by URI; a single file lists itself; [] where there is nothing."""
    return sorted(iter_files(root, enter, deep=deep), key=lambda entry: entry.uri)


def iter_files(
    root: str,
    enter: Callable[[str], bool] | None = None,
    on_odd: Callable[[str], None] = lambda place: None,
    on_unlisted: Callable[[StorageError], None] | None = None,
    *,
    deep: bool = True,
) -> Iterator[Entry]:
    """list_files() one by one and in no promised order, in memory that does not grow with their number.

    enter: whether to list what is in a folder below the root; not deep: in none of them. on_odd gets what is neither
    file nor folder: links to nothing, pipes, devices. on_unlisted gets the error of a folder below the root that may
    not be listed; without it, that error is raised.
    """
    if is_s3(root):
        return _list_s3(root, enter, deep=deep)
    top = str(Path(check_uri(root)))
    is_file = os.path.isfile(top)  # noqa: PTH113, as Path.is_file raises for a name that is too long
    below = enter if deep else lambda folder: False
    return iter([stat(top)]) if is_file else _walk(top, below, on_odd, on_unlisted)


def create(uri: str, data: bytes) -> bool:
    """Create a file with exactly these bytes, whole or not at all; False when the name was taken before.

    Local: written beside, synced, then hard-linked, as link() refuses a taken name where rename() replaces it.
    S3: one PutObject with `If-None-Match: *`. Two racing writers: one gets True.
    """
    return _create_s3(uri, data) if is_s3(uri) else _create_local(Path(check_uri(uri)), data)


def refuses_to_overwrite(out: str) -> bool:
    """Whether create() is exclusive below `out`: a disk always is, a store of the S3 kind is asked by two writes."""
    if not is_s3(out):
        return True
    probe = join(out, "_segray", f"probe-{uuid.uuid4().hex}")
    try:
        return create(probe, b"1") and not create(probe, b"2")
    finally:
        with suppress(StorageError):  # who labels needs no right to delete; the probe is one byte
            remove(probe)


def replace(uri: str, data: bytes) -> None:
    """Write a file whole, over whatever was there; readers see the old one or the new one."""
    with _one_line(uri, "written"):
        if is_s3(uri):
            _put_s3(uri, data)
            return
        target = Path(check_uri(uri))
        temporary = _write_beside(target, data)
        try:
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def remove(root: str) -> None:
    """Delete a file or a folder with all below it; nothing to delete is fine."""
    with _one_line(root, "deleted"):
        if not is_s3(root):
            path = Path(check_uri(root))
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        places = [_key(entry.uri) for entry in _list_s3(root, markers=True)]
        for start in range(0, len(places), 1000):  # as many as one DeleteObjects takes
            keys = [{"Key": place["Key"]} for place in places[start : start + 1000]]
            s3.request("delete_objects", Bucket=places[0]["Bucket"], Delete={"Objects": keys, "Quiet": True})


def reason(error: BaseException) -> str:
    """An error's own words on one line, without the path that the message names already and without secrets."""
    answer = s3.answer_of(error).get("Error", {})
    if isinstance(error, FileNotFoundError) and answer.get("Code") in ("404", "NoSuchKey"):
        return "No such file"
    # FFmpeg's errors have a strerror, and are no OSErrors; a timeout of fsspec's says nothing, and its cause may.
    text = getattr(error, "strerror", None) or str(error) or str(error.__cause__ or "")
    if answer and not answer.get("Message"):  # Ceph sends a code without words
        text = answer.get("Code", text)
    text = " ".join(text.split()).rstrip(".") or type(error).__name__
    return "; ".join([shortened(_without_secrets(text)), *getattr(error, "__notes__", ())])


def _without_secrets(text: str) -> str:
    """Neither the credentials of the environment nor those of a URL or a signed request."""
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        text = text.replace(os.environ.get(name) or "\0", "***")
    text = re.sub(r"(Credential|Signature|Token|AccessKeyId)=[^&\s,;\"']+", r"\1=***", text)
    return re.sub(r"://[^/@\s]*@", "://***@", text)


def printable(text: str) -> str:
    """With bytes that are no UTF-8, line ends and signs that turn text around written as escapes, as in \\udcff."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def _one_line(uri: str, verb: str) -> Iterator[None]:
    """What fails inside is a StorageError: `{uri} cannot be {verb}: {reason}.`; a denied one says what to look at."""
    try:
        yield
    except s3.FAILURES as error:
        refused = " Check the credentials (AWS_PROFILE, a role) and the bucket's policy."
        hint = refused if s3.http_status(error) == 403 else ""
        raise StorageError(printable(f"{uri} cannot be {verb}: {reason(error)}.{hint}")) from error


@contextmanager
def reading_input(uri: str) -> Iterator[None]:
    """A StorageError inside is a DataError where it is this file's own fault: gone, changed, or not to be read.

    It stays a StorageError where others cannot be read either, as with a store that is gone or credentials that ended.
    """
    try:
        yield
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            raise InputMissing(printable(f"{uri} is gone since the plan was made.")) from error
        if error.__cause__ and s3.http_status(error.__cause__) == 412:
            raise InputChanged(_changed(uri)) from error
        if _is_own_fault(uri, error.__cause__):
            raise InputUnreadable(str(error)) from error
        raise


def _is_own_fault(uri: str, cause: BaseException | None) -> bool:
    answer = s3.answer_of(cause)
    if not answer:  # without a cause, it is a URI that is not opened
        return cause is None or isinstance(cause, UnicodeError) or getattr(cause, "errno", None) in OWN_ERRNOS
    if answer.get("Error", {}).get("Code") != "403":
        return answer.get("Error", {}).get("Code") in OWN_CODES
    try:  # HEAD's answers have no code: a GET's says whether it is the file or the credentials
        return bool(s3.request("get_object", **_key(uri), Range="bytes=0-0"))
    except s3.FAILURES as error:
        return s3.answer_of(error).get("Error", {}).get("Code") in OWN_CODES


def _changed(uri: str) -> str:
    return printable(f"{uri} has changed since the plan was made; label it anew with another --out.")


def _file(uri: str) -> Path:
    """The path of a regular file. OSError for a folder, a pipe, which would be waited for, or a device without end."""
    path = Path(check_uri(uri))
    _check_regular(path.stat())
    return path


def _check_regular(info: os.stat_result) -> None:
    if modes.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not modes.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "It is a pipe, a socket or a device, and no file")


def _walk(
    top: str,
    enter: Callable[[str], bool] | None,
    on_odd: Callable[[str], None],
    on_unlisted: Callable[[StorageError], None] | None,
    above: frozenset[str] = frozenset(),
) -> Iterator[Entry]:
    # scandir, as one undecodable name makes pyarrow's listing of the whole folder fail.
    real = os.path.realpath(top)
    if real in above:
        return  # a link to a folder that it stands in
    try:
        with _one_line(top, "listed"):
            for entry in os.scandir(top):
                try:
                    is_dir, info = entry.is_dir(), entry.stat()
                except OSError as error:
                    if entry.is_symlink() and error.errno in {errno.ENOENT, *OWN_ERRNOS}:
                        on_odd(entry.path)
                    elif not isinstance(error, FileNotFoundError):  # deleted meanwhile, as temporary files are
                        raise
                    continue
                if is_dir:
                    if enter is None or enter(entry.path):
                        yield from _walk(entry.path, enter, on_odd, on_unlisted, above | {real})
                elif modes.S_ISREG(info.st_mode):
                    yield Entry(entry.path, info.st_size, str(info.st_mtime_ns), info.st_mtime)
                else:
                    on_odd(entry.path)
    except StorageError as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError):
            return
        if not above or on_unlisted is None or getattr(cause, "errno", None) not in OWN_ERRNOS:
            raise
        on_unlisted(error)


def _key(uri: str) -> dict[str, str]:
    """s3://bucket/a/b → {"Bucket": "bucket", "Key": "a/b"}"""
    bucket, _, key = check_uri(uri)[5:].partition("/")
    return {"Bucket": bucket, "Key": key}


def _get_s3(uri: str, **conditions: str) -> bytes:
    data: bytes = s3.request("get_object", **_key(uri), **conditions)["Body"]
    return data


def _below(key: str) -> str:
    """The prefix of what lies below a folder, given with or without its slash; "" is the whole bucket."""
    return key.rstrip("/") + "/" if key.rstrip("/") else ""


def _list_s3(
    root: str, enter: Callable[[str], bool] | None = None, *, deep: bool = True, markers: bool = False
) -> Iterator[Entry]:
    """By pages of 1000 keys; not by s3fs's find(), which holds all of them and can return a prefix as a file.

    markers: also the keys that end in a slash, with which some programs mark folders.
    """
    bucket, key = _key(root).values()
    more: dict[str, str] | None = {} if deep else {"Delimiter": "/"}
    nothing = True
    below = _below(key)
    entered: dict[str, bool] = {below: True}

    def wanted(folder: str) -> bool:
        """Whether a prefix below the root is to be listed, and all that it stands in."""
        if enter is None:
            return True
        if folder not in entered:
            place = folder[:-1]  # not without all of its slashes: a key may hold empty steps
            entered[folder] = wanted(place[: place.rfind("/") + 1]) and enter(f"s3://{bucket}/{place}")
        return entered[folder]

    with _one_line(root, "listed"):
        while more is not None:
            page = s3.request("list_objects_v2", Bucket=bucket, Prefix=below, **more)
            for found in page.get("Contents", ()):
                nothing = False
                name = found["Key"]
                if (markers or not name.endswith("/")) and wanted(name[: name.rfind("/") + 1]):
                    yield _entry_s3(f"s3://{bucket}/{name}", found["Size"], found)
            nothing = nothing and "CommonPrefixes" not in page
            token = page.get("NextContinuationToken")
            more = {**more, "ContinuationToken": token} if token else None
        if nothing and key.rstrip("/"):
            try:
                head = s3.request("head_object", Bucket=bucket, Key=key.rstrip("/"))
            except FileNotFoundError:
                return
            yield _entry_s3(root.rstrip("/"), head["ContentLength"], head)


def _entry_s3(uri: str, size: int, answer: dict[str, Any]) -> Entry:
    return Entry(uri, size, answer["ETag"].strip('"'), answer["LastModified"].timestamp())


class _S3File(io.RawIOBase):
    """An object read by ranges, each of them from the version that was there at first.

    After an error every read fails: FFmpeg may read on after one, and would leave a hole in a video.
    """

    def __init__(self, uri: str) -> None:
        self._uri, self._at = uri, 0
        self.failed: SegrayError | None = None
        head = s3.request("head_object", **_key(uri))
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
            with _one_line(self._uri, "read"):
                data = _get_s3(self._uri, Range=f"bytes={start}-{end - 1}", IfMatch=self._etag)
        except StorageError as error:
            replaced = InputChanged(printable(f"{self._uri} was replaced while it was read."))
            self.failed = replaced if s3.http_status(error) == 412 else error
            raise self.failed from error.__cause__
        self._at = end
        return data


def temporary_beside(target: Path) -> Path:
    """A name that no other attempt takes; of a long one the beginning, as a name has 255 bytes at most."""
    return target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex}.tmp")


def _write_beside(target: Path, data: bytes) -> Path:
    """A synced temporary file in the target's folder, of a name of its own, which is not a .parquet's."""
    with _one_line(str(target), "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(target)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary


def _create_local(target: Path, data: bytes) -> bool:
    if os.path.lexists(target):
        return False
    temporary = _write_beside(target, data)
    try:
        with _one_line(str(target), "created exclusively"):
            if not _link(temporary, target):
                return False
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _link(temporary: Path, target: Path) -> bool:
    """Give a file its name, or leave it and say False when the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        # NFS may link, lose the answer, ask again and find its own link: link(2), BUGS.
        return temporary.stat().st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _rename_new(temporary, target)
    return True


def _rename_new(temporary: Path, target: Path) -> bool:
    """renameat2() with RENAME_NOREPLACE, for file systems without hard links, as on FAT and some network disks."""
    here, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE: fcntl.h, stdio.h
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename and rename(here, os.fsencode(temporary), here, os.fsencode(target), no_replace) == 0:
        return True
    code = ctypes.get_errno() if rename else errno.ENOSYS
    if code == errno.EEXIST:
        return False
    raise OSError(code, f"no hard links here, and renameat2() says {os.strerror(code)}; choose another disk")


def _put_s3(uri: str, data: bytes) -> None:
    """In one request, or as a multipart upload, which is seen when it is complete."""
    key = _key(uri)
    if len(data) <= UPLOAD_PART_BYTES:
        s3.request("put_object", **key, Body=data)
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
        with suppress(*s3.FAILURES):  # what was sent is paid for until it is aborted
            s3.request("abort_multipart_upload", **upload)
        raise


def _create_s3(uri: str, data: bytes) -> bool:
    token = uuid.uuid4().hex
    with _one_line(uri, "created"):
        try:
            s3.request("put_object", **_key(uri), Body=data, IfNoneMatch="*", Metadata={TOKEN: token})
        except s3.FAILURES as error:
            if s3.http_status(error) != 412:
                raise
            # A PUT that was carried out and whose answer was lost is refused when it is sent again: it is ours.
            return bool(s3.request("head_object", **_key(uri))["Metadata"].get(TOKEN) == token)
    return True
