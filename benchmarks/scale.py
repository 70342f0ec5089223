"""What labelling costs beside the model as frames and actors grow: the driver, a resume, the end of a run.

    python -m benchmarks.scale driver --shards 1000,10000 --actors 1,2,4
    python -m benchmarks.scale resume --parts 1000,10000,20000
    python -m benchmarks.scale tail --actors 10,50,200

driver   Ray Data over shards that are done at once, in the pool that `segray label` has: receipts a second, seconds to
         the first, memory of the driver before and at most. A run cannot finish more shards a second than this.
resume   an output on a disk with as many parts as named: seconds to find what is done, and memory; and the requests
         that the listing takes on S3, of 1000 keys each
tail     computed, not run: actors take the next shard as they finish one, a shard's seconds are its rows at
         --rate with a lognormal spread; the share of the last minute's actor time in which they have none left

Planning is `python -m benchmarks.label plan`.
"""

from __future__ import annotations

import heapq
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.label import make_tree, settings_of
from benchmarks.measure import memory_mib, print_machine
from segray.cli import main
from segray.cli.terminal import table

MINUTE_S = 60.0
SPREAD = 0.25  # standard deviation of the logarithm of a shard's seconds


@click.group()
def scale() -> None:
    """Growth of what is not the model."""


# --- the driver ------------------------------------------------------------------------------------------


class Nothing:
    """A labeller that is done with a shard as soon as it has it."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        receipt = {"shard": int(batch["shard"][0]), "rows": 64, "errors": 0, "created": True, "seconds": {}}
        return {"receipt": [json.dumps(receipt)]}


@scale.command()
@click.option("--shards", default="1000,10000", show_default=True)
@click.option("--actors", default="1,2,4", show_default=True)
def driver(shards: str, actors: str) -> None:
    """Receipts a second of Ray Data and the driver."""
    print_machine()
    rows = []
    for count in map(int, shards.split(",")):
        for workers in map(int, actors.split(",")):
            command = [sys.executable, "-m", "benchmarks.scale", "driver-once", str(count), str(workers)]
            rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    columns = ("shards", "actors", "first after, s", "receipts/s", "MiB before", "MiB at most")
    table("Shards that are done at once, a fresh Ray each", columns, rows)


@scale.command(hidden=True)
@click.argument("shards", type=int)
@click.argument("actors", type=int)
def driver_once(shards: int, actors: int) -> None:
    from segray.cluster import connect
    from segray.cluster.resources import WorkerShape
    from segray.config import ClusterSection
    from segray.stages.label import spread

    with connect.connected(ClusterSection()):
        before_mib, started, at = memory_mib()[0], time.perf_counter(), []
        for _ in spread([(0, i) for i in range(shards)], Nothing, (), WorkerShape(actors, 0.1, 0), at_once=16):
            at.append(time.perf_counter())
        rate = (len(at) - 1) / (at[-1] - at[0])
        row = (shards, actors, at[0] - started, rate, before_mib, memory_mib()[1])
    sys.stdout.write(json.dumps([round(value, 1) for value in row]))


# --- a resume --------------------------------------------------------------------------------------------


@scale.command()
@click.option("--parts", default="1000,5000,20000", show_default=True)
def resume(parts: str) -> None:
    """Seconds to find what is done, of outputs with so many parts."""
    print_machine()
    rows = []
    for count in map(int, parts.split(",")):
        with tempfile.TemporaryDirectory(prefix="segray-scale-") as folder:
            told = settings_of(Path(folder), "null", make_tree(Path(folder) / "frames", count), 1)
            command = [sys.executable, "-m", "benchmarks.scale", "resume-once", json.dumps(told)]
            rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    columns = ("parts", "plans, s", "listing, s", "MiB before", "MiB at most", "requests on S3")
    table("What a resume looks at first, a fresh process each", columns, rows)


@scale.command(hidden=True)
@click.argument("job")
def resume_once(job: str) -> None:
    from segray.core.labels.folder import LabelFolder
    from segray.core.labels.plan import load_plans
    from segray.core.labels.planning import make_plan
    from segray.core.models.info import read_info

    told = json.loads(job)
    made = make_plan(told["out"], told["settings"], read_info(told["uri"]).space)
    (Path(told["out"]) / "labels").mkdir()
    for shard in range(made.shards):
        Path(made.part_uri(shard)).touch()
    before_mib, started = memory_mib()[0], time.perf_counter()
    (plan,) = load_plans(told["out"])
    read = time.perf_counter() - started
    assert len(LabelFolder([plan]).done) == made.shards
    listed = time.perf_counter() - started - read
    pages = -(-made.shards // 1000)
    row = (made.shards, round(read, 2), round(listed, 2), before_mib, memory_mib()[1], pages)
    sys.stdout.write(json.dumps(row))


# --- the end of a run ------------------------------------------------------------------------------------


@scale.command()
@click.option("--actors", default="1,10,50,200", show_default=True)
@click.option("--rows", default="64,256,1024,4096", show_default=True, help="Rows a shard.")
@click.option("--rate", default=30.0, show_default=True, help="Frames a second of an actor.")
@click.option("--frames", default=10_000_000, show_default=True)
def tail(actors: str, rows: str, rate: float, frames: int) -> None:
    """Idle share of the last minute, and what the run is longer than its work, by actors and rows a shard."""
    found = []
    for workers in map(int, actors.split(",")):
        for size in map(int, rows.split(",")):
            ends, seconds = simulated(workers, size, rate, frames)
            idle = sum(min(MINUTE_S, ends[-1] - end) for end in ends) / (workers * MINUTE_S)
            found.append((workers, size, size / rate, f"{idle:.1%}", f"{abs(ends[-1] * workers / seconds - 1):.2%}"))
    columns = ("actors", "rows a shard", "seconds a shard", "idle in the last minute", "longer than its work")
    table(f"{frames:,} frames at {rate:g} frames/s an actor, computed", columns, found)


def simulated(workers: int, size: int, rate: float, frames: int) -> tuple[list[float], float]:
    """When each actor is done for good, in order; and the seconds of all shards together."""
    count = -(-frames // size)
    took = np.random.default_rng(0).lognormal(-(SPREAD**2) / 2, SPREAD, count) * size / rate
    ends = [0.0] * workers
    for seconds in took:
        heapq.heapreplace(ends, ends[0] + seconds)
    return sorted(ends), took.sum()


if __name__ == "__main__":
    main(scale)
