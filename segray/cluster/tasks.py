"""A map whose calls run as tasks: in the nodes of a cluster, in processes of this machine, or one by one right here."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol

from segray.cluster import connect
from segray.cluster.access import check_places
from segray.core.prefetch import ahead
from segray.errors import ClusterError
from segray.sections.labelling import ClusterSection

EACH = 2  # tasks for each processor that are given at once: one runs, and one waits


class Map(Protocol):
    """Call `work` for each item, several at once; give the results in order."""

    def __call__(self, work: Callable[[Any], Any], items: Iterable[Any], /) -> Iterable[Any]: ...


@contextmanager
def spread(
    config: ClusterSection, places: Iterable[str], written: Iterable[str] = (), *, is_little: bool = False
) -> Iterator[Map]:
    """Give a map over the cluster that is named, or else over the processors of this machine.

    places: what the tasks read. written: files beside which they write. is_little: the work is done before processes
    would have started.
    """
    if connect.is_named(config):
        with connect.connected(config) as has:
            check_places(places, written)
            yield lambda work, items: _over_cluster(work, items, EACH * max(1, has.cpus))
    elif is_little:
        yield map
    else:
        processes = os.cpu_count() or 1
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:  # threads of ours are not forked
            yield lambda work, items: _over_processes(pool, work, items, EACH * processes)


def _over_cluster(work: Callable[[Any], Any], items: Iterable[Any], at_once: int) -> Iterator[Any]:
    import ray

    def call(item: Any) -> Any:  # Ray takes functions alone, and work may be a partial one
        return work(item)

    task, waiting = ray.remote(num_cpus=1)(call), deque[Any]()
    try:
        for item in items:
            waiting.append(task.remote(item))
            if len(waiting) > at_once:
                yield ray.get(waiting.popleft())
        while waiting:
            yield ray.get(waiting.popleft())
    except ray.exceptions.RayError as error:
        raise connect.explain(error) from error


def _over_processes(
    pool: ProcessPoolExecutor, work: Callable[[Any], Any], items: Iterable[Any], at_once: int
) -> Iterator[Any]:
    try:
        yield from ahead(pool, work, items, at_once)
    except BrokenProcessPool as error:
        raise ClusterError("A process of this machine died, perhaps of too little memory; run it again.") from error
