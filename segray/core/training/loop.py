"""Decoded samples and settings → a trained bundle: the hot path, the same with and without Ray.

The loop knows its place only through a Worker. Rank 0 writes the run's folder `train.out`: the checkpoint
(core.training.checkpoint) and best/, the bundle of the best epoch by mIoU.

Randomness comes from (seed, epoch, rank) alone, so that a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from segray.config import Config
from segray.core import metrics
from segray.core.formatting import counted
from segray.core.io import storage
from segray.core.memory import is_exhausted
from segray.core.models import ARCHITECTURES, build, bundle, forward, forward_all, load_encoder, name_of, preprocessing
from segray.core.models.info import BundleInfo
from segray.core.precision import autocast, autocast_dtype
from segray.core.samples import IGNORE_INDEX, TrainData
from segray.core.training import optim
from segray.core.training.batches import read_batches
from segray.core.training.checkpoint import (
    BEST,
    Background,
    EpochRow,
    Stateful,
    TrainedRow,
    best_epoch,
    is_finished,
    load_state,
    read_history,
    save_state,
    snapshot,
    with_weights,
    write_history,
)
from segray.core.training.objective import Objective, make_objective
from segray.core.training.workers import (
    LocalWorker,
    Worker,
    all_reduce,
    broadcast_buffers,
    check_device,
    in_one_precision,
    runs_on,
    sync_batch_norm,
)
from segray.core.transforms import augment, normalize, to_float
from segray.errors import ConfigError, DataError, ModelError, ModelTooLarge, TrainingDiverged
from segray.sections.training import TrainSection

CHECK_EVERY = 50  # steps between checks of the losses: each check waits for the device
ONE_VALUE = "Expected more than 1 value per channel"  # what PyTorch says of batch norm over one pooled image
NAMED = 8  # frames of a batch that an error names
KEPT_DIFFERS = 0.02  # share of pixels: rounding moves those where two classes tie, a fault moves tens of per cent
THIN = 4  # every THIN-th training pixel in each direction is scored, which is enough for a curve


@dataclass
class Learner:
    """What a step changes. model: as it is called, wrapped for its worker; ema: its EMA, if there is one."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    objective: Objective
    ema: optim.Average | None = None


def fit(
    worker: Worker, config: Config, data: TrainData, encoder_weights: Mapping[str, torch.Tensor] | None = None
) -> None:
    """Train from the last complete epoch in `train.out` until the run is finished.

    encoder_weights: what a new run's encoder starts from. Raises TrainingDiverged, ModelTooLarge where memory is
    exhausted, and other SegrayErrors for settings that this model or device does not support.
    """
    try:
        _fit(worker, config, data, encoder_weights)
    except Exception as error:
        if is_exhausted(error):
            raise ModelTooLarge(_too_large(worker, config, data)) from error
        if ONE_VALUE in str(error):
            raise ConfigError(too_few(name_of(config.model), config.train.batch, worker.world_size)) from error
        raise


