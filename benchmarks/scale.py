"""What labelling costs beside the model as frames and actors grow: the driver, a resume, the end of a run.

    python -m benchmarks.scale driver --shards 1000,10000 --actors 1,2,4
    python -m benchmarks.scale resume --parts 1000,10000,20000
    python -m benchmarks.scale tail --rows 500,1000,20000

driver   Ray Data over shards that are done at once, in the pool that `segray label` has: seconds to the first receipt,
         receipts a second, the driver's CPU time for one, and its memory before and at most. A run cannot finish
         more shards a second than this.
resume   an output on a disk with as many parts as named: seconds to find what is done, and memory; and the requests
         that the listing takes on S3, of 1000 keys each
tail     computed by benchmarks.tail, not run: how much longer than its work a run is, by rows a shard, as actors
         that have no shard left wait for the last ones; of equal actors, of a mix, and where nodes are lost

Planning is `python -m benchmarks.label plan`.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.label import make_tree, settings_of
from benchmarks.measure import memory_mib, print_machine
from benchmarks.tail import Fleet, overrun
from segray.cli import main
from segray.cli.terminal import table
from segray.cluster.labeller import Answer, done, read_answer
from segray.core.labels.parts import Receipt

SLOW_SHARE, SLOW = 0.3, 0.4  # of a mixed fleet, as of L4 beside A10G: how many are slow, and how fast those are
LOST_AN_HOUR = 0.05  # of the nodes, as of a spot market


@click.group()
def scale() -> None:
    """Growth of what is not the model."""


# --- the driver ------------------------------------------------------------------------------------------


class Nothing:
    """A labeller that is done with a shard as soon as it has it."""

    def __init__(self, register: Any) -> None:
        self.register, self.about = register, (uuid.uuid4().hex, os.getpid())

    def __call__(self, batch: dict[str, Any]) -> Answer:
        import ray

        lines = []
        for shard in map(int, batch["shard"][0]):
            ray.get(self.register.begin.remote(*self.about, threading.get_ident(), "", 0.0, (0, shard)))
            lines.append(done(Receipt(shard, 1000, 0, created=True), self.about[0]))
        return {"receipt": ["\n".join(lines)]}


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
    cpu = ("CPU ms a receipt", "of the first tenth", "of the last")
    columns = ("shards", "actors", "first after, s", "receipts/s", *cpu, "MiB before", "MiB at most")
    table("Shards that are done at once, a fresh Ray each", columns, rows)


@scale.command(hidden=True)
@click.argument("shards", type=int)
@click.argument("actors", type=int)
def driver_once(shards: int, actors: int) -> None:
    from segray.cluster import connect
    from segray.cluster.pool import Pool
    from segray.cluster.resources import WorkerShape
    from segray.config import ClusterSection

    tenth = shards // 10
    with connect.connected(ClusterSection()):
        before_mib, started, at, cpu = memory_mib()[0], time.perf_counter(), [0.0, 0.0], []
        shape = WorkerShape(actors, 0.1, 0)  # type: ignore[arg-type]  # so that several share a processor
        pool = Pool(np.ones(shards, bool), np.zeros(1, int), Nothing, (), shape, at_once=16)
        for count, line in enumerate(pool.answers()):
            read_answer(line)
            at[min(count, 1)] = time.perf_counter()
            if count % tenth == 0 or count == shards - 1:
                cpu.append(time.process_time())
    row = [shards, actors, at[0] - started, (shards - 1) / (at[1] - at[0])]
    row += [(cpu[-1] - cpu[0]) / shards * 1e3, (cpu[1] - cpu[0]) / tenth * 1e3, (cpu[-1] - cpu[-2]) / tenth * 1e3]
    sys.stdout.write(json.dumps([round(value, 2) for value in (*row, before_mib, memory_mib()[1])]))


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
    assert not LabelFolder([plan]).missing().any()
    listed = time.perf_counter() - started - read
    pages = -(-made.shards // 1000)
    row = (made.shards, round(read, 2), round(listed, 2), before_mib, memory_mib()[1], pages)
    sys.stdout.write(json.dumps(row))


# --- the end of a run ------------------------------------------------------------------------------------


@scale.command()
@click.option(
    "--rows", default="planned,500,1000,20000", show_default=True, help="Rows a shard; planned: as of images."
)
@click.option("--actors", default=200, show_default=True)
@click.option("--frames", default=100_000_000, show_default=True)
@click.option("--at-once", default="6,10,18", show_default=True, help="Shards that an actor works on at a time.")
@click.option("--queued", default="1", show_default=True, help="Shards that wait at an actor.")
@click.option("--tries", default=5, show_default=True, help="Draws of shards and losses; the worst is shown.")
def tail(rows: str, actors: int, frames: int, at_once: str, queued: str, tries: int) -> None:
    """What a run is longer than its work, for equal actors, a mix of fast and slow ones, and lost nodes."""
    slow = round(actors * SLOW_SHARE)
    fleets = (
        ((150.0,) * actors, 0.0),
        ((150.0,) * (actors - slow) + (150.0 * SLOW,) * slow, 0.0),
        ((30.0,) * actors, LOST_AN_HOUR),
    )
    found = []
    for text, most, waiting in itertools.product(rows.split(","), at_once.split(","), queued.split(",")):
        queue, size = int(most if waiting == "at-once" else waiting), None if text == "planned" else int(text)
        over = [
            max(overrun(Fleet(speeds, int(most), queue), frames, size, lost, seed) for seed in range(tries))
            for speeds, lost in fleets
        ]
        found.append((text, int(most), queue, *(f"{share:.1%}" for share in over)))
    columns = ("rows a shard", "shards at once", "queued", "150 frames/s", "30 % at 60 frames/s", "30 frames/s, losses")
    table(f"{frames:,} frames, {actors} actors: longer than the work, computed", columns, found)


if __name__ == "__main__":
    main(scale)
