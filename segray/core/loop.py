"""Decoded samples and settings → a trained bundle: the hot path, the same with and without Ray.

The loop knows its place only through a Worker. Rank 0 writes the run's folder `train.out`: the checkpoint
(core.checkpoint) and best/, the bundle of the best epoch by mIoU.

Randomness comes from (seed, epoch, rank) alone, so that a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed

from segray.config import Config, TrainSection
from segray.core import losses, metrics, optim
from segray.core.checkpoint import BEST, best_epoch, is_finished, load_state, save_state
from segray.core.models import build, bundle, forward, forward_all, load_encoder, preprocessing
from segray.core.samples import IGNORE_INDEX, LabelSpace, Samples
from segray.core.transforms import augment, normalize, to_float
from segray.errors import ConfigError, DataError, TrainingDiverged

READ_THREADS = 2
PREFETCH_BATCHES = 2
CHECK_EVERY = 50  # steps between looks at the losses: each look waits for the device
NAMED = 8  # frames of a batch that an error names
FEW_IMAGES = 4  # a worker with fewer a step gets batch statistics over all workers


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
    train_ids: tuple[str, ...] = ()


Objective = Callable[[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]


def fit(
    worker: Worker, config: Config, data: TrainData, encoder_weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Train from the last whole epoch in `train.out` until the run is finished.

    encoder_weights: what a new run's encoder starts from. Raises TrainingDiverged, and other SegrayErrors for
    settings that this model or device cannot follow.
    """
    train, out = config.train, Path(config.train.out)
    check_device(train, worker)
    torch.manual_seed(train.seed)
    model = build(config.model, data.label_space.num_classes)
    if encoder_weights is not None:
        load_encoder(model, encoder_weights)
    if sync_batch_norm(train, worker):
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(worker.device, memory_format=torch.channels_last)
    ema = optim.averaged(model, train.ema) if train.ema else None
    optimizer = optim.make_optimizer(model, train)
    scaler = torch.amp.GradScaler(worker.device.type, enabled=train.precision == "fp16")
    state = {"model": model, "optimizer": optimizer, "scaler": scaler} | ({"ema": ema} if ema else {})
    history = load_state(out, state, worker.device)
    objective = make_objective(worker, config, data)
    wrapped, was_frozen = None, None
    while not is_finished(train, history):
        epoch = len(history) + 1
        frozen = optim.is_frozen(train, epoch)
        optim.freeze(model, frozen)
        if frozen != was_frozen:  # anew when an encoder thaws: gradients are averaged for what was trainable then
            wrapped, was_frozen = worker.wrap(model), frozen
            if train.compile:
                wrapped.compile()
        row = train_epoch(worker, wrapped, optimizer, config, data, epoch, objective, scaler, ema)
        kept = ema.module if ema else model
        broadcast_buffers(worker, kept)
        confusion, val_loss = evaluate(worker, kept, config, data, objective)
        if confusion.any() and not math.isfinite(val_loss):  # the last step can end it, after a finite loss
            raise TrainingDiverged(_diverged("validation loss", val_loss, config, epoch))
        scores = metrics.scores(confusion)
        history.append(row | {"val_loss": val_loss} | {name: getattr(scores, name) for name in metrics.HEADLINES})
        if worker.rank == 0:
            if best_epoch(history) == epoch:
                bundle.save(out / BEST, kept, describe(config, data, epoch, scores, confusion))
            save_state(out, state, history)
        worker.report(history[-1])


