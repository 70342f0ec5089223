"""Whose is this folder? What a command asks before it writes to --out, who else is at work there, and what is tidied.

A folder is a run's by its mark, the file that says what the run is of. A run that has made nothing yet refuses nobody:
its folder goes to the next command, whatever its settings. What is no run of the same kind is never written to.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from segray.core.io import storage
from segray.errors import OutputExists, SegrayError, StorageError

TRY_FOR_S = 0.5  # a process that only asks whether a run is live holds the lock for an instant


@dataclass(frozen=True)
class Kind:
    """What a command makes of a folder.

    name: as used in messages. mark: the file that says whose the folder is. made: all that the command writes there,
    which is all that --overwrite deletes. has_results: whether a folder holds something that would be lost. is_ours:
    whether a mark is of this kind, where other kinds have a file of the same name.
    """

    name: str
    mark: str
    made: tuple[str, ...]
    has_results: Callable[[str], bool]
    is_ours: Callable[[str], bool] = lambda out: True

    def marks(self, out: str) -> bool:
        return storage.exists(storage.join(out, self.mark)) and self.is_ours(out)

    def began(self, out: str) -> bool:
        """Say whether such a run has made something in `out`, from which it can go on."""
        return self.marks(out) and self.has_results(out)


def claim(out: str, kind: Kind, overwrite: bool, changed: Callable[[], list[str]] = list) -> None:
    """Check that `out` is free for a run of this kind, or holds one with the same settings. The caller writes the mark.

    changed: the settings that differ from those of the run in `out`, as `key was a, is b`. overwrite deletes what such
    a run makes, and nothing else. OutputExists for any other folder that holds files.
    """
    if not kind.marks(out):
        check_free(out, kind.name)
    elif overwrite:
        for name in kind.made:
            storage.remove(storage.join(out, name))
    elif kind.has_results(out) and (lines := changed()):
        raise OutputExists(
            f"{out} holds {_a(kind.name)} with other settings ({'; '.join(lines)}). "
            "Give another --out, or --overwrite to begin anew."
        )


def check_free(out: str, name: str, ours: Callable[[str], bool] = lambda uri: False) -> None:
    """Raise OutputExists when a folder without a mark holds files that are not ours. ours: whether a file is known."""
    if any(not ours(entry.uri) for entry in storage.iter_files(out)):
        raise OutputExists(f"{out} holds files that are no {name}; give another --out.")


@contextmanager
def held(out: str, kind: Kind) -> Iterator[None]:
    """Hold `out` alone, before claim() is called for it; a run that fails without results leaves nothing there.

    What was in the folder before is kept, and the folder itself if it was there.
    """
    new = [] if storage.in_bucket(out) else [path for path in (Path(out), *Path(out).parents) if not path.exists()]
    with alone(out, kind.name):
        was_empty = not any(storage.iter_files(out))
        try:
            yield
        except SegrayError:
            with suppress(StorageError):  # the store itself may have failed
                if was_empty and not kind.has_results(out):
                    for name in kind.made:
                        storage.remove(storage.join(out, name))
                    with suppress(OSError):  # something else is in it
                        for path in new:
                            path.rmdir()
            raise


@contextmanager
def alone(out: str, name: str) -> Iterator[None]:
    """Lock the folder, as two runs in one would overwrite each other's checkpoints. OutputExists while another has it.

    Buckets have no locks, nor have some file systems that machines share: there the user must start only one run.
    """
    if not storage.in_bucket(out) and not storage.exists(out):
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{out} cannot be made: {storage.reason(error)}. Give another --out.") from error
    with _locked(out, fcntl.LOCK_EX, TRY_FOR_S) as free:
        if not free:
            raise OutputExists(
                f"{_a(name).capitalize()} is running in {out}{_holder(out)}; wait for its end, or give another --out."
            )
        yield


def is_live(out: str) -> bool:
    """Say whether a run holds the folder now, as far as a lock tells."""
    with _locked(out, fcntl.LOCK_SH) as free:
        return not free


@contextmanager
def _locked(folder: str, kind: int, try_for_s: float = 0.0) -> Iterator[bool]:
    """Give whether the folder could be locked. The system releases the lock when the process ends, killed or not."""
    if storage.in_bucket(folder):
        yield True
        return
    handle: int | None = None
    free, end = True, time.monotonic() + try_for_s
    try:
        with suppress(OSError):  # a file system without locks
            handle = os.open(folder, os.O_RDONLY)
            while not (free := _lock(handle, kind)) and time.monotonic() < end:
                time.sleep(0.05)
        yield free
    finally:
        if handle is not None:
            os.close(handle)


def _lock(handle: int, kind: int) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(folder: str) -> str:
    """Name the process that has locked the folder, as ' (process 4711)'; '' where Linux does not say."""
    with suppress(OSError):
        info = os.stat(folder)  # noqa: PTH116
        place = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
        for line in Path("/proc/locks").read_text().splitlines():  # 1: FLOCK ADVISORY WRITE 4711 fe:00:2237254 0 EOF
            _, how, _, access, pid, where, *_ = line.split()
            if (how, access, where) == ("FLOCK", "WRITE", place) and int(pid) > 0:
                return f" (process {pid})"
    return ""


def _a(name: str) -> str:
    return name if name.endswith("s") else f"a{'n' * name.startswith(('a', 'e', 'i', 'o'))} {name}"
