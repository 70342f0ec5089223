"""Batches of decoded frames → what the model sees; image and mask are changed by one and the same map.

uint8 images [B, H, W, 3] and masks [B, H, W] go in; float images [B, 3, H, W], normalised, and int64 masks
come out, on the device of the inputs. Places outside the frame become the mean colour and void.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from segray.config import AugmentSection
from segray.core.samples import IGNORE_INDEX

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1, as torchvision's and smp's encoders were trained
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
CROP_TRIES = 10  # as mmsegmentation's RandomCrop
LOOK_PX = 24  # side of the small mask that a crop is judged by
BLUR_TAPS = 7
BLUR_SIGMA = (0.3, 1.5)  # pixels

Draw = Callable[..., torch.Tensor]


def to_float(images_bhwc: torch.Tensor) -> torch.Tensor:
    """uint8 [B, H, W, 3] → float32 [B, 3, H, W] in 0..1, channels last in memory."""
    return images_bhwc.permute(0, 3, 1, 2).float().div_(255)


def normalize(
    images_bchw: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """0..1 → zero mean and unit spread a channel."""
    mean, std = (torch.tensor(values, device=images_bchw.device).view(1, 3, 1, 1) for values in (mean, std))
    return (images_bchw - mean) / std


def augment(
    images_bhwc: torch.Tensor,
    masks_bhw: torch.Tensor,
    config: AugmentSection,
    generator: torch.Generator,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random colours, zoom, crop, rotation, flip, blur and pasted frames, drawn from `generator` (on the CPU).

    The result has `crop`'s size, else the input's.
    """
    count, height, width = masks_bhw.shape
    device = images_bhwc.device

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape or (count,), generator=generator) * (high - low) + low

    images = normalize(_recolor(to_float(images_bhwc), config, draw), mean, std)
    size = config.crop or (height, width)
    theta = _choose(masks_bhw, config, draw, size).to(device)
    # Zero outside is the mean colour of a normalised image; of masks + 1 it is a 0 that becomes void.
    images = _warp(images, theta, size, "bilinear")
    masks = _warp((masks_bhw.float() + 1).unsqueeze(1), theta, size, "nearest").squeeze(1).long() - 1
    masks = masks.masked_fill_(masks < 0, IGNORE_INDEX)
    if config.blur > 0:
        images = _blur(images, config, draw)
    if config.mix != "none":
        images, masks = _paste(images, masks, config, draw)
    return images, masks


def _recolor(images: torch.Tensor, config: AugmentSection, draw: Draw) -> torch.Tensor:
    """Contrast, brightness, saturation and hue of RGB in 0..1."""
    device = images.device
    gain = draw(1 - config.contrast, 1 + config.contrast).view(-1, 1, 1, 1).to(device)
    shift = draw(-config.brightness, config.brightness).view(-1, 1, 1, 1).to(device)
    if config.saturation == config.hue_deg == 0:
        return ((images - 0.5) * gain + 0.5 + shift).clamp_(0, 1)
    # One 3×3 matrix an image, around the grey axis: saturation scales what is not grey, hue turns it.
    vivid, turn = draw(1 - config.saturation, 1 + config.saturation), draw(-config.hue_deg, config.hue_deg).deg2rad()
    matrix = _hue(turn, vivid).to(device) * gain.view(-1, 1, 1)
    turned = torch.bmm(matrix, (images - 0.5).flatten(2))
    return (turned.view_as(images) + 0.5 + shift).clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def _hue(turn: torch.Tensor, vivid: torch.Tensor) -> torch.Tensor:
    """[B, 3, 3] in RGB: turn of the chroma plane of YIQ by `turn` radians, chroma × `vivid`."""
    to_yiq = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])
    matrix = torch.zeros(len(turn), 3, 3)
    matrix[:, 0, 0] = 1
    matrix[:, 1, 1] = matrix[:, 2, 2] = turn.cos() * vivid
    matrix[:, 1, 2], matrix[:, 2, 1] = -turn.sin() * vivid, turn.sin() * vivid
    return torch.linalg.inv(to_yiq) @ matrix @ to_yiq


