"""Shards through Ray Data: a source that streams, actors that follow the cluster, and a register of what they began.

Ray Data keeps what it is given, and looks at all of it again and again. So it is not given the shards: one task yields
them, a few hundred ahead of the actors, and the driver's work and memory do not depend on how many there are. A call of
an actor costs the driver some milliseconds, so shards that are done in less than GROUP_S share one.

This module imports Ray; import it where a Ray is needed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.context import AutoscalingConfig
from ray.data.datasource import Datasource, ReadTask
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray.cluster import connect
from segray.cluster.resources import WorkerShape

AHEAD = 500  # calls that wait for actors
GROUP_S, MOST = 1.0, 100  # the work of a call where a shard is less, and its shards at most
PACE = 50  # shards over which it is seen how long they take
POLL_S = 0.05  # between looks whether fewer wait
STUCK_S = 600.0  # after which those that wait are taken for lost
FALSE_STARTS = 10  # actors in a row that may end before they are up, as on a node that lacks something
NODE = "ray.io/node-id"  # the label that Ray gives each node

Shard = tuple[int, int]  # the number of a plan, and of a shard of it


class Register:
    """An actor that knows what the labelling processes began, as they tell it.

    Ray Data does not say which shards a process that died had in work, and which only waited for it.
    """

    def __init__(self) -> None:
        self._begun, self._ended, self._seconds = 0, 0, 0.0
        self._last: dict[tuple[str, int, int], tuple[str, Shard]] = {}  # by actor, process and thread
        self._nodes: dict[str, str] = {}  # where each actor was last

    def begin(self, actor: str, process: int, thread: int, node: str, before_s: float, shard: Shard) -> None:
        """Hear of a shard, and how long the thread worked on the one before; 0 for its first."""
        self._begun += 1
        self._ended += before_s > 0
        self._seconds += before_s
        self._last[actor, process, thread] = node, shard
        self._nodes[actor] = node

    def begun(self) -> tuple[int, int, float]:
        """Count the shards that began, those that ended, and the seconds of work on these."""
        return self._begun, self._ended, self._seconds

    def last(self) -> list[tuple[str, Shard]]:
        """List the last shard that each thread of each process began, and its node; a thread may have ended it."""
        return list(self._last.values())

    def actors_on(self, node: str) -> set[str]:
        return {actor for actor, place in self._nodes.items() if place == node}


class Shards(Datasource):
    """The shards to label, as blocks of one row: an actor's call has a block."""

    def __init__(self, todo: np.ndarray, starts: np.ndarray, register: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = partial(_rows, np.packbits(todo), starts, register)

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        return [ReadTask(self._rows, BlockMetadata(None, None, None, None))]


def _rows(packed: np.ndarray, starts: np.ndarray, register: Any) -> Iterator[pa.Table]:
    """Yield the shards whose bits are set, some in a row, each row when there are few that no actor has begun yet.

    Shards that were lost before they began never begin; if nothing moves for STUCK_S, they are not counted any more.
    """
    left = np.flatnonzero(np.unpackbits(packed))
    sent, begun, lost, each = 0, 0, 0, 1
    moved_s, paced, paced_s = time.monotonic(), 0, 0.0
    while len(left):
        while sent >= begun + lost + AHEAD * each:
            (now_begun, ended, worked_s), now_s = ray.get(register.begun.remote()), time.monotonic()
            if now_begun != begun:
                begun, moved_s = now_begun, now_s
            elif now_s - moved_s > STUCK_S:
                lost = sent - begun
            if ended - paced >= PACE:  # of those that began, a fleet's first hundreds have taken no time yet
                shard_s = max((worked_s - paced_s) / (ended - paced), GROUP_S / MOST)
                each, paced, paced_s = max(1, int(GROUP_S / shard_s)), ended, worked_s
            if sent >= begun + lost + AHEAD * each:
                time.sleep(POLL_S)
        row, left = left[:each], left[each:]
        sent += len(row)
        plans = np.searchsorted(starts, row, "right") - 1
        yield pa.table({"plan": [plans], "shard": [row - starts[plans]]})


def _answers(node: str) -> bool:
    """Say whether a node runs a task. For some 20 s after it is lost, Ray's list of nodes still has it as alive."""
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    here = ray.remote(num_cpus=0, max_retries=0)(_here).options(scheduling_strategy=there)
    try:
        ray.get(here.remote(), timeout=STUCK_S)
    except RayError:
        return False
    return True


def _here() -> None: ...


class Pool:
    """Actors for one pass over shards, each made by labeller(register, *given), with `at_once` shards in work.

    It begins with the first actor that is up. Ray Data asks for `most` of them, which an autoscaler hears; without
    that, for the `shape.count` that have room, and for more as nodes come. Those of a node that goes are started on
    another where there is room.
    todo: for each shard of all plans whether it is to be labelled; starts: the index of each plan's first one.
    without: ids of nodes on which no actor is started.
    """

    def __init__(
        self,
        todo: np.ndarray,
        starts: np.ndarray,
        labeller: type,
        given: tuple[Any, ...],
        shape: WorkerShape,
        at_once: int,
        most: int | None = None,
        without: frozenset[str] = frozenset(),
    ) -> None:
        self._todo, self._starts, self._shape, self._without = todo, starts, shape, without
        self._labeller, self._given, self._at_once = labeller, given, at_once
        shards = int(todo.sum())
        self._first, self._most = min(most or shape.count, shards), min(most or shards, shards)
        self._here = {NODE: ray.get_runtime_context().get_node_id()}
        self._register: Any = ray.remote(num_cpus=0, label_selector=self._here)(Register).remote()

    def answers(self) -> Generator[str]:
        """Yield the answer for each shard as soon as it is known; none for a shard whose process died twice.

        Raises ClusterError in one line when Ray cannot go on, NeverUp where that is for a node's processes.
        """
        found: Any = self._dataset().iter_rows()
        try:
            with closing(iter(found)) as rows:
                for row in rows:
                    yield from row["receipt"].splitlines()
        except RayError as error:
            ended = connect.explain(error)
            place = re.search(r"in its creation task, .*?\bip=([^,)\s]+)", str(error))
            raise (connect.NeverUp(str(ended), place[1]) if place else ended) from error

    def close(self) -> None:
        """End the register, which Ray Data's references would keep until this process leaves its Ray."""
        with suppress(RayError):  # the Ray is gone
            ray.kill(self._register)

    def _dataset(self) -> Any:
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.max_errored_blocks = -1  # a shard whose actor died is found by listing, and tried again
        context.execution_no_progress_timeout_s = -1  # a shard may take long
        context.max_consecutive_actor_init_deaths = FALSE_STARTS  # the first would end the run
        context.target_max_block_size = 1  # a block is a shard: larger ones would hold several
        # Grow as long as all actors have work, as one more waiting shard each shows; let none go before the end.
        context.autoscaling_config = AutoscalingConfig(1.0, 0.0)
        with ray.data.DataContext.current(context):
            source = Shards(self._todo, self._starts, self._register)
            shards = ray.data.read_datasource(source, override_num_blocks=1, num_cpus=0, label_selector=self._here)
            selector = {NODE: f"!in({','.join(sorted(self._without))})"} if self._without else None
            receipts = shards.map_batches(
                self._labeller,
                fn_constructor_args=(self._register, *self._given),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    min_size=1,
                    max_size=self._most,
                    initial_size=self._first,
                    max_concurrent_calls_per_actor=self._at_once,
                    max_tasks_in_flight_per_actor=self._at_once + 1,  # an actor that dies loses those queued for it
                    enable_true_multi_threading=True,
                ),
                num_cpus=self._shape.cpus,
                num_gpus=self._shape.gpus,
                label_selector=selector,
                max_restarts=-1,
                max_task_retries=1,  # an input that ends its actor does so at most twice
            )
        connect.hush()  # Ray Data sets its loggers up anew when a dataset is made
        return receipts

    def unfinished(self, undone: np.ndarray) -> set[Shard]:
        """Return those of the undone shards that were in work when a process died on a node that is still there.

        A shard that only waited for a process is none of them, nor one that was lost with its node.
        """
        known = self._known(self._register.last.remote())
        in_work = {(node, (plan, shard)) for node, (plan, shard) in known if undone[self._starts[plan] + shard]}
        there = {node for node in {node for node, _ in in_work} if _answers(node)}
        return {shard for node, shard in in_work if node in there}

    def actors_on(self, node: str) -> set[str]:
        """Return the ids of the actors that began a shard, their last one on this node."""
        return set(self._known(self._register.actors_on.remote(node)))

    def _known(self, answer: Any) -> Iterable[Any]:
        try:
            known: Iterable[Any] = ray.get(answer)
        except RayError:  # its process died, as of too little memory
            return []
        return known

    def nodes(self) -> set[str]:
        """Return the ids of the nodes that are there and can hold an actor."""
        return connect.nodes_for(self._shape)

    def nodes_at(self, address: str) -> set[str]:
        """Return the ids of the nodes that are there and have this address."""
        return {node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == address}
