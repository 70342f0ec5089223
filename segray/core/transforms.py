"""Batches of decoded frames → what the model sees; image and mask are changed by the same map.

uint8 images [B, H, W, 3] and masks [B, H, W] go in; float images [B, 3, H, W], normalised, and int64 masks
come out, on the device of the inputs. Places outside the frame become the mean colour and void.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional

from segray.core.samples import IGNORE_INDEX
from segray.sections.training import AugmentSection, Resize

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1, as for torchvision's and smp's pretrained encoders
IMAGENET_STD = (0.229, 0.224, 0.225)
PAD_RGB = tuple(round(255 * value) for value in IMAGENET_MEAN)  # what nearly all encoders take for the mean
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
CROP_TRIES = 10  # as in mmsegmentation's RandomCrop
LOOK_PX = 24  # side of the small mask by which a crop is judged
WHOLE_PX = 720 * 960  # largest frame that is trained on without cropping
BLUR_TAPS = 7
BLUR_SIGMA = (0.3, 1.5)  # pixels

Draw = Callable[..., torch.Tensor]

# Decoders return read-only arrays, and fit() only reads them.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def fit(
    image_hwc: np.ndarray, size: tuple[int, int], resize: Resize = "stretch", resample: str = "bilinear"
) -> np.ndarray:
    """Resize a decoded frame, RGB uint8 [H, W, 3], to a model's input size, [*size, 3]; keep pads with PAD_RGB.

    Bilinear over the source's area, so that shrinking does not alias: Pillow's filter, with differences of at most
    1 of 255, and four to ten times as fast. Training and labelling both call it, so that they show the same pixels.
    """
    inner = inner_size(image_hwc.shape[:2], size, resize)
    if image_hwc.shape[:2] != inner:
        # The batch axis is added before the permutation: so the strides say channels last, which has the fast path.
        image = torch.from_numpy(image_hwc)[None].permute(0, 3, 1, 2)
        smooth = resample != "nearest"
        image = functional.interpolate(image, inner, mode=resample if smooth else "nearest-exact", antialias=smooth)
        image_hwc = image[0].permute(1, 2, 0).numpy()
    return padded(image_hwc, size, PAD_RGB)


def inner_size(frame: tuple[int, int], size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Return the (height, width) that a frame has inside an input of `size`, whose rest, right and below, is padding.

    >>> inner_size((500, 375), (360, 480), "keep"), inner_size((500, 375), (360, 480), "stretch")
    ((360, 270), (360, 480))
    """
    if resize == "stretch":
        return size[0], size[1]
    scale = min(size[0] / frame[0], size[1] / frame[1])
    height, width = (max(1, round(side * scale)) for side in frame)
    return height, width


def padded(pixels: np.ndarray, size: tuple[int, int], value: int | tuple[int, ...]) -> np.ndarray:
    """Pad uint8 [H, W] or [H, W, 3] with `value`, on the right and below, to [*size]."""
    if pixels.shape[:2] == tuple(size):
        return pixels
    whole = np.empty((*size, *pixels.shape[2:]), np.uint8)
    whole[:] = value
    whole[: pixels.shape[0], : pixels.shape[1]] = pixels
    return whole


def to_float(images_bhwc: torch.Tensor) -> torch.Tensor:
    """Turn uint8 [B, H, W, 3] into float32 [B, 3, H, W] in 0..1, channels last in memory."""
    return images_bhwc.permute(0, 3, 1, 2).float().div_(255)


