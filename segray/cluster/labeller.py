"""The actor that labels: a model in one of Ray's processes, and the shards that it is given.

A call answers with a line of JSON for each shard: its receipt, the reason why the run ends, or the reason why it comes
back unlabelled. A process whose device or model fails says so, and then ends, so that Ray starts another. Until then
it keeps the shards that it is given: a process that fails in milliseconds would take them from those that work.

What is whose fault is decided by kind. Of the run, and so its end: an error of ours while a shard is labelled, such as
a full or lost output store, which all processes share. Of the node, which is then left out: any error of ours that
keeps the model from loading, and AccessDenied, as credentials and mounts are a node's. Of the process, which is
started again, and of its node after FAILS times: a device that fails, and whatever else a black frame fails with, too.
Of the shard, which is labelled input by input later: all other exceptions.
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
from typing import TYPE_CHECKING, Any

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
from segray.errors import AccessDenied, ClusterError, SegrayError, in_a_line
from segray.sections.labelling import GivenLabelSection, InferSection

if TYPE_CHECKING:
    from segray.cluster.connect import NeverUp
    from segray.cluster.pool import Pool

REST_S = 10.0  # how long a failed process stays, so that it takes few shards
END_S = 1.0  # after that, so that its answers are received
HANGS = 3  # shards left in hanging threads after which a process ends, as these may keep processors busy
FAILS = 3  # failures in a row after which a node is left out

Answer = dict[str, list[str]]
Label = Callable[[Plan, list[PlanRow], Clock], Iterator[Labelled]]


@dataclass(frozen=True)
class Done:
    """A shard whose part is there. actor: the id of the actor that says so."""

    receipt: Receipt
    actor: str


@dataclass(frozen=True)
class Lost:
    """A shard that came back unlabelled. sick: its process is at fault, and the inputs are not.

    kind: the class of an error of ours for which the node is at fault, or "".
    actor: its id; process: its process id, as Ray starts several in turn for an actor.
    node: its address; node_id: its id, by which Ray knows it.
    """

    plan: int
    shard: int
    reason: str
    sick: bool
    kind: str
    actor: str
    process: int
    node: str
    node_id: str


class Labeller:
    """An actor of Ray Data's pool: the model, and the shards that it is given."""

    def __init__(
        self,
        register: Any,
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
        here = ray.get_runtime_context()
        self.actor, self.node_id = here.get_actor_id() or "", here.get_node_id()
        self.node, self.register = ray.util.get_node_ip_address(), register
        self.plans, self.readers, self.lock = plans, dict[int, PlanReader](), threading.Lock()
        self.out, self.counters = section.out, LabelCounters(section.out)
        self.sick: str | None = None  # the reason that ends this process
        self.kind = ""  # the class of an error of ours that is the reason
        self.ends_at: float | None = None
        self.predictor: Predictor | None = None
        self.label: Label | None = None
        self.before = threading.local()  # seconds: of the shard that the thread had before

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
            self.sick, self.kind = str(error), type(error).__name__
        except Exception as error:
            event("a process cannot label", self.out, level=logging.ERROR, reason=traceback.format_exc())
            self.sick = in_a_line(error)
        else:
            self.label = partial(label_rows, predictor=self.predictor, batch_size=self.batch_size)
            end_if_held(self.timeout_s)

    def __call__(self, batch: dict[str, Any]) -> Answer:
        """Label the shards of a row, and return a row with a line for each."""
        lines: list[str] = []
        for number, shard in zip(batch["plan"][0], batch["shard"][0], strict=True):
            lines.append(self._answer(self.plans[int(number)], int(shard), alone=not lines))
        return {"receipt": ["\n".join(lines)]}

    def _answer(self, plan: Plan, shard: int, *, alone: bool) -> str:
        with self.lock:
            self._begin(plan, shard)  # before the model is loaded, as a process may end of that
            if not (self.label or self.sick):
                self._load()
        if self.sick or self.label is None:
            return self._give_back(plan, shard, wait=alone)
        started = time.monotonic()
        try:
            return self._label_shard(plan, shard, self.label, alone=alone)
        finally:
            self.before.seconds = time.monotonic() - started

    def _label_shard(self, plan: Plan, shard: int, label: Label, *, alone: bool) -> str:
        about: dict[str, Any] = {"run": self.out, "plan": plan.plan_id[:8], "shard": shard}
        event("shard begun", **about)  # the last line of a process that dies names the shard it was working on
        try:
            clock = Clock()
            work = partial(parts.label_shard, plan, self._rows(plan, shard), shard, label, clock)
            receipt = work() if self.careful else within(self.timeout_s, clock, work)
        except AccessDenied as error:
            event("shard failed", **about, level=logging.ERROR, reason=str(error))
            self.sick, self.kind = str(error), type(error).__name__
            return self._give_back(plan, shard, wait=alone)
        except SegrayError as error:  # a full disk or a lost store ends the run; input that fails becomes a row
            event("shard failed", **about, level=logging.ERROR, reason=str(error))
            return _failure(error)
        except Standstill as error:
            event("shard hangs", **about, level=logging.ERROR, reason=str(error), stage=error.stage)
            return self._leave(plan, shard, error, wait=alone)
        except Exception as error:
            event("shard failed", **about, level=logging.ERROR, reason=traceback.format_exc())
            if not self._is_sick(error):
                return self._lost(plan, shard, in_a_line(error), sick=False)
            ours = error.__cause__ if isinstance(error, Unfit) else None
            self.sick, self.kind = (str(ours), type(ours).__name__) if ours else (in_a_line(error), "")
            return self._give_back(plan, shard, wait=alone)
        self.counters.add(receipt)
        text = "shard labelled" if receipt.created else "shard was there"
        seconds = {stage: round(value, 4) for stage, value in receipt.seconds.items()}
        event(text, **about, rows=receipt.rows, errors=receipt.errors, seconds=seconds)
        return done(receipt, self.actor)

    def _begin(self, plan: Plan, shard: int) -> None:
        import ray

        process, thread, before_s = os.getpid(), threading.get_ident(), getattr(self.before, "seconds", 0.0)
        told = self.register.begin.remote(self.actor, process, thread, self.node_id, before_s, (plan.number, shard))
        ray.get(told)  # not only sent: a process that ends at once would leave no trace

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

    def _leave(self, plan: Plan, shard: int, error: Standstill, *, wait: bool) -> str:
        """Return a shard whose thread hangs. The process ends if its model does, and when it has several of them."""
        reason = f"{error} of {error.stage}"
        with self.lock:
            self.hangs += 1
            if error.stage == "model" or self.hangs == HANGS:
                self.sick = self.sick or reason
        if error.stage == "model":
            return self._give_back(plan, shard, wait=wait)
        return self._lost(plan, shard, reason, sick=False)

    def _give_back(self, plan: Plan, shard: int, *, wait: bool) -> str:
        """Return the first shard at once, so that the failure is known, and others when the process is about to end."""
        with self.lock:
            first = self.ends_at is None
            if self.ends_at is None:
                self.ends_at = time.monotonic() + REST_S
                end = threading.Timer(REST_S + END_S, self._end)
                end.daemon = True
                end.start()
        if wait and not first:
            left = self.ends_at - time.monotonic()
            time.sleep(left if left > 0 else REST_S)  # later shards are tried again by Ray's next process
        return self._lost(plan, shard, self.sick or "", sick=True)

    def _end(self) -> None:
        os._exit(1)  # Ray would not restart an actor that exits by itself

    def _lost(self, plan: Plan, shard: int, reason: str, *, sick: bool) -> str:
        kind, process = self.kind if sick else "", os.getpid()
        lost = Lost(plan.number, shard, reason, sick, kind, self.actor, process, self.node, self.node_id)
        return json.dumps({"lost": asdict(lost)})


def done(receipt: Receipt, actor: str) -> str:
    return json.dumps({"done": asdict(receipt), "actor": actor})


def _failure(error: SegrayError) -> str:
    """Return the error that ends the run, as JSON in place of a receipt."""
    return json.dumps({"failure": str(error), "kind": type(error).__name__})


def read_answer(line: str) -> Done | Lost:
    """Read the answer for a shard. Raises the error that ends the run."""
    answer = json.loads(line)
    if "failure" in answer:
        raise getattr(errors, answer["kind"])(answer["failure"])
    return Lost(**answer["lost"]) if "lost" in answer else Done(Receipt(**answer["done"]), answer["actor"])


class Sickness:
    """Failing processes and nodes, as the driver hears of them.

    It says each reason once, and leaves a node out when processes failed there FAILS times in a row and no other works
    there, or when an error of ours says that the node is at fault. The run ends when no node is left.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._said = say, set[tuple[str, str]]()
        # by node and actor, the processes that failed since the actor labelled a shard
        self._failed: defaultdict[str, defaultdict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        self.left_out = frozenset[str]()  # ids of nodes
        self._down = 0  # nodes on which no process was up, since a shard was labelled
        self.last = ""  # the last reason heard

    def labelled(self, actor: str) -> None:
        self._down = 0
        for failed in self._failed.values():
            failed.pop(actor, None)

    def lost(self, lost: Lost, pool: Pool) -> bool:
        """Say new reasons; return whether the pool should start again, without the nodes that are left out.

        That is when a node that is left out gives back more: by then, others that fail as it does have said so.
        Raises the node's error, or ClusterError, when all nodes are left out.
        """
        self.last = lost.reason
        if lost.node_id in self.left_out:
            return True
        if (lost.node, lost.reason) not in self._said and not lost.kind:
            self._said.add((lost.node, lost.reason))
            failed = f"failed on {lost.node} ({lost.reason})."
            self._say(
                f"A labelling process {failed} It is started again; its shards go to others."
                if lost.sick
                else f"Shard {lost.shard} {failed} Its inputs are labelled one by one later."
            )
        if lost.sick and (lost.kind or self._all_failed(lost, pool)):
            self._leave_out(lost, pool)
        return False

    def _all_failed(self, lost: Lost, pool: Pool) -> bool:
        failed = self._failed[lost.node_id]
        failed[lost.actor].add(lost.process)
        return sum(map(len, failed.values())) >= FAILS and pool.actors_on(lost.node_id) <= failed.keys()

    def never_up(self, error: NeverUp, pool: Pool) -> None:
        """Leave out the node; the pool should start again. Raises the error when all nodes, or many, are like it."""
        self._down += 1
        self.left_out |= pool.nodes_at(error.node) or {error.node.replace(":", "-")}  # one that is gone has no id
        if self._down > FAILS or not self._others_go_on(error.node, str(error), pool):
            raise error

    def _others_go_on(self, node: str, reason: str, pool: Pool) -> bool:
        """Say that a node is left out, if there are others."""
        if others := bool(pool.nodes() - self.left_out):
            why = reason.rstrip(".")
            self._say(f"Node {node} is left out for the rest of this run ({why}). The others go on.")
        return others

    def _leave_out(self, lost: Lost, pool: Pool) -> None:
        self.left_out |= {lost.node_id}
        if self._others_go_on(lost.node, lost.reason, pool):
            return
        if lost.kind:
            error: SegrayError = getattr(errors, lost.kind)(lost.reason)
            raise error
        raise ClusterError(
            f"Labelling processes failed {FAILS} times in a row on every node, the last on {lost.node} ({lost.reason})."
            " Look at that machine's GPU, and at Ray's logs for the traceback. Then the same command resumes."
        )