def train_epoch(
    worker: Worker,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    config: Config,
    data: TrainData,
    epoch: int,
    objective: Objective,
    scaler: torch.amp.GradScaler,
    ema: Any = None,
) -> dict[str, Any]:
    """One pass over this worker's share of the training samples; the row of history that it gives."""
    train, device = config.train, worker.device
    torch.manual_seed(_seed(train.seed, epoch, worker.rank))
    generator = torch.Generator().manual_seed(_seed(train.seed, epoch, worker.rank) + 1)
    mean, std = preprocessing(config.model)
    steps = epoch_batches(len(data.train), train, epoch, worker)
    step_losses = torch.zeros(len(steps), device=device)
    labelled = torch.zeros((), dtype=torch.int64, device=device)
    started, waited = time.perf_counter(), 0.0
    batches = read_batches(data.train, steps)
    for step in range(len(steps)):
        asked = time.perf_counter()
        images, masks = next(batches)
        waited += time.perf_counter() - asked
        rate = optim.learning_rate(train, (epoch - 1) * len(steps) + step, len(steps) * train.epochs)
        optim.set_rate(optimizer, rate)
        images, masks = augment(images.to(device), masks.to(device), config.augment, generator, mean=mean, std=std)
        with autocast(train, device):
            outputs = forward_all(model, images)
        loss = objective(images, masks, outputs)
        scaler.scale(loss / train.accumulate).backward()
        if (step + 1) % train.accumulate == 0 or step + 1 == len(steps):
            if train.gradient_clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), train.gradient_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if ema is not None:
                ema.update_parameters(model)
        step_losses[step] = loss.detach()
        labelled += (masks != IGNORE_INDEX).sum()
        if (step + 1) % CHECK_EVERY == 0:
            check_finite(worker, step_losses, config, data, epoch)
    mean_loss = check_finite(worker, step_losses, config, data, epoch)
    if int(all_reduce(worker, labelled)) == 0:
        raise DataError(f"No pixel of the {len(data.train)} training masks is labelled: all are void. See data.id_map.")
    seconds = time.perf_counter() - started
    return {
        "epoch": epoch,
        "loss": mean_loss,
        "learning_rate": rate,
        "images_per_s": len(steps) * train.batch_size / seconds,
        "wait_share": waited / seconds,
        "seconds": seconds,
    }


