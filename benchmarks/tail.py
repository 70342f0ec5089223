"""A fleet of labelling processes and the shards of a plan → the seconds of the run, computed event by event.

A process works on `at_once` shards at a time, a thread each, and `queue` more wait at it, as Ray Data assigns them
ahead. A thread is no faster when its neighbours have no shard left, which is so where decoding on processors is the
limit; where a GPU is, the end of a run is shorter than computed here.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from segray.core.labels.planning import SHARD_ROWS, shard_rows

SPREAD = 0.25  # standard deviation of the logarithm of a shard's seconds
PER_NODE = 8  # processes that are lost together
BACK_S = 600.0  # until a lost node is replaced and its processes have loaded the model

Loss = tuple[float, int]  # when, and which node


@dataclass(frozen=True)
class Fleet:
    """speeds: frames/s of each process, of all its threads together."""

    speeds: tuple[float, ...]
    at_once: int
    queue: int = 1
    per_node: int = PER_NODE


def overrun(fleet: Fleet, frames: int, rows: int | None, lost_an_hour: float, seed: int) -> float:
    """Return by which share a run is longer than its work. lost_an_hour: share of the nodes."""
    chance = np.random.default_rng(seed)
    shards = shards_of(frames, rows, chance)
    return Run(fleet, shards, losses(fleet, lost_an_hour, chance)).seconds() / ideal_s(fleet, frames) - 1


def ideal_s(fleet: Fleet, frames: float) -> float:
    """Return the seconds that the frames take if every process is busy to the end and none is lost."""
    return frames / sum(fleet.speeds)


def shards_of(frames: int, rows: int | None, chance: np.random.Generator) -> list[float]:
    """Return the work in each shard, in frames of mean difficulty. rows: of each; None: as a plan of images has."""
    sizes = [rows] * -(-frames // rows) if rows else planned(frames)
    work = chance.lognormal(-(SPREAD**2) / 2, SPREAD, len(sizes)) * sizes
    return list(work * (frames / work.sum()))


def planned(frames: int) -> list[int]:
    """List the rows of the shards that a plan of so many images has."""
    sizes: list[int] = []
    done = 0
    while done < frames:
        sizes.append(min(shard_rows(done, frames, SHARD_ROWS), frames - done))
        done += sizes[-1]
    return sizes


def losses(fleet: Fleet, share_an_hour: float, chance: np.random.Generator) -> Iterator[Loss]:
    """Draw which nodes are lost when, without end."""
    nodes, now = -(-len(fleet.speeds) // fleet.per_node), 0.0
    while share_an_hour:
        now += chance.exponential(3600 / (share_an_hour * nodes))
        yield now, int(chance.integers(nodes))


class Run:
    """One run of a plan. A shard that was in work on a lost node is begun anew there when the node is back."""

    def __init__(self, fleet: Fleet, shards: list[float], lost: Iterable[Loss] = (), back_s: float = BACK_S) -> None:
        self.fleet, self.shards, self.lost, self.back_s = fleet, shards, iter(lost), back_s
        self.todo = deque(range(len(shards)))
        count = len(fleet.speeds)
        self.waiting = [deque[int]() for _ in range(count)]
        self.working = [set[int]() for _ in range(count)]
        self.lives = [0] * count  # counts a process's losses: what it would have finished before them does not count
        self.back_at = [0.0] * count
        self.events: list[tuple[float, int, int, int]] = []  # when, process, its life, shard; -1: it is back

    def seconds(self) -> float:
        """Return when the last shard is done."""
        for _ in range(self.fleet.at_once + self.fleet.queue):
            for process in range(len(self.fleet.speeds)):
                self._give(process, 0.0)
        left, now, next_loss = len(self.shards), 0.0, next(self.lost, None)
        while left:
            if next_loss and next_loss[0] <= self.events[0][0]:
                self._lose(*next_loss)
                next_loss = next(self.lost, None)
                continue
            now, process, life, shard = heapq.heappop(self.events)
            if life != self.lives[process]:
                continue
            if shard >= 0:
                self.working[process].remove(shard)
                left -= 1
                self._give(process, now)
            self._begin(process, now)
        return now

    def _give(self, process: int, now: float) -> None:
        if self.todo:
            self.waiting[process].append(self.todo.popleft())
            self._begin(process, now)

    def _begin(self, process: int, now: float) -> None:
        speed = self.fleet.speeds[process] / self.fleet.at_once
        while now >= self.back_at[process] and self.waiting[process]:
            if len(self.working[process]) == self.fleet.at_once:
                return
            shard = self.waiting[process].popleft()
            self.working[process].add(shard)
            heapq.heappush(self.events, (now + self.shards[shard] / speed, process, self.lives[process], shard))

    def _lose(self, now: float, node: int) -> None:
        first = node * self.fleet.per_node
        for process in range(first, min(first + self.fleet.per_node, len(self.lives))):
            self.waiting[process].extendleft(sorted(self.working[process], reverse=True))
            self.working[process].clear()
            self.lives[process] += 1
            self.back_at[process] = now + self.back_s
            heapq.heappush(self.events, (now + self.back_s, process, self.lives[process], -1))
