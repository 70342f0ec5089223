"""A file that hangs whoever opens it."""

import fcntl
import os
import signal
import threading
from contextlib import contextmanager, suppress


@contextmanager
def leased(path):
    """Keep a lease on a file: whoever opens it waits for 45 s, or until the block ends (fcntl(2), lease-break-time)."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the kernel asks for the lease
    held, over = os.open(path, os.O_RDWR), threading.Event()

    def take():
        with suppress(BlockingIOError):  # somebody waits, or has waited for 45 s and reads now
            fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            if fcntl.fcntl(held, fcntl.F_GETLEASE) != fcntl.F_WRLCK:  # what is left of a lease that was broken
                fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                fcntl.fcntl(held, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def keep():
        while not over.wait(0.05):
            take()

    take()
    keeper = threading.Thread(target=keep)
    keeper.start()
    try:
        yield path
    finally:
        over.set()
        keeper.join()
        os.close(held)
        signal.signal(signal.SIGIO, before)
