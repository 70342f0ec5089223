"""Labelled frames and settings → a model bundle, trained data-parallel by Ray Train around core.training.loop.fit."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from segray.cluster import connect, resources
from segray.cluster.access import check_places
from segray.config import Config
from segray.core.data import FileSamples, MemorySamples, input_shape, open_dataset, split_refs, with_classes
from segray.core.data.frame_cache import FrameCache
from segray.core.data.frame_list import FRAMES, differences, frame_list
from segray.core.io import claims, storage
from segray.core.models import build, check_names, encoder_weights, has_imagenet, name_of
from segray.core.models.info import read_info
from segray.core.models.weights import Weights
from segray.core.samples import BYTES_A_PIXEL, Dataset, LabelSpace, SampleRef, Samples, TrainData
from segray.core.training import loop, optim
from segray.core.training.checkpoint import (
    BEST,
    HISTORY,
    SETTINGS,
    STATE,
    EpochRow,
    History,
    best_epoch,
    command_of,
    has_results,
    is_finished,
    read_history,
    read_settings,
    write_history,
)
from segray.core.training.workers import LocalWorker, local_device
from segray.core.transforms import usual_crop
from segray.errors import ConfigError, DataError, ModelError, ModelTooLarge, StorageError
from segray.sections.training import DataSection, Resize, TrainSection
from segray.stages import trackers

log = logging.getLogger("segray")

SECTIONS = ("data", "model", "augment", "train", "cluster")
FREE_KEYS = {  # settings that may change when a run is resumed
    "train.epochs", "train.max_steps", "train.eval_every", "train.out", "train.max_failures", "train.patience",
    "train.mlflow", "train.compile", "model.weights_dir",
}  # fmt: skip

CHOSEN = (  # settings that are chosen if they are not given
    "data.size", "data.resize", "train.learning_rate", "train.weight_decay",
    "augment.scale", "augment.crop", "augment.rotate_deg",
    "augment.brightness", "augment.contrast", "augment.saturation",
)  # fmt: skip
MEMORY_BYTES = 1 << 30  # decoded frames that one process keeps; more are stored on the disk
MADE = (SETTINGS, FRAMES, STATE, HISTORY, BEST, trackers.TENSORBOARD, trackers.MLFLOW_RUN, connect.RUN)
KIND = claims.Kind("training run", SETTINGS, MADE, has_results, lambda out: command_of(out) == "train")

OnRow = Callable[[EpochRow], object]
OnStart = Callable[[str], None]
OnStep = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TrainResult:
    """out: the run's folder, local or on S3; best: its bundle; history: a row for each epoch."""

    out: str
    best: str
    history: History

    @property
    def best_row(self) -> EpochRow:
        return self.history[best_epoch(self.history) - 1]


