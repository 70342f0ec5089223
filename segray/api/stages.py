"""The stages as functions, with the command line's flags as keyword arguments."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, cast

import click
import numpy as np

from segray.api.datasets import Dataset
from segray.api.results import Place, Result
from segray.core import metrics
from segray.core.io import locators, storage
from segray.core.samples import IGNORE_INDEX
from segray.errors import ConfigError, DataError, nearest

if TYPE_CHECKING:
    from segray.config import Config
    from segray.core.labels.totals import Summary
    from segray.stages.train import TrainResult
    from segray.trials.leaderboard import SweepResult

Masks = Iterable[np.ndarray | Result | Place]
NOTHING = object()  # what stands for a mask that has no partner
OTHER = ("config", "recipe", "settings", "overwrite", "show_progress")


def train(*, data: Place | Dataset | None = None, show_progress: bool = True, **flags: Any) -> TrainResult:
    """Train one model as `segray train` does. The same call again resumes after the last complete epoch.

    data: the folder of a layout, or a Dataset. flags: those of the command, with underscores: format, encoder, epochs,
        lr, batch_size, workers, out and so on; besides config, recipe, overwrite=True, and settings={"train.loss":
        "dice"} for what has no flag.
    Raises ConfigError for an unknown flag or setting, and what the command says in a line.

    >>> result = segray.train(data=data, encoder="resnet18", epochs=1, workers=0, out="runs/first", show_progress=False)
    >>> result.best_row["epoch"]
    1
    """
    from segray.cli.train import train as command
    from segray.stages.train import train as stage

    config, overwrite, dataset = _resolved("train", flags, data)
    if show_progress:
        return cast("TrainResult", _shown(command)(config, overwrite, dataset))
    return stage(config, overwrite=overwrite, dataset=dataset)


def sweep(*, data: Place | Dataset | None = None, show_progress: bool = True, **flags: Any) -> SweepResult:
    """Search over encoders, learning rates and other settings as `segray sweep` does; resumes as train() does.

    data, flags: as for train(); encoder, lr, vary and against take lists, as lr=[1e-3, 1e-2], vary={"train.loss":
        ["dice"]}, against=["runs/old/best"].
    """
    from segray.cli.train import sweep as command
    from segray.stages.sweep import sweep as stage

    config, overwrite, dataset = _resolved("sweep", flags, data)
    if show_progress:
        return cast("SweepResult", _shown(command)(config, overwrite, dataset))
    return stage(config, overwrite=overwrite, dataset=dataset)


def label(*, show_progress: bool = True, **flags: Any) -> Summary:
    """Label images and videos as `segray label` does: masks and metrics as Parquet in `out`; resumes as train() does.

    flags: as for train(); input takes a path or a list of them.
    Returns what `_SUCCESS` holds: rows, ok, errors by code and so on. segray.open_labels(out) reads the labels.

    >>> summary = segray.label(model="runs/street/best", input="frames/", out="labels/new", show_progress=False)
    >>> summary["ok"], summary["rows"]
    (2, 2)
    """
    from segray.cli.label import label as command
    from segray.stages.label import label as stage

    config, overwrite, _ = _resolved("label", flags, None)
    if show_progress:
        return cast("Summary", _shown(command)(config, overwrite))
    return stage(config, overwrite=overwrite)


def evaluate(pred: Masks, true: Masks, *, names: Iterable[str], ignore_index: int = 255) -> metrics.Scores:
    """Score masks against ground truth, over all pixels together, by the formulas that every command uses.

    pred, true: uint8 [H, W] of class indices, results, or paths of masks; pairs in the same order, read one at a time.
        True pixels of ignore_index are not scored; predicted ones, and those of 255, are undecided, and misses of their
        true class.
    names: the classes. Scores hold lists in their order, with nan for a class that is nowhere.
    Raises DataError for a pair of different sizes, or a class that has no name.

    >>> scores = segray.evaluate([np.array([[0, 1]], np.uint8)], [np.array([[0, 0]], np.uint8)], names=["road", "sky"])
    >>> scores.pixel_accuracy, scores.class_iou
    (0.5, [0.5, 0.0])
    """
    if isinstance(names, str | Mapping | set | frozenset) or not isinstance(names, Iterable):
        raise DataError(f"names is {names!r}; give a list in the order of the classes, as ['road', 'sky'].")
    classes = list(names)
    total = np.zeros((len(classes), len(classes) + 1), np.int64)  # the last column: undecided
    count = -1
    if any(isinstance(one, str | os.PathLike) or not isinstance(one, Iterable) for one in (pred, true)):
        raise DataError("Predictions and true masks are lists, in the same order; give [mask] for one.")
    for count, (guess, known) in enumerate(zip_longest(pred, true, fillvalue=NOTHING)):
        if guess is NOTHING or known is NOTHING:
            raise DataError(
                f"There are {'more' if known is NOTHING else 'fewer'} predictions than true masks; give pairs."
            )
        guess_hw, known_hw = _mask(guess), _mask(known)
        if guess_hw.shape != known_hw.shape:
            raise DataError(
                f"Pair {count} has masks of {guess_hw.shape} and {known_hw.shape}; they must have one size."
            )
        scored_hw = known_hw != ignore_index
        decided_hw = (guess_hw != ignore_index) & ((guess_hw != IGNORE_INDEX) | (len(classes) > IGNORE_INDEX))
        for mask_hw, used_hw, of in ((guess_hw, scored_hw & decided_hw, "predicted"), (known_hw, scored_hw, "true")):
            if len(bad := mask_hw[used_hw & ((mask_hw < 0) | (mask_hw >= len(classes)))]):
                raise DataError(f"Pair {count}: the {of} mask has class {bad.min()}, and names has {len(classes)}.")
        guess_hw = np.where(decided_hw, guess_hw.astype(np.int64), len(classes))
        total += metrics.confusion_matrix(known_hw, guess_hw, len(classes) + 1, ignore_index)[:-1]
    if count < 0:
        raise DataError("No masks were given; give predictions and true masks in the same order.")
    return metrics.scores(total)


def _mask(given: Any) -> np.ndarray:
    if isinstance(given, str | os.PathLike):
        with storage.reading_input(os.fspath(given)):
            return locators.read_mask(storage.absolute(os.fspath(given)))
    mask_hw = given.mask if isinstance(given, Result) else np.asarray(given)
    if mask_hw.dtype.kind not in "iu" or mask_hw.ndim != 2 or mask_hw.size == 0:
        raise DataError(
            f"A mask of {mask_hw.dtype} {list(mask_hw.shape)} was given; a mask holds classes as integers [H, W]."
        )
    return mask_hw.astype(np.int64) if mask_hw.dtype == np.uint64 else mask_hw


def _resolved(name: str, given: Mapping[str, Any], data: Place | Dataset | None) -> tuple[Config, bool, Dataset | None]:
    """Return the settings that a command's flags mean, whether to overwrite, and the data set that was given."""
    from segray.cli import cli
    from segray.config import PLACES, load
    from segray.recipes import named

    command = cli.commands[name]
    keys = {
        option.opts[0].removeprefix("--").replace("-", "_"): str(option.name).replace("__", ".")
        for option in command.params
        if isinstance(option, click.Option) and "__" in str(option.name)
    }
    if unknown := [flag for flag in given if flag not in keys and flag not in OTHER]:
        raise ConfigError(f"segray.{name}() knows no {unknown[0]}.{_hint(unknown[0], keys)}")
    values = {keys[flag]: _plain(value) for flag, value in given.items() if flag in keys and value is not None}
    dataset = data if isinstance(data, Dataset) else None
    if dataset is not None:
        values["data.format"] = dataset.name
    elif data is not None:
        values["data.root"] = str(data)
    for key in ("label.inputs", "sweep.against", "sweep.encoders", "sweep.learning_rates"):
        if key in values:
            values[key] = _listed(values[key], key in PLACES)
    recipe, settings = given.get("recipe"), given.get("settings") or {}
    if not isinstance(settings, Mapping) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"settings is {settings!r}; give a dict by key, as {{'train.loss': 'dice'}}.")
    config = load(_plain(given.get("config")), values | dict(settings), named(recipe).settings if recipe else None)
    return config, bool(given.get("overwrite")), dataset


def _hint(word: str, keys: Mapping[str, str]) -> str:
    """Return the flag or the setting that has this name here or in other tools, as the command line says it."""
    from segray.config import keys_like

    if word == "resume":
        return " The same call again resumes."
    flags = {key: flag for flag, key in keys.items()}
    known = sorted(keys_like(word), key=lambda key: key not in flags)
    if not known or difflib.get_close_matches(word, keys, 1, cutoff=0.85):
        return nearest(word, [*keys, *OTHER])
    return f" Did you mean {flags[known[0]]}?" if known[0] in flags else f" Use settings={{{known[0]!r}: …}}."


def _plain(value: Any) -> Any:
    """Return a path as the text that settings hold."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _listed(value: Any, is_place: bool) -> str | list[str]:
    """Return what a flag takes once or several times; only the text of other settings, as 'a,b', is split there."""
    if isinstance(value, str) and not is_place:
        return value
    return [str(value)] if isinstance(value, str) or not isinstance(value, Iterable) else list(map(str, value))


def _shown(command: click.Command) -> Any:
    """Return what a command does once its settings are resolved, with its progress and its last lines."""
    return command.callback.__wrapped__  # type: ignore[union-attr]  # functools.wraps keeps it there
