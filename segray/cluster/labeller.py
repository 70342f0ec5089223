"""The actor that labels: a model in one of Ray's processes, and the shards that it is given.

A call answers with a line of JSON: a shard's receipt, the reason why the run ends, or the reason why this shard comes
back unlabelled. A process whose device or model fails says so, and then ends, so that Ray starts another. Until then
it keeps the shards that it is given: a process that fails in milliseconds would take them from those that work.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from segray import errors
from segray.cluster.telemetry import LabelCounters, event
from segray.core.clock import Clock, Standstill, end_if_held, within
from segray.core.infer.isolated import Careful, Unfit
from segray.core.infer.label_rows import label_rows
from segray.core.infer.predictor import Predictor, is_of_device
from segray.core.infer.settled import settle_precision
from segray.core.labels import parts
from segray.core.labels.parts import Receipt
from segray.core.labels.plan import Plan, PlanReader, PlanRow
from segray.core.labels.schema import Labelled
from segray.errors import ClusterError, SegrayError, in_a_line
from segray.sections.labelling import GivenLabelSection, InferSection

REST_S = 10.0  # how long a failed process stays, so that it takes few shards
END_S = 1.0  # after that, so that its answers are received
HANGS = 3  # shards left in hanging threads after which a process ends, as these may keep processors busy
FAILS = 3  # failures in a row after which a process is given up

Answer = dict[str, list[str]]


@dataclass(frozen=True)
class Lost:
    """A shard that came back unlabelled. sick: its process is at fault, and the inputs are not.

    actor: its id; process: its process id, as Ray starts several in turn for an actor. node: its address.
    """

    plan: int
    shard: int
    reason: str
    sick: bool
    actor: str
    process: int
    node: str


class Labeller:
    """An actor of Ray Data's pool: the model, and the shards that it is given."""

    def __init__(
        self,
        section: GivenLabelSection,
        infer: InferSection,
        plans: list[Plan],
        threads: int,
        device: str,
        careful: bool,
    ) -> None:
        import ray

        self.threads, self.careful, self.batch_size = threads, careful, section.batch_size
        self.timeout_s, self.hangs = section.input_timeout, 0
        self.options: dict[str, Any] = {
            "uri": section.model,
            "device": device,
            "infer": infer,
            "confidence_maps": section.confidence_maps,
        }
        self.actor, self.node = ray.get_runtime_context().get_actor_id() or "", ray.util.get_node_ip_address()
        self.plans, self.readers, self.lock = plans, dict[int, PlanReader](), threading.Lock()
        self.out, self.counters = section.out, LabelCounters(section.out)
        self.unfit: SegrayError | None = None  # the error that ends the run
        self.sick: str | None = None  # the reason that ends this process
        self.ends_at: float | None = None
        self.predictor: Predictor | None = None
        self.label: Callable[[Plan, list[PlanRow], Clock], Iterator[Labelled]] | None = None

    def _load(self) -> None:
        """Load the model with the first shard: if its constructor fails, Ray starts an actor again without end."""
        torch.set_num_threads(self.threads)
        try:
            self.options["infer"] = settle_precision(self.out, self.options["infer"], self.options["device"])
            if self.careful:
                self.label = Careful(self.threads, self.timeout_s, **self.options)
                return
            self.predictor = Predictor(**self.options)
        except SegrayError as error:  # raised here, it would be wrapped in Ray's errors
            self.unfit = error
        except Exception as error:
            event("a process cannot label", self.out, level=logging.ERROR, reason=traceback.format_exc())
            self.sick = in_a_line(error)
        else:
            self.label = partial(label_rows, predictor=self.predictor, batch_size=self.batch_size)
            end_if_held(self.timeout_s)

    def __call__(self, batch: dict[str, Any]) -> Answer:
        with self.lock:
            if not (self.label or self.unfit or self.sick):
                self._load()
        if self.unfit:
            return _failure(self.unfit)
        plan, shard = self.plans[int(batch["plan"][0])], int(batch["shard"][0])
        if self.sick or self.label is None:
            return self._give_back(plan, shard)
        about: dict[str, Any] = {"run": self.out, "plan": plan.plan_id[:8], "shard": shard}
        event("shard begun", **about)  # the last line of a process that dies names the shard it was working on
        try:
            clock = Clock()
            work = partial(parts.label_shard, plan, self._rows(plan, shard), shard, self.label, clock)
            receipt = work() if self.careful else within(self.timeout_s, clock, work)
        except SegrayError as error:  # a full disk or a lost store ends the run; input that fails becomes a row
            event("shard failed", **about, level=logging.ERROR, reason=str(error))
            return _failure(error)
        except Standstill as error:
            event("shard hangs", **about, level=logging.ERROR, reason=str(error), stage=error.stage)
            return self._leave(plan, shard, error)
        except Exception as error:
            event("shard failed", **about, level=logging.ERROR, reason=traceback.format_exc())
            if not self._is_sick(error):
                return self._lost(plan, shard, in_a_line(error), sick=False)
            self.sick = in_a_line(error)
            return self._give_back(plan, shard)
        self.counters.add(receipt)
        text = "shard labelled" if receipt.created else "shard was there"
        seconds = {stage: round(value, 4) for stage, value in receipt.seconds.items()}
        event(text, **about, rows=receipt.rows, errors=receipt.errors, seconds=seconds)
        return {"receipt": [json.dumps(asdict(receipt))]}

    def _rows(self, plan: Plan, shard: int) -> list[PlanRow]:
        with self.lock:
            if plan.number not in self.readers:
                self.readers[plan.number] = PlanReader(plan)
            return self.readers[plan.number].shard(shard)

    def _is_sick(self, error: Exception) -> bool:
        """Say whether this process is at fault, not the shard: its device failed, or a black frame fails as well."""
        if self.predictor is None:
            return isinstance(error, Unfit)
        if is_of_device(error):
            return True
        try:
            self.predictor.check()
        except Exception:
            return True
        return False

    def _leave(self, plan: Plan, shard: int, error: Standstill) -> Answer:
        """Return a shard whose thread hangs. The process ends if its model does, and when it has several of them."""
        reason = f"{error} of {error.stage}"
        with self.lock:
            self.hangs += 1
            if error.stage == "model" or self.hangs == HANGS:
                self.sick = self.sick or reason
        if error.stage == "model":
            return self._give_back(plan, shard)
        return self._lost(plan, shard, reason, sick=False)

    def _give_back(self, plan: Plan, shard: int) -> Answer:
        """Return the first shard at once, so that the failure is known, and others when the process is about to end."""
        with self.lock:
            first = self.ends_at is None
            if self.ends_at is None:
                self.ends_at = time.monotonic() + REST_S
                end = threading.Timer(REST_S + END_S, self._end)
                end.daemon = True
                end.start()
        if not first:
            left = self.ends_at - time.monotonic()
            time.sleep(left if left > 0 else REST_S)  # later shards are tried again by Ray's next process
        return self._lost(plan, shard, self.sick or "", sick=True)

    def _end(self) -> None:
        os._exit(1)  # Ray would not restart an actor that exits by itself

    def _lost(self, plan: Plan, shard: int, reason: str, *, sick: bool) -> Answer:
        lost = Lost(plan.number, shard, reason, sick, self.actor, os.getpid(), self.node)
        return {"receipt": [json.dumps({"lost": asdict(lost)})]}


