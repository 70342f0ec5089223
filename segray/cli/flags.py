"""Settings as options of a command: flags, --config, --set, --recipe and --resume make the resolved Config."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from segray.config import Config

Run = Callable[..., None]  # a function that click makes a command of

# Flag → its setting, and further arguments for click. Settings without a flag are given by --set or in a file.
SWITCH: dict[str, Any] = {"is_flag": True, "default": None}
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "--format": ("data.format", {}),
    "--data": ("data.root", {}),
    "--size": ("data.size", {"metavar": "HxW"}),
    "--arch": ("model.arch", {}),
    "--encoder": ("model.encoder", {}),
    "--weights": ("model.encoder_weights", {}),
    "--weights-dir": ("model.weights_dir", {}),
    "--loss": ("train.loss", {}),
    "--freeze-encoder": ("train.freeze_encoder", SWITCH),
    "--teacher": ("train.teacher", {}),
    "--compile": ("train.compile", SWITCH),
    "--epochs": ("train.epochs", {"type": int}),
    "--batch-size": ("train.batch_size", {"metavar": "INTEGER|auto"}),
    "--lr": ("train.learning_rate", {"type": float}),
    "--seed": ("train.seed", {"type": int}),
    "--workers": ("cluster.workers", {"type": int}),
    "--address": ("cluster.address", {}),
    "--encoders": ("sweep.encoders", {"multiple": True}),
    "--lrs": ("sweep.learning_rates", {"multiple": True}),
    "--vary": ("sweep.space", {"multiple": True, "metavar": "KEY=A,B"}),
    "--search": ("sweep.search", {}),
    "--trials": ("sweep.trials", {"type": int}),
    "--seeds": ("sweep.seeds", {"type": int}),
    "--time": ("sweep.time", {}),
    "--gpu-hours": ("sweep.gpu_hours", {"type": float}),
    "--objective": ("sweep.objective", {}),
    "--price": ("sweep.price", {"type": float}),
    "--against": ("sweep.against", {"multiple": True, "metavar": "MODEL"}),
    "--model": ("label.model", {}),
    "--input": ("label.inputs", {"multiple": True}),
    "--truth": ("label.truth", {}),
    "--every": ("label.every", {"type": int}),
    "--fps": ("label.fps", {"type": float}),
    "--limit": ("label.limit", {"type": int}),
    "--sample": ("label.sample", {"type": float}),
    "--extend": ("label.extend", SWITCH),
    "--retry-errors": ("label.retry_errors", SWITCH),
    "--mask-format": ("label.mask_format", {}),
    "--max-error-rate": ("label.max_error_rate", {"type": float}),
    "--actors": ("label.actors", {"type": int}),
    "--split": ("evaluate.split", {}),
    "--masks": ("evaluate.truth", {}),
    "--conditions": ("evaluate.conditions", {}),
    "--calibrate": ("evaluate.calibrate", SWITCH),
    "--window": ("infer.window", {"metavar": "HxW"}),
    "--engine": ("infer.engine", {}),
    "--flip": ("infer.flip", SWITCH),
    "--labels": ("report.labels", {"multiple": True}),
}
MADE = ("train.out", "sweep.out", "evaluate.out", "label.out", "report.out", "train.mlflow", "cluster.spill_dir")
RENAMED = {"--encoders": "--encoder", "--lrs": "--lr", "--masks": "--truth"}  # shared with other commands' flags


SET = "Any setting of docs/settings.md, such as train.epochs=3. Repeat the flag for more."


class Setting(click.Option):
    """A flag whose help is its setting's description, which is looked up when help is shown: settings load slowly."""

    def __init__(self, *args: Any, setting: str, **more: Any) -> None:
        super().__init__(*args, **more)
        self.setting = setting

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from segray.settings_reference import help_of

        self.help = help_of(self.setting) + self.multiple * " Repeat the flag for more."
        return super().get_help_record(ctx)


def flag(name: str) -> Callable[[Run], Run]:
    key, more = FLAGS[name]
    return click.option(RENAMED.get(name, name), key.replace(".", "__"), cls=Setting, setting=key, **more)


