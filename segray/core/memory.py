"""Errors of many libraries → whether memory was exhausted."""

from __future__ import annotations

# What PyTorch's allocators for CPUs, CUDA and its libraries outside PyTorch's allocator, and ONNX Runtime say: their
# errors have no class of their own.
SAID = (
    *("can't allocate memory", "not enough memory", "Failed to allocate memory"),
    *("CUDA error: out of memory", "_STATUS_ALLOC_FAILED"),
)


def is_exhausted(error: BaseException) -> bool:
    """Say whether an error is of memory that could not be allocated, of a GPU or of the machine.

    >>> is_exhausted(MemoryError()), is_exhausted(ValueError("not enough values"))
    (True, False)
    """
    # By name, as whoever asks may not have loaded PyTorch.
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(words in str(error) for words in SAID)
