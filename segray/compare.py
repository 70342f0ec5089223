"""Two evaluations of the same frames → whether their scores differ by more than noise, and where.

OUT/compare.json   differences of mIoU and of each class's IoU with their intervals, and the images that changed most
OUT/changed.png    those images: frame, truth, A, B; where the models or labels of both are still there
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from segray.core import bootstrap, metrics, storage
from segray.core.checkpoint import read_settings
from segray.core.digest import read_parquet
from segray.core.images import colorize
from segray.errors import DataError, SegrayError
from segray.evaluate import IMAGES, SCORES, draw, image_or_black, open_source, refs_by_id, start

RESULT, PICTURE = "compare.json", "changed.png"


def compare(run_a: str, run_b: str, *, out: str | None = None, count: int = 10, seed: int = 0) -> dict[str, Any]:
    """What compare.json then holds. run_a, run_b: the --out of two evaluations.

    A verdict is 1 where B is better, −1 where A is, 0 where the 95 % interval of the difference holds 0 (a paired
    bootstrap over images, core.bootstrap), None where a score is undefined. DataError that names what differs, where
    the two did not score the same frames by the same classes and truth.
    """
    a, b = _read(run_a), _read(run_b)
    _check_same(a, b)
    order = sorted(a["rows"])
    classes = a["classes"]
    counts_a, counts_b = (np.stack([_counts(run["rows"][one], len(classes)) for one in order]) for run in (a, b))
    found = bootstrap.compare(counts_a, counts_b, seed=seed)
    scores = [run["scores"] for run in (a, b)]
    result = {
        "a": run_a,
        "b": run_b,
        "frames": len(order),
        "miou": _said(scores[0]["miou"], scores[1]["miou"], found["miou"]),
        "classes": {
            name: _said(scores[0]["class_iou"][i], scores[1]["class_iou"][i], found["classes"][i])
            for i, name in enumerate(classes)
        },
        "images": _changed(a["rows"], b["rows"], order, count),
        "draws": found["draws"],
        "seed": seed,
    }
    if out is not None:
        out = storage.absolute(out)
        result["no_picture"] = _picture(storage.join(out, PICTURE), result["images"], a, b)
        storage.replace(storage.join(out, RESULT), json.dumps(result, indent=2).encode())
    return result


def _read(run: str) -> dict[str, Any]:
    """scores.json, and `rows`: those of images.parquet by sample id."""
    scores, images = (storage.join(storage.absolute(run), name) for name in (SCORES, IMAGES))
    if not (storage.exists(scores) and storage.exists(images)):
        raise DataError(f"{run} holds no {SCORES} and {IMAGES}; give the --out of segray evaluate.")
    table = read_parquet(images)
    if "cells" not in table.column_names:
        raise DataError(f"{run} is of an older segray, without each image's counts; evaluate again with --overwrite.")
    return storage.read_json(scores) | {
        "run": run,
        "rows": {r["sample_id"]: r for r in table.to_pylist()},
    }


def _check_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    def refuse(what: str) -> None:
        raise DataError(f"{a['run']} and {b['run']} cannot be compared: {what}. Evaluate both on the same frames.")

    if a["classes"] != b["classes"]:
        differing = sorted(set(a["classes"]) ^ set(b["classes"])) or ["their order"]
        refuse(f"their classes differ ({len(a['classes'])} and {len(b['classes'])}; {', '.join(differing[:3])})")
    if alone := sorted(a["rows"].keys() ^ b["rows"].keys()):
        refuse(f"{len(alone)} frames are in one alone, such as {alone[0]}")
    for name in a["rows"]:
        one, other = (_counts(run["rows"][name], len(a["classes"]))[:, 1] for run in (a, b))
        if not np.array_equal(one, other):
            refuse(f"{name} has other truth ({one.sum()} labelled pixels and {other.sum()})")


def _counts(row: dict[str, Any], classes: int) -> np.ndarray:
    """Of each class the pixels that are hit, true, and predicted, int64 [C, 3]."""
    matrix = metrics.unpacked([row], classes)
    return np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)[:classes]], axis=1)


def _said(a: float | None, b: float | None, found: dict[str, Any] | None) -> dict[str, Any]:
    if found is None:
        found, verdict = dict.fromkeys(("difference", "low", "high", "b_better")), None
    else:
        verdict = int(found["low"] > 0) - int(found["high"] < 0)
    return {"a": a, "b": b, **found, "verdict": verdict}


def _changed(a: dict[str, Any], b: dict[str, Any], order: list[str], count: int) -> list[dict[str, Any]]:
    """The images whose own mIoU changed most, the largest change first."""
    rows = [
        {"sample_id": one, "a": a[one]["miou"], "b": b[one]["miou"], "difference": b[one]["miou"] - a[one]["miou"]}
        for one in order
        if a[one]["miou"] is not None and b[one]["miou"] is not None
    ]
    return sorted((row for row in rows if row["difference"]), key=lambda row: -abs(row["difference"]))[:count]


def _picture(uri: str, changed: list[dict[str, Any]], a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """Draw the changed images as both runs see them; the reason why there is no picture."""
    if not changed:
        return "no image changed"
    lines: list[list[tuple[str, np.ndarray]]] = [[] for _ in changed]
    try:
        for name, run in (("a", a), ("b", b)):
            config = read_settings(storage.absolute(run["run"]))
            source = open_source(config)
            start(source, config)
            refs = refs_by_id(source)
            frames = source.frames([refs[row["sample_id"]] for row in changed])
            for line, row, frame in zip(lines, changed, frames, strict=True):
                if name == "a":
                    line.append((row["sample_id"], image_or_black(frame.ref, frame.truth_hw)))
                    line.append(("truth", colorize(frame.truth_hw, source.space.colors)))
                line.append((f"{name.upper()}: mIoU {row[name]:.3f}", colorize(frame.pred_hw, source.space.colors)))
    except (SegrayError, KeyError) as error:
        return f"not drawn: {error}"
    draw(uri, lines)
    return None
