"""Two evaluations of the same frames → whether their scores differ by more than noise, and where.

OUT/compare.json   differences of mIoU and of each class's IoU with their intervals, and the images that changed most
OUT/changed.png    those images: frame, ground truth, A, B; where the models or labels of both are still there
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from segray.core import metrics
from segray.core.formatting import counted
from segray.core.io import claims, parquet, storage
from segray.core.io.masks import colorize
from segray.core.scoring import bootstrap, pictures
from segray.core.training.checkpoint import read_settings
from segray.errors import DataError, SegrayError
from segray.stages.evaluate import (
    IMAGES,
    SCORES,
    Evaluation,
    ImageRow,
    open_source,
    refs_by_id,
    start,
)

RESULT, PICTURE = "compare.json", "changed.png"
KIND = claims.Kind("comparison", RESULT, (RESULT, PICTURE), lambda out: storage.exists(storage.join(out, RESULT)))


class Compared(TypedDict):
    """A score in both runs and its bootstrap.Difference, with a verdict; None where it is undefined."""

    a: float | None
    b: float | None
    difference: float | None
    low: float | None
    high: float | None
    b_better: float | None
    verdict: int | None


class Changed(TypedDict):
    """An image and its mIoU in both."""

    sample_id: str
    a: float
    b: float
    difference: float


class Comparison(TypedDict):
    """The content of compare.json. no_picture: the reason why there is no picture; None if it was drawn."""

    a: str
    b: str
    frames: int
    miou: Compared
    classes: dict[str, Compared]
    images: list[Changed]
    draws: int
    seed: int
    no_picture: NotRequired[str | None]


class Run(NamedTuple):
    """An evaluation: the --out that was given, its scores.json, and the rows of its images.parquet by sample id."""

    place: str
    found: Evaluation
    rows: dict[str, ImageRow]


def compare(
    run_a: str, run_b: str, *, out: str | None = None, count: int = 10, seed: int = 0, overwrite: bool = False
) -> Comparison:
    """Compare two evaluations, by their --out. Returns the content of compare.json.

    A verdict is 1 where B is better, −1 where A is, 0 where the 95 % interval of the difference contains 0 (a paired
    bootstrap over images, scoring.bootstrap), None where a score is undefined. Raises DataError, which says what
    differs, if the two did not score the same frames by the same classes and ground truth, and OutputExists where `out`
    holds another comparison, or anything else.
    """
    a, b = _read(run_a), _read(run_b)
    _check_same(a, b)
    if out is None:
        return _compare(a, b, count, seed)
    out = storage.absolute(out)
    with claims.held(out, KIND):
        asked = {"a": run_a, "b": run_b, "seed": seed}
        claims.claim(out, KIND, overwrite, lambda: _other(storage.join(out, RESULT), asked))
        result = _compare(a, b, count, seed)
        result["no_picture"] = _picture(storage.join(out, PICTURE), result["images"], a, b)
        storage.replace(storage.join(out, RESULT), json.dumps(result, indent=2).encode())
    return result


def _other(uri: str, asked: Mapping[str, object]) -> list[str]:
    """List what the comparison that is there was asked for, where that differs."""
    found = storage.read_json(uri)
    return [f"{key} was {found.get(key)}, is {value}" for key, value in asked.items() if found.get(key) != value]


def _compare(a: Run, b: Run, count: int, seed: int) -> Comparison:
    order = sorted(a.rows)
    classes = a.found["classes"]
    counts_a, counts_b = (np.stack([_counts(run.rows[one], len(classes)) for one in order]) for run in (a, b))
    found = bootstrap.compare(counts_a, counts_b, seed=seed)
    scores = [run.found["scores"] for run in (a, b)]
    return {
        "a": a.place,
        "b": b.place,
        "frames": len(order),
        "miou": _said(scores[0]["miou"], scores[1]["miou"], found["miou"]),
        "classes": {
            name: _said(scores[0]["class_iou"][i], scores[1]["class_iou"][i], found["classes"][i])
            for i, name in enumerate(classes)
        },
        "images": _changed(a.rows, b.rows, order, count),
        "draws": found["draws"],
        "seed": seed,
    }


def _read(run: str) -> Run:
    scores, images = (storage.join(storage.absolute(run), name) for name in (SCORES, IMAGES))
    if not (storage.exists(scores) and storage.exists(images)):
        raise DataError(f"{run} holds no {SCORES} and {IMAGES}; give the --out of segray evaluate.")
    table = parquet.read(images)
    if "cells" not in table.column_names:
        raise DataError(
            f"{run} was made by an older segray, without each image's counts; evaluate again with --overwrite."
        )
    return Run(run, storage.read_json(scores), {row["sample_id"]: row for row in table.to_pylist()})


def _check_same(a: Run, b: Run) -> None:
    def refuse(what: str) -> None:
        raise DataError(f"{a.place} and {b.place} cannot be compared: {what}. Evaluate both on the same frames.")

    classes, others = a.found["classes"], b.found["classes"]
    if classes != others:
        differing = sorted(set(classes) ^ set(others)) or ["their order"]
        refuse(f"their classes differ ({len(classes)} and {len(others)}; {', '.join(differing[:3])})")
    if alone := sorted(a.rows.keys() ^ b.rows.keys()):
        refuse(f"{counted(len(alone), 'frame is', 'frames are')} in one alone, such as {alone[0]}")
    for name in a.rows:
        one, other = (_counts(run.rows[name], len(classes))[:, 1] for run in (a, b))
        if not np.array_equal(one, other):
            refuse(f"{name} has other ground truth ({one.sum()} labelled pixels and {other.sum()})")


def _counts(row: metrics.Packed, classes: int) -> np.ndarray:
    """Count the pixels of each class that are hit, true, and predicted, int64 [C, 3]."""
    matrix = metrics.unpacked([row], classes)
    return np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)[:classes]], axis=1)


def _said(a: float | None, b: float | None, found: bootstrap.Difference | None) -> Compared:
    if found is None:
        return {"a": a, "b": b, "difference": None, "low": None, "high": None, "b_better": None, "verdict": None}
    return {"a": a, "b": b, **found, "verdict": int(found["low"] > 0) - int(found["high"] < 0)}


def _changed(a: Mapping[str, ImageRow], b: Mapping[str, ImageRow], order: list[str], count: int) -> list[Changed]:
    """List the images whose own mIoU changed most, the largest change first."""
    rows: list[Changed] = [
        {"sample_id": name, "a": one, "b": other, "difference": other - one}
        for name in order
        if (one := a[name]["miou"]) is not None and (other := b[name]["miou"]) is not None
    ]
    return sorted((row for row in rows if row["difference"]), key=lambda row: -abs(row["difference"]))[:count]


def _picture(uri: str, changed: Sequence[Changed], a: Run, b: Run) -> str | None:
    """Draw the changed images as both runs see them. Returns the reason if there is no picture."""
    if not changed:
        return "no image changed"
    lines: list[pictures.Line] = [[] for _ in changed]
    seen: set[int] = set()
    try:
        for run in (a, b):
            config = read_settings(storage.absolute(run.place))
            source = open_source(config)
            start(source, config)
            refs = refs_by_id(source)
            frames = source.frames([refs[row["sample_id"]] for row in changed])
            for line, row, frame in zip(lines, changed, frames, strict=True):
                if run is a:
                    image_hwc, note = pictures.image_or_black(frame.ref, frame.truth_hw)
                    line.append((row["sample_id"] + note, image_hwc))
                    line.append(("ground truth", colorize(frame.truth_hw, source.space.colors)))
                seen |= pictures.classes_in(frame)
                told = f"A: mIoU {row['a']:.3f}" if run is a else f"B: mIoU {row['b']:.3f}"
                line.append((told, colorize(frame.pred_hw, source.space.colors)))
    except (SegrayError, KeyError) as error:
        return f"not drawn: {error}"
    pictures.draw(uri, lines, source.space, seen)
    return None
