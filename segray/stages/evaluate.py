"""A bundle and a labelled split, or finished labels and their truth → scores at the frames' own size, with pictures.

OUT/scores.json      scores of all frames together, by class and condition, per-image averages, boundary IoU, confusion
                     matrix, reliability curve and expected calibration error, and the protocol that all this follows
OUT/images.parquet   a row a frame, worst first, with its confusion matrix; truth and prediction of those worth a look
OUT/frames.png       the best and the worst frames: image, ground truth, prediction, errors
OUT/reliability.png  accuracy over confidence
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.config import Config
from segray.core import metrics
from segray.core.infer.predictor import Predictor
from segray.core.io import claims, storage
from segray.core.io.locators import file_of
from segray.core.io.masks import encode_mask
from segray.core.labels.digest import PICKS
from segray.core.labels.folder import is_labels
from segray.core.labels.schema import Picture
from segray.core.models import bundle, ready
from segray.core.models.info import read_info
from segray.core.progress import Progress, untold
from segray.core.samples import SampleRef
from segray.core.scoring import calibration, conditions, pictures, reliability
from segray.core.scoring.conditions import Conditions
from segray.core.scoring.protocols import MoreScores, Protocol, more_scores, protocol_of, scored_counts
from segray.core.scoring.reliability import Bin
from segray.core.scoring.sources import Drawn, LabelFrames, ModelFrames, Scored
from segray.core.training.checkpoint import SETTINGS, command_of, read_settings
from segray.core.training.workers import local_device
from segray.errors import ConfigError, DataError, SegrayError
from segray.sections.values import is_ready_model
from segray.stages.resume import different

log = logging.getLogger("segray")

SCORES, IMAGES, PICTURES, RELIABILITY = "scores.json", "images.parquet", "frames.png", "reliability.png"
MADE = (SETTINGS, SCORES, IMAGES, PICTURES, RELIABILITY)
SECTIONS = ("data", "infer", "evaluate", "cluster")


def _has_scores(out: str) -> bool:
    return storage.exists(storage.join(out, SCORES))


KIND = claims.Kind("evaluation", SETTINGS, MADE, _has_scores, lambda out: command_of(out) == "evaluate")


class Fit(TypedDict):
    """A bundle's calibration: expected calibration errors before and after, the number of pixels, and the split."""

    split: str
    pixels: int
    ece_before: float
    ece_after: float


class Calibration(Fit):
    """The fit, and the bundle's new id."""

    temperature: float
    model_id: str


class SplitScores(metrics.PlainScores, MoreScores):
    """Scores of a whole split. image_…: means of the frames' own. ece: None for labels without confidence maps."""

    image_miou: float | None
    image_pixel_accuracy: float | None
    image_mean_f1: float | None
    image_mean_sensitivity: float | None
    image_mean_specificity: float | None
    boundary_miou: float | None
    class_boundary: list[float | None]
    ece: float | None


class Evaluation(TypedDict):
    """The content of scores.json. confusion: int [C, C + 1], the last column undecided. scored: what, in words."""

    frames: int
    protocol: str
    rule: str
    classes: list[str]
    scores: SplitScores
    baseline_miou: float
    undecided_share: float
    confusion: list[list[int]]
    not_covered: list[str]
    missing: list[str]
    notes: list[str]
    model: str
    split: str
    scored: str
    label_space: dict[str, Any]
    calibration: NotRequired[Calibration]
    reliability: list[Bin] | None
    conditions: Conditions


class ImageRow(metrics.Packed):
    """A row of images.parquet, with its matrix; the columns of evaluate.conditions come after.

    shown: the report's galleries that the frame is in (digest.PICKS); if any, truth and prediction are palette PNGs,
    and image_stamp tells whether the image is still the one that was scored.
    """

    sample_id: str
    image: str
    image_stamp: str | None
    mask: str
    miou: float | None
    pixel_accuracy: float | None
    mean_f1: float | None
    mean_sensitivity: float | None
    mean_specificity: float | None
    entropy_mean: float | None
    shown: list[str]
    truth: Picture | None
    prediction: Picture | None


