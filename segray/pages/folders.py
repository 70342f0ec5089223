"""A folder of train, sweep, evaluate, compare or label → what the page shows of it, charts and thumbnails drawn.

Each view is plain data for the template of its kind. Only a digest of label parts is kept, however many rows exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
import yaml

from segray.core import formatting
from segray.core.io import images, parquet, storage
from segray.core.labels import digest
from segray.core.labels.folder import LabelFolder
from segray.core.metrics import majority_baseline, unpacked
from segray.core.samples import LabelSpace
from segray.core.training.checkpoint import History, read_history
from segray.errors import DataError
from segray.pages import charts, gallery
from segray.sections.values import parse_size
from segray.trials.leaderboard import GIVEN, LeaderboardRow, advice, ranked

if TYPE_CHECKING:
    from segray.core.labels.totals import Summary
    from segray.stages.compare import Comparison
    from segray.stages.evaluate import Evaluation as SplitEvaluation

# Limits of the whole page, divided among its folders, which keep it below 10 MB.
PICTURE_BYTES, LISTED, VIDEOS = 6_000_000, 600, 4
LISTED_COLUMNS = ["sample_id", "miou", "pixel_accuracy", "entropy_mean", "cells", "pixels"]  # read for each frame
WIDE_PX = 1280  # width of compare's picture
STAGES = {  # stages of labelling, in the order of the work → their descriptions
    "fetch": "reading files",
    "decode": "decoding, and resizing to the model's size",
    "wait": "waiting for the model, which other shards use",
    "model": "inference",
    "encode": "encoding masks and computing metrics",
    "write": "writing parts",
}


class Bundle(NamedTuple):
    """A model bundle's description; facts is its segray.json, confusion int64 [C, C]."""

    facts: dict[str, Any]
    space: LabelSpace
    confusion: np.ndarray


@dataclass(frozen=True)
class Run:
    """A training run (no leaderboard), or a sweep; history by trial; best is None before a first epoch."""

    place: str
    config: str
    leaderboard: list[LeaderboardRow]
    histories: dict[str, History]
    best: Bundle | None

    @property
    def has_costs(self) -> bool:
        """Whether the leaderboard has measured costs; those of earlier versions lack the columns."""
        return bool(self.leaderboard) and self.leaderboard[0].miou_mean is not None


@dataclass(frozen=True)
class Labels:
    """A label folder: its plans, the parts that exist, and its receipt (None while unfinished)."""

    place: str
    folder: LabelFolder
    plan: dict[str, Any]
    success: Summary | None
    parts: int
    space: LabelSpace
    digest: digest.Digest


@dataclass(frozen=True)
class Evaluation:
    """The --out of evaluate: scores.json, the worst rows of images.parquet, those with masks, mIoU's histogram."""

    place: str
    found: SplitEvaluation
    space: LabelSpace
    listed: list[dict[str, Any]]
    shown: list[dict[str, Any]]
    miou_counts: np.ndarray


class Share(NamedTuple):
    """The part of the page's limits that one folder gets."""

    picture_bytes: int
    listed: int
    videos: int


