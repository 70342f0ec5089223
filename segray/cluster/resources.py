"""What a cluster has, what a run asks for, and whether the cluster can hold it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from segray.core.formatting import counted
from segray.errors import ClusterError
from segray.sections.labelling import ClusterSection

BUSY_S = 5.0  # work that has just ended returns its processors within this time
NEXT_STEP = (
    "Lower the number of workers, add a node to the cluster, or, where an autoscaler does, give it time: "
    "--set cluster.wait=20m."
)

log = logging.getLogger("segray")


@dataclass(frozen=True)
class Resources:
    """The resources of the connected cluster: totals, and (CPUs, GPUs) by node.

    object_store_bytes: the smallest of the nodes with CPUs.
    """

    cpus: int
    gpus: int
    object_store_bytes: int
    nodes: tuple[tuple[int, int], ...]

    def fits(self, cpus: int, gpus: float = 0) -> int:
        """Count the processes of this shape that the nodes hold at once; a process is on one node."""
        return sum(min(c // cpus, int(g / gpus) if gpus else c // cpus) for c, g in self.nodes)

    def share(self, count: int, gpus: float = 0) -> int:
        """Return the most CPUs that each of `count` processes can have."""
        most = min(self.cpus // count, max((c for c, _ in self.nodes), default=0))
        return next((cpus for cpus in range(most, 1, -1) if self.fits(cpus, gpus) >= count), 1)

    def cpus_beside(self, shape: WorkerShape) -> int:
        """Return how many CPUs of its node a process with a GPU has beside it: the fewest of all such nodes."""
        return max(1, min((c // min(int(g / shape.gpus), shape.count) for c, g in self.nodes if g), default=1))


@dataclass(frozen=True)
class WorkerShape:
    """The resources that each of `count` processes holds; gpus below 1 is a share of one GPU."""

    count: int
    cpus: int
    gpus: float

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU{'s' * (self.gpus > 1)}" if self.gpus else ""
        return f"{self.count} × {counted(self.cpus, 'CPU')}{gpus}"

    def fits(self, has: Resources) -> bool:
        return has.fits(self.cpus, self.gpus) >= self.count

    def check(self, has: Resources) -> None:
        """Raise ClusterError if the cluster can never hold the processes: Ray would wait for ever."""
        for name, asked, there in (
            ("GPU", self.gpus * self.count, has.gpus),
            ("CPU", self.cpus * self.count, has.cpus),
        ):
            if asked > there:
                without = " To do without GPUs: --set cluster.gpu=false." * (name == "GPU")
                needed = f"{asked:g} {name}{'s' * (asked != 1)}"
                raise ClusterError(f"{needed} asked, {there} in the cluster. {NEXT_STEP}{without}")
        if not self.fits(has):
            nodes = ", ".join(
                f"{counted(cpus, 'CPU')} and {counted(gpus, 'GPU')}" for cpus, gpus in sorted(set(has.nodes))
            )
            raise ClusterError(f"{self} asked, which do not fit on nodes of {nodes}. {NEXT_STEP}")

    def tell_if_busy(self) -> None:
        """Say which resources are waited for if other work holds them."""
        import ray

        asked = {"GPU": self.gpus * self.count, "CPU": self.cpus * self.count}
        end = time.monotonic() + BUSY_S
        while lacking := [name for name, count in asked.items() if count > ray.available_resources().get(name, 0)]:
            if time.monotonic() > end:
                log.warning(f"Waiting for {self}: other work on the cluster has its {lacking[0]}s.")
                return
            time.sleep(BUSY_S / 10)


def uses_gpus(config: ClusterSection, has: Resources) -> bool:
    """Say whether each process gets a GPU: as configured, else if the cluster has any. It never falls back to CPUs."""
    return has.gpus > 0 if config.gpu is None else config.gpu


def gpu_share(count: int) -> float:
    """Return the share of a GPU that each of `count` processes has.

    Ray counts in steps of 1e-4 and rounds to the nearest, so a third is rounded down.

    >>> gpu_share(2), gpu_share(3)
    (0.5, 0.3333)
    """
    return 10_000 // count / 10_000


def least(config: ClusterSection, count: int, has: Resources) -> WorkerShape:
    """Return the least that `count` processes need on this cluster."""
    return WorkerShape(max(1, count), config.cpus_per_worker or 1, int(uses_gpus(config, has)))


def shape(config: ClusterSection, has: Resources, runs_at_once: int = 1, runs_per_gpu: int = 1) -> WorkerShape:
    """Return the processes of one training run, where `runs_at_once` runs share the cluster."""
    count = max(1, config.workers)
    gpus = gpu_share(runs_per_gpu) if uses_gpus(config, has) else 0
    worker = WorkerShape(count, config.cpus_per_worker or has.share(count * runs_at_once, gpus), gpus)
    worker.check(has)
    return worker