def _choose(masks: torch.Tensor, config: AugmentSection, draw: Draw, size: tuple[int, int]) -> torch.Tensor:
    """The map of each image, [B, 2, 3]: of some that are drawn, the first that is not full of one class."""
    if config.max_class_share >= 1:
        return _affine(masks.shape, config, draw, size)
    tries = torch.stack([_affine(masks.shape, config, draw, size) for _ in range(CROP_TRIES)]).to(masks.device)
    count = masks.shape[0]
    look = tuple(min(side, LOOK_PX) for side in size)
    step = max(1, min(masks.shape[1:]) // (4 * LOOK_PX))
    repeated = (masks[:, ::step, ::step].float() + 1).unsqueeze(1).repeat(CROP_TRIES, 1, 1, 1)
    seen = _warp(repeated, tries.flatten(0, 1), look, "nearest").long().flatten(1)  # class + 1
    seen = seen.masked_fill_(seen == IGNORE_INDEX + 1, 0)
    counts = torch.zeros(len(seen), IGNORE_INDEX + 1, device=masks.device)
    counts = counts.scatter_add_(1, seen, torch.ones_like(seen, dtype=torch.float))[:, 1:]
    share = counts.amax(1) / counts.sum(1).clamp_min(1)
    good = (share <= config.max_class_share).view(CROP_TRIES, count)
    first = torch.where(good.any(0), good.int().argmax(0), CROP_TRIES - 1)  # on the device: nobody waits for it
    return tries[first, torch.arange(count, device=masks.device)]


def _affine(shape: Sequence[int], config: AugmentSection, draw: Draw, size: tuple[int, int]) -> torch.Tensor:
    """Output → input coordinates, [B, 2, 3], in affine_grid's units of −1..1 a side."""
    _, height, width = shape
    zoom = draw(math.log(config.scale[0]), math.log(config.scale[1])).exp()
    angle = draw(-config.rotate_deg, config.rotate_deg).deg2rad()
    mirror = torch.where(draw(0, 1) < config.flip, -1.0, 1.0)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    # The view's sides as shares of the frame's; what hangs over, or stays free, is shared out at random.
    tall, wide = size[0] / height, size[1] / width
    dx, dy = draw(-1, 1) * (1 - wide / zoom).abs(), draw(-1, 1) * (1 - tall / zoom).abs()
    rows = [cos * wide * mirror, -sin * tall * height / width, dx, sin * wide * width / height * mirror, cos * tall, dy]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _warp(values: torch.Tensor, theta: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    grid = functional.affine_grid(theta, [len(values), 1, *size], align_corners=False)
    return functional.grid_sample(values, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _blur(images: torch.Tensor, config: AugmentSection, draw: Draw) -> torch.Tensor:
    """A Gaussian of its own over each of a share of the images, first along rows, then along columns."""
    count, channels, height, width = images.shape
    sigma = draw(*BLUR_SIGMA).view(-1, 1)
    offsets = torch.arange(BLUR_TAPS) - BLUR_TAPS // 2
    kernel = (-(offsets**2) / (2 * sigma**2)).exp()
    kernel = torch.where(draw(0, 1).view(-1, 1) < config.blur, kernel, (offsets == 0).float())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0).to(images.device)
    flat = images.reshape(1, count * channels, height, width)
    half = BLUR_TAPS // 2
    flat = functional.pad(flat, (half, half, half, half), mode="replicate")
    flat = functional.conv2d(flat, kernel.view(-1, 1, 1, BLUR_TAPS), groups=count * channels)
    flat = functional.conv2d(flat, kernel.view(-1, 1, BLUR_TAPS, 1), groups=count * channels)
    return flat.view_as(images).contiguous(memory_format=torch.channels_last)


def _paste(
    images: torch.Tensor, masks: torch.Tensor, config: AugmentSection, draw: Draw
) -> tuple[torch.Tensor, torch.Tensor]:
    """A share of the frames gets a piece of its neighbour in the batch.

    cutmix (Yun et al. 2019): a rectangle. classmix (Olsson et al. 2021): half of the neighbour's classes.
    """
    count, height, width = masks.shape
    device = masks.device
    other = masks.roll(1, 0)
    if config.mix == "cutmix":
        cut = (1 - draw(0, 1)).sqrt().view(-1, 1, 1)  # sides, so that the area is uniform, as of Beta(1, 1)
        rows = (torch.arange(height).view(1, -1, 1) + 0.5) / height - draw(0, 1).view(-1, 1, 1)
        columns = (torch.arange(width).view(1, 1, -1) + 0.5) / width - draw(0, 1).view(-1, 1, 1)
        piece = ((rows.abs() <= cut / 2) & (columns.abs() <= cut / 2)).to(device)
    else:
        there = torch.zeros(count, IGNORE_INDEX + 1, device=device).scatter_(1, other.flatten(1), 1.0)
        there[:, IGNORE_INDEX] = 0
        order = (draw(0, 1, count, IGNORE_INDEX + 1).to(device) * there).argsort(1, descending=True).argsort(1)
        taken = (order < there.sum(1, keepdim=True) / 2) & (there > 0)
        piece = taken.gather(1, other.flatten(1)).view_as(masks)
    piece = piece & (draw(0, 1).view(-1, 1, 1) < config.mix_share).to(device)
    images = torch.where(piece.unsqueeze(1), images.roll(1, 0), images)
    return images.contiguous(memory_format=torch.channels_last), torch.where(piece, other, masks)
