"""Decoded samples and settings → a trained bundle: the hot path, the same with and without Ray.

The loop knows its place only through a Worker. Rank 0 writes, in `train.out`:

    last.pt         the training state after the last whole epoch: the one commit point of an epoch
    history.jsonl   a line an epoch, written anew from last.pt's
    best/           the bundle of the best epoch by mIoU

Randomness comes from (seed, epoch, rank) alone, so that a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import pickle
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed

from segray.config import Config, TrainSection
from segray.core import metrics
from segray.core.losses import LOSSES
from segray.core.models import build, bundle, forward
from segray.core.samples import IGNORE_INDEX, LabelSpace, Samples
from segray.core.transforms import augment, normalize, to_float
from segray.errors import ModelError, TrainingDiverged

READ_THREADS = 2
PREFETCH_BATCHES = 2
STATE, HISTORY, BEST = "last.pt", "history.jsonl", "best"


class Worker(Protocol):
    """Where the loop runs: its rank of world_size processes, its device, and who is told of an epoch."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model on the device, with gradients averaged over the workers."""
        ...

    def report(self, row: dict[str, Any]) -> None:
        """Called by every rank after an epoch, with rank 0's numbers on rank 0."""
        ...


class LocalWorker:
    """One process without Ray."""

    rank, world_size = 0, 1

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        return model.to(self.device)

    def report(self, row: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class TrainData:
    """What is learned from. size: (height, width) of every sample; data_id: hash of names and classes."""

    train: Samples
    val: Samples
    label_space: LabelSpace
    size: tuple[int, int]
    data_id: str = ""


def fit(worker: Worker, config: Config, data: TrainData) -> None:
    """Train from the last whole epoch in `train.out` to `train.epochs`. Raises TrainingDiverged."""
    out = Path(config.train.out)
    torch.manual_seed(config.train.seed)
    model = build(config.model, data.label_space.num_classes, pretrained=worker.rank == 0)
    model = model.to(memory_format=torch.channels_last)
    wrapped = worker.wrap(model)
    optimizer = torch.optim.AdamW(
        wrapped.parameters(), lr=config.train.learning_rate, weight_decay=config.train.weight_decay
    )
    history = load_state(out, model, optimizer, worker.device)
    for epoch in range(len(history) + 1, config.train.epochs + 1):
        row = train_epoch(worker, wrapped, optimizer, config, data, epoch)
        broadcast_buffers(worker, model)
        confusion, val_loss = evaluate(worker, model, config, data)
        if confusion.any() and not math.isfinite(val_loss):  # the last step can end it, after a finite loss
            raise TrainingDiverged(_diverged("validation loss", val_loss, config, epoch))
        scores = metrics.scores(confusion)
        row |= {"val_loss": val_loss, "miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}
        if worker.rank == 0:
            history.append(row)
            if is_best(history):
                bundle.save(out / BEST, model, describe(config, data, epoch, scores, confusion))
            save_state(out, model, optimizer, history)
        else:
            history.append(row)
        worker.report(row)


def train_epoch(
    worker: Worker,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    data: TrainData,
    epoch: int,
) -> dict[str, Any]:
    """One pass over this worker's share of the training samples; the row of history that it gives."""
    model.train()
    torch.manual_seed(_seed(config.train.seed, epoch, worker.rank))
    generator = torch.Generator().manual_seed(_seed(config.train.seed, epoch, worker.rank) + 1)
    steps = epoch_batches(len(data.train), config.train, epoch, worker)
    total_steps = len(steps) * config.train.epochs
    loss_sum = torch.zeros((), device=worker.device)
    started, waited = time.perf_counter(), 0.0
    batches = read_batches(data.train, steps)
    for step in range(len(steps)):
        asked = time.perf_counter()
        images, masks = next(batches)
        waited += time.perf_counter() - asked
        rate = learning_rate(config.train, (epoch - 1) * len(steps) + step, total_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, masks = images.to(worker.device), masks.to(worker.device)
        images, masks = augment(images, masks, config.augment, generator)
        with autocast(config.train, worker.device):
            loss = LOSSES[next(iter(config.train.loss))](forward(model, images), masks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        loss_sum += loss.detach()
    mean_loss = float(all_reduce(worker, loss_sum)) / len(steps) / worker.world_size
    if not math.isfinite(mean_loss):
        raise TrainingDiverged(_diverged("loss", mean_loss, config, epoch))
    seconds = time.perf_counter() - started
    return {
        "epoch": epoch,
        "loss": mean_loss,
        "learning_rate": rate,
        "images_per_s": len(steps) * config.train.batch_size / seconds,
        "wait_share": waited / seconds,
        "seconds": seconds,
    }


def _diverged(what: str, value: float, config: Config, epoch: int) -> str:
    return (
        f"The {what} is {value} in epoch {epoch}; lower train.learning_rate "
        f"({config.train.learning_rate:g}). What was trained before is kept."
    )


@torch.inference_mode()
def evaluate(worker: Worker, model: torch.nn.Module, config: Config, data: TrainData) -> tuple[np.ndarray, float]:
    """(confusion int64 [C, C], mean loss a labelled pixel) over the val split at the model's size, each pixel once.

    Every rank takes each world_size-th sample; counts are integers, so the number of workers changes nothing.
    """
    model.eval()
    classes = data.label_space.num_classes
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=worker.device)
    losses = torch.zeros(2, dtype=torch.float64, device=worker.device)
    mine = range(worker.rank, len(data.val), worker.world_size)
    size = max(1, config.train.batch_size // worker.world_size)
    steps = [mine[i : i + size] for i in range(0, len(mine), size)]
    for images, masks in read_batches(data.val, steps):
        images, masks = normalize(to_float(images.to(worker.device))), masks.to(worker.device).long()
        with autocast(config.train, worker.device):
            logits = forward(model, images)
        confusion += metrics.confusion_matrix(masks, logits.argmax(1), classes)
        labelled = (masks != IGNORE_INDEX).sum().double()
        losses += torch.stack([LOSSES[next(iter(config.train.loss))](logits, masks).double() * labelled, labelled])
    losses = all_reduce(worker, losses)
    return all_reduce(worker, confusion).cpu().numpy(), float(losses[0] / losses[1])


def epoch_batches(count: int, config: TrainSection, epoch: int, worker: Worker) -> list[Sequence[int]]:
    """This worker's positions for each step of an epoch: a share of one global permutation, whole batches only.

    A set smaller than a batch is gone through as often as fills one.
    """
    order = np.random.default_rng([config.seed, epoch]).permutation(count)
    order = np.resize(order, max(count, config.batch_size))
    share = config.batch_size // worker.world_size
    return [
        order[start + worker.rank * share : start + (worker.rank + 1) * share].tolist()
        for start in range(0, len(order) - config.batch_size + 1, config.batch_size)
    ]


def read_batches(samples: Samples, steps: Iterable[Sequence[int]]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """uint8 images [B, H, W, 3] and masks [B, H, W] for each step, read ahead by threads."""

    def read(step: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = [samples[i] for i in step]
        images = torch.from_numpy(np.stack([sample.image_hwc for sample in batch]))
        return images, torch.from_numpy(np.stack([sample.mask_hw for sample in batch]))

    with ThreadPoolExecutor(READ_THREADS) as pool:
        ahead: deque[Any] = deque()
        for step in steps:
            ahead.append(pool.submit(read, step))
            if len(ahead) > PREFETCH_BATCHES:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def learning_rate(config: TrainSection, step: int, total: int) -> float:
    """Linear warm-up, then poly decay (Chen et al. 2017, DeepLab): peak × (1 − progress)^power."""
    warmup = round(config.warmup * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return config.learning_rate * (1 - progress) ** config.poly_power


def autocast(config: TrainSection, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 where it is asked for, or where a GPU has it; a CPU without the instructions is ten times slower."""
    if config.precision == "bf16" or (
        config.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    ):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def all_reduce(worker: Worker, tensor: torch.Tensor) -> torch.Tensor:
    """The sum over the workers."""
    if worker.world_size > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def broadcast_buffers(worker: Worker, model: torch.nn.Module) -> None:
    """Rank 0's batch-norm statistics for everyone: one model is evaluated, and it is the one that is saved."""
    if worker.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)


def describe(
    config: Config, data: TrainData, epoch: int, scores: metrics.Scores, confusion: np.ndarray
) -> bundle.BundleInfo:
    return bundle.BundleInfo(
        model=config.model,
        label_space=data.label_space.to_dict(),
        input_size=data.size,
        data_id=data.data_id,
        epoch=epoch,
        scores=scores.to_dict(),
        confusion=confusion.tolist(),
        config=config.model_dump(mode="json", include={"data", "model", "augment", "train"}),
    )


def is_best(history: list[dict[str, Any]]) -> bool:
    """Whether the last epoch has the highest mIoU so far; an undefined one (nan) is below all."""
    scores = [-1.0 if math.isnan(row["miou"]) else row["miou"] for row in history]
    return scores[-1] > max(scores[:-1], default=-2.0)


def save_state(
    out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, history: list[dict[str, Any]]
) -> None:
    temporary = out / f".{STATE}.tmp"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}, temporary)
    temporary.replace(out / STATE)
    write_history(out, history)


def load_state(
    out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> list[dict[str, Any]]:
    """Restore the last whole epoch into model and optimizer; the history up to it, [] at the beginning."""
    path = out / STATE
    if not path.exists():
        return []
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return state["history"]
    except (RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError) as error:
        text = [*str(error).splitlines(), type(error).__name__][0]  # an empty file's EOFError says nothing
        raise ModelError(f"{path} cannot be continued from: {text}") from error


def write_history(out: Path, history: list[dict[str, Any]]) -> None:
    temporary = out / f".{HISTORY}.tmp"
    plain = [{key: None if value != value else value for key, value in row.items()} for row in history]
    temporary.write_text("".join(json.dumps(row) + "\n" for row in plain))
    temporary.replace(out / HISTORY)


def read_history(out: Path) -> list[dict[str, Any]]:
    """The rows of a run so far; [] before its first epoch ends."""
    path = out / HISTORY
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
