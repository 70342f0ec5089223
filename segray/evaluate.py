"""A bundle and a labelled split → its scores at the frames' own size, in this process, with pictures.

OUT/scores.json      scores of all frames together, by class, per-image averages, boundary IoU, confusion matrix,
                     expected calibration error
OUT/images.parquet   a row a frame, worst first
OUT/frames.png       the best and the worst frames: image, truth, prediction, errors
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.config import Config
from segray.core import calibration, images, metrics
from segray.core.ahead import ahead
from segray.core.classmaps import scoring_map
from segray.core.datasets import open_dataset, read_sample, split_refs
from segray.core.models import bundle
from segray.core.predictor import Prediction, Predictor
from segray.core.samples import IGNORE_INDEX, LabelSpace, Sample, SampleRef
from segray.errors import ConfigError, DataError
from segray.train import SETTINGS, claim_folder, different

SCORES, IMAGES, PICTURES = "scores.json", "images.parquet", "frames.png"
SECTIONS = ("data", "infer", "evaluate", "cluster")
THREADS = 2
ROW_SCORES = ("miou", "pixel_accuracy", "mean_f1", "mean_sensitivity", "mean_specificity")


def evaluate(
    config: Config, *, overwrite: bool = False, on_frame: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Score `evaluate.model` on `evaluate.split`; what scores.json then holds. on_frame gets (frames done, of all).

    Classes of model and data are matched by name (core.classmaps); those that the model does not know are
    reported as not covered. With `evaluate.calibrate`, the bundle gets the temperature that fits the split.
    Raises ModelError and DataError for a bundle or data that cannot be used.
    """
    section = config.evaluate
    if not section.model:
        raise ConfigError("evaluate.model is not given; name the bundle, or a ready model of `segray models`.")
    if section.calibrate and (config.infer.window or config.infer.flip or config.infer.scales != [1.0]):
        raise ConfigError(
            "evaluate.calibrate fits single looks at whole frames; leave out --window, --flip, infer.scales."
        )
    if section.calibrate and config.infer.threshold is not None:
        raise ConfigError("evaluate.calibrate changes what infer.threshold means; leave it out, and evaluate again.")
    model = bundle.resolve(section.model, config.model.weights_dir)
    space = bundle.label_space(bundle.read_info(model))
    dataset = open_dataset(config.data)
    refs = split_refs(dataset, section.split)
    truth_space, not_covered = _truth_space(space, dataset.label_space)
    out = Path(section.out)
    if section.calibrate:
        bundle.check_writable(model)
    _claim(out, config, overwrite)
    predictor = Predictor(model, device(config), config.infer, threshold=config.infer.threshold)
    classes = space.num_classes
    confusion = np.zeros((classes, classes + 1), np.int64)  # the last column: pixels left undecided
    boundary, rows = np.zeros((classes, 2), np.int64), []
    looks: list[tuple[np.ndarray, np.ndarray]] = []  # logits and classes of sampled pixels
    for ref, sample, points, found in _predictions(predictor, refs, truth_space, section.batch_size):
        counts = confusion_of(sample.mask_hw, found.mask_hw, classes)
        edges = metrics.boundary_counts(sample.mask_hw, found.mask_hw, classes)
        looks.append((found.logits_nc, sample.mask_hw[points[:, 0], points[:, 1]]))
        confusion, boundary = confusion + counts, boundary + edges
        rows.append({"sample_id": ref.sample_id, "image": ref.image, "mask": ref.mask, **_row_scores(counts)})
        on_frame(len(rows), len(refs))
    if not confusion.any():
        raise DataError(f"No pixel of {dataset.name} {section.split} is labelled with a class that {model} knows.")
    result = _result(space, confusion, boundary, rows, not_covered) | {"model": section.model, "split": section.split}
    logits_nc, truth_n = (np.concatenate(values) for values in zip(*looks, strict=True))
    result["scores"]["ece"] = calibration.ece(logits_nc, truth_n)
    if section.calibrate:
        result["calibration"] = _calibrate(model, predictor.info.temperature, section.split, logits_nc, truth_n)
        result["scores"]["ece"] = result["calibration"]["ece_after"]
    rows.sort(key=lambda row: (row["miou"] is not None, row["miou"]))
    pq.write_table(pa.Table.from_pylist(rows), out / IMAGES)
    if section.pictures:
        write_pictures(out / PICTURES, predictor, _chosen(rows, section.pictures), truth_space)
    (out / SCORES).write_text(json.dumps(result, indent=2))
    return result


def device(config: Config) -> str:
    """cuda where there is one, unless `cluster.gpu` says otherwise."""
    import torch

    wanted = torch.cuda.is_available() if config.cluster.gpu is None else config.cluster.gpu
    if wanted and not torch.cuda.is_available():
        raise ConfigError("cluster.gpu is true, and this machine has no GPU that torch can use; leave it out.")
    return "cuda" if wanted else "cpu"


def confusion_of(truth_hw: np.ndarray, pred_hw: np.ndarray, classes: int) -> np.ndarray:
    """int64 [C, C + 1]; 255 in the prediction counts in the last column."""
    decided = np.minimum(pred_hw.astype(np.int64), classes)
    return metrics.confusion_matrix(truth_hw, decided, classes + 1)[:classes]


def _calibrate(model: str, before: float, split: str, logits_nc: np.ndarray, truth_n: np.ndarray) -> dict[str, Any]:
    """Give the bundle the temperature that fits; the logits are divided by its `before` already."""
    factor = calibration.fit(logits_nc, truth_n)
    errors = {
        "ece_before": calibration.ece(logits_nc, truth_n),
        "ece_after": calibration.ece(logits_nc, truth_n, factor),
    }
    fit = {"split": split, "pixels": len(truth_n), **errors}
    info = bundle.set_temperature(model, before * factor, fit)
    return {"temperature": info.temperature, "model_id": info.model_id, **fit}


