"""A model in a process of its own, row by row: an input that ends the process costs its own row alone.

Slow, and so only for shards whose actor died. The child is a program and no fork, as a fork of a process with
threads can hang; row and answer are pickled through a pipe that both ends of this module own.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from segray.core.frames import Clock
from segray.core.plan import Plan, Row
from segray.core.predictor import Predictor
from segray.core.rows import Labelled, label_rows, lost_row
from segray.errors import ModelError

TIMEOUT_S = 300.0  # for one row: a decoder that hangs is ended too


class Careful:
    """What label_shard calls instead of label_rows. options: Predictor's arguments by name."""

    def __init__(self, threads: int, **options: Any) -> None:
        self.threads, self.options = threads, options
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection
        self._lock = threading.Lock()

    def __call__(self, plan: Plan, rows: list[Row], clock: Clock) -> Labelled:
        done, confusion = [], _nothing(plan)
        for row in rows:
            with self._lock, clock("model"):
                one = self._label(plan, row)
            done += one.rows
            confusion += one.confusion
        return Labelled(done, confusion)

    def close(self) -> None:
        if self._child is not None:
            self._pipe.close()
            self._child.kill()
            self._child.wait()
            self._child = None

    def _label(self, plan: Plan, row: Row) -> Labelled:
        if self._child is None:
            self._start()
        try:
            self._pipe.send((plan, row))
            if self._pipe.poll(TIMEOUT_S):
                return self._pipe.recv()
            code, what = "worker_timeout", f"took more than {TIMEOUT_S:.0f} s"
        except (EOFError, OSError):
            ended = self._child.wait()
            how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
            code, what = "worker_crash", f"ended the process that labelled it ({how})"
        self.close()
        message = f"{row['uri']} {what}; look at the file, and at the machine's memory."
        return Labelled([lost_row(plan, row, code, message)], _nothing(plan))

    def _start(self) -> None:
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        self._child = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self._pipe.send((self.threads, self.options))
        try:
            self._pipe.recv()
        except EOFError:
            self.close()
            raise ModelError(
                f"{self.options['uri']} cannot be loaded in a process of its own, after labelling processes died; "
                "there may be too little memory."
            ) from None


def _nothing(plan: Plan) -> np.ndarray:
    return np.zeros((plan.label_space.num_classes,) * 2, np.int64)


def serve(pipe: Connection) -> None:
    """The child: load the model, then answer each row, until the pipe is closed."""
    import torch

    threads, options = pipe.recv()
    torch.set_num_threads(threads)
    predictor = Predictor(**options)
    pipe.send("ready")
    while True:
        try:
            plan, row = pipe.recv()
        except EOFError:
            return
        pipe.send(label_rows(plan, [row], Clock(), predictor, batch_size=1))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