def evaluate(config: Config, *, overwrite: bool = False, progress: Progress = untold) -> Evaluation:
    """Score `evaluate.model`, a model or finished labels. Returns the content of scores.json. progress is in frames.

    Classes of prediction and truth are matched by name (scoring.classmaps); classes of the truth that are not predicted
    are reported as not covered. scoring.protocols says which are scored. With `evaluate.calibrate`, the bundle gets the
    temperature that fits the split. Without data in the settings, those that the model was trained with are scored.
    Raises ModelError and DataError for a bundle, labels or data that cannot be used.
    """
    named, config = config.evaluate.given_model(), _with_data(config.absolute())
    section, out = config.evaluate, config.evaluate.out
    source = open_source(config)
    if section.calibrate and isinstance(source, ModelFrames):
        bundle.check_writable(source.model)
    table = _table(config, source.refs)
    with claims.held(out, KIND):
        claims.claim(out, KIND, overwrite, lambda: different(read_settings(out).absolute(), config, SECTIONS[:-1]))
        storage.replace(storage.join(out, SETTINGS), config.to_yaml(SECTIONS).encode())
        start(source, config)
        return _evaluate(config, named, source, table, out, progress)


def _evaluate(
    config: Config,
    model: str,
    source: ModelFrames | LabelFrames,
    table: conditions.Table,
    out: str,
    progress: Progress,
) -> Evaluation:
    """Score all frames and write the folder. model: the name that was given."""
    section = config.evaluate
    predicted, protocol = source.space.names, protocol_of(source.truth_space, source.space.names)
    confusion = np.zeros((len(protocol.names), len(protocol.names) + 1), np.int64)  # the last column: undecided
    boundary = np.zeros((len(predicted), 2), np.int64)
    rows: list[ImageRow] = []
    drawn: list[Drawn] = []
    for frame in source.frames(source.refs):
        counts = metrics.confusion_with_undecided(frame.truth_hw, frame.pred_hw, len(predicted))
        counts = scored_counts(counts, predicted, protocol.names)
        confusion += counts
        boundary += metrics.boundary_counts(frame.truth_hw, frame.pred_hw, len(predicted))
        rows.append(_row(frame, counts))
        drawn.append(frame.drawn)
        progress(1, len(source.refs))
    if not confusion.any():
        raise DataError(f"No pixel of the ground truth of {source.what} has a class that {model} knows.")
    kept = [predicted.index(name) for name in protocol.names]
    curve, calibrated = _calibration(config, source, drawn)
    table = table or conditions.cities([row["sample_id"] for row in rows])
    result: Evaluation = {
        "frames": len(rows),
        "protocol": protocol.name,
        "rule": protocol.rule,
        "classes": list(protocol.names),
        "scores": _scores(protocol, confusion, boundary[kept], rows, curve),
        "baseline_miou": metrics.majority_baseline(confusion).miou,
        "undecided_share": float(confusion[:, -1].sum() / confusion.sum()),
        "confusion": confusion.tolist(),
        "not_covered": source.not_covered,
        "missing": list(map(storage.printable, source.missing)),
        "notes": [*source.notes, *conditions.notes(table)],
        "model": model,
        "split": section.split,
        "scored": source.what,
        "label_space": source.space.to_dict(),
        "reliability": curve,
        "conditions": conditions.scores(table, rows, len(protocol.names)),
    }
    if calibrated is not None:
        result["calibration"] = calibrated
    order = sorted(range(len(rows)), key=lambda i: -1.0 if (miou := rows[i]["miou"]) is None else miou)
    if section.pictures:
        worst_first = [rows[i] for i in order]
        choose(worst_first, section.pictures)
        write_pictures(storage.join(out, PICTURES), source, [row for row in worst_first if row["shown"]])
    file = io.BytesIO()
    whole = [{**rows[i], **{name: values[i] for name, values in table.items()}} for i in order]
    pq.write_table(pa.Table.from_pylist(whole), file, compression="zstd")
    storage.replace(storage.join(out, IMAGES), file.getvalue())
    if curve:
        pictures.write_reliability(storage.join(out, RELIABILITY), curve)
    storage.replace(storage.join(out, SCORES), json.dumps(result, indent=2).encode())
    return result


