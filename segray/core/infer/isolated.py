"""A model in a process of its own, row by row: an input that ends the process costs its own row alone.

This is slow, and so only for shards whose actor died. The child is a program and not a fork, as a fork of a process
with threads can hang. Rows and answers are pickled through a pipe with both ends in this module.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from segray.core.clock import CHECK_S, Clock, Movement
from segray.core.infer.label_rows import label_rows, lost_row
from segray.core.infer.predictor import Predictor
from segray.core.labels.plan import Plan, PlanRow
from segray.core.labels.schema import Labelled
from segray.errors import ModelError, SegrayError, in_a_line

START_S = 900.0  # to import torch and load the model, on a machine that is short of both time and memory
MOVES = "moves"  # said by a child at work that makes progress
TRIES = 2  # for a row that raises an unexpected exception: the device may have been at fault


class Unfit(Exception):
    """Even a process of its own cannot label; the text says why. An error of ours that it comes from is its cause."""


class Careful:
    """The replacement for label_rows that label_shard calls. options: Predictor's arguments by name.

    timeout_s: how long a row may make no progress.
    """

    def __init__(self, threads: int, timeout_s: float, **options: Any) -> None:
        self.threads, self.timeout_s, self.options = threads, timeout_s, options
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: Connection
        self._lock = threading.Lock()

    def __call__(self, plan: Plan, rows: list[PlanRow], clock: Clock) -> Iterator[Labelled]:
        for row in rows:
            with self._lock, clock("model"):
                one = self._label(plan, row)
            yield one

    def close(self) -> None:
        if self._child is not None:
            self._pipe.close()
            self._child.kill()
            self._child.wait()
            self._child = None

    def _label(self, plan: Plan, row: PlanRow) -> Labelled:
        for _ in range(TRIES):
            answer = self._ask(plan, row)
            if isinstance(answer, Labelled):
                return answer
            self.close()
        message = f"{row['uri']} cannot be labelled ({answer}); look at the file, and at the machine's memory."
        return Labelled(lost_row(plan, row, "worker_crash", message))

    def _ask(self, plan: Plan, row: PlanRow) -> Labelled | str:
        """Return the child's row, a lost row if the child ended or hung, or the text of the exception it raised."""
        child = self._child or self._started()
        try:
            self._pipe.send((plan, row))
            while self._pipe.poll(self.timeout_s):
                answer: Labelled | str = self._received()
                if answer != MOVES:
                    return answer
            code, what = "worker_timeout", f"made no progress in {self.timeout_s:g} s"
        except (EOFError, OSError):
            ended = child.wait()
            how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
            code, what = "worker_crash", f"ended the process that labelled it ({how})"
        self.close()
        message = f"{row['uri']} {what}; look at the file, and at the machine's memory."
        return Labelled(lost_row(plan, row, code, message))

    def _received(self) -> Any:
        """Return the child's answer. Raises an error that ends the run, such as a lost store."""
        answer = self._pipe.recv()
        if isinstance(answer, SegrayError):
            self.close()
            raise answer
        return answer

    def _started(self) -> subprocess.Popen[bytes]:
        try:
            return self._start()
        except SegrayError as error:
            raise Unfit(str(error)) from error

    def _start(self) -> subprocess.Popen[bytes]:
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", __name__, str(theirs.fileno())]
        self._child = child = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        try:
            self._pipe.send((self.threads, self.timeout_s / 4, self.options))
            waited = not self._pipe.poll(START_S)
            problem = f"it did not start within {START_S:.0f} s" if waited else self._received()
        except (EOFError, OSError):  # if a child ends before it has read all that it was sent, the connection is reset
            self.close()
            raise ModelError(
                f"{self.options['uri']} cannot be loaded in a process of its own, after labelling processes died; "
                "there may be too little memory."
            ) from None
        if problem is not None:
            self.close()
            raise Unfit(problem)
        return child


def serve(pipe: Connection) -> None:
    """Run the child: load the model and try it, then answer each row, until the pipe is closed.

    An exception is sent as the answer and ends the child, as nobody knows what it broke.
    """
    import torch

    threads, tell_s, options = pipe.recv()
    torch.set_num_threads(threads)
    try:
        predictor = Predictor(**options)
        predictor.check()
        pipe.send(None)
        for plan, row in _asked(pipe):
            clock = Clock()
            with _told(pipe, clock, min(CHECK_S, tell_s)):
                (labelled,) = label_rows(plan, [row], clock, predictor, batch_size=1)
            pipe.send(labelled)
    except SegrayError as error:
        pipe.send(error)
    except Exception as error:
        pipe.send(in_a_line(error))


@contextmanager
def _told(pipe: Connection, clock: Clock, every_s: float) -> Iterator[None]:
    """Tell the parent from time to time that the clock moves, as long as it does."""
    done, movement = threading.Event(), Movement(clock, every_s)

    def tell() -> None:
        while not done.wait(every_s):
            if not movement.look():
                pipe.send(MOVES)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # or two threads would write at once


def _asked(pipe: Connection) -> Iterator[tuple[Plan, PlanRow]]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