def _failure(error: SegrayError) -> Answer:
    """Return the error that ends the run, as JSON in place of a receipt."""
    return {"receipt": [json.dumps({"failure": str(error), "kind": type(error).__name__})]}


def read_answer(line: str) -> Receipt | Lost:
    """Read the answer of a call. Raises the error that ends the run."""
    answer = json.loads(line)
    if "failure" in answer:
        raise getattr(errors, answer["kind"])(answer["failure"])
    return Lost(**answer["lost"]) if "lost" in answer else Receipt(**answer)


class Sickness:
    """Failed processes, as the driver hears of them: tells each reason once, ends the run when all have failed."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, set[tuple[str, str]]()
        self._failed: defaultdict[str, set[int]] = defaultdict(set)  # processes by actor, since the last labelled shard
        self.last = ""  # the last reason heard

    def labelled(self) -> None:
        self._failed.clear()

    def lost(self, lost: Lost, actors: int) -> None:
        """Say new reasons. Raises ClusterError if that many actors failed FAILS times since the last labelled shard."""
        self.last = lost.reason
        failed = f"failed on {lost.node} ({lost.reason})."
        if (lost.node, lost.reason) not in self._said:
            self._said.add((lost.node, lost.reason))
            self._say(
                f"A labelling process {failed} It is started again; its shards go to others."
                if lost.sick
                else f"Shard {lost.shard} {failed} Its inputs are labelled one by one later."
            )
        if lost.sick:
            self._failed[lost.actor].add(lost.process)
            if sum(len(processes) >= FAILS for processes in self._failed.values()) >= actors:
                raise ClusterError(
                    f"Every labelling process failed {FAILS} times in a row, the last on {lost.node} ({lost.reason}). "
                    "Look at that machine's GPU, and at Ray's logs for the traceback. Then the same command resumes."
                )
