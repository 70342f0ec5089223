"""A legend of the classes beside a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER = (30, 30, 30), (255, 255, 255)


def with_legend(
    image_hwc: np.ndarray, entries: Sequence[tuple[str, tuple[int, int, int]]], least_px: int = 11
) -> np.ndarray:
    """Put a legend of (name, colour) to the right of a picture, uint8 RGB [H, W, 3]; the result is wider.

    Its letters grow with the picture, and are `least_px` high or more; what has no room below the last line starts a
    further column.
    """
    height = len(image_hwc)
    line = max(round(1.6 * least_px), height // 24)
    font = ImageFont.load_default(line / 1.6)
    rows = max(1, (height - line // 2) // line)
    columns = [entries[at : at + rows] for at in range(0, len(entries), rows)]
    widths = [round(2 * line + max(font.getlength(name) for name, _ in column)) for column in columns]
    panel = Image.new("RGB", (sum(widths) + line // 2, height), PAPER)
    pen, left = ImageDraw.Draw(panel), line // 2
    for column, width in zip(columns, widths, strict=True):
        for row, (name, color) in enumerate(column):
            top = line // 4 + row * line
            pen.rectangle((left, top + line // 6, left + line * 2 // 3, top + line * 5 // 6), color)
            pen.text((left + line, top + line // 2), name, INK, font, anchor="lm")
        left += width
    return np.concatenate([image_hwc, np.asarray(panel)], axis=1) if entries else image_hwc
