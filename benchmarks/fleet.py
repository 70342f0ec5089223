"""Label a million frames on nodes that come and go: every input has one row at the end, or this fails.

    python -m benchmarks.fleet --frames 1000000

Three raylets on this machine, with eight processors by what they say, hold as many labelling processes as
`label.actors` asks for. After a third of the frames one raylet is killed, and after half of them another one joins.
Frames are a few drawn ones of 48×64 under many names, and the model is one of a millisecond, so that what is
seen is planning, Ray, the driver and the parts.
"""

from __future__ import annotations

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click

from benchmarks.label import bundle_of, write_images
from benchmarks.measure import memory_mib, print_machine
from segray.cli import main
from segray.cli.terminal import say, table
from segray.config import Config, load
from segray.core.labels.parts import Receipt
from segray.core.labels.totals import Summary

NODES, NEW = (3, 3, 2), 3  # processors of each raylet
A_FOLDER = 10_000
KILLED_AT, ADDED_AT = 1 / 3, 1 / 2  # of the rows
TELL_EVERY_S = 60.0


@click.command()
@click.option("--frames", default=100_000, show_default=True)
def fleet(frames: int) -> None:
    """Rows, speed and the driver's memory of a run that loses a node and gets another."""
    print_machine()
    with tempfile.TemporaryDirectory(prefix="segray-fleet-", dir="/tmp") as folder:  # short, as sockets' paths must be
        os.environ |= {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
        root = Path(folder)
        for start in range(0, frames, A_FOLDER):
            names = (f"drive{start // A_FOLDER:04}/{i:05}.jpg" for i in range(min(A_FOLDER, frames - start)))
            write_images([root / "frames" / name for name in names], (48, 64))
        show(frames, root)


def show(frames: int, root: Path) -> None:
    from segray.core.labels import parts
    from segray.core.labels.plan import load_plans

    out = str(root / "labels")
    given = {"label.model": bundle_of(root, "null", (32, 32))["model"], "label.inputs": [str(root / "frames")]}
    config = load(None, given | {"label.out": out, "label.actors": sum(NODES), "cluster.gpu": False})
    watch, started, before_s, before_mib = Watch(frames), time.perf_counter(), time.process_time(), memory_mib()[0]
    summary = label_on(config, watch)
    wall_s, cpu_s, most_mib = time.perf_counter() - started, time.process_time() - before_s, memory_mib()[1]
    found = (summary["rows"], summary["ok"], distinct(f"{out}/labels"))
    damaged = parts.verify(load_plans(out))
    columns = ("frames", "rows", "without error", "distinct inputs", "parts", "damaged", "minutes", "frames/s")
    row = (frames, *found, watch.parts, len(damaged), f"{wall_s / 60:.1f}", f"{frames / wall_s:.0f}")
    driver = (f"{cpu_s:.0f}", *(f"{mib:.0f}" for mib in (before_mib, most_mib)))
    table("One node killed, one added", (*columns, "driver's CPU s", "MiB before", "MiB at most"), [(*row, *driver)])
    if found != (frames,) * 3 or damaged:
        raise click.ClickException("An input has no row, or several.")


def distinct(folder: str) -> int:
    """Count the inputs that have a row."""
    from pyarrow import compute, dataset

    return len(compute.unique(dataset.dataset(folder, format="parquet").to_table(["uri"])["uri"]))


class Watch:
    """Print what a run says, and its rows once a minute."""

    def __init__(self, frames: int) -> None:
        self.frames, self.rows, self.parts, self._told = frames, 0, 0, time.monotonic()

    def found(self, files: int) -> None: ...

    def planned(self, rows: int) -> None: ...

    def there(self, rows: int) -> None: ...

    def done(self, receipt: Receipt) -> None:
        self.rows, self.parts = self.rows + receipt.rows, self.parts + 1
        if time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            self.note(f"{self.rows:,} rows")

    def note(self, text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')}  {text}")


def label_on(config: Config, watch: Watch) -> Summary:
    """Label on a cluster, of which a node is killed and to which one is added meanwhile."""
    import ray
    from ray.cluster_utils import Cluster

    from segray.cluster.connect import QUIET
    from segray.stages.label import label

    os.environ |= QUIET
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=cpus) for cpus in NODES]
    ray.init(cluster.address, log_to_driver=False)
    changes = [
        (KILLED_AT, lambda: cluster.remove_node(nodes[0], allow_graceful=False), "A node is killed."),
        (ADDED_AT, lambda: cluster.add_node(num_cpus=NEW), "A node is added."),
    ]
    with ThreadPoolExecutor(1) as pool:  # a node can be added by the main thread alone, as it sets a signal's handler
        running = pool.submit(label, config, watch=watch)
        while not running.done():
            time.sleep(0.2)
            if changes and watch.rows > changes[0][0] * watch.frames:
                _, change, text = changes.pop(0)
                change()
                watch.note(text)
    ray.shutdown()
    cluster.shutdown()
    return running.result()


if __name__ == "__main__":
    main(fleet)