def _truth_space(model: LabelSpace, truth: LabelSpace) -> tuple[LabelSpace, list[str]]:
    """The model's classes with ids as the truth's files hold them, and the truth's classes that are not covered."""
    if model.names == truth.names:
        return replace(model, id_map=truth.id_map), []
    id_map, not_covered = scoring_map(model, truth)
    if len(not_covered) == len(truth.names):
        raise DataError(
            f"The model's classes ({', '.join(model.names[:5])}, …) and the data's ({', '.join(truth.names[:5])}, …) "
            "have no name in common. Rename the data's with data.class_map."
        )
    return replace(model, id_map=id_map), not_covered


def _predictions(
    predictor: Predictor, refs: Sequence[SampleRef], space: LabelSpace, batch_size: int
) -> Iterator[tuple[SampleRef, Sample, np.ndarray, Prediction]]:
    """Each frame with its truth, pixels of it that are drawn for calibration, and what is predicted, a batch ahead."""
    batches = [refs[i : i + batch_size] for i in range(0, len(refs), batch_size)]
    most = calibration.pixels_a_frame(len(refs), space.num_classes)

    def read(batch: Sequence[SampleRef]) -> list[tuple[Sample, np.ndarray]]:
        samples = [read_sample(ref, space, None) for ref in batch]
        seeds = [zlib.crc32(ref.sample_id.encode()) for ref in batch]
        return [
            (one, calibration.sample_pixels(one.mask_hw, most, seed)) for one, seed in zip(samples, seeds, strict=True)
        ]

    with ThreadPoolExecutor(THREADS) as pool:
        for batch, read_ahead in zip(batches, ahead(pool, read, batches, THREADS), strict=True):
            samples, points = zip(*read_ahead, strict=True)
            frames = [sample.image_hwc for sample in samples]
            found = predictor.predict([predictor.prepare(f) for f in frames], [f.shape[:2] for f in frames], points)
            yield from zip(batch, samples, points, found, strict=True)


def _row_scores(counts: np.ndarray) -> dict[str, Any]:
    scores = metrics.scores(counts).to_dict()
    return {name: scores[name] for name in ROW_SCORES}


def _result(
    space: LabelSpace, confusion: np.ndarray, boundary: np.ndarray, rows: list[dict[str, Any]], not_covered: list[str]
) -> dict[str, Any]:
    counts = [None if union == 0 else int(hit) / int(union) for hit, union in boundary]
    known = [value for value in counts if value is not None]
    means = {f"image_{name}": _mean([row[name] for row in rows]) for name in ROW_SCORES}
    return {
        "frames": len(rows),
        "classes": list(space.names),
        "scores": metrics.scores(confusion).to_dict()
        | means
        | {"boundary_miou": _mean(known), "class_boundary": counts},
        "baseline_miou": metrics.majority_baseline(confusion[:, :-1]).miou,
        "not_covered": not_covered,
        "undecided_share": float(confusion[:, -1].sum() / confusion.sum()),
        "confusion": confusion.tolist(),
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _chosen(rows: list[dict[str, Any]], count: int) -> list[tuple[str, SampleRef]]:
    """(caption, frame): the best `count`, best first, then the worst, worst first; rows are worst first."""
    scored = [row for row in rows if row["miou"] is not None]
    best = scored[::-1][:count]
    worst = [row for row in scored[:count] if row not in best]
    return [
        (f"{kind}: {row['sample_id']}, mIoU {row['miou']:.3f}", SampleRef(row["sample_id"], row["image"], row["mask"]))
        for kind, group in (("best", best), ("worst", worst))
        for row in group
    ]


def write_pictures(
    path: Path, predictor: Predictor, frames: Sequence[tuple[str, SampleRef]], space: LabelSpace
) -> None:
    """One picture, a line a frame: the frame, its truth, the prediction alone and over the frame, and its errors."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(20, 3.2 * len(frames)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(frames), 5, squeeze=False)
    for line, (caption, ref) in zip(axes, frames, strict=True):
        sample = read_sample(ref, space, None)
        shape = sample.mask_hw.shape
        pred_hw = predictor.predict([predictor.prepare(sample.image_hwc)], [shape])[0].mask_hw
        wrong = (pred_hw != sample.mask_hw) & (sample.mask_hw != IGNORE_INDEX)
        panels = (
            (caption, sample.image_hwc),
            ("truth", images.colorize(sample.mask_hw, space.colors)),
            ("prediction", images.colorize(pred_hw, space.colors)),
            ("prediction over the frame", images.overlay(sample.image_hwc, pred_hw, space.colors)),
            (f"wrong, red: {wrong.mean():.1%}", np.where(wrong[..., None], [220, 30, 30], sample.image_hwc // 2 + 90)),
        )
        for axis, (title, picture) in zip(line, panels, strict=True):
            axis.imshow(picture.astype(np.uint8))
            axis.set_title(title, fontsize=9, loc="left")
            axis.axis("off")
    figure.savefig(path, dpi=80)


def _claim(out: Path, config: Config, overwrite: bool) -> None:
    made = (SETTINGS, SCORES, IMAGES, PICTURES)
    claim_folder(out, "evaluation", made, overwrite, lambda before: different(before, config, SECTIONS[:-1]))
    (out / SETTINGS).write_text(config.to_yaml(SECTIONS))
