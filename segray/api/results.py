"""A frame and the classes of its pixels, as a model or a folder of labels gives them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from segray.core.io import storage
from segray.core.io.drawing import beside, enlarged, legend_for
from segray.core.io.masks import encode_mask, overlay
from segray.core.samples import LabelSpace
from segray.errors import ConfigError

Place = str | os.PathLike[str]


def in_unit_range(confidence_hw: np.ndarray | None) -> np.ndarray | None:
    """Return confidences stored as 255 × the probability, uint8 [H, W], as float32 in 0–1."""
    return None if confidence_hw is None else confidence_hw.astype(np.float32) / 255


@dataclass(frozen=True, eq=False)
class Result:
    """A labelled frame.

    mask: class of each pixel, uint8 [H, W], an index into names; 255 where no class was likely enough.
    confidence: the highest class probability of each pixel, float32 [H, W] in 0–1, in steps of 1/255; None for labels
        without confidence maps.
    source: where the frame is, as image.png or video.mp4#frame=120; None for an array.
    time_s: the frame's time in its video, in seconds; None for an image.
    row: the row of a folder of labels, without its mask; empty for a model's prediction.
    """

    mask: np.ndarray
    space: LabelSpace
    read_image: Callable[[], np.ndarray]
    confidence: np.ndarray | None = None
    source: str | None = None
    time_s: float | None = None
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their indices in the mask."""
        return self.space.names

    @cached_property
    def image(self) -> np.ndarray:
        """The frame, uint8 RGB [H, W, 3]; that of labels is read from its source."""
        return self.read_image()

    @property
    def shares(self) -> dict[str, float]:
        """The share of the frame's pixels of each class that is in the mask, the largest first."""
        counts = np.bincount(self.mask.ravel(), minlength=256)[: len(self.names)]
        order = sorted(np.flatnonzero(counts), key=lambda i: -counts[i])
        return {self.names[i]: float(counts[i] / self.mask.size) for i in order}

    def plot(self, *, legend: bool = True) -> Image.Image:
        """Draw the classes over the frame, with a legend of those that are in it; a tiny frame is enlarged for it."""
        picture = overlay(self.image, self.mask, self.space.colors)
        if legend:
            classes = [self.names.index(name) for name in self.shares]
            times, panel = legend_for(self.mask.shape, self.space, classes)
            picture = beside(enlarged(picture, times), panel)
        return Image.fromarray(picture)

    def save(self, place: str) -> None:
        """Write the mask as a palette PNG, whose pixels are the class indices, to a path or into a bucket."""
        if not str(place).lower().endswith(".png"):
            raise ConfigError(f"{place}: a mask is saved as .png, as JPEG would change its classes.")
        storage.replace(storage.absolute(str(place)), encode_mask(self.mask, self.space.colors))

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows."""
        png = io.BytesIO()
        self.plot().save(png, "PNG")
        return png.getvalue()

    def __repr__(self) -> str:
        most = ", ".join(f"{name} {share:.0%}" for name, share in list(self.shares.items())[:3])
        height, width = self.mask.shape
        return f"<Result {self.source or 'array'}: {height}×{width}, {most or 'all undecided'}>"