def share_of(folders: int) -> Share:
    return Share(PICTURE_BYTES // folders, max(20, LISTED // folders), max(1, VIDEOS // folders))


def view_of(place: str, share: Share) -> dict[str, Any]:
    """Return what the page shows of a folder. Raises DataError for a folder that no command wrote."""
    there = storage.absolute(place)
    for mark, read in KINDS.items():
        if storage.exists(storage.join(there, mark)):
            return {"place": place, "name": storage.name_of(there)} | read(there, share)
    why = f"holds none of {', '.join(KINDS)}" if storage.exists(there) else "does not exist"
    next_step = "Name a folder that segray train, sweep, evaluate, compare or label wrote"
    if not storage.in_bucket(there):
        below = sorted({file.relative_to(there).parts[0] for mark in KINDS for file in Path(there).glob(f"*/{mark}")})
        if below:
            next_step += f": {', '.join(storage.join(place, name) for name in below)}"
    raise DataError(f"{place} {why}. {next_step}.")


# Training runs and sweeps


def read_run(place: str) -> Run:
    """Read a folder written by train (history.jsonl, best/) or by sweep (leaderboard.json, trials/, best/)."""
    leaderboard = ranked(place)
    best, config = (storage.join(place, name) for name in ("best/segray.json", "config.yaml"))
    # Only the last part of a trial's name is used, as one with .. in it would lead out of the folder.
    trials = {
        row.trial: storage.join(place, "trials", storage.name_of(row.trial))
        for row in leaderboard
        if row.status != GIVEN
    }
    folders = trials or {storage.name_of(place): place}
    histories = {trial: read_history(folder) for trial, folder in folders.items()}
    text = storage.read_bytes(config).decode(errors="replace") if storage.exists(config) else ""
    return Run(place, text, leaderboard, histories, _bundle(best) if storage.exists(best) else None)


def run_view(place: str, share: Share) -> dict[str, Any]:
    """Return the view of a training run or a sweep; scores is None before there is a model."""
    run = read_run(place)
    best, board, name = run.best, run.leaderboard, storage.name_of(place)
    baseline = majority_baseline(best.confusion) if best else None
    lone = run.histories.get(name, [])
    view = {
        "kind": "run",
        "title": "Sweep" if board else "Training run",
        "run": run,
        "model": next((row.trial for row in board if row.chosen), board[0].trial) if board else name,
        "advice": advice(board) if run.has_costs else None,
        "trade": charts.trade_chart(board),
        "axes": charts.settings_chart(board),
        "series": {trial: min(i, charts.SERIES - 1) for i, trial in enumerate(run.histories)},
        "curves": charts.learning_curves(run.histories, baseline) if any(run.histories.values()) else {},
        "curves_left": max(0, len(run.histories) - charts.CURVES),
        "on_training": any(row.get("train_miou") is not None for row in lone),
        "epochs": [row for row in lone if row.get("images_per_s")],
        "devices": list(dict.fromkeys(row["device"] for row in chain(*run.histories.values()) if "device" in row)),
        "scores": None,
    }
    if best is None:
        return view
    return view | {
        "facts": best.facts,
        "baseline": baseline,
        "majority": best.space.names[int(best.confusion.sum(1).argmax())],
        "measured_on": measured_on(run.config, best),
        **scored_view(best.space.names, best.space, best.facts["scores"], best.confusion),
    }


def measured_on(config: str, best: Bundle) -> str:
    """Say in words which data the scores were counted on, as far as the run's config tells."""
    try:
        settings = yaml.safe_load(config)["data"].items()
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        settings = ()
    data = {key: value for key, value in settings if isinstance(value, str)}
    place, size = data.get("root") or data.get("format"), parse_size(best.facts.get("input_size"))
    text = f"the {data.get('val_split', 'validation')} split{f' of {place}' if place else ''}"
    text += f" at {size[1]} × {size[0]} pixels" if size else ""
    return f"{text}: {formatting.short(int(best.confusion.sum()))} labelled pixels"


# Labels


def read_labels(place: str, share: Share) -> Labels:
    """Read a folder written by label: the parts of its plans, finished or not."""
    folder = LabelFolder.open(place)
    first = folder.plans[0]
    about = {key: getattr(first, key) for key in ("plan_id", "model_id", "settings")}
    about |= {"shards": folder.shards, "rows": folder.planned}
    found = digest.read(folder, frames=share.listed, videos=share.videos)
    return Labels(place, folder, about, folder.summary, len(folder.parts), folder.space, found)


def labels_view(place: str, share: Share) -> dict[str, Any]:
    """Return the view of a label folder; its sums are from its receipt, or from its rows while it is unfinished."""
    labels = read_labels(place, share)
    found, success, space = labels.digest, labels.success, labels.space
    pixels = success["class_pixels"] if success else found.class_pixels
    image_miou = found.miou_sum / found.known["miou"] if found.known["miou"] else None
    galleries = gallery.Galleries({}, 0)
    if labels.plan["settings"]["mask_format"] != "none":
        galleries = gallery.of_labels(labels.folder, found, share.picture_bytes)
    view = {
        "kind": "labels",
        "title": "Labels",
        "labels": labels,
        "done": success["rows"] if success else found.rows,
        "ok": success["ok"] if success else found.ok,
        "errors": sorted(found.errors.values(), key=lambda row: (-row["count"], row["error_code"])),
        "stages": stage_rows(success) if success else [],
        "palette": list(zip(space.names, css_colors(space), shares(pixels), strict=True)),
        "scores": None,
        "mean_image_miou": image_miou,
        "galleries": galleries,
        "listed": [gallery.described(row) for row in found.listed.to_pylist()],
        "listed_by": found.score,
        "videos": [(storage.name_of(uri), charts.track_chart(track, space)) for uri, track in found.tracks.items()],
        "settings": yaml.safe_dump(labels.plan["settings"], allow_unicode=True, sort_keys=False),
        **images_view(found.miou_counts),
    }
    if not success or not success["scores"]:
        return view
    told = {**success["scores"], "image_miou": image_miou}
    return view | scored_view(space.names, space, told, np.asarray(success["confusion"]))


def stage_rows(success: Summary) -> list[dict[str, Any]]:
    """List a table row for each stage of the last run: its seconds over all threads, milliseconds a frame, share."""
    seconds, rows = success.get("stage_seconds") or {}, success.get("new_rows")
    total = sum(seconds.values())
    known = {stage: about for stage, about in STAGES.items() if seconds.get(stage)}
    return [
        {"name": stage, "about": about, "seconds": seconds[stage], "share": seconds[stage] / total}
        | {"frame_ms": 1000 * seconds[stage] / rows if rows else None}
        for stage, about in known.items()
    ]


# Evaluations and comparisons


def read_evaluation(place: str, share: Share) -> Evaluation:
    """Read a folder written by evaluate. Raises DataError for a folder of a version that kept no masks."""
    found, rows = storage.read_json(storage.join(place, "scores.json")), storage.join(place, "images.parquet")
    listed: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    miou_counts = np.zeros(digest.MIOU_BINS, np.int64)
    for batch in parquet.batches(rows, digest.BATCH):
        if "label_space" not in found or "shown" not in batch.schema.names:
            raise DataError(f"{place} was made by an older segray, without masks; evaluate again with --overwrite.")
        listed += batch.select(LISTED_COLUMNS).slice(0, max(0, share.listed - len(listed))).to_pylist()
        shown += batch.filter(pc.is_valid(batch["prediction"])).to_pylist()
        miou_counts += digest.miou_histogram(batch["miou"])
    return Evaluation(place, found, LabelSpace.from_dict(found["label_space"]), listed, shown, miou_counts)


def evaluation_view(place: str, share: Share) -> dict[str, Any]:
    evaluation = read_evaluation(place, share)
    found, space, confusion = evaluation.found, evaluation.space, np.asarray(evaluation.found["confusion"])
    listed, shown = ([evaluated(row, len(confusion)) for row in rows] for rows in (evaluation.listed, evaluation.shown))
    return {
        "kind": "evaluation",
        "title": "Evaluation",
        "found": found,
        "majority": found["classes"][int(confusion.sum(1).argmax())],
        "reliability": charts.reliability_chart(found["reliability"]) if found["reliability"] else None,
        "palette": [(*pair, None) for pair in zip(space.names, css_colors(space), strict=True)],
        "galleries": gallery.of_evaluation(shown, space, share.picture_bytes),
        "listed": listed,
        "listed_by": "miou",
        **images_view(evaluation.miou_counts),
        **scored_view(found["classes"], space, found["scores"], confusion),
    }


def evaluated(row: dict[str, Any], classes: int) -> dict[str, Any]:
    """Return a row of images.parquet with its id, name and classes (true or predicted ones) for the page."""
    pairs = unpacked([{"cells": row["cells"], "pixels": row["pixels"]}], classes)
    most = np.maximum(pairs.sum(1), pairs.sum(0)[:classes])
    present = np.flatnonzero(most > digest.PRESENT * pairs.sum()).tolist()
    return row | {"id": row["sample_id"], "name": row["sample_id"], "classes": present}


def comparison_view(place: str, share: Share) -> dict[str, Any]:
    found: Comparison = storage.read_json(storage.join(place, "compare.json"))
    picture = storage.join(place, "changed.png")
    return {
        "kind": "comparison",
        "title": "Comparison",
        "found": found,
        "rows": {"mIoU": found["miou"]} | found["classes"],
        "chart": charts.difference_chart({"mIoU": found["miou"]} | found["classes"]),
        "picture": narrowed(picture, share.picture_bytes) if storage.exists(picture) else None,
    }


def narrowed(place: str, room: int) -> str | None:
    """Return a picture as a data: URI of a JPEG of WIDE_PX at most; None if that is too large."""
    image_hwc = images.decode_image(storage.read_bytes(place), place)
    scale = min(1.0, WIDE_PX / image_hwc.shape[1])
    uri = gallery.jpeg(images.resize_image(image_hwc, tuple(round(side * scale) for side in image_hwc.shape[:2])))
    return uri if len(uri) <= room else None


KINDS = {  # a file in such a folder → its view; the first file found decides
    "_segray/plan-00000.json": labels_view,
    "scores.json": evaluation_view,
    "compare.json": comparison_view,
    "leaderboard.json": run_view,
    "history.jsonl": run_view,
    "best/segray.json": run_view,
}


# Parts that several views have


def scored_view(
    names: Sequence[str], space: LabelSpace, scores: Mapping[str, Any], confusion: np.ndarray
) -> dict[str, Any]:
    """Return scores by class and on average, and the matrix, [C, C], or [C, C + 1] with undecided pixels."""
    keys = [key for key in ("iou", "f1", "sensitivity", "specificity", "boundary") if f"class_{key}" in scores]
    columns = {key: scores[f"class_{key}"] for key in keys}
    colors = dict(zip(space.names, css_colors(space), strict=True))
    columns |= {"name": names, "color": [colors[name] for name in names], "share": shares(confusion.sum(1))}
    return {
        "scores": scores,
        "classes": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)],
        "matrix": charts.confusion_chart(confusion, names),
    }


def images_view(miou_counts: np.ndarray) -> dict[str, Any]:
    """Return the distribution of the frames' own mIoU from its histogram, if there is any."""
    known = bool(miou_counts.any())
    return {
        "quartiles": digest.quartiles(miou_counts) if known else None,
        "spread": charts.miou_chart(miou_counts) if known else None,
    }


def css_colors(space: LabelSpace) -> list[str]:
    return [f"rgb({r},{g},{b})" for r, g, b in space.colors]


def shares(pixels: Iterable[float]) -> list[float]:
    """Return each count's share of all; nan if the sum is 0."""
    counts = np.asarray(pixels, dtype=np.float64)
    found: list[float] = (counts / counts.sum() if counts.sum() else counts * math.nan).tolist()
    return found


# Files


def _bundle(uri: str) -> Bundle:
    facts = storage.read_json(uri)
    if missing := {"label_space", "scores", "confusion"} - set(facts):
        raise DataError(f"{uri} has no {min(missing)}; give a bundle that segray train wrote.")
    return Bundle(facts, LabelSpace.from_dict(facts["label_space"]), np.asarray(facts["confusion"], np.int64))
