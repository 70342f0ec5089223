"""Pictures of scored frames: image, truth, prediction and errors in a line, with a legend; a reliability curve."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from segray.core.io import storage
from segray.core.io.locators import read_image
from segray.core.io.masks import colorize, overlay
from segray.core.samples import IGNORE_INDEX, LabelSpace, SampleRef
from segray.core.scoring import reliability
from segray.core.scoring.reliability import Bin
from segray.core.scoring.sources import Scored
from segray.errors import InputChanged, SegrayError

Line = list[tuple[str, np.ndarray]]  # pictures beside each other, with their captions


def line(caption: str, frame: Scored, space: LabelSpace) -> Line:
    """Return captions and pictures: the frame, its truth, the prediction alone and over the frame, and its errors."""
    image_hwc, note = image_or_black(frame.ref, frame.truth_hw)
    wrong = (frame.pred_hw != frame.truth_hw) & (frame.truth_hw != IGNORE_INDEX)
    return [
        (caption + note, image_hwc),
        ("ground truth", colorize(frame.truth_hw, space.colors)),
        ("prediction", colorize(frame.pred_hw, space.colors)),
        ("prediction over the frame", overlay(image_hwc, frame.pred_hw, space.colors)),
        (f"wrong, red: {wrong.mean():.1%}", np.where(wrong[..., None], [220, 30, 30], image_hwc // 2 + 90)),
    ]


def classes_in(frame: Scored) -> set[int]:
    """Return the classes that a frame's masks show, true or predicted."""
    found: set[int] = set(np.union1d(frame.truth_hw, frame.pred_hw).tolist())
    return found - {IGNORE_INDEX}


def draw(uri: str, lines: Sequence[Line], space: LabelSpace, classes: Iterable[int]) -> None:
    """Draw lines of pictures with their captions as one PNG, with a legend of these classes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(4 * len(lines[0]), 3.2 * len(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(lines), len(lines[0]), squeeze=False)
    for row, panels in zip(axes, lines, strict=True):
        for axis, (title, picture) in zip(row, panels, strict=True):
            axis.imshow(picture.astype(np.uint8))
            axis.set_title(title, fontsize=9, loc="left", parse_math=False)  # a frame may be called $1_$2
            axis.set(xticks=[], yticks=[])  # else they are measured, though they are not seen
            axis.axis("off")
    known = []
    for i in sorted(classes):
        red, green, blue = (part / 255 for part in space.colors[i])
        known.append(Patch(facecolor=(red, green, blue), edgecolor="0.7", label=space.names[i]))
    columns = -(-len(known) // (12 * len(lines)))
    legend = figure.legend(handles=known, loc="outside right upper", fontsize=10, ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)
    _save(figure, uri, 80)


def write_reliability(uri: str, curve: list[Bin]) -> None:
    """Draw a reliability curve as a picture, with its expected calibration error above it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    reliability.draw(axes, curve, "0.6", "#1f77b4")
    axes.set_title(f"Expected calibration error {reliability.error_of(curve):.3f}")
    axes.legend(loc="upper left")
    _save(figure, uri, 100)


def _save(figure: Any, uri: str, dpi: int) -> None:
    png = io.BytesIO()
    figure.savefig(png, dpi=dpi)
    storage.replace(uri, png.getvalue())


def image_or_black(ref: SampleRef, truth_hw: np.ndarray) -> tuple[np.ndarray, str]:
    """Read the frame, with ''; return a black one and why, for its caption, if it is gone or another picture now."""
    try:
        return read_image(ref.image, stamp=ref.stamp), ""
    except SegrayError as error:
        why = "the image has changed" if isinstance(error, InputChanged) else "the image cannot be read"
        return np.zeros((*truth_hw.shape, 3), np.uint8), f"; {why}"
