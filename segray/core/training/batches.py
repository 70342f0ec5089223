"""Samples → batches on the device, read ahead by threads."""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from segray.core.data import FileSamples
from segray.core.prefetch import ahead
from segray.core.samples import Samples

BATCHES_AHEAD = 2
LEAST_THREADS = 2
MALLOC = {-3: 32 << 20, -1: 64 << 20}  # malloc.h: M_MMAP_THRESHOLD, at its maximum, and M_TRIM_THRESHOLD


def read_batches(
    samples: Samples, size: tuple[int, int], steps: Iterable[Sequence[int]], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield uint8 images [B, *size, 3] and masks [B, *size] of each step's positions, on the device.

    There are as many reading threads as this process has CPUs: decoders and disk reads release Python's lock, and
    nothing is copied between processes. The number of threads changes neither pixels nor their order. Batches are
    copied to a GPU from pinned memory, on a separate stream.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def read(step: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        shapes = (len(step), *size, 3), (len(step), *size)
        if stream is None:
            images, masks = map(memory.empty, shapes)
        else:  # PyTorch uses pinned memory again
            images, masks = (torch.empty(shape, dtype=torch.uint8, pin_memory=True) for shape in shapes)
        targets = zip(step, images.numpy(), masks.numpy(), strict=True)
        for done in [frames.submit(_read, samples, i, image_hwc, mask_hw) for i, image_hwc, mask_hw in targets]:
            done.result()
        if stream is not None:
            with torch.cuda.stream(stream):
                images, masks = (whole.to(device, non_blocking=True) for whole in (images, masks))
            stream.synchronize()
        return images, masks

    _reuse_memory()
    memory = Memory()
    frames = ThreadPoolExecutor(max(LEAST_THREADS, torch.get_num_threads()))
    batches = ThreadPoolExecutor(BATCHES_AHEAD)
    try:
        for images, masks in ahead(batches, read, steps, BATCHES_AHEAD):
            if stream is not None:
                for whole in (images, masks):
                    whole.record_stream(torch.cuda.current_stream(device))
            yield images, masks
    finally:  # after an error or Ctrl-C, wait only for what has begun
        batches.shutdown(wait=False, cancel_futures=True)
        frames.shutdown(cancel_futures=True)
        batches.shutdown()


class Memory:
    """Memory of batches, used again once nothing refers to the batch.

    Otherwise the system takes it back and fills each page with zeros again: for a frame of 1024×2048 1 ms of CPU, and
    15 in a virtual machine whose host has taken it back as well.
    """

    def __init__(self) -> None:
        self._free: defaultdict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)

    def empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return uint8 of any content."""
        free = self._free[shape]
        try:
            whole = free.pop()
        except IndexError:
            whole = np.empty(shape, np.uint8)  # in huge pages, which NumPy asks for and PyTorch does not
        lent = whole[:]  # which the tensor holds until the last tensor that shares its memory is gone
        weakref.finalize(lent, free.append, whole).atexit = False
        return torch.from_numpy(lent)


def _reuse_memory() -> None:
    """Make glibc keep up to 64 MiB that a thread frees, for the next frame.

    Otherwise glibc returns the memory, and the system fills each page with zeros again: 12 of 31 ms of CPU for a JPEG
    of 1024×2048.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # other C libraries lack it
        for option, value in MALLOC.items():
            mallopt(option, value)


def _read(samples: Samples, index: int, image_hwc: np.ndarray, mask_hw: np.ndarray) -> None:
    """Copy a sample into these arrays."""
    if isinstance(samples, FileSamples):
        samples.read_into(index, image_hwc, mask_hw)
    else:
        image_hwc[:], mask_hw[:] = samples[index]
