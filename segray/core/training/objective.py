"""Settings and data → the objective to minimise: losses of all outputs, class weights, and a teacher's soft labels."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from segray.config import Config
from segray.core.formatting import counted
from segray.core.models import bundle, forward, preprocessing, ready
from segray.core.precision import autocast
from segray.core.prefetch import ahead
from segray.core.samples import IGNORE_INDEX, TrainData
from segray.core.training import losses
from segray.core.training.workers import Worker, all_reduce
from segray.core.transforms import normalize, sent
from segray.errors import ConfigError

Objective = Callable[[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]], torch.Tensor]


def make_objective(worker: Worker, config: Config, data: TrainData) -> Objective:
    """Return the objective as a function of images, masks and the outputs of forward_all.

    It is the sum of the losses of main and auxiliary outputs, and of the distance from a teacher's soft labels
    (Hinton et al. 2015), if there is a teacher.
    """
    train = config.train
    weights = train.class_weights
    if weights == "median":
        weights = median_weights(worker, data)
    classes = data.label_space.num_classes
    if weights != "none" and len(weights) != classes:
        raise ConfigError(
            f"train.class_weights holds {counted(len(weights), 'number')} for {classes} classes; give one each."
        )
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
    """Return the teacher's logits as a function of the student's images. It sees the student's size and crops."""
    teacher, info = bundle.load(ready.resolve(uri, config.model.weights_dir))
    teacher = teacher.to(worker.device).to(memory_format=torch.channels_last).requires_grad_(False)
    mean, std = preprocessing(config.model)
    centre, spread = (sent(torch.tensor(values), worker.device).view(1, -1, 1, 1) for values in (mean, std))

    @torch.no_grad()
    def teach(images: torch.Tensor) -> torch.Tensor:
        if (mean, std) != (info.mean, info.std):
            images = normalize(images * spread + centre, info.mean, info.std)
        with autocast(config.train, worker.device):
            return forward(teacher, images)

    return teach


def median_weights(worker: Worker, data: TrainData) -> list[float]:
    """Compute class weights by median frequency balancing of the training masks; each rank counts its share."""
    counts = torch.zeros(2, data.label_space.num_classes, dtype=torch.int64)

    def count(index: int) -> torch.Tensor:
        pixels = torch.from_numpy(np.bincount(data.train[index].mask_hw.ravel(), minlength=IGNORE_INDEX + 1))
        there = pixels[: counts.shape[1]]
        return torch.stack([there, (there > 0) * pixels[:IGNORE_INDEX].sum()])

    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:
        for found in ahead(pool, count, range(worker.rank, len(data.train), worker.world_size), 2 * threads):
            counts += found
    pixels, frames = all_reduce(worker, counts.to(worker.device)).cpu()
    return losses.median_frequencies(pixels, frames).tolist()
