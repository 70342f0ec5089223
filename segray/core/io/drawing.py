"""A legend of classes beside a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segray.core.samples import LabelSpace

INK, PAPER = (30, 30, 30), (255, 255, 255)
LEAST_PX, LINES = 18, 24  # height of a line at least, and lines that a high picture has
MOST = 16  # times that a tiny frame is enlarged


def legend(height: int, space: LabelSpace, classes: Sequence[int] | None = None, line: int | None = None) -> np.ndarray:
    """Draw a legend of these classes, or of all, uint8 RGB [height, W, 3].

    line: the height of a line in pixels, which otherwise grows with the height; what has no room below the last line
    starts a further column.
    """
    classes = range(space.num_classes) if classes is None else classes
    line = line or max(LEAST_PX, height // LINES)
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


def legend_for(
    size: tuple[int, int], space: LabelSpace, classes: Sequence[int] | None = None
) -> tuple[int, np.ndarray]:
    """Return how many times frames [*size] are to be enlarged, and a legend for them, which is no wider than they are.

    Only tiny frames are enlarged, and those of which many classes would fill several columns.
    """
    height, width = size
    for times in range(1, MOST + 1):
        for line in (None, LEAST_PX):
            panel = legend(height * times, space, classes, line)
            if panel.shape[1] <= width * times:
                return times, panel
    return times, panel


def enlarged(picture_hwc: np.ndarray, times: int) -> np.ndarray:
    """Repeat each pixel, so that outlines stay sharp."""
    return picture_hwc.repeat(times, axis=0).repeat(times, axis=1)


def beside(picture_hwc: np.ndarray, legend_hwc: np.ndarray) -> np.ndarray:
    """Put a legend to the right of a picture of its height."""
    return np.concatenate([picture_hwc, legend_hwc], axis=1)