def _fit(worker: Worker, config: Config, data: TrainData, encoder_weights: Mapping[str, torch.Tensor] | None) -> None:
    check_device(config.train, worker)
    config = in_one_precision(config, worker)
    train, out = config.train, config.train.out
    told = len(read_history(out))  # before runs_on, for which all workers wait: each counts the same rows
    device = runs_on(train, worker)
    torch.manual_seed(train.seed)
    model = build(config.model, data.label_space.num_classes)
    if encoder_weights is not None:
        load_encoder(model, encoder_weights)
    if sync_batch_norm(train, worker):
        # torch's own conversion drops the activation that timm's BatchNormAct2d holds.
        from timm.layers.norm_act import convert_sync_batchnorm  # takes 2 s, which Ray's controllers need not

        model = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # timm's
    model = model.to(worker.device).to(memory_format=torch.channels_last)
    ema = optim.Average(model, train.ema) if train.ema else None
    optimizer = optim.make_optimizer(model, train)
    scaler = torch.amp.GradScaler(worker.device.type, enabled=autocast_dtype(train, worker.device) == torch.float16)
    state: dict[str, Stateful] = {"model": model, "optimizer": optimizer, "scaler": scaler}
    if ema:
        state["ema"] = ema
    history = load_state(out, state, worker.device)
    learner = Learner(model, optimizer, scaler, make_objective(worker, config, data), ema)
    was_frozen, had = None, len(history)
    pending = max(0, had - told)  # epochs that were not reported: a kill may come between last.pt and history.jsonl
    worker.started(device)
    with Background() as saving:
        while not is_finished(train, history):
            epoch = len(history) + 1
            frozen = optim.is_frozen(train, epoch)
            optim.freeze(model, frozen)
            if frozen != was_frozen:  # also after unfreezing: DDP fixes what it averages
                learner.model, was_frozen = worker.wrap(model), frozen
                if train.compile:
                    learner.model.compile()
            trained = train_epoch(worker, learner, config, data, epoch, saving.check)
            pending += 1
            row: EpochRow = {
                **trained, "device": device, "evaluated": False, "val_loss": math.nan, **metrics.NOT_EVALUATED,
            }  # fmt: skip
            if epoch % train.eval_every and epoch < train.epochs:
                history.append(row)
                continue
            kept = ema.module if ema else model
            broadcast_buffers(worker, kept)
            confusion, val_loss = evaluate(worker, kept, config, data, learner.objective)
            # The last step can break the weights after a finite loss.
            if confusion.any() and not math.isfinite(val_loss):
                raise TrainingDiverged(_diverged("validation loss", val_loss, config, epoch))
            scores = metrics.scores(confusion)
            history.append({**row, "evaluated": True, "val_loss": val_loss, **scores.headlines()})
            saving.wait()  # before memory is taken for another snapshot
            work: list[Callable[[], object]] = []
            if worker.rank == 0:
                held = snapshot(state)
                if best_epoch(history) == epoch:
                    model_held = with_weights(kept, held["ema"] if ema else held["model"], "module." if ema else "")
                    info = describe(config, data, epoch, scores, confusion)
                    work.append(partial(bundle.save, storage.join(out, BEST), model_held, info))
                work.append(partial(save_state, out, held, [*history]))
            # Reported only when it is saved: a resumed run repeats the epochs that were not.
            saving.start([*work, *(partial(worker.report, row) for row in history[-pending:])])
            pending = 0
        saving.wait()
    if pending:  # nothing was left to train
        if worker.rank == 0:
            write_history(out, history)
        for row in history[-pending:]:
            worker.report(row)
    if worker.rank == 0 and len(history) > had:
        worker.at("checking the saved model", 0, 1)
        check_kept(LocalWorker(str(worker.device)), share_of(worker, config), data, learner.objective)


def check_kept(worker: LocalWorker, config: Config, data: TrainData, objective: Objective) -> None:
    """Load the best bundle as users will, and evaluate it. Raises ModelError if its scores differ from its epoch's.

    One rank does so for all: the saved model must be the one that was measured.
    """
    place = storage.join(config.train.out, BEST)
    model, info = bundle.load(place)
    if info.data_id != data.data_id:  # the bundle is of the frames of an earlier part of the run
        return
    model = model.to(worker.device).to(memory_format=torch.channels_last)
    confusion, _ = evaluate(worker, model, config, data, objective)
    measured = np.array(info.confusion)
    differing = np.abs(confusion - measured).sum() / 2 / max(1, measured.sum())
    if differing > KEPT_DIFFERS:
        raise ModelError(
            f"{place} is not the model that was measured: of the validation pixels {differing:.1%} are counted "
            f"otherwise (mIoU {metrics.scores(confusion).miou:.3f}, measured {metrics.scores(measured).miou:.3f}). "
            "This is a fault of segray; do not use the bundle, and report it with its segray.json."
        )


