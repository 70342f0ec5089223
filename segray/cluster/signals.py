"""Hold SIGTERM and Ctrl-C back while something starts in which they would be lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back in the main thread; when the block ends, they act as they would have before it.

    An exception that a signal raises inside an import, a destructor or C++ code can be dropped, and the run goes on.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    came: list[int] = []
    before = {one: handler for one in (signal.SIGINT, signal.SIGTERM) if (handler := signal.getsignal(one)) is not None}
    try:
        for one in before:
            signal.signal(one, lambda number, _: came.append(number))
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in came:  # the first may be ignored, as Ctrl-C is by a shell's background jobs
            signal.raise_signal(number)