def _with_data(config: Config) -> Config:
    """Return the settings with the data that the model was trained with, where none are named."""
    place = config.evaluate.given_model()
    if config.data.root or config.data.format or is_ready_model(place) or is_labels(place):
        return config
    own = read_info(ready.resolve(place)).config.get("data", {})
    if not own.get("root"):
        return config
    layout = f"--format {own['format']} " if own["format"] else ""
    log.warning(f"No data is named; the model is scored on its own: {layout}--data {own['root']}.")
    return config.changed({f"data.{key}": value for key, value in own.items()})


def open_source(config: Config) -> ModelFrames | LabelFrames:
    """Open what the settings score: list frames and match classes. No frame is read and no model loaded yet."""
    section, place = config.evaluate, config.evaluate.given_model()
    labels = is_labels(place)
    if labels and section.calibrate:
        raise ConfigError(f"{place} holds labels; evaluate.calibrate needs the model that made them.")
    if section.truth and not labels:
        raise ConfigError(f"evaluate.truth goes with finished labels; {place} holds none. Use --format, --data.")
    if section.calibrate and (config.infer.window or config.infer.flip or config.infer.scales != [1.0]):
        raise ConfigError(
            "evaluate.calibrate fits predictions of whole frames; leave out --window, --flip, infer.scales."
        )
    if section.calibrate and config.infer.threshold is not None:
        raise ConfigError("evaluate.calibrate changes what infer.threshold means; leave it out, and evaluate again.")
    if section.calibrate and is_ready_model(place):
        raise ConfigError(
            f"evaluate.calibrate would change {place} for all who use it on this machine. Make your own bundle of "
            f"it first: segray import {place} --out models/{storage.name_of(place.partition(':')[2] or place)}"
        )
    if labels:
        return LabelFrames(config)
    model = ready.resolve(place, config.model.weights_dir)
    return ModelFrames(config, model, read_info(model).space)


def start(source: ModelFrames | LabelFrames, config: Config) -> None:
    """Load the model, where the source has one."""
    if isinstance(source, ModelFrames):
        device = local_device(config.cluster)
        source.predictor = Predictor(source.model, device, config.infer, threshold=config.infer.threshold)


def _calibration(
    config: Config, source: ModelFrames | LabelFrames, drawn: Sequence[Drawn]
) -> tuple[list[Bin] | None, Calibration | None]:
    """Return the reliability curve, None for labels without confidence maps, and a model's new calibration or None."""
    if isinstance(source, LabelFrames):
        known = [one.sure for one in drawn if one.sure is not None]
        return reliability.curve_of(*_joined(known)) if known else None, None
    logits_nc, truth_n = _joined([(one.logits_nc, one.truth_n) for one in drawn if one.logits_nc is not None])
    factor, calibrated = 1.0, None
    if config.evaluate.calibrate:
        factor, calibrated = _calibrate(
            source.model, source.predictor.info.temperature, config.evaluate.split, logits_nc, truth_n
        )
    return reliability.curve_of(*calibration.confidences(logits_nc, truth_n, factor)), calibrated


