"""What segray.json knows of a model → its card: Markdown, with the front matter that the Hugging Face Hub reads."""

from __future__ import annotations

from typing import Any

from segray.core.io import storage
from segray.core.models import name_of
from segray.core.models.info import BundleInfo
from segray.core.transforms import PAD_RGB

SCORES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_f1": "mean F1 (Dice)",
    "mean_sensitivity": "mean sensitivity",
    "mean_specificity": "mean specificity",
}
SHOWN = (
    "epochs",
    "batch_size",
    "optimizer",
    "learning_rate",
    "schedule",
    "weight_decay",
    "loss",
    "ema",
    "seed",
)


def card(info: BundleInfo) -> str:
    """Return a bundle's README.md: use, preprocessing, scores by class, training, versions. It names no local path."""
    model, names = info.model, info.label_space["names"]
    height, width = info.input_size
    resized = f"resized to {height}×{width} (height × width)"
    if info.resize == "keep":
        resized = (
            f"resized, at their own aspect ratio, to fit into {height}×{width} (height × width), padded on the right "
            f"and below with RGB {', '.join(map(str, PAD_RGB))}"
        )
    if info.resize == "short_side":
        most = f", or the longer one {info.longest_px} px" if info.longest_px else ""
        resized = f"resized until their shorter side is {min(height, width)} px{most}"
    if info.resize == "nearest_side":
        resized = f"resized, at their own aspect ratio, until they are {height} px high or {width} px wide"
    if info.resize == "none":
        resized = "at their own size"
    if info.multiple_of > 1:
        resized += f", and to multiples of {info.multiple_of} px"
    return "\n".join(
        [
            "---",
            "pipeline_tag: image-segmentation",
            "library_name: segray",
            "tags:",
            *(f"- {tag}" for tag in ("semantic-segmentation", "segray", model.arch, model.encoder)),
            "---",
            "",
            f"# {name_of(model)}, {len(names)} classes",
            "",
            "Gives each pixel of a picture one class. Made by segray; `segray.json` holds all that is said here.",
            "",
            "```sh",
            "segray label --model FOLDER --input FRAMES --out labels",
            "```",
            "",
            f"Frames are RGB, {resized}, scaled to 0..1, less the mean {list(info.mean)}, over the deviation "
            f"{list(info.std)}. Logits are divided by the temperature {info.temperature:.4g}.",
            "",
            "## Scores",
            "",
            *_scores(info),
            "",
            "## Training",
            "",
            *_training(info),
            "",
            f"Model {info.model_id}, weights sha256 {info.weights_sha256}; "
            f"{', '.join(f'{name} {number}' for name, number in info.versions.items())}.",
            "",
        ]
    )


def _scores(info: BundleInfo) -> list[str]:
    scores, names = info.scores, info.label_space["names"]
    ious = scores.get("class_iou") or [None] * len(names)
    lines = ["None are kept in the bundle.", ""]
    if scores:
        data = info.config.get("data", {})
        metrics = ", ".join(f"{name} {_text(scores.get(key))}" for key, name in SCORES.items())
        split = f"the split {data.get('val_split')} of its data ({data.get('format')})"
        lines = [f"Of epoch {info.epoch}, on {split}, at the input size: {metrics}."]
        lines += ["", "A class that occurs in neither ground truth nor prediction has no IoU.", ""]
    rows = zip(range(len(names)), names, info.label_space["colors"], ious, strict=True)
    lines += ["| id | class | colour | IoU |", "|---|---|---|---|"]
    return lines + [f"| {i} | {name} | {', '.join(map(str, color))} | {_text(iou)} |" for i, name, color, iou in rows]


def _training(info: BundleInfo) -> list[str]:
    train = info.config.get("train", {})
    chosen = {key: train[key] for key in SHOWN if train.get(key) is not None}
    if not chosen:
        of = info.source.get("name", "")
        pinned = f" at revision {info.source['revision']}" if "revision" in info.source else ""
        return [f"Not trained by segray: made of {of}{pinned}." if of else "Not trained by segray."]
    start = storage.name_of(info.config.get("model", {}).get("encoder_weights", "none"))
    return [f"- encoder weights at the start: {start}", *(f"- {key}: {value}" for key, value in chosen.items())]


def _text(score: Any) -> str:
    return "–" if score is None else f"{score:.3f}"
