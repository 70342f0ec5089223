"""Labelled frames and settings → a model bundle, trained data-parallel by Ray Train around core.training.loop.fit."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from segray.cluster import connect, object_store, resources
from segray.cluster.access import check_places
from segray.config import Config
from segray.core import metrics
from segray.core.formatting import counted
from segray.core.io import claims, storage
from segray.core.models import encoder_weights, has_imagenet, name_of
from segray.core.models.info import BundleInfo
from segray.core.models.weights import Weights
from segray.core.samples import Dataset, TrainData
from segray.core.training import loop
from segray.core.training.checkpoint import (
    BEST,
    SETTINGS,
    STATE,
    EpochRow,
    History,
    best_epoch,
    is_finished,
    read_history,
)
from segray.core.training.workers import LocalWorker, local_device
from segray.errors import StorageError
from segray.stages import trackers
from segray.stages.batch_size import in_epochs, until_it_fits, with_batch
from segray.stages.resume import KIND, claim, note_frames, note_rate
from segray.stages.run_data import MEMORY_BYTES, DataPlan, in_memory, plan_data, read_places, stored

log = logging.getLogger("segray")

HARDLY = 1.2  # times the mIoU of a constant guess: of two classes, the rare one then has an IoU of 0.2 at most

OnRow = Callable[[EpochRow], object]
OnStart = Callable[[str], None]
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainResult:
    """out: the run's folder, local or in a bucket; best: its bundle; history: a row for each epoch."""

    out: str
    best: str
    history: History

    @property
    def best_row(self) -> EpochRow:
        return self.history[best_epoch(self.history) - 1]


def train(
    config: Config,
    *,
    overwrite: bool = False,
    on_row: OnRow = lambda row: None,
    on_start: OnStart = lambda device: None,
    on_step: OnStep = lambda phase, done, of: None,
    on_plan: OnStart = lambda about: None,
    dataset: Dataset | None = None,
) -> TrainResult:
    """Train to `train.epochs` (or `train.max_steps`) in `train.out`, or resume after the last complete epoch.

    In this process are called: on_plan with what is trained on how many frames, or that the run is finished; on_start
    with what the run computes on, as '8 × H100 80GB HBM3, bf16'; on_step now and then with how many steps of 'epoch 2
    of 10' or 'validating' are done; on_row for each epoch that ends. With cluster.workers=0 no Ray is started. dataset:
    instead of the settings'. Raises OutputExists if the folder holds a run with other settings, and a SegrayError for
    input that cannot be used.
    """
    config = config.absolute()
    out = config.train.out
    plan = plan_data(config, dataset)
    with claims.held(out, KIND):
        before_it = [] if overwrite else read_history(out)
        config = claim(in_epochs(config, len(plan.train), before_it), overwrite, plan)
        plan = plan.as_begun(config.data)
        history = read_history(out)
        if is_finished(config.train, history):
            on_plan(finished(config, len(history)))
        else:
            note_rate(with_batch(config, history).train, history, len(plan.train))
            note_frames(out, plan)
            with trackers.tracking(config) as track:
                on_plan(about(config, plan, len(history)))
                _train(config, plan, _Told(lambda row: (track(row), on_row(row)), on_start, on_step))
    return TrainResult(out, storage.join(out, BEST), read_history(out))


def about(config: Config, plan: DataPlan, epochs: int) -> str:
    """Say what a run trains, on what, and after how many epochs it goes on."""
    height, width = plan.size
    resumed = f" It resumes after epoch {epochs} of {config.train.epochs}." if epochs else ""
    return (
        f"{name_of(config.model)}, {plan.parameters / 1e6:.1f} million parameters, trains on "
        f"{counted(len(plan.train), 'frame')} of {height}×{width} and is validated on {len(plan.val)}.{resumed}"
    )


def finished(config: Config, epochs: int) -> str:
    """Say that nothing is left to train after so many epochs, and what would train on."""
    length = "--epochs" if config.train.max_steps is None else "train.max_steps"
    higher = "train.patience" if epochs < config.train.epochs else length
    return (
        f"Already finished, after {counted(epochs, 'epoch')}. A higher {higher} trains on from there; "
        "--overwrite begins anew."
    )


class _Told(NamedTuple):
    """What to call as a run goes on."""

    row: OnRow
    start: OnStart
    step: OnStep


def _train(config: Config, plan: DataPlan, told: _Told) -> None:
    """Train in this process, or in Ray Train's."""
    out, weights = config.train.out, start_weights(config)
    if config.cluster.workers == 0:
        data = in_memory(plan) if plan.decoded_bytes <= MEMORY_BYTES else plan.from_files(config.cluster.cache_gib)
        with data.kept:
            here = _Reporter(local_device(config.cluster), told)
            until_it_fits(config, lambda sized: loop.fit(here, sized, data, weights))
        return
    with connect.connected(config.cluster, config.cluster.workers) as has:
        worker = resources.shape(config.cluster, has)
        check_places(read_places(config), [storage.join(out, SETTINGS)])
        worker.tell_if_busy()
        data, stored_weights = stored(config, plan, has), object_store.put(weights)
        polls = (
            *(new_start(out, told.start), new_steps(out, told.step), new_rows(out, told.row)),
            connect.lost_nodes(worker),
        )
        with data.kept:
            connect.wait_for(lambda: run(config, data, worker, stored_weights), polls)


def random_start(config: Config) -> str | None:
    """Say that a new run's encoder starts from random weights although pretrained ones are published, else None."""
    if config.model.encoder_weights != "none" or not has_imagenet(config.model):
        return None
    return f"{config.model.encoder} starts from random weights; --weights imagenet starts it from pretrained ones."