def normalize(
    images_bchw: torch.Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> torch.Tensor:
    """Normalise images in 0..1 to zero mean and unit standard deviation per channel."""
    centre, spread = (sent(torch.tensor(values), images_bchw.device).view(1, 3, 1, 1) for values in (mean, std))
    return images_bchw.sub(centre).div_(spread)


def augment(
    images_bhwc: torch.Tensor,
    masks_bhw: torch.Tensor,
    config: AugmentSection,
    generator: torch.Generator,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply random colours, zoom, crop, rotation, flip, blur and mixing, drawn from `generator` (on the CPU).

    The result has `crop`'s size, else the input's; the images are channels last in memory.
    """

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        values = torch.rand(shape or (len(masks_bhw),), generator=generator) * (high - low) + low
        return sent(values, images_bhwc.device)

    images = normalize(_recolor(to_float(images_bhwc), config, draw), mean, std)
    # Places outside become 0: in a normalised image the mean colour, and in 255 − class the same as void.
    masks = (IGNORE_INDEX - masks_bhw.float()).unsqueeze(1)
    size = config.crop or (masks_bhw.shape[1], masks_bhw.shape[2])
    grid = _grid(_choose(masks, config, draw, size), size)
    images = _sample(images, grid, "bilinear")
    masks = (IGNORE_INDEX - _sample(masks, grid, "nearest").squeeze(1)).long()
    if config.blur > 0:
        images = _blur(images, config, draw)
    if config.mix != "none":
        images, masks = _paste(images, masks, config, draw)
    return images.contiguous(memory_format=torch.channels_last), masks


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a few numbers to the device without blocking.

    They are pinned first: for memory that is not, the host may have to wait for all that the device has queued (CUDA
    runtime API, "API synchronization behavior").
    """
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def _recolor(images: torch.Tensor, config: AugmentSection, draw: Draw) -> torch.Tensor:
    """Change contrast, brightness, saturation and hue of RGB in 0..1."""
    bright, contrast, saturation = config.brightness or 0.0, config.contrast or 0.0, config.saturation or 0.0
    gain = draw(1 - contrast, 1 + contrast).view(-1, 1, 1)
    shift = draw(-bright, bright).view(-1, 1, 1) + 0.5 - 0.5 * gain  # around middle grey
    if bright == contrast == saturation == config.hue_deg == 0:
        return images
    if saturation == config.hue_deg == 0:
        return (images * gain.unsqueeze(1) + shift.unsqueeze(1)).clamp_(0, 1)
    # One 3×3 matrix per image, around the grey axis: saturation scales the colour, hue rotates it.
    vivid, turn = draw(1 - saturation, 1 + saturation), draw(-config.hue_deg, config.hue_deg).deg2rad()
    matrix = _hue(turn, vivid) * gain
    pixels = images.movedim(1, -1)
    turned = torch.baddbmm(shift, pixels.flatten(1, 2), matrix.mT).clamp_(0, 1)
    return turned.view_as(pixels).movedim(-1, 1)


def _hue(turn: torch.Tensor, vivid: torch.Tensor) -> torch.Tensor:
    """Return matrices [B, 3, 3] for RGB that rotate YIQ's chroma plane by `turn` radians and scale it by `vivid`."""
    yiq = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)])  # NTSC 1953
    to_yiq, to_rgb = (sent(matrix, turn.device) for matrix in (yiq, torch.linalg.inv(yiq)))
    matrix = torch.zeros(len(turn), 3, 3, device=turn.device)
    matrix[:, 0, 0] = 1
    matrix[:, 1, 1] = matrix[:, 2, 2] = turn.cos() * vivid
    matrix[:, 1, 2], matrix[:, 2, 1] = -turn.sin() * vivid, turn.sin() * vivid
    return to_rgb @ matrix @ to_yiq


def _choose(masks: torch.Tensor, config: AugmentSection, draw: Draw, size: tuple[int, int]) -> torch.Tensor:
    """Choose the map of each image, [B, 2, 3]: the first drawn one that is not full of one class, else the last.

    masks: float [B, 1, H, W] of 255 − class, 0 being void. A crop without a labelled pixel is refused as well.
    """
    count, _, height, width = masks.shape
    if config.max_class_share >= 1:
        return _affine(config, draw, (height, width), size, count)
    tries = _affine(config, draw, (height, width), size, count * CROP_TRIES)
    look = min(size[0], LOOK_PX), min(size[1], LOOK_PX)
    grid = _grid(tries, look).view(count, CROP_TRIES * look[0], look[1], 2)  # an image's tries, one below the other
    seen = _sample(masks, grid, "nearest").long().view(count * CROP_TRIES, -1)
    counts = torch.zeros(len(seen), IGNORE_INDEX + 1, device=masks.device)
    counts = counts.scatter_add_(1, seen, torch.ones_like(seen, dtype=torch.float))[:, 1:]
    share = counts.amax(1) / counts.sum(1)  # nan without a labelled pixel, which is below no limit
    good = (share <= config.max_class_share).view(count, CROP_TRIES)
    first = torch.where(good.any(1), good.int().argmax(1), CROP_TRIES - 1)  # on the device, without waiting for it
    return tries.view(count, CROP_TRIES, 2, 3)[torch.arange(count, device=masks.device), first]


