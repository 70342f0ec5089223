"""Encoders × learning rates → a leaderboard and the best bundle: Ray Tune around the training runs of train.py.

The trials are fixed by the settings before the first one starts, and each is a training run in a folder of
its own. So a sweep that was stopped goes on with the same command: each trial continues after its last whole
epoch, with its earlier epochs told to ASHA again; no state of Tune's is needed or loaded.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segray import cluster, trackers
from segray.config import Config
from segray.core import storage
from segray.core.checkpoint import BEST, is_finished, read_history
from segray.core.models import bundle, check_names
from segray.core.samples import TrainData
from segray.errors import ConfigError, SegrayError
from segray.train import (
    SETTINGS,
    DataPlan,
    absolute,
    check_model,
    claim,
    claim_folder,
    different,
    new_rows,
    plan_data,
    run,
    start_weights,
    stored,
)

SECTIONS = ("data", "model", "augment", "train", "sweep", "cluster")
OnRow = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Trial:
    """One point of the search space; its name is its folder's."""

    name: str
    arch: str
    encoder: str
    learning_rate: float


@dataclass(frozen=True)
class LeaderboardRow:
    """A trial's best epoch. status: finished, stopped (by ASHA) or failed; None where nothing was measured."""

    rank: int
    trial: str
    arch: str
    encoder: str
    learning_rate: float
    miou: float | None
    pixel_accuracy: float | None
    epochs: int
    status: str
    parameters: int | None
    images_per_s: float | None
    seconds: float
    error: str | None


@dataclass(frozen=True)
class SweepResult:
    """leaderboard: best first; best: the bundle of its first row."""

    out: Path
    best: Path
    leaderboard: list[LeaderboardRow]


def sweep(config: Config, *, overwrite: bool = False, on_row: OnRow = lambda trial, row: None) -> SweepResult:
    """Train every trial, stop the poor ones early, and rank them in `sweep.out`.

    on_row is called in this process with (trial, history row) for each epoch that ends.
    Raises OutputExists when the folder holds a sweep with other settings, and SegrayError when all trials fail.
    """
    config = _absolute(config)
    out = Path(config.sweep.out)
    trials = list_trials(config)
    for trial in trials:
        check_names(config.model.model_copy(update={"encoder": trial.encoder}))
    plan = plan_data(trial_config(config, trials[0]))
    for trial in trials[1:]:
        check_model(trial_config(config, trial), plan.label_space.num_classes)
    _claim(config, overwrite)
    with cluster.connected(config.cluster) as has:
        at_once = concurrent(config, has, len(trials))
        worker = cluster.shape(config.cluster, has, at_once)
        with ExitStack() as stack:
            polls = [_follow(trial_config(config, trial), trial.name, on_row, stack) for trial in trials]

            def poll() -> None:
                for poll_trial in polls:
                    poll_trial()

            errors = cluster.wait_for(lambda: _tune(config, trials, plan, has, worker, at_once), poll)
    board = leaderboard(config, trials, errors)
    if board[0].miou is None:
        raise SegrayError(f"All {len(trials)} trials failed; the first: {board[0].error}")
    _publish(out, board)
    return SweepResult(out, out / BEST, board)


def list_trials(config: Config) -> list[Trial]:
    """The trials of a sweep, the same for the same settings.

    A list of rates is combined with every encoder. A range a..b gives `trials` in all, encoders in turn; an
    encoder's rates are the midpoints of equal parts of the logarithmic range, so that few trials cover it.
    """
    encoders = config.sweep.encoders or [config.model.encoder]
    if isinstance(config.sweep.learning_rates, list):
        rates = dict.fromkeys(encoders, config.sweep.learning_rates)
    else:
        low, high = _range(config.sweep.learning_rates)
        counts = [len(range(i, config.sweep.trials, len(encoders))) for i in range(len(encoders))]
        rates = {
            encoder: [low * (high / low) ** ((k + 0.5) / count) for k in range(count)]
            for encoder, count in zip(encoders, counts, strict=True)
        }
    arch = config.model.arch
    return [
        Trial(f"{arch}-{encoder}-lr{rate:.1e}", arch, encoder, float(f"{rate:.3g}"))
        for encoder in dict.fromkeys(encoders)
        for rate in rates[encoder]
    ]