def share_of(worker: Worker, config: Config) -> Config:
    """Return the settings with the number of images that each worker trains or evaluates on at once, at most."""
    return config.changed({"train.batch_size": -(-config.train.batch // worker.world_size)})


def train_epoch(
    worker: Worker,
    learner: Learner,
    config: Config,
    data: TrainData,
    epoch: int,
    check: Callable[[], None] = lambda: None,
) -> TrainedRow:
    """Train on this worker's share of the training samples once; return its part of the row of history.

    check is called now and then, and raises an error that ends the run.
    """
    train, device = config.train, worker.device
    torch.manual_seed(_seed(train.seed, epoch, worker.rank))
    generator = torch.Generator().manual_seed(_seed(train.seed, epoch, worker.rank) + 1)
    mean, std = preprocessing(config.model)
    steps = epoch_batches(len(data.train), train, epoch, worker)
    # DDP gives each worker the same weight; each frame of the batch counts the same, also where shares differ by one.
    weight = len(steps[0]) * worker.world_size / train.batch
    step_losses = torch.zeros(len(steps), device=device)
    labelled = torch.zeros((), dtype=torch.int64, device=device)
    classes = data.label_space.num_classes
    confusion = torch.zeros(classes + 1, classes, dtype=torch.int64, device=device)
    started, waited = time.perf_counter(), 0.0
    batches = read_batches(data.train, data.size, steps, device)
    apart = getattr(learner.model, "no_sync", nullcontext)
    for step in range(len(steps)):
        asked = time.perf_counter()
        images, masks = next(batches)
        waited += time.perf_counter() - asked
        rate = optim.learning_rate(train, (epoch - 1) * len(steps) + step, len(steps) * train.epochs)
        optim.set_rate(learner.optimizer, rate)
        images, masks = augment(images, masks, config.augment, generator, mean=mean, std=std)
        group = min(train.accumulate, len(steps) - step // train.accumulate * train.accumulate)  # the last may be short
        moves = (step + 1) % train.accumulate == 0 or step + 1 == len(steps)
        # Gradients are averaged over the workers once a group; also at first, when DDP learns its static graph.
        with nullcontext() if moves or step == 0 else apart():
            with autocast(train, device):
                outputs = forward_all(learner.model, images)
            loss = weight * learner.objective(images, masks, outputs)
            learner.scaler.scale(loss / group).backward()
        if moves:
            move(learner, train)
        step_losses[step] = loss.detach()
        labelled += (masks != IGNORE_INDEX).sum()
        tally(confusion, masks, outputs[0].detach())
        if (step + 1) % CHECK_EVERY == 0:
            check()
            check_finite(worker, step_losses, config, data, epoch)
        worker.at(f"epoch {epoch} of {train.epochs}", step + 1, len(steps))
    mean_loss = check_finite(worker, step_losses, config, data, epoch)
    if int(all_reduce(worker, labelled)) == 0:
        raise DataError(f"No pixel of the {len(data.train)} training masks is labelled: all are void. See data.id_map.")
    scores = metrics.scores(all_reduce(worker, confusion)[:-1].cpu())
    seconds = time.perf_counter() - started
    return {
        "epoch": epoch,
        "loss": mean_loss,
        "train_miou": scores.miou,
        "train_pixel_accuracy": scores.pixel_accuracy,
        "learning_rate": rate,
        "images_per_s": len(steps) * train.batch / seconds,
        "wait_share": waited / seconds,
        "seconds": seconds,
        "batch_size": train.batch,
        "accumulate": train.accumulate,
    }


def tally(confusion: torch.Tensor, masks: torch.Tensor, logits: torch.Tensor) -> None:
    """Add a batch's subsampled pixels to int64 [C + 1, C], void ones in the last row, without waiting for the device.

    masks: ids [B, H, W]. logits: [B, C, H, W].
    """
    truth, pred = masks[:, ::THIN, ::THIN].long(), logits[..., ::THIN, ::THIN].argmax(1)
    pairs = (truth.clamp(max=len(confusion) - 1) * confusion.shape[1] + pred).flatten()
    confusion.view(-1).index_add_(0, pairs, torch.ones_like(pairs))


def move(learner: Learner, config: TrainSection) -> None:
    """Apply the accumulated gradients, then update the EMA."""
    if config.gradient_clip is not None:
        learner.scaler.unscale_(learner.optimizer)
        torch.nn.utils.clip_grad_norm_(learner.model.parameters(), config.gradient_clip)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    if learner.ema is not None:
        learner.ema.update(learner.model)


def check_finite(worker: Worker, step_losses: torch.Tensor, config: Config, data: TrainData, epoch: int) -> float:
    """Return the mean loss of steps and workers. Raises TrainingDiverged with step and frames if one is not finite."""
    values = (all_reduce(worker, step_losses.clone()) / worker.world_size).tolist()
    for step, value in enumerate(values):
        if not math.isfinite(value):
            batch = epoch_order(len(data.train), config.train, epoch)[step * config.train.batch :]
            ids = [data.train_ids[i] for i in batch[: config.train.batch] if i < len(data.train_ids)]
            named = f", frames {', '.join(ids[:NAMED])}{' …' * (len(ids) > NAMED)}" if ids else ""
            raise TrainingDiverged(_diverged("loss", value, config, epoch, f", step {step + 1}{named}"))
    return float(sum(values) / len(values))


def _too_large(worker: Worker, config: Config, data: TrainData) -> str:
    batch, (height, width) = config.train.batch, config.augment.crop or data.size
    share = share_of(worker, config).train.batch
    text = (
        f"{name_of(config.model)} does not fit into the memory of {worker.device} with "
        f"{counted(share, 'frame')} of {height}×{width} (height × width) a worker. "
    )
    if batch // 2 < least_batch(config, worker.world_size):
        return f"{text}Set a smaller augment.crop, or take a smaller encoder. Epochs that ended are kept."
    return (
        f"{text}--batch-size auto halves train.batch_size ({batch}) and doubles train.accumulate "
        f"({config.train.accumulate}) until it fits; or set a smaller augment.crop. Epochs that ended are kept."
    )


def least_batch(config: Config, workers: int) -> int:
    """Return the smallest batch: an image for each worker, or two where the model normalises pooled features."""
    arch = ARCHITECTURES.get(config.model.arch)  # models from elsewhere are in no row
    return max(1, workers) * (2 if arch and arch.pooled else 1)


def too_few(model: str, batch: int, workers: int) -> str:
    """Say that a model that normalises pooled features has a worker with one image."""
    return (
        f"{model} normalises pooled features, which takes 2 images a worker; "
        f"train.batch_size is {batch} for {workers}: take {2 * workers} or more."
    )


def _diverged(what: str, value: float, config: Config, epoch: int, where: str = "") -> str:
    return (
        f"The {what} is {value} in epoch {epoch}{where}; lower train.learning_rate "
        f"({config.train.peak_rate:g}). Epochs that ended are kept."
    )


@torch.inference_mode()
def evaluate(
    worker: Worker, model: torch.nn.Module, config: Config, data: TrainData, objective: Objective
) -> tuple[np.ndarray, float]:
    """Return (confusion int64 [C, C], loss) over the val split at the model's size, each pixel once.

    The loss is the batches' mean, weighted by their labelled pixels. Every rank takes each world_size-th sample;
    counts are integers, so the number of workers changes nothing.
    """
    model.eval()
    classes = data.label_space.num_classes
    confusion = torch.zeros(classes, classes, dtype=torch.int64, device=worker.device)
    sums = torch.zeros(2, dtype=torch.float64, device=worker.device)
    mean, std = preprocessing(config.model)
    mine = range(worker.rank, len(data.val), worker.world_size)
    size = share_of(worker, config).train.batch
    steps = [mine[i : i + size] for i in range(0, len(mine), size)]
    for done, (images, masks) in enumerate(read_batches(data.val, data.size, steps, worker.device), 1):
        images, masks = normalize(to_float(images), mean, std), masks.long()
        with autocast(config.train, worker.device):
            logits = forward(model, images)
        confusion += metrics.confusion_matrix(masks, logits.argmax(1), classes)
        labelled = (masks != IGNORE_INDEX).sum().double()
        sums += torch.stack([objective(images, masks, (logits,)).double() * labelled, labelled])
        worker.at("validating", done, len(steps))
    sums = all_reduce(worker, sums)
    return all_reduce(worker, confusion).cpu().numpy(), float(sums[0] / sums[1])


def epoch_batches(count: int, config: TrainSection, epoch: int, worker: Worker) -> list[Sequence[int]]:
    """List this worker's positions for each step of an epoch: its share of each complete batch in the global order.

    The shares of a batch differ by one frame at most.
    """
    order = epoch_order(count, config, epoch)
    first, end = (config.batch * rank // worker.world_size for rank in (worker.rank, worker.rank + 1))
    return [
        order[start + first : start + end].tolist() for start in range(0, len(order) - config.batch + 1, config.batch)
    ]


def epoch_order(count: int, config: TrainSection, epoch: int) -> np.ndarray:
    """Return all positions in this epoch's order; a set smaller than a batch is repeated until it fills one."""
    order = np.random.default_rng([config.seed, epoch]).permutation(count)
    return np.resize(order, max(count, config.batch))


def describe(config: Config, data: TrainData, epoch: int, scores: metrics.Scores, confusion: np.ndarray) -> BundleInfo:
    mean, std = preprocessing(config.model)
    return BundleInfo(
        model=config.model,
        mean=mean,
        std=std,
        label_space=data.label_space.to_dict(),
        input_size=data.size,
        resize=config.data.resize or "stretch",
        data_id=data.data_id,
        epoch=epoch,
        scores=scores.to_dict(),
        confusion=confusion.tolist(),
        config=config.model_dump(mode="json", include={"data", "model", "augment", "train"}),
    )


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
