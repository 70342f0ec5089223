"""Where the training loop runs: its place among the workers, their communication, and what its device supports.

The loop knows Ray only through a Worker; RayWorker is in segray.cluster.connect.
"""

from __future__ import annotations

from collections import Counter
from typing import Protocol

import torch
import torch.distributed

from segray.config import Config
from segray.core.precision import autocast_dtype, name_of
from segray.core.training.checkpoint import EpochRow
from segray.errors import ConfigError
from segray.sections.labelling import ClusterSection
from segray.sections.training import TrainSection

# Options of DistributedDataParallel. A static graph also allows parameters that no output depends on, as in the last
# stages of some encoders. Gradients that are views of the buckets that are sent need no memory of their own.
DDP = {"static_graph": True, "gradient_as_bucket_view": True}
FEW_IMAGES = 4  # with fewer images a step, a worker gets batch statistics over all workers


class Worker(Protocol):
    """Where the loop runs: its rank among world_size processes, its device, and where it reports its progress."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model on the device, with gradients averaged over the workers."""
        ...

    def started(self, device: str) -> None:
        """Hear, on every rank before the first epoch, what the run computes on."""
        ...

    def at(self, phase: str, done: int, of: int) -> None:
        """Hear, on every rank after each step, how many steps of `phase` are done, as of 'epoch 2 of 10'."""
        ...

    def report(self, row: EpochRow) -> None:
        """Hear, on every rank after an epoch, its row; on rank 0 with rank 0's numbers."""
        ...


class LocalWorker:
    """One process without Ray."""

    rank, world_size = 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device)

    def started(self, device: str) -> None:
        pass

    def at(self, phase: str, done: int, of: int) -> None:
        pass

    def report(self, row: EpochRow) -> None:
        pass


def local_device(config: ClusterSection) -> str:
    """Return this machine's GPU for torch if it has one, unless `cluster.gpu` says otherwise, else the CPU."""
    wanted = torch.cuda.is_available() if config.gpu is None else config.gpu
    if wanted and not torch.cuda.is_available():
        raise ConfigError("cluster.gpu is true, and this machine has no GPU that torch can use; leave it out.")
    return "cuda" if wanted else "cpu"


def runs_on(config: TrainSection, worker: Worker) -> str:
    """Say what all workers together compute on: '8 × H100 80GB HBM3, bf16'."""
    kinds = [_kind(worker.device)] * worker.world_size
    if worker.world_size > 1:
        torch.distributed.all_gather_object(kinds, _kind(worker.device))
    precision = name_of(autocast_dtype(config, worker.device))
    return f"{', '.join(_several(kind, count) for kind, count in Counter(kinds).items())}, {precision}"


def in_one_precision(config: Config, worker: Worker) -> Config:
    """Return the settings with fp16 for all workers where auto is fp16 for some, as for GPUs of several generations.

    Only the gradients of fp16 are scaled, and those of all workers are averaged.
    """
    names = [name_of(autocast_dtype(config.train, worker.device))] * worker.world_size
    if worker.world_size > 1:
        torch.distributed.all_gather_object(names, names[0])
    return config.changed({"train.precision": "fp16"}) if len({*names}) > 1 and "fp16" in names else config


def _kind(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device).removeprefix("NVIDIA ")
    threads = torch.get_num_threads()
    return f"CPU worker × {threads} thread{'s' * (threads > 1)}"


def _several(kind: str, count: int) -> str:
    if kind.startswith("CPU worker"):
        return f"{count} {kind.replace('worker', 'worker' + 's' * (count > 1))}"
    return f"{count} × {kind}"


def all_reduce(worker: Worker, tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum over the workers."""
    if worker.world_size > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def broadcast_buffers(worker: Worker, model: torch.nn.Module) -> None:
    """Send rank 0's batch-norm statistics to all workers, so that the evaluated model is the saved one."""
    if worker.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def check_device(config: TrainSection, worker: Worker) -> None:
    """Raise ConfigError for what this device lacks or is slow at; turn TF32 on if there is a GPU."""
    autocast_dtype(config, worker.device)
    if worker.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    if config.sync_batch_norm and worker.device.type != "cuda":
        raise ConfigError("train.sync_batch_norm needs GPUs; leave it out.")


def sync_batch_norm(config: TrainSection, worker: Worker) -> bool:
    """Say whether norms see the batch of all workers: as configured, else if a worker's share is too small."""
    if worker.world_size == 1 or worker.device.type != "cuda":
        return False
    few = config.batch // worker.world_size < FEW_IMAGES
    return few if config.sync_batch_norm is None else config.sync_batch_norm