def _joined(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([one for one, _ in pairs]), np.concatenate([other for _, other in pairs])


def _calibrate(
    model: str, before: float, split: str, logits_nc: np.ndarray, truth_n: np.ndarray
) -> tuple[float, Calibration]:
    """Give the bundle the fitting temperature; return its factor and the Calibration. `before`: the old one."""
    factor = calibration.fit(logits_nc, truth_n)
    fit: Fit = {
        "split": split,
        "pixels": len(truth_n),
        "ece_before": calibration.ece(logits_nc, truth_n),
        "ece_after": calibration.ece(logits_nc, truth_n, factor),
    }
    info = bundle.set_temperature(model, before * factor, {**fit})
    return factor, {"temperature": info.temperature, "model_id": info.model_id, **fit}


def _row(frame: Scored, counts: np.ndarray) -> ImageRow:
    scores = metrics.scores(counts).to_dict()
    return {
        "sample_id": storage.printable(frame.ref.sample_id),
        "image": storage.printable(frame.ref.image),
        "image_stamp": None,
        "mask": storage.printable(frame.ref.mask),
        "miou": scores["miou"],
        "pixel_accuracy": scores["pixel_accuracy"],
        "mean_f1": scores["mean_f1"],
        "mean_sensitivity": scores["mean_sensitivity"],
        "mean_specificity": scores["mean_specificity"],
        "entropy_mean": frame.entropy_mean,
        **metrics.packed(counts),
        "shown": [],
        "truth": None,
        "prediction": None,
    }


def _table(config: Config, refs: Sequence[SampleRef]) -> conditions.Table:
    """Read the columns of evaluate.conditions for these frames; {} without such a table."""
    place = config.evaluate.conditions
    if place is None:
        return {}
    table = conditions.read_table(place, [(ref.sample_id, ref.image) for ref in refs])
    own = ImageRow.__annotations__.keys() & table.keys()
    if own:
        raise DataError(f"{place} has a column {min(own)}, as {IMAGES} has; rename it.")
    return table


def _scores(
    protocol: Protocol, confusion: np.ndarray, boundary: np.ndarray, rows: Sequence[ImageRow], curve: list[Bin] | None
) -> SplitScores:
    """Compute the scores of the split. curve: the reliability curve."""
    class_boundary = [None if union == 0 else int(hit) / int(union) for hit, union in boundary]
    return {
        **metrics.scores(confusion).to_dict(),
        "image_miou": _mean([row["miou"] for row in rows]),
        "image_pixel_accuracy": _mean([row["pixel_accuracy"] for row in rows]),
        "image_mean_f1": _mean([row["mean_f1"] for row in rows]),
        "image_mean_sensitivity": _mean([row["mean_sensitivity"] for row in rows]),
        "image_mean_specificity": _mean([row["mean_specificity"] for row in rows]),
        "boundary_miou": _mean(class_boundary),
        "class_boundary": class_boundary,
        **more_scores(protocol, confusion),
        "ece": reliability.error_of(curve) if curve else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def choose(rows: Sequence[ImageRow], count: int) -> None:
    """Write into `shown` of each row the galleries that it is in, of `count` frames at most."""
    for name, pick in PICKS.items():
        known = [(value, row) for row in rows if isinstance(value := row.get(pick.column), float)]
        order = sorted(known, key=lambda one: one[0])[:: -1 if pick.high else 1]
        for _, row in order[: pick.most(len(known), count)]:
            row["shown"].append(name)


def refs_by_id(source: ModelFrames | LabelFrames) -> dict[str, SampleRef]:
    """Index the frames by their ids in images.parquet."""
    return {storage.printable(ref.sample_id): ref for ref in source.refs}


def write_pictures(uri: str, source: ModelFrames | LabelFrames, rows: Sequence[ImageRow]) -> None:
    """Add truth and prediction to the rows, and draw the best and the worst as one picture, the best first."""
    by_id = refs_by_id(source)
    lines: list[pictures.Line] = []
    seen: set[int] = set()
    refs = [by_id[row["sample_id"]] for row in rows]
    for row, frame in zip(rows, source.frames(refs), strict=True):
        row["truth"] = {"bytes": encode_mask(frame.truth_hw, source.space.colors), "path": "truth.png"}
        row["prediction"] = {"bytes": encode_mask(frame.pred_hw, source.space.colors), "path": "prediction.png"}
        row["image_stamp"] = frame.ref.stamp or _stamp(frame.ref)
        if {"best", "worst"} & set(row["shown"]):
            lines.insert(0, pictures.line(f"{row['sample_id']}, mIoU {row['miou']:.3f}", frame, source.space))
            seen |= pictures.classes_in(frame)
    pictures.draw(uri, lines, source.space, seen)


def _stamp(ref: SampleRef) -> str | None:
    """Return the stamp of the frame's file now; None where it is gone."""
    try:
        return storage.stat(file_of(ref.image)).stamp
    except SegrayError:
        return None
