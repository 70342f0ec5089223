"""A legend of classes beside a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segray.core.samples import LabelSpace

INK, PAPER = (30, 30, 30), (255, 255, 255)
LEAST_PX, LINES = 18, 24  # height of a line at least, and lines that a high picture has


def legend(height: int, space: LabelSpace, classes: Sequence[int] | None = None) -> np.ndarray:
    """Draw a legend of these classes, or of all, uint8 RGB [height, W, 3].

    Its letters grow with the height; what has no room below the last line starts a further column.
    """
    classes = range(space.num_classes) if classes is None else classes
    line = max(LEAST_PX, height // LINES)
    font = ImageFont.load_default(line / 1.6)
    rows = max(1, (height - line // 2) // line)
    columns = [classes[at : at + rows] for at in range(0, len(classes), rows)]
    widths = [round(2 * line + max(font.getlength(space.names[i]) for i in column)) for column in columns]
    width = sum(widths) + line // 2
    panel = Image.new("RGB", (width + width % 2, height), PAPER)  # H.264 takes even widths
    pen, left = ImageDraw.Draw(panel), line // 2
    for column, wide in zip(columns, widths, strict=True):
        for row, i in enumerate(column):
            top = line // 4 + row * line
            pen.rectangle((left, top + line // 6, left + line * 2 // 3, top + line * 5 // 6), space.colors[i])
            pen.text((left + line, top + line // 2), space.names[i], INK, font, anchor="lm")
        left += wide
    return np.asarray(panel)


def beside(picture_hwc: np.ndarray, legend_hwc: np.ndarray) -> np.ndarray:
    """Put a legend to the right of a picture of its height."""
    return np.concatenate([picture_hwc, legend_hwc], axis=1)
