"""The columns of a label row, as Parquet and as Python have them."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
import pyarrow as pa

from segray.core.io.locators import FrameOf

SCORES = ("pixel_accuracy", "miou", "mean_f1", "mean_sensitivity", "mean_specificity")
METRICS = ("confidence_mean", "entropy_mean", "low_margin_share", "boundary_share", "flicker_share")


class Picture(TypedDict):
    """An image as a Hugging Face image column holds it."""

    bytes: builtins.bytes
    path: str


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RUNS = pa.struct([("values", pa.list_(pa.uint8())), ("lengths", pa.list_(pa.int32()))])


class Runs(TypedDict):
    """A mask's pixels row by row: the class of each run, and how many pixels it has."""

    values: Sequence[int] | np.ndarray
    lengths: Sequence[int] | np.ndarray


class Origin(FrameOf):
    """What a label row was made from."""

    pts: int | None
    time_s: float | None
    truth_uri: str | None
    model_id: str
    plan_id: str


class Verdict(TypedDict):
    """Whether a row is ok, the reason why not or a note; and how its mask compares with ground truth, else None."""

    status: str
    error_code: str | None
    error_message: str | None
    pixel_accuracy: float | None
    miou: float | None
    mean_f1: float | None
    mean_sensitivity: float | None
    mean_specificity: float | None
    class_iou: list[float | None] | None


class Seen(TypedDict):
    """A mask and its metrics; None where there is none."""

    height_px: int | None
    width_px: int | None
    mask: Picture | None
    mask_rle: Runs | None
    confidence: Picture | None
    class_pixels: list[int] | None
    class_shares: list[float] | None
    component_counts: list[int] | None
    confidence_mean: float | None
    entropy_mean: float | None
    low_margin_share: float | None
    boundary_share: float | None
    flicker_share: float | None


class LabelRow(Origin, Seen, Verdict):
    """What ROW_SCHEMA holds."""


class Labelled(NamedTuple):
    """A finished row, and int64 [C, C]: its confusion with ground truth, None where it had none."""

    row: LabelRow
    confusion: np.ndarray | None = None


ROW_SCHEMA = pa.schema(
    [
        ("input_id", pa.string()),
        ("uri", pa.string()),
        ("video_uri", pa.string()),
        ("frame_index", pa.int64()),
        ("pts", pa.int64()),
        ("time_s", pa.float64()),
        ("truth_uri", pa.string()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("mask", IMAGE),
        ("mask_rle", RUNS),
        ("confidence", IMAGE),
        ("class_pixels", pa.list_(pa.int64())),
        ("class_shares", pa.list_(pa.float64())),
        ("component_counts", pa.list_(pa.int64())),
        *[(name, pa.float64()) for name in METRICS],
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("model_id", pa.string()),
        ("plan_id", pa.string()),
        *[(name, pa.float64()) for name in SCORES],
        ("class_iou", pa.list_(pa.float64())),
    ]
)

UNSCORED: Verdict = {
    "status": "ok",
    "error_code": None,
    "error_message": None,
    "pixel_accuracy": None,
    "miou": None,
    "mean_f1": None,
    "mean_sensitivity": None,
    "mean_specificity": None,
    "class_iou": None,
}


def failed(code: str, message: str) -> Verdict:
    """Return the verdict on a row without a mask, or on one whose ground truth cannot be used."""
    return {**UNSCORED, "status": "error", "error_code": code, "error_message": message}


NOTHING: Seen = {
    "height_px": None,
    "width_px": None,
    "mask": None,
    "mask_rle": None,
    "confidence": None,
    "class_pixels": None,
    "class_shares": None,
    "component_counts": None,
    "confidence_mean": None,
    "entropy_mean": None,
    "low_margin_share": None,
    "boundary_share": None,
    "flicker_share": None,
}
