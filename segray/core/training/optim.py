"""How weights are updated: optimizers, learning rate schedules, frozen encoders, and EMA."""

from __future__ import annotations

import copy
import math
import re
from itertools import chain

import torch

from segray.core.models import encoder_of
from segray.errors import ModelError
from segray.sections.training import TrainSection

# Parameters of more than one dimension that are not a layer's weights: positions, class and register tokens, and tables
# of relative positions (as timm's models list them in no_weight_decay).
NOT_DECAYED = re.compile(r"(^|\.)(\w*pos_embed\w*|\w+_tokens?|\w*relative_position_bias_table|rel_pos_[hw])$")


def make_optimizer(model: torch.nn.Module, config: TrainSection) -> torch.optim.Optimizer:
    """Make AdamW, Adam or SGD with four groups: encoder or not, decayed or not; `scale` multiplies a group's rate.

    Norms and biases (parameters of one dimension) are not decayed (He et al. 2019, Bag of Tricks, 3.1), nor are
    position embeddings and tokens.
    """
    encoder = encoder_of(model)
    in_encoder = {id(p) for p in encoder.parameters()} if encoder is not None else set()
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        decayed = parameter.ndim > 1 and not NOT_DECAYED.search(name)
        groups.setdefault((id(parameter) in in_encoder, decayed), []).append(parameter)
    params = [
        {
            "params": members,
            "scale": config.encoder_lr if encoded else 1.0,
            "weight_decay": config.decay if decayed else 0.0,
        }
        for (encoded, decayed), members in sorted(groups.items(), key=lambda item: item[0])
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(params, lr=config.peak_rate, momentum=config.momentum)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(params, lr=config.peak_rate)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def learning_rate(config: TrainSection, step: int, total: int) -> float:
    """Return the rate at `step` of `total`: linear warm-up to the peak, then the schedule over the remaining steps.

    poly: peak × (1 − progress)^power (Chen et al. 2017, DeepLab). cosine: half a wave down to 0 (Loshchilov &
    Hutter 2017). onecycle: the warm-up is half a wave from peak/25, the rest half a wave to 0 (Smith 2018, as
    torch's OneCycleLR). step: × 0.1 at each of `milestones`.
    """
    warmup = round(config.warmup * total)
    if step < warmup:
        if config.schedule == "onecycle":
            return config.peak_rate * (1 - 24 / 25 * _half_wave(step / warmup))
        return config.peak_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    match config.schedule:
        case "constant":
            factor = 1.0
        case "poly":
            factor = (1 - progress) ** config.poly_power
        case "step":
            factor = 0.1 ** sum(progress >= milestone for milestone in config.milestones)
        case _:
            factor = _half_wave(progress)
    return config.peak_rate * factor


def _half_wave(progress: float) -> float:
    """Return half a cosine wave: 1 at 0, 0 at 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def is_frozen(config: TrainSection, epoch: int) -> bool:
    """Say whether the encoder is frozen in this epoch (the first is 1)."""
    return config.freeze_encoder and (config.unfreeze_after is None or epoch <= config.unfreeze_after)


def freeze(model: torch.nn.Module, frozen: bool) -> None:
    """Set training mode; a frozen encoder gets no gradients and keeps its batch-norm statistics.

    Raises ModelError for a model without an encoder of its own.
    """
    encoder = encoder_of(model)
    model.train()
    if encoder is None:
        if frozen:
            raise ModelError("train.freeze_encoder: this architecture has no encoder to freeze; leave it out.")
        return
    encoder.requires_grad_(not frozen)
    if frozen:
        encoder.eval()


class Average(torch.nn.Module):
    """The EMA of a model: `module` is a copy whose weights and statistics follow the model's as an exponential mean.

    The decay rises with the number of updates n, min(decay, (1 + n) / (10 + n)), so that the random start does not
    hold short runs back (as in TensorFlow's ExponentialMovingAverage). torch's AveragedModel computes the same, but
    makes the host wait for the device twice an update, to send it the number.
    """

    n_averaged: torch.Tensor

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        super().__init__()
        self.module, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        self.register_buffer("n_averaged", torch.tensor(0))  # on the CPU, where it is read

    @torch.no_grad()
    def update(self, model: torch.nn.Module) -> None:
        """Update the EMA after a step. model: the one that was copied, wrapped or not."""
        n = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0
        means: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        pairs = zip(self.module.parameters(), model.parameters(), strict=True)
        for mine, theirs in chain(pairs, zip(self.module.buffers(), model.buffers(), strict=True)):
            if mine.is_floating_point():
                means.append(mine)
                values.append(theirs)
            else:  # the number of batches that a norm has seen
                mine.copy_(theirs)
        torch._foreach_lerp_(means, values, weight)
        self.n_averaged += 1
