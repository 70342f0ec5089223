"""The frames of a run: found and checked before a pixel is read, and handed to its processes."""

from __future__ import annotations

import hashlib
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from segray.cluster import object_store, resources
from segray.config import Config
from segray.core.data import FileSamples, MemorySamples, input_shape, open_dataset, split_refs, with_classes
from segray.core.data.frame_cache import FrameCache
from segray.core.data.frame_list import frame_list
from segray.core.formatting import counted
from segray.core.models import build, check_names, ready, weights
from segray.core.models.info import read_info
from segray.core.samples import BYTES_A_PIXEL, Dataset, LabelSpace, SampleRef, Samples, TrainData
from segray.core.training import loop, optim
from segray.errors import ConfigError, DataError, ModelError
from segray.sections.training import DataSection, Resize
from segray.sections.values import is_ready_model
from segray.stages.batch_size import with_batch

log = logging.getLogger("segray")
MEMORY_BYTES = 1 << 30  # decoded frames that one process keeps; more are stored on the disk


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


def plan_data(config: Config, dataset: Dataset | None = None) -> DataPlan:
    """Find the frames that `config` names, or take those given; check all that can be before a pixel is read."""
    check_names(config.model)
    dataset = with_classes(dataset, config.data) if dataset else open_dataset(config.data)
    for note in dataset.notes:
        log.warning(f"{note}.")
    parameters = check_model(config, dataset.label_space.num_classes)
    train_refs = split_refs(dataset, config.data.train_split, "data.train_split")
    val_refs = split_refs(dataset, config.data.val_split, "data.val_split")
    check_batch(config)
    if len(train_refs) < (workers := max(1, config.cluster.workers)):
        raise DataError(f"{counted(len(train_refs), 'training frame')} for {workers} workers; lower cluster.workers.")
    if config.augment.mix != "none" and with_batch(config).train.batch < 2 * workers:
        log.warning(
            f"augment.mix pastes from another frame of a worker's batch, and a worker with one frame pastes nothing: "
            f"give a train.batch_size of {2 * workers} or more for {counted(workers, 'worker')}."
        )
    if config.train.teacher:
        check_teacher(config.train.teacher, dataset.label_space, config.model.weights_dir)
    names = "\n".join(ref.sample_id for ref in (*train_refs, *val_refs))
    data_id = hashlib.sha256(f"{names}\n{dataset.label_space.to_dict()}".encode(errors="surrogateescape")).hexdigest()
    size, resize = input_shape(config.data, (*train_refs, *val_refs))
    return DataPlan(train_refs, val_refs, dataset.label_space, size, data_id[:12], resize, parameters)


def check_batch(config: Config) -> None:
    """Raise ConfigError for a batch that is too small for the workers. The model's names are known."""
    workers, batch = max(1, config.cluster.workers), with_batch(config).train.batch
    if batch < workers:
        raise ConfigError(
            f"train.batch_size {batch} leaves some of {workers} workers without an image; "
            f"take {workers} or more, or lower cluster.workers."
        )
    if batch < loop.least_batch(config, workers):
        raise ConfigError(loop.too_few(config.model.arch, batch, workers))


def check_model(config: Config, classes: int) -> int:
    """Return how many parameters the model has. Raises ModelError for one that cannot be built, or not be frozen."""
    if config.train.freeze_encoder and config.model.encoder_weights == "none":
        raise ModelError(
            "train.freeze_encoder would keep an encoder of random weights as it is (model.encoder_weights is none). "
            "Give it pretrained ones, --weights imagenet or a file, or leave --freeze-encoder out."
        )
    weights.check_pixels(config.model)
    model = build(config.model, classes)
    optim.freeze(model, config.train.freeze_encoder)
    return sum(parameter.numel() for parameter in model.parameters())


def check_teacher(uri: str, space: LabelSpace, weights_dir: str | None = None) -> None:
    """Raise ModelError if the teacher's classes are not those of the data."""
    theirs = tuple(read_info(ready.resolve(uri, weights_dir)).label_space["names"])
    if theirs != space.names:
        raise ModelError(
            f"train.teacher {uri} knows {len(theirs)} classes ({', '.join(theirs[:5])}, …), the data "
            f"{space.num_classes} ({', '.join(space.names[:5])}, …); a teacher has the data's classes."
        )


def in_memory(plan: DataPlan) -> TrainData:
    """Decode the plan's frames once, in this process."""
    return plan.with_samples(
        *(MemorySamples.read(refs, plan.label_space, plan.size, plan.resize) for refs in (plan.train, plan.val))
    )


def stored(config: Config, plan: DataPlan, has: resources.Resources) -> TrainData:
    """Return the plan's frames for every worker of every run in this session.

    They are decoded once if the object store of each node holds them, else on request.
    """
    if not object_store.fits_stores(plan.decoded_bytes, has):
        return plan.from_files(config.cluster.cache_gib)
    return plan.with_samples(
        *(object_store.store_samples(refs, plan.label_space, plan.size, plan.resize) for refs in (plan.train, plan.val))
    )


def read_places(config: Config) -> list[str]:
    """List where workers read a run's frames and its teacher; one that has a name is fetched by each machine."""
    return [path for path in (config.data.root, config.train.teacher) if path and not is_ready_model(path)]
