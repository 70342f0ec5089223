"""A space of settings → trials: all in advance (grid, random), or one by one from the results so far (TPE)."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from segray.config import PLACES, Config
from segray.core.extras import extra
from segray.core.io import storage
from segray.errors import ConfigError

SECTIONS = ("model", "augment", "train")
NAMED = ("model.arch", "model.encoder", "train.learning_rate")
NO_CHOICE = ("train.out", "train.epochs", "train.max_steps", "train.mlflow", "train.seed", "model.weights_dir")
STARTUP = 10  # points that TPE draws at random first, Optuna's default; in a short sweep a quarter of its trials
REDRAWS = 100  # attempts of TPE to draw a new point: a space of lists alone can be used up

Choices = dict[str, list[Any] | tuple[float, float]]  # the values of a setting: a list, or the ends of a range


@dataclass(frozen=True)
class Trial:
    """One training run: dotted settings. Its name is its folder's; seeds of one combination share `point`."""

    name: str
    point: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of a combination. state: running, finished, stopped (early) or failed; miou: the mean over its seeds.

    settings: those of the space, without train.seed. epochs: the most that one of its runs completed.
    """

    settings: dict[str, Any]
    state: str
    epochs: int
    miou: float | None


def list_trials(config: Config) -> list[Trial]:
    """List the trials of a grid or random search, the same for the same settings; for TPE the first, random ones.

    A grid is every combination of the lists. With a range a..b among them there are `trials` in all: the combinations
    in turn, each with the midpoints of equal parts of the logarithmic range, so that few trials cover it. A random
    search draws `trials` points.
    """
    choices = choices_of(config)
    points = _grid(choices, config.sweep.trials) if config.sweep.search == "grid" else _random(choices, config)
    trials: dict[str, Trial] = {}
    for settings in points:
        found = list(with_seeds(config, settings))
        if any(trials.get(one.name, one) != one for one in found):  # the rate of an earlier one differs by a little
            found = list(with_seeds(config, settings, "g"))
        trials |= {one.name: one for one in found}
    return list(trials.values())


def choices_of(config: Config) -> Choices:
    """Return the values of each setting. Raises ConfigError for a setting that cannot be swept, or an invalid value."""
    space = {
        "model.encoder": config.sweep.encoders or [config.model.encoder],
        "train.learning_rate": config.sweep.learning_rates,
    } | config.sweep.space
    return {key: _values(config, key, given) for key, given in space.items()}


def with_seeds(config: Config, settings: dict[str, Any], rate: str = ".1e") -> Iterator[Trial]:
    """Yield the runs of one combination. rate: how their names write the learning rate."""
    point = _name(config, settings, rate)
    for seed in range(config.train.seed, config.train.seed + config.sweep.seeds):
        name = f"{point}-seed{seed}" if config.sweep.seeds > 1 else point
        yield Trial(name, point, settings | {"train.seed": seed})


def propose(config: Config, outcomes: Sequence[Outcome]) -> dict[str, Any] | None:
    """Return the next combination of TPE, or None if it finds no new one. Bergstra et al. 2011, by Optuna.

    Each call makes a new study, tells it all outcomes, and draws by (train.seed, their number): the same outcomes
    give the same proposal, also in a resumed sweep. Runs that were cut short count as Optuna's pruned trials do, longer
    ones as better, and failed ones below them all. Raises ConfigError if Optuna is missing.
    """
    optuna = extra("optuna", "sweep")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    choices = choices_of(config)
    space = {key: _distribution(optuna, values) for key, values in choices.items()}
    known = [outcome for outcome in outcomes if fits(choices, outcome.settings)]
    told = [_told(optuna, space, choices, outcome) for outcome in known]
    tried = {_name(config, outcome.settings) for outcome in known}
    for draw in range(REDRAWS):
        seed = int(np.random.SeedSequence([config.train.seed, len(outcomes), draw]).generate_state(1)[0])
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=min(STARTUP, 1 + config.sweep.trials // 4))
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(told)
        drawn = study.ask(space).params
        settings = {
            key: _rounded(drawn[key]) if isinstance(values, tuple) else values[drawn[key]]
            for key, values in choices.items()
        }
        if _name(config, settings) not in tried:
            return settings
    return None


def fits(choices: Choices, settings: dict[str, Any]) -> bool:
    """Say whether a combination belongs to this space."""
    return settings.keys() == choices.keys() and all(
        _rounded(values[0]) <= settings[key] <= _rounded(values[1])
        if isinstance(values, tuple)
        else settings[key] in values
        for key, values in choices.items()
    )


def _distribution(optuna: Any, values: list[Any] | tuple[float, float]) -> Any:
    if isinstance(values, tuple):
        return optuna.distributions.FloatDistribution(*values, log=True)
    return optuna.distributions.CategoricalDistribution(range(len(values)))  # lists may hold any kind of value


def _told(optuna: Any, space: dict[str, Any], choices: Choices, outcome: Outcome) -> Any:
    """Return an outcome as an Optuna trial."""
    states = optuna.trial.TrialState
    state = {"running": states.RUNNING, "finished": states.COMPLETE}.get(outcome.state, states.PRUNED)
    stopped = outcome.state == "stopped" and outcome.miou is not None
    params = {
        key: min(max(outcome.settings[key], values[0]), values[1])  # rounding may have moved it out of its range
        if isinstance(values, tuple)
        else values.index(outcome.settings[key])
        for key, values in choices.items()
    }
    return optuna.trial.create_trial(
        state=state,
        params=params,
        distributions=space,
        value=(outcome.miou or 0.0) if state == states.COMPLETE else None,
        intermediate_values={outcome.epochs: outcome.miou} if stopped else {},
    )


def _values(config: Config, key: str, given: Any) -> list[Any] | tuple[float, float]:
    source = "sweep.learning_rates" if key == "train.learning_rate" else f"sweep.space {key}"
    if key.partition(".")[0] not in SECTIONS or key in NO_CHOICE:
        raise ConfigError(f"{source} cannot be swept; settings of {', '.join(SECTIONS)} can.")
    if not (isinstance(given, str) and ".." in given):
        values = list(given) if isinstance(given, list) else [given]
        for value in values:
            config.changed({key: value})
        return values
    try:
        low, high = map(float, given.split(".."))
    except ValueError:
        low = high = 0.0
    if not 0 < low < high:
        raise ConfigError(f"{source} is {given!r}; give a range such as 1e-4..1e-2, or a list.")
    for value in (low, high, _rounded(low * (high / low) ** 0.37)):  # one in between: what is drawn is not an integer
        config.changed({key: value})
    return low, high


def _grid(choices: Choices, trials: int) -> Iterator[dict[str, Any]]:
    ranges = [key for key, values in choices.items() if isinstance(values, tuple)]
    combinations = [dict(zip(choices, point, strict=True)) for point in product(*(
        [None] if key in ranges else values for key, values in choices.items()
    ))]  # fmt: skip
    if len(ranges) > 1:
        raise ConfigError(f"A grid takes one range, not {', '.join(ranges)}; give lists, or sweep.search=random.")
    if ranges and trials < len(combinations):
        raise ConfigError(f"sweep.trials is {trials}, and there are {len(combinations)} combinations to share them.")
    for i, point in enumerate(combinations):
        for key in ranges:
            low, high = choices[key]
            count = len(range(i, trials, len(combinations)))
            for k in range(count):
                yield point | {key: _rounded(low * (high / low) ** ((k + 0.5) / count))}
        if not ranges:
            yield point


def _random(choices: Choices, config: Config) -> Iterator[dict[str, Any]]:
    rng = random.Random(config.train.seed)
    for _ in range(config.sweep.trials):
        yield {
            key: _rounded(low * (high / low) ** rng.random()) if isinstance(values, tuple) else rng.choice(values)
            for key, values in choices.items()
            for low, high in [values if isinstance(values, tuple) else (0, 0)]
        }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _name(config: Config, settings: dict[str, Any], rate: str = ".1e") -> str:
    """Return a trial's folder name: unet-resnet18-lr3.2e-04, unet-plain-lr3.2e-04, then what else differs."""
    there = config.changed(settings)
    more = {key: value for key, value in settings.items() if key not in NAMED}
    parts = [there.model.arch, *([there.model.encoder] if there.model.has_encoder else [])]
    parts += [f"lr{there.train.learning_rate:{rate}}"]
    parts += [f"{key.rpartition('.')[2]}{_told_apart(key, value)}" for key, value in more.items()]
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip("_")


def _told_apart(key: str, value: Any) -> str:
    """Return a value for a trial's name: a path as its last part and a hash, as folder names end at 255 bytes."""
    place = PLACES.get(key)
    if place is None or not isinstance(value, str) or place.is_name(value):
        return json.dumps(value)
    return f"{storage.name_of(value)}-{hashlib.sha256(value.encode()).hexdigest()[:6]}"