@dataclass(frozen=True)
class DataPlan:
    """The frames of a run before any is decoded. size: (height, width) of them all as the model sees them."""

    train: tuple[SampleRef, ...]
    val: tuple[SampleRef, ...]
    label_space: LabelSpace
    size: tuple[int, int]
    data_id: str
    resize: Resize = "stretch"
    parameters: int = 0  # of the model

    def as_begun(self, data: DataSection) -> DataPlan:
        """Return the plan with the shape of the frames that a claimed run's settings say."""
        size, resize = input_shape(data, (*self.train, *self.val))
        return replace(self, size=size, resize=resize)

    def frame_list(self) -> bytes:
        """The list of frames that the run's folder keeps."""
        return frame_list({"train": self.train, "val": self.val}, self.label_space)

    @property
    def decoded_bytes(self) -> int:
        """The bytes of all frames as a model sees them, with their masks."""
        return (len(self.train) + len(self.val)) * self.size[0] * self.size[1] * BYTES_A_PIXEL

    def with_samples(
        self, train: Samples, val: Samples, *, kept: AbstractContextManager[object] | None = None
    ) -> TrainData:
        ids = tuple(ref.sample_id for ref in self.train)
        return TrainData(train, val, self.label_space, self.size, self.data_id, ids, kept or nullcontext())

    def from_files(self, cache_gib: float | None) -> TrainData:
        """Return frames that are decoded on request, and kept on the disk of each machine."""
        limit = None if cache_gib is None else int(cache_gib * 2**30)
        cache = FrameCache(len(self.val) + len(self.train), self.size, limit)
        val = FileSamples(self.val, self.label_space, self.size, cache, resize=self.resize)
        train = FileSamples(self.train, self.label_space, self.size, cache, first=len(self.val), resize=self.resize)
        return self.with_samples(train, val, kept=cache)


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

    In this process are called: on_plan with what is trained on how many frames; on_start with what the run computes
    on, as '8 × H100 80GB HBM3, bf16'; on_step now and then with how many steps of 'epoch 2 of 10' or 'validating' are
    done; on_row for each epoch that ends. With cluster.workers=0 no Ray is started. dataset: instead of the settings'.
    Raises OutputExists if the folder holds a run with other settings, and a SegrayError for input that
    cannot be used.
    """
    config = config.absolute()
    out = config.train.out
    plan = plan_data(config, dataset)
    with claims.held(out, KIND):
        before_it = [] if overwrite else read_history(out)
        config = claim(in_epochs(config, len(plan.train), before_it), overwrite, plan)
        plan = plan.as_begun(config.data)
        history = read_history(out)
        if not is_finished(config.train, history):
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
        f"{len(plan.train)} frames of {height}×{width} and is validated on {len(plan.val)}.{resumed}"
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
        data, stored_weights = stored(config, plan, has), connect.put(weights)
        polls = (
            *(new_start(out, told.start), new_steps(out, told.step), new_rows(out, told.row)),
            connect.lost_nodes(worker),
        )
        with data.kept:
            connect.wait_for(lambda: run(config, data, worker, stored_weights), polls)


def with_batch(config: Config, history: Sequence[EpochRow] = ()) -> Config:
    """Return the settings with a number for train.batch_size: for auto that of the last epoch, or AUTO_BATCH.

    The latter is more where workers need it.
    """
    if config.train.batch_size != "auto":
        return config
    used: Mapping[str, Any] = history[-1] if history else {}
    least = loop.least_batch(config, config.cluster.workers)
    return config.changed({
        "train.batch_size": used.get("batch_size", max(config.train.batch, least)),
        "train.accumulate": used.get("accumulate", config.train.accumulate),
    })  # fmt: skip


def until_it_fits(config: Config, fit: Callable[[Config], None]) -> None:
    """Call `fit` with the settings; for auto with half the batch and twice the steps a group, while memory runs out.

    Each call begins after the last complete epoch, on all workers, so that they agree.
    """
    sized = with_batch(config, read_history(config.train.out))
    while True:
        try:
            fit(sized)
            return
        except ModelTooLarge:
            batch, steps = sized.train.batch // 2, sized.train.accumulate * 2
            if config.train.batch_size != "auto" or batch < loop.least_batch(config, config.cluster.workers):
                raise
            log.warning(f"Memory ran out with train.batch_size {2 * batch}: it is {batch} now, and accumulate {steps}.")
            sized = sized.changed({"train.batch_size": batch, "train.accumulate": steps})
        torch.cuda.empty_cache()  # only here has the traceback released its tensors


def note_rate(train: TrainSection, history: History, frames: int) -> None:
    """Warn if a resumed run with another schedule, as with more epochs, has a higher rate than it ended with."""
    if not history:
        return
    steps = max(1, frames // train.batch)
    last, done = history[-1]["learning_rate"], len(history) * steps
    ended, begins = (optim.learning_rate(train, step, steps * train.epochs) for step in (done - 1, done))
    if begins > last and not math.isclose(ended, last, rel_tol=1e-6):
        log.warning(
            f"Epoch {len(history)} ended at a learning rate of {last:.3g}; by the schedule of now {train.epochs} "
            f"epochs the next one begins at {begins:.3g}."
        )


def random_start(config: Config) -> str | None:
    """Say that a new run's encoder starts from random weights although pretrained ones are published, else None."""
    if config.model.encoder_weights != "none" or not has_imagenet(config.model):
        return None
    return f"{config.model.encoder} starts from random weights; --weights imagenet starts it from pretrained ones."


