"""Batches of decoded frames → what the model sees; image and mask are changed by one and the same map.

uint8 images [B, H, W, 3] and masks [B, H, W] go in; float images [B, 3, H, W], normalised, and int64 masks
come out, on the device of the inputs. Places outside the frame become the mean colour and void.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from segray.config import AugmentSection
from segray.core.samples import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1, as torchvision's and smp's encoders were trained
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_float(images_bhwc: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W] in 0..1, channels last in memory."""
    return images_bhwc.permute(0, 3, 1, 2).float().div_(255)


def normalize(images_bchw: torch.Tensor) -> torch.Tensor:
    """0..1 → zero mean and unit spread a channel."""
    mean = torch.tensor(IMAGENET_MEAN, device=images_bchw.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images_bchw.device).view(1, 3, 1, 1)
    return (images_bchw - mean) / std


def augment(
    images_bhwc: torch.Tensor, masks_bhw: torch.Tensor, config: AugmentSection, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random brightness, contrast, zoom, crop, rotation and flip, drawn from `generator` (on the CPU)."""
    count, height, width = masks_bhw.shape
    device = images_bhwc.device

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    gain = draw(1 - config.contrast, 1 + config.contrast).view(-1, 1, 1, 1).to(device)
    shift = draw(-config.brightness, config.brightness).view(-1, 1, 1, 1).to(device)
    images = normalize(((to_float(images_bhwc) - 0.5) * gain + 0.5 + shift).clamp_(0, 1))
    theta = _affine(draw, config, height / width).to(device)
    grid = functional.affine_grid(theta, [count, 1, height, width], align_corners=False)
    # Zero outside is the mean colour of a normalised image; of masks + 1 it is a 0 that becomes void.
    images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    shifted = (masks_bhw.float() + 1).unsqueeze(1)
    shifted = functional.grid_sample(shifted, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    masks = shifted.squeeze(1).long() - 1
    return images, masks.masked_fill_(masks < 0, IGNORE_INDEX)


def _affine(draw: object, config: AugmentSection, aspect: float) -> torch.Tensor:
    """Output → input coordinates, [B, 2, 3], in affine_grid's units of −1..1 a side; aspect is height / width."""
    zoom = draw(math.log(config.scale[0]), math.log(config.scale[1])).exp()
    angle = draw(-config.rotate_deg, config.rotate_deg).deg2rad()
    mirror = torch.where(draw(0, 1) < config.flip, -1.0, 1.0)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    # A zoomed frame hangs over by 1 − 1/zoom a side: the crop is anywhere in it.
    room = (1 - 1 / zoom).abs()
    dx, dy = draw(-1, 1) * room, draw(-1, 1) * room
    rows = [cos * mirror, -sin * aspect, dx, sin / aspect * mirror, cos, dy]
    return torch.stack(rows, dim=1).view(-1, 2, 3)
