"""Settings and data → what is minimised: losses of all outputs, class weights, and a teacher's soft labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from segray.config import Config
from segray.core import losses
from segray.core.models import bundle, forward, preprocessing
from segray.core.samples import IGNORE_INDEX, TrainData
from segray.core.transforms import normalize
from segray.core.workers import Worker, all_reduce, autocast
from segray.errors import ConfigError

Objective = Callable[[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]


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
    teach = make_teacher(worker, config, train.teacher) if train.teacher else None

    def objective(images: torch.Tensor, masks: torch.Tensor, outputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        main, *aux = outputs
        total = loss(main, masks) + sum(train.aux_weight * loss(output, masks) for output in aux)
        if teach is not None and torch.is_grad_enabled():
            soft = losses.distillation(main, teach(images), masks, train.teacher_temperature)
            total = total + train.teacher_weight * soft
        return total

    return objective


def make_teacher(worker: Worker, config: Config, uri: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images as the student sees them → the teacher's logits. The teacher sees the student's size and crops."""
    teacher, info = bundle.load(uri)
    teacher = teacher.to(worker.device).to(memory_format=torch.channels_last).requires_grad_(False)
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
