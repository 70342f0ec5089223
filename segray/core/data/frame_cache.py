"""Decoded frames on each machine's own disk, shared by its processes: what one of them decoded, none decodes again.

    TMPDIR/segray-frames-KEY/lock       held by each process that uses the folder; freed by the system when it dies
    TMPDIR/segray-frames-KEY/frames     frame i at i × its whole pages, RGB and then the mask; holes take no room
    TMPDIR/segray-frames-KEY/written    a byte for each frame: 1 once it is whole

Frames are read, not mapped: the memory of a process does not grow with what it has read. They are written past the
system's own memory of files (O_DIRECT) where the disk can do so: no faster than the disk takes them, and without new
pages, which cost a virtual machine up to 15 ms of CPU for a frame of 1024×2048. What is read later fills what memory is
free.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import shutil
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from segray.core.samples import BYTES_A_PIXEL, Sample

ABANDONED_S = 600.0  # a folder that has had no lock for so long is abandoned
PREFIX = "segray-frames-"
FREE_SHARE = 0.5  # share of the disk's free space that is used where no limit is given
WAITING_BYTES = 64 << 20  # frames of a process that may wait for the disk; frames beyond it are not kept


class FrameCache:
    """Frames of one size by position, as a split's samples are. It travels to other processes as its name.

    `with cache:` in each process that reads, or nothing is kept. The last one on a machine to leave removes the folder;
    so does, at once, the process that made the cache: on Linux, those that still read go on with the open files.
    limit_bytes: of the disk; None for FREE_SHARE.
    """

    def __init__(self, count: int, size: tuple[int, int], limit_bytes: int | None = None) -> None:
        self.count, self.size, self.limit_bytes = count, size, limit_bytes
        self.key, self._maker = uuid.uuid4().hex, os.getpid()
        self._lock = self._frames = self._direct = self._written = -1
        self._slots = 0
        self._room = threading.BoundedSemaphore(max(2, WAITING_BYTES // self._bytes))

    def __reduce__(self) -> tuple[Any, ...]:
        return _travelled, (self.count, self.size, self.limit_bytes, self.key)

    @property
    def folder(self) -> Path:
        return Path(tempfile.gettempdir()) / f"{PREFIX}{self.key}"

    @property
    def _bytes(self) -> int:
        """Of a frame on the disk: whole pages, as O_DIRECT wants them."""
        return math.ceil(math.prod(self.size) * BYTES_A_PIXEL / mmap.PAGESIZE) * mmap.PAGESIZE

    def __enter__(self) -> FrameCache:
        remove_abandoned()
        self._writer = ThreadPoolExecutor(1, "frame-cache")
        try:
            self._lock = _hold(self.folder)
            limit = self.limit_bytes
            if limit is None:
                limit = int(FREE_SHARE * shutil.disk_usage(self.folder).free)
            # Positions below a limit: epochs take all of them in random order, so any part of a set serves as well.
            self._slots = min(self.count, limit // self._bytes)
            self._frames = os.open(self.folder / "frames", os.O_RDWR | os.O_CREAT, 0o600)
            self._direct = os.open(self.folder / "frames", os.O_WRONLY)
            with suppress(OSError):  # not every file system has O_DIRECT, and tmpfs has no need of it
                fcntl.fcntl(self._direct, fcntl.F_SETFL, getattr(os, "O_DIRECT", 0))
            self._buffer = np.frombuffer(mmap.mmap(-1, self._bytes), np.uint8)
            self._written = os.open(self.folder / "written", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # no such disk, or a full one: frames are decoded each time
            self._close()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._slots = 0
        self._writer.shutdown(cancel_futures=True)
        if self._lock >= 0 and (self._maker == os.getpid() or _is_last(self._lock)):
            _remove(self.folder)
        self._close()

    def _close(self) -> None:
        for opened in (self._lock, self._frames, self._direct, self._written):
            if opened >= 0:
                os.close(opened)
        self._lock = self._frames = self._direct = self._written = -1
        self._slots = 0

    def read_into(self, index: int, image_hwc: np.ndarray, mask_hw: np.ndarray) -> bool:
        """Copy a frame from the disk to the arrays, each in one piece. False where it is not there."""
        if index >= self._slots:
            return False
        try:
            if os.pread(self._written, 1, index) != b"\1":
                return False
            read = os.preadv(self._frames, [image_hwc.data, mask_hw.data], index * self._bytes)
            return read == image_hwc.size + mask_hw.size
        except OSError:
            return False

    def read(self, index: int) -> Sample | None:
        if index >= self._slots:
            return None
        sample = Sample(np.empty((*self.size, 3), np.uint8), np.empty(self.size, np.uint8))
        return sample if self.read_into(index, *sample) else None

    def write(self, index: int, sample: Sample) -> None:
        """Write a frame in the background, unless too many are waiting for the disk: then it may be kept next time."""
        if index < self._slots and self._room.acquire(blocking=False):
            self._writer.submit(self._write, index, sample).add_done_callback(lambda _: self._room.release())

    def _write(self, index: int, sample: Sample) -> None:
        image_hwc, mask_hw = sample
        self._buffer[: image_hwc.size].reshape(image_hwc.shape)[:] = image_hwc
        self._buffer[image_hwc.size :][: mask_hw.size].reshape(mask_hw.shape)[:] = mask_hw
        try:
            if self._pwrite(index * self._bytes) == self._bytes:
                os.pwrite(self._written, b"\1", index)
        except OSError:  # a full disk: what is there stays, and nothing more is tried
            self._slots = 0

    def _pwrite(self, offset: int) -> int:
        try:
            return os.pwrite(self._direct, self._buffer.data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        fcntl.fcntl(self._direct, fcntl.F_SETFL, 0)  # some file systems take the flag, and then refuse to write so
        return os.pwrite(self._direct, self._buffer.data, offset)


def _travelled(count: int, size: tuple[int, int], limit_bytes: int | None, key: str) -> FrameCache:
    """Rebuild a cache in a process that did not make it."""
    cache = FrameCache(count, size, limit_bytes)
    cache.key, cache._maker = key, -1
    return cache


def remove_abandoned() -> None:
    """Remove folders of which no process holds the lock: their processes were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else's, or gone by now
            try:
                lock = os.open(folder / "lock", os.O_RDWR)
            except FileNotFoundError:  # just made, or left by who was killed while it removed the folder
                if time.time() - folder.stat().st_mtime > ABANDONED_S:
                    _remove(folder)
                continue
            try:
                if _is_last(lock):
                    _remove(folder)
            finally:
                os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: whoever enters meanwhile finds no old marks beside new, empty frames."""
    with suppress(OSError):
        for name in ("written", "frames", "lock"):
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _hold(folder: Path) -> int:
    """Take a shared lock on the folder. A folder that is removed at that moment is made again."""
    while True:
        folder.mkdir(0o700, exist_ok=True)
        with suppress(FileNotFoundError):
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if os.path.samestat(os.fstat(lock), (folder / "lock").stat()):
                    return lock
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def _is_last(lock: int) -> bool:
    """Release the shared lock, and take it exclusively if nobody else holds it."""
    fcntl.flock(lock, fcntl.LOCK_UN)  # released first: otherwise, of two that leave at once, neither would be the last
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
