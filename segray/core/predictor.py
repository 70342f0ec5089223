"""A model bundle and decoded frames of any size → class ids at source size, with figures of confidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from segray.config import InferSection
from segray.core import images
from segray.core.models import bundle, forward
from segray.core.samples import IGNORE_INDEX
from segray.core.transforms import normalize, to_float

LOW_MARGIN = 0.5  # below it, the second class is within half a probability of the first
WINDOWS_AT_ONCE = 4


class Prediction(NamedTuple):
    """mask_hw: uint8 [H, W] at source size. The figures are means over the pixels that the model sees.

    confidence_mean: of the highest class probability. entropy_mean: of the entropy, as a share of log C.
    low_margin_share: share of pixels where first minus second probability is below 0.5.
    confidence_hw: uint8 [H, W] at source size, 255 × the highest probability, where it was asked for.
    """

    mask_hw: np.ndarray
    confidence_mean: float
    entropy_mean: float
    low_margin_share: float
    confidence_hw: np.ndarray | None = None


class Predictor:
    """The model on its device, ready for batches; frames of different sizes may share one.

    Without a window, a frame is resized to the model's input size, as in training. With one, the window slides
    over the frame at its own size, and probabilities are averaged where windows overlap; so are those of
    mirrored and scaled frames. Where the best probability is not above `threshold`, the mask holds 255.
    """

    def __init__(
        self,
        uri: str,
        device: str = "cpu",
        infer: InferSection | None = None,
        *,
        threshold: float | None = None,
        confidence_maps: bool = False,
    ) -> None:
        model, self.info = bundle.load(uri)
        self.device = torch.device(device)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.label_space = bundle.label_space(self.info)
        self.infer = infer or InferSection()
        self.threshold, self.confidence_maps = threshold, confidence_maps

    def prepare(self, image_hwc: np.ndarray) -> np.ndarray:
        """A decoded frame → the pixels that the model sees, uint8: as it is for a window, else resized."""
        if self.infer.window:
            return image_hwc
        size = self.info.input_size
        if self.info.resize == "short_side":
            scale = min(size) / min(image_hwc.shape[:2])
            size = tuple(max(1, round(side * scale)) for side in image_hwc.shape[:2])
        return images.resize_image(image_hwc, size)

    @torch.inference_mode()
    def predict(self, prepared: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """A batch of prepared frames, and the (height, width) of their sources, in the same order."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, pixels in enumerate(prepared):
            groups.setdefault(pixels.shape, []).append(i)
        found: dict[int, Prediction] = {}
        for members in groups.values():  # one shape at a time
            some = [sizes[i] for i in members]
            found |= zip(members, self._predict(np.stack([prepared[i] for i in members]), some), strict=True)
        return [found[i] for i in range(len(prepared))]

    def _predict(self, images_bhwc: np.ndarray, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        if self.infer.window:
            return [self._finish(self._slide(one), [size])[0] for one, size in zip(images_bhwc, sizes, strict=True)]
        return self._finish(self._logits(self._normal(images_bhwc)), sizes)

    def _normal(self, images_bhwc: np.ndarray) -> torch.Tensor:
        return normalize(to_float(torch.from_numpy(images_bhwc).to(self.device)), self.info.mean, self.info.std)

    def _logits(self, batch: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W]: the model's own, or the logarithm of probabilities that are averaged over scales and flip."""
        if self.infer.scales == [1.0] and not self.infer.flip:
            return self._forward(batch)
        views = list(self._views(batch))
        return torch.stack(views).mean(0).clamp_min(1e-12).log()

    def _views(self, batch: torch.Tensor) -> Iterator[torch.Tensor]:
        """Probabilities at the batch's size, for each scale and mirror."""
        height, width = batch.shape[-2:]
        for scale in self.infer.scales:
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            seen = batch if scale == 1 else functional.interpolate(batch, size, mode="bilinear", antialias=True)
            for mirrored in (False, True) if self.infer.flip else (False,):
                logits = self._forward(seen.flip(-1)).flip(-1) if mirrored else self._forward(seen)
                yield _resize(logits, (height, width)).softmax(1)

    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            return forward(self.model, batch).float()

    def _slide(self, image_hwc: np.ndarray) -> torch.Tensor:
        """Logarithm of the mean probabilities of all windows, [1, C, H, W]."""
        height, width = image_hwc.shape[:2]
        tall, wide = (min(side, window) for side, window in zip((height, width), self.infer.window, strict=True))
        corners = [(top, left) for top in _starts(height, tall, self.infer.overlap)
                   for left in _starts(width, wide, self.infer.overlap)]  # fmt: skip
        total = torch.zeros(1, self.label_space.num_classes, height, width, device=self.device)
        seen = torch.zeros(1, 1, height, width, device=self.device)
        for i in range(0, len(corners), WINDOWS_AT_ONCE):
            some = corners[i : i + WINDOWS_AT_ONCE]
            views = np.stack([image_hwc[top : top + tall, left : left + wide] for top, left in some])
            for (top, left), logits in zip(some, self._logits(self._normal(views)), strict=True):
                total[0, :, top : top + tall, left : left + wide] += logits.softmax(0)
                seen[0, :, top : top + tall, left : left + wide] += 1
        return (total / seen).clamp_min(1e-12).log()

    def _finish(self, logits: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        figures = _figures(logits).tolist()
        return [Prediction(*self._mask(logits[i : i + 1], size, figures[i])) for i, size in enumerate(sizes)]

    def _mask(self, logits: torch.Tensor, size: tuple[int, int], figures: list[float]) -> tuple:
        """Class ids at `size`, the figures, and the confidence; logits are interpolated, so edges stay smooth."""
        logits = _resize(logits, size)
        ids = logits.argmax(1)[0].to(torch.uint8)
        top = None
        if self.confidence_maps or self.threshold is not None:
            top = logits.softmax(1).amax(1)[0]
        if self.threshold is not None:
            ids[top <= self.threshold] = IGNORE_INDEX
        confidence = (top * 255).round().to(torch.uint8).cpu().numpy() if self.confidence_maps else None
        return ids.cpu().numpy(), *figures, confidence


def _starts(length: int, window: int, overlap: float) -> list[int]:
    """Where windows begin so that they cover a side: evenly, overlapping by at least `overlap` of a window."""
    stride = max(1, int(window * (1 - overlap)))
    count = 1 + -(-(length - window) // stride)
    return [round(i * (length - window) / max(1, count - 1)) for i in range(count)]


def _resize(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def _figures(logits: torch.Tensor) -> torch.Tensor:
    """[B, 3]: mean confidence, mean relative entropy, low-margin share."""
    classes = logits.shape[1]
    logs = functional.log_softmax(logits, dim=1)
    probabilities = logs.exp()
    top = probabilities.topk(min(2, classes), dim=1).values
    second = top[:, 1] if classes > 1 else torch.zeros_like(top[:, 0])
    entropy = -(probabilities * logs).sum(1) / max(np.log(classes), 1e-9)
    columns = (top[:, 0], entropy, (top[:, 0] - second < LOW_MARGIN).float())
    return torch.stack([column.mean(dim=(1, 2)) for column in columns], dim=1).cpu()
