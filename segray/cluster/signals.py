"""Say at once that SIGTERM or Ctrl-C came, and hold them back while something starts in which they would be lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

said: list[str] = []  # what this process has said of its end
heard: list[int] = []  # file descriptor of stderr while Ray's start silences its own


def say_stopping() -> None:
    """Say once that this process stops, as the end of Ray, or of the files of an epoch, can take many seconds."""
    if said:
        return
    said.append("segray: stopping …")
    if heard and sys.stderr is sys.__stderr__:  # and no progress bar's, which writes to stdout
        os.write(heard[0], f"{said[0]}\n".encode())
        return
    with suppress(RuntimeError):  # the signal came amid a write to the same stream
        print(said[0], file=sys.stderr, flush=True)


@contextmanager
def held() -> Iterator[None]:
    """Hold SIGTERM and Ctrl-C back in the main thread; when the block ends, they act as they would have before it.

    An exception that a signal raises inside an import, a destructor or C++ code can be dropped, and the run goes on.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield
        return
    came: list[int] = []

    def hold(number: int, _: object) -> None:
        came.append(number)
        if before[signal.Signals(number)] is not signal.SIG_IGN:
            say_stopping()

    before = {one: handler for one in (signal.SIGINT, signal.SIGTERM) if (handler := signal.getsignal(one)) is not None}
    try:
        for one in before:
            signal.signal(one, hold)
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
        for number in came:  # the first may be ignored, as Ctrl-C is by a shell's background jobs
            signal.raise_signal(number)
