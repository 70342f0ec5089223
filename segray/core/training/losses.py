"""Logits [B, C, H, W] and class ids [B, H, W] → a scalar loss; void pixels are ignored.

A new loss is a function `(logits, masks, options) -> scalar` and a row in LOSSES. Each computes in float32,
whatever the precision around it, and is 0 for a batch without a labelled pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import torch
from torch.nn import functional

from segray.core.samples import IGNORE_INDEX
from segray.sections.training import TrainSection


@dataclass(frozen=True)
class LossOptions:
    """Options of the losses. class_weights: float [C] for cross_entropy, focal and ohem; None weighs all alike."""

    class_weights: torch.Tensor | None = None
    focal_gamma: float = 2.0
    ohem_threshold: float = 0.7
    ohem_min_share: float = 0.0625


PLAIN = LossOptions()


def cross_entropy(logits: torch.Tensor, masks: torch.Tensor, options: LossOptions = PLAIN) -> torch.Tensor:
    """Compute the mean cross-entropy over the labelled pixels, weighted by class."""
    return _mean(_pixels(logits, masks), _weights(masks, options))


def focal(logits: torch.Tensor, masks: torch.Tensor, options: LossOptions = PLAIN) -> torch.Tensor:
    """Compute focal loss (Lin et al. 2017, equation 4): cross-entropy × (1 − p)^γ, p the true class's probability."""
    pixels = _pixels(logits, masks)
    # expm1 keeps small 1 − p exact; the clamp keeps the gradient of 0^γ finite
    missing = (-torch.expm1(-pixels)).clamp_min(1e-6)
    return _mean(pixels * missing**options.focal_gamma, _weights(masks, options))


def ohem(logits: torch.Tensor, masks: torch.Tensor, options: LossOptions = PLAIN) -> torch.Tensor:
    """Compute the cross-entropy of hard pixels alone (online hard example mining).

    Shrivastava et al. 2016; for pixels as in BiSeNet, Yu et al. 2018. Hard pixels are those whose class has at most
    `ohem_threshold` of the probability, and at least the hardest `ohem_min_share` of the labelled ones, one or more.
    """
    pixels = _pixels(logits, masks)
    labelled = masks != IGNORE_INDEX
    hardness = pixels.detach().where(labelled, -1.0).flatten()
    rank = (labelled.sum() * options.ohem_min_share).long().clamp(min=1)
    kth = hardness.sort(descending=True).values.gather(0, rank.view(1) - 1)  # on the device, without waiting for it
    hard = pixels.detach() >= kth.clamp(max=-math.log(options.ohem_threshold))
    return _mean(pixels, _weights(masks, options) * hard)


def dice(logits: torch.Tensor, masks: torch.Tensor, options: LossOptions = PLAIN) -> torch.Tensor:
    """Compute 1 − soft Dice (Milletari et al. 2016) of the whole batch, averaged over the classes it contains."""
    truth = masks.unsqueeze(1) == torch.arange(logits.shape[1], device=masks.device).view(1, -1, 1, 1)
    probabilities = logits.float().softmax(1) * (masks != IGNORE_INDEX).unsqueeze(1)
    true_pixels = truth.sum((0, 2, 3))
    hit = (probabilities * truth).sum((0, 2, 3))
    scores = 2 * hit / (probabilities.sum((0, 2, 3)) + true_pixels).clamp_min(1e-7)
    there = true_pixels > 0
    return ((1 - scores) * there).sum() / there.sum().clamp(min=1)


def lovasz(logits: torch.Tensor, masks: torch.Tensor, options: LossOptions = PLAIN) -> torch.Tensor:
    """Compute Lovász-softmax (Berman et al. 2018, equation 11) of the whole batch, over the classes it contains.

    It is a smooth replacement of 1 − mIoU: each class's errors, sorted, weighted by their cost in IoU (algorithm 1).
    """
    classes = logits.shape[1]
    probabilities = logits.float().softmax(1).movedim(1, -1).reshape(-1, classes)
    truth = masks.flatten()
    labelled = (truth != IGNORE_INDEX).float()
    losses, there = [], []
    for label in range(classes):
        mine = (truth == label).float()
        if mine.device.type == "cpu" and not mine.any():  # on a GPU, sorting costs less than waiting for the answer
            continue
        # Void errors are 0 and come last, where they weigh nothing, so void pixels need not be removed.
        errors, order = ((mine - probabilities[:, label]).abs() * labelled).sort(descending=True)
        mine, others = mine[order], (labelled - mine)[order]
        union = mine.sum() + others.cumsum(0)
        jaccard = 1 - (mine.sum() - mine.cumsum(0)) / union.clamp_min(1e-7)
        steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
        losses.append((errors * steps).sum())
        there.append((mine.sum() > 0).float())
    if not losses:
        return 0 * logits.float().sum()
    held = torch.stack(there)
    return (torch.stack(losses) * held).sum() / held.sum().clamp(min=1)


Loss = Callable[[torch.Tensor, torch.Tensor, LossOptions], torch.Tensor]
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "dice": dice,
    "lovasz": lovasz,
    "ohem": ohem,
}


def combine(
    config: TrainSection, class_weights: torch.Tensor | None
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return the weighted sum of the losses in `train.loss`, as a function of logits and masks."""
    options = LossOptions(class_weights, config.focal_gamma, config.ohem_threshold, config.ohem_min_share)

    def loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return reduce(
            torch.add, (weight * LOSSES[name](logits, masks, options) for name, weight in config.loss.items())
        )

    return loss


def distillation(student: torch.Tensor, teacher: torch.Tensor, masks: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute T² · KL(teacher ‖ student) of softened probabilities (Hinton et al. 2015, section 2), averaged.

    The mean is over all pixels, also void ones, which only the teacher knows. Only the shape of masks is used.
    """
    assert student.shape[-2:] == masks.shape[-2:]
    ours = functional.log_softmax(student.float() / temperature, 1)
    theirs = functional.log_softmax(teacher.float() / temperature, 1)
    return functional.kl_div(ours, theirs, log_target=True, reduction="none").sum(1).mean() * temperature**2


def median_frequencies(pixels: torch.Tensor, frame_pixels: torch.Tensor) -> torch.Tensor:
    """Compute class weights, float [C], by median frequency balancing (Eigen & Fergus 2015, section 6.3.2).

    pixels: of each class, int [C]. frame_pixels: labelled pixels of the frames that hold the class, int [C]. A
    class's frequency is their ratio, its weight the median frequency over its own; absent classes weigh 1.
    """
    there = pixels > 0
    frequency = pixels.double() / frame_pixels.clamp(min=1)
    if not bool(there.any()):
        return torch.ones(len(pixels))
    middle = frequency[there].quantile(0.5)
    return torch.where(there, middle / frequency.clamp_min(1e-12), 1.0).float()


def _pixels(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy of each pixel, [B, H, W]; 0 for void ones."""
    return functional.cross_entropy(logits.float(), masks, ignore_index=IGNORE_INDEX, reduction="none")


def _weights(masks: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """Look up the class weight of each pixel, [B, H, W]; 0 for void ones."""
    labelled = masks != IGNORE_INDEX
    if options.class_weights is None:
        return labelled.float()
    return options.class_weights[masks.where(labelled, 0)] * labelled


def _mean(pixels: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return (pixels * weights).sum() / weights.sum().clamp_min(1e-12)