def note_frames(out: str, plan: DataPlan) -> None:
    """Warn if a run of an earlier version, which kept no list of its frames, resumes with other frames."""
    best = storage.join(out, BEST)
    if storage.exists(best) and read_info(best).data_id not in ("", plan.data_id):
        log.warning(
            f"The frames or classes are not those of the best epoch so far in {out}: its scores and those to come are "
            "of different data. --overwrite begins anew."
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


def in_epochs(config: Config, frames: int, history: Sequence[EpochRow] = ()) -> Config:
    """Return the settings with train.max_steps, if given, as the nearest number of epochs over that many frames.

    For auto, steps are of the batch that a resumed run began with: halving it changes no number of epochs.
    """
    if config.train.max_steps is None:
        return config
    begun = with_batch(config, history[:1]).train
    steps = max(1, frames // (begun.batch * begun.accumulate // config.train.accumulate))
    return config.changed({"train.epochs": max(1, round(config.train.max_steps / steps))})


def read_places(config: Config) -> list[str]:
    """List where workers read a run's frames and its teacher."""
    return [path for path in (config.data.root, config.train.teacher) if path is not None]


def plan_data(config: Config, dataset: Dataset | None = None) -> DataPlan:
    """Find the frames that `config` names, or take those given; check all that can be before a pixel is read."""
    check_names(config.model)
    dataset = with_classes(dataset, config.data) if dataset else open_dataset(config.data)
    for note in dataset.notes:
        log.warning(f"{note}.")
    parameters = check_model(config, dataset.label_space.num_classes)
    train_refs = split_refs(dataset, config.data.train_split)
    val_refs = split_refs(dataset, config.data.val_split)
    workers, batch = max(1, config.cluster.workers), with_batch(config).train.batch
    if batch < workers:
        raise ConfigError(
            f"train.batch_size {batch} leaves some of {workers} workers without an image; "
            f"take {workers} or more, or lower cluster.workers."
        )
    if batch < loop.least_batch(config, workers):
        raise ConfigError(
            f"{config.model.arch} normalises pooled features, which takes 2 images a worker; "
            f"train.batch_size is {batch} for {workers}: take {2 * workers} or more."
        )
    if len(train_refs) < workers:
        raise DataError(f"{len(train_refs)} training frames for {workers} workers; lower cluster.workers.")
    if config.train.teacher:
        check_teacher(config.train.teacher, dataset.label_space)
    names = "\n".join(ref.sample_id for ref in (*train_refs, *val_refs))
    data_id = hashlib.sha256(f"{names}\n{dataset.label_space.to_dict()}".encode(errors="surrogateescape")).hexdigest()
    size, resize = input_shape(config.data, (*train_refs, *val_refs))
    return DataPlan(train_refs, val_refs, dataset.label_space, size, data_id[:12], resize, parameters)


def check_model(config: Config, classes: int) -> int:
    """Return how many parameters the model has. Raises ModelError for one that cannot be built, or not be frozen."""
    if config.train.freeze_encoder and config.model.encoder_weights == "none":
        raise ModelError(
            "train.freeze_encoder would keep an encoder of random weights as it is (model.encoder_weights is none). "
            "Give it pretrained ones, --weights imagenet or a file, or leave --freeze-encoder out."
        )
    model = build(config.model, classes)
    optim.freeze(model, config.train.freeze_encoder)
    return sum(parameter.numel() for parameter in model.parameters())


def check_teacher(uri: str, space: LabelSpace) -> None:
    """Raise ModelError if the teacher's classes are not those of the data."""
    theirs = tuple(read_info(uri).label_space["names"])
    if theirs != space.names:
        raise ModelError(
            f"train.teacher {uri} knows {len(theirs)} classes ({', '.join(theirs[:5])}, …), the data "
            f"{space.num_classes} ({', '.join(space.names[:5])}, …); a teacher has the data's classes."
        )


def start_weights(config: Config) -> Weights | None:
    """Fetch the weights from which a new run's encoder starts; None for random ones, or for a resumed run."""
    return None if storage.exists(storage.join(config.train.out, STATE)) else encoder_weights(config.model)


def in_memory(plan: DataPlan) -> TrainData:
    """Decode the plan's frames once, in this process."""
    return plan.with_samples(
        *(MemorySamples.read(refs, plan.label_space, plan.size, plan.resize) for refs in (plan.train, plan.val))
    )


def stored(config: Config, plan: DataPlan, has: resources.Resources) -> TrainData:
    """Return the plan's frames for every worker of every run in this session.

    They are decoded once if the object store of each node holds them, else on request.
    """
    if not connect.fits_stores(plan.decoded_bytes, has):
        return plan.from_files(config.cluster.cache_gib)
    return plan.with_samples(
        *(connect.store_samples(refs, plan.label_space, plan.size, plan.resize) for refs in (plan.train, plan.val))
    )


def run(
    config: Config, data: TrainData, worker: resources.WorkerShape, weights: Any, callbacks: tuple[Any, ...] = ()
) -> None:
    """Run training.loop.fit in Ray Train's processes, with weights from connect.put. Blocks; needs a connected Ray.

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
            storage_path=connect.ray_path(config.train.out),
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
        loop.fit(connect.RayWorker(config.train.out), config, data, connect.get(given["weights"]))


def claim(config: Config, overwrite: bool, plan: DataPlan | None = None) -> Config:
    """Claim `train.out` for this run; return its settings, which the folder keeps.

    plan: the frames, which must be those that the run began with; None if a sweep has checked them for its trials.
    Raises OutputExists if the folder holds something else, unless `overwrite`.
    """
    out = config.train.out
    begun = before(out, KIND, overwrite)
    config = as_begun(config, begun, plan).resolved()
    frames = plan.frame_list() if plan else None

    def changed() -> list[str]:
        return different(begun_settings(out).absolute(), config) + changed_frames(out, frames)

    claims.claim(out, KIND, overwrite, changed)
    if begun is not None and config.train.batch_size == "auto" != begun.train.batch_size:
        note_batch(out, begun.train)
    storage.replace(storage.join(out, SETTINGS), config.to_yaml(SECTIONS).encode())
    if frames is not None:
        storage.replace(storage.join(out, FRAMES), frames)
    return with_kept_pixels(config)


def note_batch(out: str, begun: TrainSection) -> None:
    """Write the batch into rows of older versions, which lack it, so that auto begins with it."""
    rows = read_history(out)
    for row in rows:
        row.setdefault("batch_size", begun.batch)
        row.setdefault("accumulate", begun.accumulate)
    if rows:
        write_history(out, rows)


def with_kept_pixels(config: Config) -> Config:
    """Take mean and standard deviation from the run's best bundle, if this version might choose others."""
    best, model = storage.join(config.train.out, BEST), config.model
    if (model.mean and model.std) or not storage.exists(best):
        return config
    info = read_info(best)
    return config.changed({"model.mean": model.mean or info.mean, "model.std": model.std or info.std})


def changed_frames(out: str, frames: bytes | None) -> list[str]:
    """Say how the frames differ from those that the run in `out` began with; [] if an older version kept no list."""
    place = storage.join(out, FRAMES)
    return differences(storage.read_bytes(place), frames) if frames is not None and storage.exists(place) else []


def before(out: str, kind: claims.Kind, overwrite: bool) -> Config | None:
    """Return the settings of the run in `out` that is resumed; None if a new one begins."""
    return begun_settings(out) if kind.began(out) and not overwrite else None


def begun_settings(out: str) -> Config:
    """Read the settings of the run or sweep in `out`; those of versions without data.resize stretched every frame."""
    config = read_settings(out)
    return config.changed({"data.resize": config.data.resize or "stretch"})


def as_begun(config: Config, before: Config | None, plan: DataPlan | None) -> Config:
    """Return the settings, with defaults as they were when the run began: another version may choose otherwise.

    before: that run's settings. Without them, the run is new and gets the shape of the planned frames, and the usual
    crop for it; a sweep's trials have both from the sweep.
    """
    if before is None:
        if plan is None:
            return config
        crop = config.augment.crop or usual_crop(plan.size)
        return config.changed({"data.size": plan.size, "data.resize": plan.resize, "augment.crop": crop})
    now, then = (c.model_dump(mode="json") for c in (config, before))
    keys = (key.split(".") for key in CHOSEN)
    return config.changed({f"{part}.{key}": then[part][key] for part, key in keys if now[part][key] is None})


def different(before: Config, now: Config, sections: tuple[str, ...] = SECTIONS[:-1]) -> list[str]:
    """List the settings that lead to another model, as `key was a, is b`."""
    lines = []
    for section in sections:
        old, new = (c.model_dump(mode="json")[section] for c in (before, now))
        for key in old:
            name = f"{section}.{key}"
            goes_on = name == "train.batch_size" and new[key] == "auto"  # with the batch that the run had
            if old[key] != new[key] and name not in FREE_KEYS and not goes_on:
                lines.append(f"{name} was {old[key]}, is {new[key]}")
    return lines


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
    place, every_s = storage.join(out, connect.RUN, connect.STEPS), connect.STEPS_EVERY_S[storage.is_s3(out)]
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