def hardly_learnt(best: BundleInfo) -> str | None:
    """Say that the best model is hardly better on the validation frames than a constant guess, else None."""
    guess, miou = metrics.majority_baseline(best.confusion), metrics.scores(best.confusion).miou
    if not miou <= HARDLY * guess.miou:  # also where it is undefined
        return None
    often = best.space.names[np.nanargmax(guess.class_iou)]
    return (
        f"That is {'hardly' if miou > guess.miou else 'no'} better than predicting {often} everywhere, which has mIoU "
        f"{guess.miou:.3f}. Train for more --epochs or with a higher --lr, and check the masks: segray data check."
    )


class _Reporter(LocalWorker):
    def __init__(self, device: str, told: _Told) -> None:
        super().__init__(device)
        self.told = told

    def started(self, device: str) -> None:
        self.told.start(device)

    def at(self, phase: str, done: int, of: int) -> None:
        self.told.step(phase, done, of)

    def report(self, row: EpochRow) -> None:
        self.told.row(row)


def start_weights(config: Config) -> Weights | None:
    """Fetch the weights from which a new run's encoder starts; None for random ones, or for a resumed run."""
    return None if storage.exists(storage.join(config.train.out, STATE)) else encoder_weights(config.model)


def run(
    config: Config, data: TrainData, worker: resources.WorkerShape, weights: Any, callbacks: tuple[Any, ...] = ()
) -> None:
    """Run training.loop.fit in Ray Train's processes, with weights from object_store.put. Needs a connected Ray.

    Processes that die are restarted, `train.max_failures` times, and resume after the last complete epoch. If one of
    them raises an error of ours, all are ended, and the error is raised here.
    """
    until_it_fits(config, lambda sized: _run(sized, data, worker, weights, callbacks))


def _run(
    config: Config, data: TrainData, worker: resources.WorkerShape, weights: Any, callbacks: tuple[Any, ...]
) -> None:
    import ray.train

    api: Any = ray.train  # its types describe Train's version 1; version 2 runs
    try:
        for left in reversed(range(1 + config.train.max_failures)):
            try:
                _fit(api, config, data, worker, weights, callbacks)
                break
            except api.WorkerGroupError as error:  # Ray's own retries would repeat an error of ours
                if ours := connect.own_error(error):
                    raise ours from error
                if not left:
                    raise
    finally:
        storage.remove(storage.join(config.train.out, connect.RUN))


def _fit(
    api: Any, config: Config, data: TrainData, worker: resources.WorkerShape, weights: Any, callbacks: tuple[Any, ...]
) -> None:
    import ray.train.torch

    per_worker = {"CPU": worker.cpus, "GPU": worker.gpus}
    ray.train.torch.TorchTrainer(
        _loop,
        train_loop_config={
            "config": config.model_dump(mode="json"),
            "data": data,
            "threads": worker.cpus,
            "weights": weights,
        },
        scaling_config=api.ScalingConfig(
            num_workers=worker.count, use_gpu=worker.gpus > 0, resources_per_worker=per_worker
        ),
        run_config=api.RunConfig(
            name=connect.RUN,
            **connect.ray_storage(config.train.out),
            failure_config=api.FailureConfig(max_failures=0),
            logging_config=api.LoggingConfig(log_level="ERROR"),
            callbacks=list(callbacks),
        ),
    ).fit()


def _loop(given: dict[str, Any]) -> None:
    """Run the training loop in a process of Ray Train. An error in one process ends the others, as they may wait."""
    torch.set_num_threads(given["threads"])  # Ray sets 1 if a worker's CPUs are given by resources
    config = Config(**given["config"])
    data: TrainData = given["data"]
    with data.kept:
        loop.fit(connect.RayWorker(config.train.out), config, data, object_store.get(given["weights"]))


def new_start(out: str, on_start: OnStart) -> Callable[[], None]:
    """Return a poll that calls on_start once, when the workers of a new run have said what they compute on."""
    place = storage.join(out, connect.RUN, connect.STARTED)
    storage.remove(place)  # left by a run that was killed
    told = False

    def poll() -> None:
        nonlocal told
        if not told and (said := _said(place)):
            told = True
            on_start(said.decode())

    return poll


def new_steps(out: str, on_step: OnStep) -> Callable[[], None]:
    """Return a poll that calls on_step as workers go on."""
    place, every_s = storage.join(out, connect.RUN, connect.STEPS), connect.STEPS_EVERY_S[storage.in_bucket(out)]
    storage.remove(place)  # left by a run that was killed
    seen, next_s = b"", 0.0

    def poll() -> None:
        nonlocal seen, next_s
        if time.monotonic() < next_s:
            return
        next_s = time.monotonic() + every_s
        now = _said(place)
        if now and now != seen:
            seen = now
            on_step(*json.loads(now))

    return poll


def _said(place: str) -> bytes:
    """Return what a worker wrote; b"" where nothing is or where it is removed at this moment, as when a run ends."""
    with suppress(StorageError):
        return storage.read_bytes(place) if storage.exists(place) else b""
    return b""


def new_rows(out: str, on_row: OnRow) -> Callable[[], None]:
    """Return a poll that calls on_row for each epoch that is added to the history from now on."""
    seen = len(read_history(out))

    def poll() -> None:
        nonlocal seen
        for row in read_history(out)[seen:]:
            seen += 1
            on_row(row)

    return poll
