"""Files of a local disk: regular ones alone, listed by folder, created exclusively."""

from __future__ import annotations

import ctypes
import errno
import os
import stat as modes
import uuid
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from segray.core.io.failures import OWN_ERRNOS, one_line
from segray.core.io.paths import Entry, check_uri
from segray.errors import StorageError

SORTED = 100_000  # entries of a folder that are sorted in memory
NO_LINKS = frozenset({errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})


def regular_file(uri: str) -> Path:
    """Return the path of a regular file. OSError for a folder, for a pipe, which would block, or for a device."""
    path = Path(check_uri(uri))
    check_regular(path.stat())
    return path


def check_regular(info: os.stat_result) -> None:
    if modes.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not modes.S_ISREG(info.st_mode):
        raise OSError(errno.EINVAL, "It is a pipe, a socket or a device, and no file")


def walk(
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
        with one_line(top, "listed"):
            for entry in _in_order(os.scandir(top)):
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
                        yield from walk(entry.path, enter, on_odd, on_unlisted, above | {real})
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


def _in_order(entries: Iterator[os.DirEntry[str]]) -> Iterator[os.DirEntry[str]]:
    """Give a folder's entries in the order of the paths below it; of a folder with very many, piece by piece."""
    while piece := list(islice(entries, SORTED)):
        yield from sorted(piece, key=_in_paths)


def _in_paths(entry: os.DirEntry[str]) -> str:
    try:
        return f"{entry.name}/" if entry.is_dir() else entry.name
    except OSError:  # which is met again when the entry's turn comes
        return entry.name


def temporary_beside(target: Path) -> Path:
    """Choose a name that no other attempt takes; a long name is shortened, as names have 255 bytes at most."""
    return target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex}.tmp")


def write_beside(target: Path, data: bytes) -> Path:
    """Write a synced temporary file in the target's folder, with a name of its own that does not end in .parquet."""
    with one_line(str(target), "written"):
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


def create(target: Path, data: bytes) -> bool:
    if os.path.lexists(target):
        return False
    temporary = write_beside(target, data)
    try:
        with one_line(str(target), "created exclusively"):
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
    """Give a file its name, or leave it and return False when the name is taken."""
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
    """Call renameat2() with RENAME_NOREPLACE, for file systems without hard links: FAT and some network disks."""
    here, no_replace = -100, 1  # AT_FDCWD, RENAME_NOREPLACE: fcntl.h, stdio.h
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename and rename(here, os.fsencode(temporary), here, os.fsencode(target), no_replace) == 0:
        return True
    code = ctypes.get_errno() if rename else errno.ENOSYS
    if code == errno.EEXIST:
        return False
    raise OSError(code, f"no hard links here, and renameat2() says {os.strerror(code)}; choose another disk")
