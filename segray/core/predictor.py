"""A model bundle and decoded frames of any size → class ids at source size, with figures of confidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from segray.core import images
from segray.core.models import bundle, forward
from segray.core.transforms import normalize, to_float

LOW_MARGIN = 0.5  # below it, the second class is within half a probability of the first


class Prediction(NamedTuple):
    """mask_hw: uint8 [H, W] at source size. The figures are means over the pixels that the model sees.

    confidence_mean: of the highest class probability. entropy_mean: of the entropy, as a share of log C.
    low_margin_share: share of pixels where first minus second probability is below 0.5.
    """

    mask_hw: np.ndarray
    confidence_mean: float
    entropy_mean: float
    low_margin_share: float


class Predictor:
    """The model on its device, ready for batches; frames of different sizes may share one."""

    def __init__(self, uri: str, device: str = "cpu") -> None:
        model, self.info = bundle.load(uri)
        self.device = torch.device(device)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.label_space = bundle.label_space(self.info)

    def prepare(self, image_hwc: np.ndarray) -> np.ndarray:
        """A decoded frame → the pixels that the model sees, uint8 at input size, as in training."""
        return images.resize_image(image_hwc, self.info.input_size)

    @torch.inference_mode()
    def predict(self, prepared: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]]) -> list[Prediction]:
        """A batch of prepared frames, and the (height, width) of their sources, in the same order."""
        batch = normalize(to_float(torch.from_numpy(np.stack(prepared)).to(self.device)))
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = forward(self.model, batch).float()
        figures = _figures(logits).tolist()
        return [Prediction(_mask(logits[i : i + 1], size), *figures[i]) for i, size in enumerate(sizes)]


def _mask(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Logits [1, C, h, w] → class ids uint8 at `size`; logits are interpolated, so edges stay smooth."""
    if tuple(logits.shape[-2:]) != tuple(size):
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits.argmax(1)[0].to(torch.uint8).cpu().numpy()


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
