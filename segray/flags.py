"""A stage's settings as options of its command: flags, --config, --set, --dry-run, --resume → the resolved Config."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from segray.config import Config

Run = Callable[..., None]  # what click makes a command of

# Flag → (setting that it gives, help, more for click). What has no flag is given by --set or in a file.
FLAGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "--format": ("data.format", "Layout of the data; `segray data formats` lists them.", {}),
    "--data": ("data.root", "Folder of labelled frames.", {}),
    "--size": ("data.size", "Height x width that the model sees, such as 180x240.", {}),
    "--arch": ("model.arch", "Architecture; `segray models` lists them.", {}),
    "--encoder": ("model.encoder", "Encoder: resnet18, mobilenet_v2, …", {}),
    "--weights": ("model.encoder_weights", "Encoder's start: none, imagenet, or a .safetensors or .pth file.", {}),
    "--weights-dir": ("model.weights_dir", "Folder or s3:// of weight files, without internet.", {}),
    "--loss": ("train.loss", "cross_entropy, focal, dice, lovasz or ohem; sums of them by --set.", {}),
    "--freeze-encoder": ("train.freeze_encoder", "Train the decoder alone.", {"is_flag": True, "default": None}),
    "--teacher": ("train.teacher", "Bundle whose soft labels are learned too.", {}),
    "--compile": ("train.compile", "torch.compile the model.", {"is_flag": True, "default": None}),
    "--epochs": ("train.epochs", "Passes over the training frames.", {"type": int}),
    "--batch-size": ("train.batch_size", "Images a step, over all workers.", {"type": int}),
    "--lr": ("train.learning_rate", "Peak learning rate.", {"type": float}),
    "--seed": ("train.seed", "Of weights, order and augmentation.", {"type": int}),
    "--workers": ("cluster.workers", "Training processes; 0 trains without Ray.", {"type": int}),
    "--address": ("cluster.address", "Ray cluster; default: RAY_ADDRESS, else a Ray of our own.", {}),
    "--encoders": ("sweep.encoders", "An encoder to try; give it again for more.", {"multiple": True}),
    "--lrs": ("sweep.learning_rates", "A range such as 1e-4..1e-2, or a list 1e-3,1e-2.", {}),
    "--vary": ("sweep.space", "Setting to try: KEY=a,b or KEY=low..high; give it again for more.", {"multiple": True}),
    "--search": ("sweep.search", "grid: every combination; random: --trials of them; tpe: --trials by the scores.", {}),
    "--trials": ("sweep.trials", "Trials in all, of a range, random or tpe.", {"type": int}),
    "--seeds": ("sweep.seeds", "Runs of each combination, for a mean and its spread.", {"type": int}),
    "--time": ("sweep.time", "Stop after so long, such as 2h; the same command goes on.", {}),
    "--gpu-hours": ("sweep.gpu_hours", "Stop when all trials together took so many.", {"type": float}),
    "--objective": ("sweep.objective", "What best/ is: miou, or pareto:0.9, the fastest of 0.9 × that mIoU.", {}),
    "--price": ("sweep.price", "Of an hour of this device, for the cost of a million frames.", {"type": float}),
    "--model": ("label.model", "Model bundle: the folder best/ of a run.", {}),
    "--input": (
        "label.inputs",
        "Image, video, folder, glob, list or Parquet; give it again for more.",
        {"multiple": True},
    ),
    "--truth": ("label.truth", "Folder of masks at the images' paths, to score against.", {}),
    "--every": ("label.every", "Of a video, every N-th frame.", {"type": int}),
    "--fps": ("label.fps", "Of a video, so many frames a second.", {"type": float}),
    "--limit": ("label.limit", "The first so many rows.", {"type": int}),
    "--sample": ("label.sample", "A share of the rows, such as 0.01: the same ones every time.", {"type": float}),
    "--extend": ("label.extend", "Also label inputs that --out does not have yet.", {"is_flag": True, "default": None}),
    "--retry-errors": (
        "label.retry_errors",
        "Label the inputs of a finished --out again that failed.",
        {"is_flag": True, "default": None},
    ),
    "--mask-format": ("label.mask_format", "png, rle, or none: figures alone.", {}),
    "--max-error-rate": ("label.max_error_rate", "Stop when more than this share failed.", {"type": float}),
    "--actors": ("label.actors", "Labelling processes; default: one a GPU, or one.", {"type": int}),
    "--split": ("evaluate.split", "Split that is scored.", {}),
    "--masks": ("evaluate.truth", "Of labels: folder of masks at the images' paths.", {}),
    "--conditions": (
        "evaluate.conditions",
        "Table (csv, jsonl, Parquet), a row an image: scores by its columns.",
        {},
    ),
    "--calibrate": (
        "evaluate.calibrate",
        "Fit the model's temperature on the split, data that it was not trained on, and keep it in its segray.json.",
        {"is_flag": True, "default": None},
    ),
    "--window": ("infer.window", "Slide a window of this height x width over frames at their own size.", {}),
    "--engine": ("infer.engine", "torch; onnx: ONNX Runtime, for CPUs; auto: the faster one, by a short probe.", {}),
    "--flip": ("infer.flip", "Average with the mirrored frame.", {"is_flag": True, "default": None}),
    "--labels": ("report.labels", "A further folder, such as of labels; give it again for more.", {"multiple": True}),
}
RENAMED = {"--encoders": "--encoder", "--lrs": "--lr", "--masks": "--truth"}  # flags, by names that others have too


def flag(name: str) -> Callable[[Run], Run]:
    key, text, more = FLAGS[name]
    return click.option(RENAMED.get(name, name), key.replace(".", "__"), help=text, **more)


def stage(
    *flags: str,
    out: str,
    sections: tuple[str, ...],
    preview: Callable[[Config], None] = lambda config: None,
    recipe: bool = False,
    resume: bool = False,
) -> Callable[[Callable[[Config, bool], None]], Run]:
    """Options of a command that runs a stage; the function gets the resolved Config, and `overwrite`.

    preview: what --dry-run shows after the settings. recipe: whether --recipe gives settings by name. resume: whether
    --resume takes the settings that --out has saved.
    """

    def decorate(function: Callable[[Config, bool], None]) -> Run:
        @functools.wraps(function)
        def command(file: str | None, sets: tuple[str, ...], dry_run: bool, overwrite: bool, **given: Any) -> None:
            if click.get_current_context().invoked_subcommand:
                return  # these are the options of the group, not of its command
            config = settings(file, sets, **given)
            if dry_run:
                shown = config if "sweep" in sections else config.resolved()  # each trial of a sweep chooses for itself
                click.echo(shown.to_yaml(sections), nl=False)
                preview(config)
            else:
                function(config, overwrite)

        options: list[Callable[[Run], Run]] = [
            *(flag(name) for name in flags),
            click.option("--out", out.replace(".", "__"), help="Where results go."),
            click.option("--config", "file", help="YAML file of settings; flags go before it."),
            click.option(
                "--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any setting, such as train.epochs=3."
            ),
            click.option("--dry-run", is_flag=True, help="Print the resolved settings, and do nothing."),
            click.option("--overwrite", is_flag=True, help="Delete what an earlier run left in --out."),
        ]
        if recipe:
            options.append(click.option("--recipe", help="Settings by name; --config and flags go before."))
        if resume:
            options.append(
                click.option("--resume", is_flag=True, help="Go on in --out, with the settings saved there.")
            )
        decorated: Run = command
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def settings(
    file: str | None, sets: tuple[str, ...], resume: bool = False, recipe: str | None = None, **given: Any
) -> Config:
    """The Config of a recipe, then a file (or with `resume` the one that the sweep saved), then flags, then --set."""
    from segray.config import load, parse_override
    from segray.errors import ConfigError
    from segray.recipes import named

    values = {key.replace("__", "."): _value(key, value) for key, value in given.items() if value not in (None, ())}
    values |= dict(parse_override(text) for text in sets)
    if resume and recipe is not None:
        raise ConfigError("--resume reads the settings that are saved; leave --recipe out.")
    return _resumed(file, values) if resume else load(file, values, named(recipe).settings if recipe else None)


def _resumed(file: str | None, values: dict[str, Any]) -> Config:
    from segray.config import load
    from segray.core import storage
    from segray.core.checkpoint import SETTINGS, read_settings
    from segray.errors import ConfigError

    place = values.setdefault("sweep.out", load().sweep.out)
    there = storage.absolute(place)
    if file is not None:
        raise ConfigError(f"--resume reads the settings that {place} has saved; leave --config out.")
    if not storage.exists(storage.join(there, SETTINGS)):
        raise ConfigError(f"{place} holds nothing to resume (no {SETTINGS}); leave --resume out to begin.")
    if "train.epochs" in values:
        values.setdefault("train.max_steps", None)
    return read_settings(there).changed(values)


def _value(key: str, value: Any) -> Any:
    if key == "sweep__learning_rates":
        return value if ".." in value else [part.strip() for part in value.split(",")]
    if key == "sweep__space":
        return dict(map(_choices, value))
    return list(value) if isinstance(value, tuple) else value


def _choices(text: str) -> tuple[str, Any]:
    """'train.loss=dice,ohem' → ("train.loss", ["dice", "ohem"]); a YAML list or a range stays as it is."""
    from segray.config import parse_override

    key, value = parse_override(text)
    if isinstance(value, str) and ".." not in value:
        value = [parse_override(f"{key}={part}")[1] for part in value.split(",")]
    return key, value