def make_objective(worker: Worker, config: Config, data: TrainData) -> Objective:
    """(images, masks, outputs of forward_all) → what is minimised: the losses of main and auxiliary outputs, and
    the distance from the teacher's soft labels (Hinton et al. 2015) where there is a teacher."""
    train = config.train
    weights = train.class_weights
    if weights == "median":
        weights = median_weights(worker, data)
    classes = data.label_space.num_classes
    if weights != "none" and len(weights) != classes:
        raise ConfigError(f"train.class_weights holds {len(weights)} numbers for {classes} classes; give one each.")
    loss = losses.combine(train, None if weights == "none" else torch.tensor(weights, device=worker.device))
    teach = make_teacher(worker, config) if train.teacher else None

    def objective(images: torch.Tensor, masks: torch.Tensor, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        main, *aux = outputs
        total = loss(main, masks) + sum(train.aux_weight * loss(output, masks) for output in aux)
        if teach is not None and torch.is_grad_enabled():
            soft = losses.distillation(main, teach(images), masks, train.teacher_temperature)
            total = total + train.teacher_weight * soft
        return total

    return objective


def make_teacher(worker: Worker, config: Config) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images as the student sees them → the teacher's logits. The teacher sees the student's size and crops."""
    teacher, info = bundle.load(config.train.teacher)
    teacher = teacher.to(worker.device, memory_format=torch.channels_last).requires_grad_(False)
    mean, std = preprocessing(config.model)

    @torch.no_grad()
    def teach(images: torch.Tensor) -> torch.Tensor:
        if (mean, std) != (info.mean, info.std):
            images = normalize(images * _channel(std, images) + _channel(mean, images), info.mean, info.std)
        with autocast(config.train, worker.device):
            return forward(teacher, images)

    return teach


def _channel(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device).view(1, -1, 1, 1)


def median_weights(worker: Worker, data: TrainData) -> list[float]:
    """Class weights from the training masks, by median frequency balancing; every rank counts its share."""
    counts = torch.zeros(2, data.label_space.num_classes, dtype=torch.int64)
    for i in range(worker.rank, len(data.train), worker.world_size):
        mask_hw = data.train[i].mask_hw
        pixels = torch.bincount(torch.from_numpy(mask_hw.ravel()).long(), minlength=256)[: counts.shape[1]]
        counts += torch.stack([pixels, (pixels > 0) * int((mask_hw != IGNORE_INDEX).sum())])
    pixels, frames = all_reduce(worker, counts.to(worker.device)).cpu()
    return losses.median_frequencies(pixels, frames).tolist()


def check_finite(worker: Worker, step_losses: torch.Tensor, config: Config, data: TrainData, epoch: int) -> float:
    """The mean loss over steps and workers. TrainingDiverged, with the step and its frames, when one is not finite."""
    values = (all_reduce(worker, step_losses.clone()) / worker.world_size).tolist()
    for step, value in enumerate(values):
        if not math.isfinite(value):
            batch = epoch_order(len(data.train), config.train, epoch)[step * config.train.batch_size :]
            ids = [data.train_ids[i] for i in batch[: config.train.batch_size] if i < len(data.train_ids)]
            named = f", frames {', '.join(ids[:NAMED])}{' …' * (len(ids) > NAMED)}" if ids else ""
            raise TrainingDiverged(_diverged("loss", value, config, epoch, f", step {step + 1}{named}"))
    return sum(values) / len(values)


def _diverged(what: str, value: float, config: Config, epoch: int, where: str = "") -> str:
    return (
        f"The {what} is {value} in epoch {epoch}{where}; lower train.learning_rate "
        f"({config.train.learning_rate:g}). What was trained before is kept."
    )


def check_device(config: TrainSection, worker: Worker) -> None:
    """ConfigError for a precision that this device is slow at or lacks; TF32 on where there is a GPU."""
    if worker.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    elif config.precision == "fp16":
        raise ConfigError("train.precision fp16 needs a GPU; take fp32, or auto.")
    elif config.precision == "bf16" and not cpu_has_bf16():
        raise ConfigError("train.precision bf16: this CPU lacks the instructions and would be ten times slower; "
                          "take fp32, or auto.")  # fmt: skip
    if config.sync_batch_norm and worker.device.type != "cuda":
        raise ConfigError("train.sync_batch_norm needs GPUs; leave it out.")


def cpu_has_bf16() -> bool:
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer torch; what cannot be seen is not there
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def sync_batch_norm(config: TrainSection, worker: Worker) -> bool:
    """Whether norms see the batch of all workers: as asked, else where a worker's share of it is too small."""
    if worker.world_size == 1 or worker.device.type != "cuda":
        return False
    few = config.batch_size // worker.world_size < FEW_IMAGES
    return few if config.sync_batch_norm is None else config.sync_batch_norm


@torch.inference_mode()
def evaluate(
    worker: Worker, model: torch.nn.Module, config: Config, data: TrainData, objective: Objective
) -> tuple[np.ndarray, float]:
    """(confusion int64 [C, C], mean loss a labelled pixel) over the val split at the model's size, each pixel once.

    Every rank takes each world_size-th sample; counts are integers, so the number of workers changes nothing.
    """
    model.eval()
    classes = data.label_space.num_classes
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=worker.device)
    sums = torch.zeros(2, dtype=torch.float64, device=worker.device)
    mean, std = preprocessing(config.model)
    mine = range(worker.rank, len(data.val), worker.world_size)
    size = max(1, config.train.batch_size // worker.world_size)
    steps = [mine[i : i + size] for i in range(0, len(mine), size)]
    for images, masks in read_batches(data.val, steps):
        images, masks = normalize(to_float(images.to(worker.device)), mean, std), masks.to(worker.device).long()
        with autocast(config.train, worker.device):
            logits = forward(model, images)
        confusion += metrics.confusion_matrix(masks, logits.argmax(1), classes)
        labelled = (masks != IGNORE_INDEX).sum().double()
        sums += torch.stack([objective(images, masks, (logits,)).double() * labelled, labelled])
    sums = all_reduce(worker, sums)
    return all_reduce(worker, confusion).cpu().numpy(), float(sums[0] / sums[1])


def epoch_batches(count: int, config: TrainSection, epoch: int, worker: Worker) -> list[Sequence[int]]:
    """This worker's positions for each step of an epoch: a share of each whole batch of the global order."""
    order = epoch_order(count, config, epoch)
    share = config.batch_size // worker.world_size
    return [
        order[start + worker.rank * share : start + (worker.rank + 1) * share].tolist()
        for start in range(0, len(order) - config.batch_size + 1, config.batch_size)
    ]


def epoch_order(count: int, config: TrainSection, epoch: int) -> np.ndarray:
    """All positions in an order of this epoch's; a set smaller than a batch is gone through as often as fills one."""
    order = np.random.default_rng([config.seed, epoch]).permutation(count)
    return np.resize(order, max(count, config.batch_size))


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


def autocast(config: TrainSection, device: torch.device) -> AbstractContextManager[Any]:
    """The precision that is asked for; auto is bf16 where a GPU has it, else fp32."""
    if config.precision == "fp16":
        return torch.autocast(device.type, dtype=torch.float16)
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
    mean, std = preprocessing(config.model)
    return bundle.BundleInfo(
        model=config.model,
        mean=mean,
        std=std,
        label_space=data.label_space.to_dict(),
        input_size=data.size,
        data_id=data.data_id,
        epoch=epoch,
        scores=scores.to_dict(),
        confusion=confusion.tolist(),
        config=config.model_dump(mode="json", include={"data", "model", "augment", "train"}),
    )


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
