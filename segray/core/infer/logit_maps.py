"""Logits of frames → class ids at the frames' sizes, confidences, metrics; interpolated logits are never all in memory.

Logits are float32 [C, H, W], or [B, C, H, W] of a batch, at the size that the model sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.nn import functional

from segray.core.transforms import sent

LOW_MARGIN = 0.5  # below this, first and second class are within half a probability of each other
BAND_ROWS = {"cpu": 32, "cuda": 512}  # rows of logits in work at once: about what a CPU's cache holds
AT_ONCE_PX = 1 << 15
AT_ONCE_LOGITS = 1 << 28  # interpolated ones that a GPU holds at once, 1 GiB of float32


def resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def ids_of(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the class of the highest of logits [C, H, W] after resize() to `size`, uint8.

    A pixel takes the class of its four neighbours if they have the same; only the others are interpolated.
    """
    if len(logits) == 2:  # the sign of their difference is enough, in a tenth to two thirds of the time
        return (resize((logits[1:] - logits[:1])[None], size)[0, 0] > 0).to(torch.uint8)
    height, width = logits.shape[1:]
    coarse = logits.max(0).indices.to(torch.uint8)  # argmax() is several times as slow on a CPU
    if size == (height, width):
        return coarse
    (upper, lower, down), (left, right, along) = (
        [values.to(logits.device) for values in _between(*sides)] for sides in zip((height, width), size, strict=True)
    )
    lefts, rights = coarse.index_select(1, left), coarse.index_select(1, right)
    ids = lefts.index_select(0, upper)
    torn = ids != rights.index_select(0, upper)
    for corner in (lefts, rights):
        torn |= ids != corner.index_select(0, lower)
    pixels = logits.flatten(1)
    for y, x in zip(*(index.split(AT_ONCE_PX) for index in torn.nonzero(as_tuple=True)), strict=True):
        above, below = (
            torch.lerp(
                pixels.index_select(1, row[y] * width + left[x]),
                pixels.index_select(1, row[y] * width + right[x]),
                along[x],
            )
            for row in (upper, lower)
        )
        ids[y, x] = torch.lerp(above, below, down[y]).max(0).indices.to(torch.uint8)
    return ids


def ids_at_once(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return the ids of a batch [B, C, H, W] as ids_of() does of each frame, uint8 [B, *size], but at ties.

    All pixels are interpolated: a GPU does that faster than it finds those that need it.
    """
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits.argmax(1).to(torch.uint8)
    frame = logits.shape[1] * size[0] * size[1]
    if frame > AT_ONCE_LOGITS:
        frames = [[band.argmax(0).to(torch.uint8) for band in _bands(one, size)] for one in logits]
        return torch.stack([torch.cat(bands) for bands in frames])
    parts = logits.split(max(1, AT_ONCE_LOGITS // frame))
    return torch.cat([resize(part, size).argmax(1).to(torch.uint8) for part in parts])


def tops_of(
    values: torch.Tensor, size: tuple[int, int], logits: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Return the highest probability of each pixel of values [C, H, W] after resize() to `size`, by their logits()."""
    bands = map(logits, _bands(values, size))
    return torch.cat([1 / (band - band.amax(0)).exp_().sum(0) for band in bands])


def _bands(logits: torch.Tensor, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Yield logits [C, H, W] as resize() returns them at `size`, some rows at a time, never all in memory."""
    height, width = logits.shape[1:]
    upper, lower, share = _between(height, size[0])
    share = sent(share.view(-1, 1), logits.device)
    step = BAND_ROWS[logits.device.type]
    for start in range(0, size[0], step):
        rows = slice(start, start + step)
        if size == (height, width):
            yield logits[:, rows]
            continue
        first, last = int(upper[rows][0]), int(lower[rows][-1]) + 1
        wide = resize(logits[None, :, first:last], (last - first, size[1]))[0]
        above, below = (wide.index_select(1, sent(row[rows] - first, wide.device)) for row in (upper, lower))
        yield above.lerp_(below, share[rows])


def _between(length: int, wanted: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return, for `wanted` pixels along a side of `length`, the two source pixels of each and the second's weight."""
    at = ((torch.arange(wanted) + 0.5) * (length / wanted) - 0.5).clamp_min_(0)  # half-pixel centres
    first = at.long()
    return first, (first + 1).clamp_max_(length - 1), at - first


def at_points(logits: torch.Tensor, size: tuple[int, int], points: np.ndarray) -> torch.Tensor:
    """Interpolate logits [C, H, W] only at some pixels of `size`: [N, 2] rows and columns → [N, C]."""
    shares = (torch.from_numpy(points).float() + 0.5) / torch.tensor(size)
    grid = (shares.flip(-1) * 2 - 1).view(1, 1, -1, 2).to(logits.device)
    found = functional.grid_sample(logits[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def metrics_of(logits: torch.Tensor) -> torch.Tensor:
    """Return [B, 3]: mean confidence, mean relative entropy, low-margin share."""
    step = BAND_ROWS[logits.device.type]
    sums = torch.stack([_figure_sums(logits[:, :, i : i + step]) for i in range(0, logits.shape[2], step)]).sum(0)
    return sums / logits[0, 0].numel()


def _figure_sums(logits: torch.Tensor) -> torch.Tensor:
    """Sum confidence, relative entropy and low margins over pixels, [B, 3].

    With d the logit's distance from the highest: probability exp(d) / s, s their sum; entropy log(s) − Σ d exp(d) / s.
    """
    top, label = logits.max(1, keepdim=True)
    down = logits - top
    parts = down.exp()
    total = parts.sum(1)
    entropy = (total.log() - parts.mul_(down).sum(1) / total) / max(np.log(logits.shape[1]), 1e-9)
    second = down.scatter_(1, label, -torch.inf).amax(1).exp()  # topk() is slower on a CPU
    columns = (1 / total, entropy, (1 - second) / total < LOW_MARGIN)
    return torch.stack([column.double().sum(dim=(1, 2)) for column in columns], dim=1)


def pinned(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Return memory to which a GPU copies by itself; PyTorch keeps it for the next batch."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


def fetched(values: torch.Tensor) -> np.ndarray:
    """Return values in the host's memory, where they are once all that is queued is done."""
    if values.device.type == "cpu":
        return values.numpy()
    host = pinned(values.shape, values.dtype)
    host.copy_(values, non_blocking=True)
    return host.numpy()


def queued(device: torch.device) -> Callable[[], object]:
    """Return what waits for all that is queued by now, without using a processor."""
    if device.type == "cpu":
        return bool
    done = torch.cuda.Event(blocking=True)
    done.record()
    return done.synchronize
