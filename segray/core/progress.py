"""Progress of long work, in one shape: how many more are done, and of how many in all where that is known."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], None]


def untold(more: int, total: int | None) -> None:
    """Ignore the progress."""