def concurrent(config: Config, has: cluster.Resources, trials: int) -> int:
    """Trials at once: as many as the cluster holds, so that none waits inside Ray for another's CPUs."""
    one = cluster.shape(config.cluster.model_copy(update={"cpus_per_worker": config.cluster.cpus_per_worker or 1}), has)
    fit = has.cpus // (one.cpus * one.count)
    if one.gpus:
        fit = min(fit, has.gpus // one.count)
    return max(1, min(fit, trials, config.sweep.concurrent or trials))


def leaderboard(config: Config, trials: list[Trial], errors: dict[str, str]) -> list[LeaderboardRow]:
    """Rows from the trials' folders, best mIoU first, failed ones last."""
    rows = [_row(config, trial, errors.get(trial.name)) for trial in trials]
    rows.sort(key=lambda row: -1.0 if row.miou is None else row.miou, reverse=True)
    return [LeaderboardRow(**{**asdict(row), "rank": rank}) for rank, row in enumerate(rows, start=1)]


def trial_out(out: Path, trial: Trial) -> Path:
    return out / "trials" / trial.name


def trial_config(config: Config, trial: Trial) -> Config:
    """The settings of one trial's training run."""
    return config.changed(
        {
            "model.encoder": trial.encoder,
            "train.learning_rate": trial.learning_rate,
            "train.out": str(trial_out(Path(config.sweep.out), trial)),
        }
    )


def _follow(config: Config, name: str, on_row: OnRow, stack: ExitStack) -> Callable[[], None]:
    """A poll of one trial's new rows, for its trackers and for on_row."""
    claim(config, overwrite=False)
    track = stack.enter_context(trackers.tracking(config))

    def tell(row: dict[str, Any]) -> None:
        track(row)
        on_row(name, row)

    return new_rows(Path(config.train.out), tell)


def _tune(
    config: Config,
    trials: list[Trial],
    plan: DataPlan,
    has: cluster.Resources,
    worker: cluster.WorkerShape,
    at_once: int,
) -> dict[str, str]:
    """Run the trials under ASHA; error text by trial name."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    data = stored(plan, has)
    weights: dict[str, Any] = {}
    for trial in trials:  # once an encoder, for its first trial that is new
        if weights.get(trial.encoder) is None:
            weights[trial.encoder] = cluster.put(start_weights(trial_config(config, trial)))
    driver = tune.with_parameters(
        _drive, config=config.model_dump(mode="json"), data=data, worker=worker, weights=weights
    )
    scheduler = ASHAScheduler(
        time_attr="epoch",
        max_t=config.train.epochs,
        grace_period=min(config.sweep.grace_epochs, config.train.epochs),
        reduction_factor=config.sweep.reduction_factor,
    )
    tuner = tune.Tuner(
        # A driver only waits: it holds no CPU (but Tune wants something), so it can never keep workers from starting.
        tune.with_resources(driver, {"CPU": 0, "memory": 1}),
        param_space={"trial": tune.grid_search([asdict(trial) for trial in trials])},
        tune_config=tune.TuneConfig(metric="miou", mode="max", scheduler=scheduler, max_concurrent_trials=at_once),
        run_config=tune.RunConfig(name=".tune", storage_path=config.sweep.out, verbose=0),
    )
    results = tuner.fit()
    shutil.rmtree(Path(config.sweep.out) / ".tune", ignore_errors=True)
    return {r.config["trial"]["name"]: str(cluster.explain(r.error)) for r in results if r.error}


def _drive(
    params: dict[str, Any],
    config: dict[str, Any],
    data: TrainData,
    worker: cluster.WorkerShape,
    weights: dict[str, Any],
) -> None:
    """One trial, in a process of Tune's: its past epochs are reported first, then it trains on."""
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    trial = trial_config(Config(**config), Trial(**params["trial"]))
    claim(trial, overwrite=False)
    history = read_history(Path(trial.train.out))
    for row in history:
        tune.report(row)
    if not is_finished(trial.train, history):
        run(trial, data, worker, weights[trial.model.encoder], callbacks=(TuneReportCallback(),))


def _row(config: Config, trial: Trial, error: str | None) -> LeaderboardRow:
    folder = trial_out(Path(config.sweep.out), trial)
    history = read_history(folder)
    scored = [row for row in history if row["miou"] is not None]
    best = max(scored, key=lambda row: row["miou"], default={})
    status = "failed" if error else "finished" if is_finished(config.train, history) else "stopped"
    return LeaderboardRow(
        rank=0,
        trial=trial.name,
        arch=trial.arch,
        encoder=trial.encoder,
        learning_rate=trial.learning_rate,
        miou=best.get("miou"),
        pixel_accuracy=best.get("pixel_accuracy"),
        epochs=len(history),
        status=status,
        parameters=bundle.count_parameters(str(folder / BEST)) if best else None,
        images_per_s=best.get("images_per_s"),
        seconds=sum(row["seconds"] for row in history),
        error=error,
    )


def _publish(out: Path, board: list[LeaderboardRow]) -> None:
    """leaderboard.json, leaderboard.parquet and best/."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [asdict(row) for row in board]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    storage.replace(str(out / "leaderboard.parquet"), sink.getvalue().to_pybytes())
    storage.replace(str(out / "leaderboard.json"), json.dumps(rows, indent=2).encode())
    copy = out / ".best.tmp"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(out / "trials" / board[0].trial / BEST, copy)
    bundle.swap(copy, out / BEST)


def _claim(config: Config, overwrite: bool) -> None:
    def differences(before: Config) -> list[str]:
        # Other encoders and rates are more trials of the same sweep; another recipe is another sweep.
        lines = different(before, config, ("data", "augment", "train"))
        if before.train.epochs != config.train.epochs:
            lines.append(f"train.epochs was {before.train.epochs}, is {config.train.epochs}")
        return lines

    out = Path(config.sweep.out)
    made = (SETTINGS, "trials", BEST, "leaderboard.json", "leaderboard.parquet", ".tune")
    claim_folder(out, "sweep", made, overwrite, differences)
    (out / SETTINGS).write_text(config.to_yaml(SECTIONS))


def _absolute(config: Config) -> Config:
    return absolute(config).changed({"sweep.out": str(Path(config.sweep.out).absolute())})


def _range(text: str) -> tuple[float, float]:
    low, dots, high = text.partition("..")
    try:
        low_value, high_value = float(low), float(high)
    except ValueError:
        low_value = high_value = math.nan
    if not dots or not 0 < low_value < high_value:
        raise ConfigError(f"sweep.learning_rates is {text!r}; give a range such as 1e-4..1e-2, or a list.")
    return low_value, high_value
