"""Totals of labelled rows, as integers that add up, and the summary of a finished run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import numpy as np

from segray.core import metrics
from segray.core.labels.schema import Labelled


class Counts(TypedDict):
    """Totals as JSON holds them. confusion: None where no row had ground truth. notes: where there are any."""

    rows: int
    ok: int
    errors: dict[str, int]
    class_pixels: list[int]
    confusion: list[list[int]] | None
    notes: NotRequired[dict[str, int]]


class Speed(TypedDict):
    """Speed of the call that finished a run: its seconds, those of each stage in all threads, and the labelled rows."""

    seconds: float
    images_per_s: float | None
    new_rows: int
    stage_seconds: dict[str, float]


class Summary(Counts, Speed):
    """What `_SUCCESS` says. scores, baseline_miou: None where no row had ground truth."""

    plans: list[str]
    model_id: str
    classes: list[str]
    scores: metrics.PlainScores | None
    baseline_miou: float | None
    parts: list[str]


@dataclass
class Totals:
    """Integers that add up over parts, whatever their order, of the rows that are ok.

    confusion is all zero where no row had ground truth. notes: by code, what is not known of rows that are ok.
    """

    rows: int
    errors: Counter[str]
    class_pixels: np.ndarray
    confusion: np.ndarray
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def empty(cls, classes: int) -> Totals:
        return cls(0, Counter(), np.zeros(classes, np.int64), np.zeros((classes, classes), np.int64))

    def count(self, labelled: Labelled) -> None:
        row, confusion = labelled
        code = row.get("error_code")
        self.rows += 1
        if confusion is not None:
            self.confusion += confusion
        if row["status"] == "error":
            self.errors[code or ""] += 1
            return
        if code:
            self.notes[code] += 1
        if (pixels := row["class_pixels"]) is not None:
            self.class_pixels += pixels

    def add(self, other: Totals) -> None:
        self.rows += other.rows
        self.errors += other.errors
        self.notes += other.notes
        self.class_pixels += other.class_pixels
        self.confusion += other.confusion

    def to_dict(self) -> Counts:
        counts: Counts = {
            "rows": self.rows,
            "ok": self.rows - self.errors.total(),
            "errors": dict(sorted(self.errors.items())),
            "class_pixels": self.class_pixels.tolist(),
            "confusion": self.confusion.tolist() if self.confusion.any() else None,
        }
        if self.notes:
            counts["notes"] = dict(sorted(self.notes.items()))
        return counts

    @classmethod
    def from_dict(cls, data: Counts) -> Totals:
        totals = cls.empty(len(data["class_pixels"]))
        totals.rows, totals.errors = data["rows"], Counter(data["errors"])
        totals.notes = Counter(data.get("notes", {}))
        totals.class_pixels += np.array(data["class_pixels"], np.int64)
        if data["confusion"] is not None:
            totals.confusion += np.array(data["confusion"], np.int64)
        return totals