def _affine(
    config: AugmentSection, draw: Draw, frame: tuple[int, int], size: tuple[int, int], count: int
) -> torch.Tensor:
    """Draw maps from output to input coordinates, [count, 2, 3], in affine_grid's units of −1..1 a side."""
    height, width = frame
    low, high = config.scale or usual_zoom(frame, size)
    zoom = draw(math.log(low), math.log(high), count).exp()
    turn = config.rotate_deg or 0.0
    angle = draw(-turn, turn, count).deg2rad()
    mirror = torch.where(draw(0, 1, count) < config.flip, -1.0, 1.0)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    tall, wide = size[0] / height, size[1] / width  # the view's sides as shares of the frame's
    dx, dy = _place(width, size[1] / zoom, draw), _place(height, size[0] / zoom, draw)
    rows = [cos * wide * mirror, -sin * tall * height / width, dx, sin * wide * width / height * mirror, cos * tall, dy]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def usual_zoom(frame: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Return the default zoom: none for whole frames; for crops 0.5 to 2 as in mmsegmentation, without showing void.

    >>> usual_zoom((1024, 2048), (512, 1024)), usual_zoom((360, 480), (360, 480))
    ((0.5, 2.0), (1.0, 1.0))
    """
    if tuple(frame) == tuple(size):
        return 1.0, 1.0
    low = max(0.5, size[0] / frame[0], size[1] / frame[1])
    return low, max(low, 2.0)


def usual_crop(frame: tuple[int, int]) -> tuple[int, int] | None:
    """Return the default crop: half of the sides, or a quarter, … for frames larger than CamVid's 720×960, else None.

    >>> usual_crop((1024, 2048)), usual_crop((720, 960))
    ((512, 1024), None)
    """
    height, width = frame
    while height * width > WHOLE_PX:
        height, width = height // 2, width // 2
    return None if (height, width) == tuple(frame) else (height, width)


def _place(side_px: int, view_px: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Draw the centre of a view along a side, −1..1: anywhere inside, or around the frame if the view is larger.

    Views start at whole pixels, so that a crop without zoom or rotation keeps the frame's pixels without blending.
    """
    free = side_px - view_px
    steps = free.trunc()
    start = (draw(0, 1, len(free)) * (steps + steps.sign())).trunc()
    return (2 * start - free) / side_px


def _grid(theta: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return functional.affine_grid(theta, [len(theta), 1, *size], align_corners=False)


def _sample(values: torch.Tensor, grid: torch.Tensor, mode: str) -> torch.Tensor:
    return functional.grid_sample(values, grid, mode=mode, padding_mode="zeros", align_corners=False)


def _blur(images: torch.Tensor, config: AugmentSection, draw: Draw) -> torch.Tensor:
    """Blur a share of the images with a Gaussian of its own each, first along rows, then along columns."""
    count, channels, height, width = images.shape
    sigma = draw(*BLUR_SIGMA).view(-1, 1)
    offsets = torch.arange(BLUR_TAPS, device=images.device) - BLUR_TAPS // 2
    kernel = (-(offsets**2) / (2 * sigma**2)).exp()
    kernel = torch.where(draw(0, 1).view(-1, 1) < config.blur, kernel, (offsets == 0).float())
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    flat = images.reshape(1, count * channels, height, width)
    half = BLUR_TAPS // 2
    flat = functional.pad(flat, (half, half, half, half), mode="replicate")
    flat = functional.conv2d(flat, kernel.view(-1, 1, 1, BLUR_TAPS), groups=count * channels)
    flat = functional.conv2d(flat, kernel.view(-1, 1, BLUR_TAPS, 1), groups=count * channels)
    return flat.view_as(images)


def _paste(
    images: torch.Tensor, masks: torch.Tensor, config: AugmentSection, draw: Draw
) -> tuple[torch.Tensor, torch.Tensor]:
    """Paste a piece of the next image in the batch into a share of the images.

    cutmix (Yun et al. 2019): a rectangle. classmix (Olsson et al. 2021): half of the neighbour's classes, rounded down
    as in their code.
    """
    count, height, width = masks.shape
    device = masks.device
    other = masks.roll(1, 0)
    if config.mix == "cutmix":
        cut = (1 - draw(0, 1)).sqrt().view(-1, 1, 1)  # side lengths that make the area uniform, as of Beta(1, 1)
        rows = (torch.arange(height, device=device).view(1, -1, 1) + 0.5) / height - draw(0, 1).view(-1, 1, 1)
        columns = (torch.arange(width, device=device).view(1, 1, -1) + 0.5) / width - draw(0, 1).view(-1, 1, 1)
        piece = (rows.abs() <= cut / 2) & (columns.abs() <= cut / 2)
    else:
        there = torch.zeros(count, IGNORE_INDEX + 1, device=device).scatter_(1, other.flatten(1), 1.0)
        there[:, IGNORE_INDEX] = 0
        rank = (draw(0, 1, count, IGNORE_INDEX + 1) * there).argsort(1, descending=True).argsort(1)
        taken = rank < there.sum(1, keepdim=True) // 2
        piece = taken.gather(1, other.flatten(1)).view_as(masks)
    piece = piece & (draw(0, 1).view(-1, 1, 1) < config.mix_share)
    return torch.where(piece.unsqueeze(1), images.roll(1, 0), images), torch.where(piece, other, masks)