def stage(
    *flags: str,
    out: str,
    sections: tuple[str, ...],
    check: Callable[[Config], None] = lambda config: None,
    preview: Callable[[Config], None] = lambda config: None,
    estimate: Callable[[Config], None] | None = None,
    recipe: bool = False,
    resume: bool = False,
) -> Callable[[Callable[[Config, bool], object]], Run]:
    """Give a command the options of a stage. Its function is called with the resolved Config, and `overwrite`.

    check: what --dry-run checks, without reading data. preview: shows more after the settings of --dry-run. estimate:
    what --estimate does, if there is one. recipe: whether there is --recipe. resume: whether there is --resume, which
    takes the settings saved in --out.
    """

    def decorate(function: Callable[[Config, bool], object]) -> Run:
        @functools.wraps(function)
        def command(file: str | None, sets: tuple[str, ...], dry_run: bool, overwrite: bool, **given: Any) -> None:
            if click.get_current_context().invoked_subcommand:
                return  # the options belong to the group, not to its command
            asks = given.pop("estimate", False)
            config = settings(file, sets, **given)
            if asks and estimate:
                estimate(config)
            elif dry_run:
                check(config)
                _tell_missing(config, sections)
                shown = config if "sweep" in sections else config.resolved()  # each trial of a sweep has defaults
                click.echo(shown.to_yaml(sections), nl=False)
                preview(config)
            else:
                from segray.cli.terminal import waiting

                with waiting("Starting"):
                    import_module(f"segray.stages.{out.partition('.')[0]}")  # loads torch and ray: seconds
                function(config, overwrite)

        options: list[Callable[[Run], Run]] = [
            *(flag(name) for name in flags),
            click.option("--out", out.replace(".", "__"), cls=Setting, setting=out),
            click.option("--config", "file", help="YAML file of settings, local or in a bucket. Flags override it."),
            click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help=SET),
            click.option("--dry-run", is_flag=True, help="Check and print the resolved settings, and exit."),
            click.option("--overwrite", is_flag=True, help="Delete the results of an earlier run in --out first."),
        ]
        if estimate:
            options.append(
                click.option(
                    "--estimate", is_flag=True, help="Time a step of each model, print how long trials take, and exit."
                )
            )
        if recipe:
            options.append(
                click.option(
                    "--recipe",
                    help="Start from a published recipe; `segray recipes` lists them. --config and flags override it.",
                )
            )
        if resume:
            options.append(
                click.option("--resume", is_flag=True, help="Resume the sweep in --out with the settings saved there.")
            )
        decorated: Run = command
        vars(decorated)["sections"] = sections  # which settings a hint may name
        for option in reversed(options):
            decorated = option(decorated)
        return decorated

    return decorate


def _tell_missing(config: Config, sections: tuple[str, ...]) -> None:
    """Log the local paths to be read that do not exist. They may exist where the command will run."""
    import logging

    from segray.config import PLACES
    from segray.core.io import storage

    data = config.model_dump()
    for key, place in PLACES.items():
        section, name = key.split(".")
        if section not in sections or key in MADE:
            continue
        value = data[section][name]
        for text in value if isinstance(value, list) else [value]:
            if not text or place.is_name(text) or storage.in_bucket(there := place.absolute(text)):
                continue
            begins = storage.above_glob(there) if key == "label.inputs" else there
            if not storage.exists(there) and not storage.exists(begins):
                logging.getLogger("segray").warning(f"{key}: {text} does not exist here.")


def settings(
    file: str | None, sets: tuple[str, ...], resume: bool = False, recipe: str | None = None, **given: Any
) -> Config:
    """Resolve settings: those of a recipe, then of a file (with `resume`, those that the sweep saved), flags, --set."""
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
    from segray.core.io import storage
    from segray.core.training.checkpoint import SETTINGS, read_settings
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
    if key == "sweep__space":
        return _space(value)
    if key in ("sweep__learning_rates", "sweep__encoders"):
        return ",".join(value)
    return list(value) if isinstance(value, tuple) else value


def _space(texts: Sequence[str]) -> dict[str, Any]:
    """Return what --vary names, by key. Raises ConfigError for a key that is named twice."""
    from segray.errors import ConfigError

    pairs = [_choices(text) for text in texts]
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"--vary names {key} twice; give all its values in one: --vary {key}=A,B,C.")
    return dict(pairs)


def _choices(text: str) -> tuple[str, Any]:
    """Parse 'train.loss=dice,ohem' to ("train.loss", ["dice", "ohem"]); a YAML list or a range stays as it is."""
    from segray.config import parse_override

    key, value = parse_override(text)
    if isinstance(value, str) and ".." not in value:
        value = [parse_override(f"{key}={part}")[1] for part in value.split(",")]
    return key, value
