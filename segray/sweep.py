"""A space of settings → a leaderboard of score against cost, and the best bundle: Ray Tune around train.py.

The trials are fixed by the settings before the first one starts, and each is a training run in a folder of
its own. So a sweep that was stopped goes on with the same command: each trial continues after its last whole
epoch, with its earlier epochs told to ASHA again; no state of Tune's is needed or loaded.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from segray import cluster, trackers
from segray.config import Config
from segray.core import storage
from segray.core.checkpoint import BEST, is_finished, read_history
from segray.core.cost import Cost, labelling_cost, pareto_front, training_step_s
from segray.core.models import bundle, check_names
from segray.core.samples import TrainData
from segray.errors import ConfigError, SegrayError
from segray.evaluate import device
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
SPACE_SECTIONS = ("model", "augment", "train")
NAMED = ("model.arch", "model.encoder", "train.learning_rate")
NO_CHOICE = ("train.out", "train.epochs", "train.mlflow", "train.seed", "model.weights_dir")
PRACTICAL = 0.9  # of the best mIoU: what is recommended where it is much cheaper
OnRow = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Trial:
    """One point of the search space: dotted settings. Its name is its folder's; seeds of one point share `point`."""

    name: str
    point: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class LeaderboardRow:
    """A trial's best epoch, and what its model costs as a labeller; None where nothing was measured.

    status: finished, stopped (by ASHA or a budget), failed, or not run.
    miou_mean, miou_spread: over the seeds of one combination, and their standard deviation.
    label_images_per_s, peak_memory_mib, gmacs: core.cost.Cost at the size trained for; images_per_s is training's.
    cost_per_million: of labelling a million frames, by sweep.price.
    pareto: no other trial is at least as good and as fast, and better in one. chosen: its bundle is best/.
    """

    rank: int
    trial: str
    arch: str
    encoder: str
    learning_rate: float
    settings: str
    miou: float | None
    miou_mean: float | None
    miou_spread: float | None
    pixel_accuracy: float | None
    epochs: int
    status: str
    parameters: int | None
    images_per_s: float | None
    seconds: float
    label_images_per_s: float | None
    peak_memory_mib: float | None
    gmacs: float | None
    cost_per_million: float | None
    pareto: bool
    chosen: bool
    error: str | None


@dataclass(frozen=True)
class SweepResult:
    """leaderboard: best first; best: the bundle of the chosen row; advice: which to take, and why, in a sentence."""

    out: Path
    best: Path
    leaderboard: list[LeaderboardRow]
    advice: str


def sweep(config: Config, *, overwrite: bool = False, on_row: OnRow = lambda trial, row: None) -> SweepResult:
    """Train every trial, stop the poor ones early, and rank them in `sweep.out`.

    on_row is called in this process with (trial, history row) for each epoch that ends.
    Raises OutputExists when the folder holds a sweep with other settings, and SegrayError when all trials fail.
    """
    config = _absolute(config)
    out = Path(config.sweep.out)
    trials = list_trials(config)
    runs = {(run.model.model_dump_json(), run.train.freeze_encoder): run for run in _runs(config, trials)}
    for one in runs.values():
        check_names(one.model)
    plan = plan_data(trial_config(config, trials[0]))
    for one in runs.values():
        check_model(one, plan.label_space.num_classes)
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
        costs = cluster.wait_for(lambda: _costs(config, trials, cluster.shape(config.cluster, has)), lambda: None)
    board = leaderboard(config, trials, errors, costs)
    if board[0].miou is None:
        raise SegrayError(f"No trial of {len(trials)} has a score; the first: {board[0].error or board[0].status}")
    _publish(out, board)
    return SweepResult(out, out / BEST, board, advice(board))


def list_trials(config: Config) -> list[Trial]:
    """The trials of a sweep, the same for the same settings.

    A grid is every combination of the lists; a range a..b beside them gives `trials` in all, combinations in turn,
    each with the midpoints of equal parts of the logarithmic range, so that few cover it. random draws `trials` points.
    """
    space = {
        "model.encoder": config.sweep.encoders or [config.model.encoder],
        "train.learning_rate": config.sweep.learning_rates,
    } | config.sweep.space
    choices = {key: _values(config, key, given) for key, given in space.items()}
    points = _grid(choices, config.sweep.trials) if config.sweep.search == "grid" else _random(choices, config)
    trials = {}
    for settings in points:
        point = _name(config, settings)
        for seed in range(config.train.seed, config.train.seed + config.sweep.seeds):
            name = f"{point}-seed{seed}" if config.sweep.seeds > 1 else point
            trials[name] = Trial(name, point, settings | {"train.seed": seed})
    return list(trials.values())


def _values(config: Config, key: str, given: Any) -> list[Any] | tuple[float, float]:
    """What may stand for a setting: a list, or the ends of a range. ConfigError for what the setting cannot be."""
    source = "sweep.learning_rates" if key == "train.learning_rate" else f"sweep.space {key}"
    if key.partition(".")[0] not in SPACE_SECTIONS or key in NO_CHOICE:
        raise ConfigError(f"{source} cannot be swept; settings of {', '.join(SPACE_SECTIONS)} can.")
    ends = given.split("..") if isinstance(given, str) and ".." in given else None
    values: Any = list(given) if isinstance(given, list) else [given]
    if ends is not None:
        try:
            values = tuple(map(float, ends))
        except ValueError:
            values = ()
        if len(values) != 2 or not 0 < values[0] < values[1]:
            raise ConfigError(f"{source} is {given!r}; give a range such as 1e-4..1e-2, or a list.")
    for value in values:
        config.changed({key: value})
    return values


def _grid(choices: dict[str, list[Any] | tuple[float, float]], trials: int) -> Iterator[dict[str, Any]]:
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


def _random(choices: dict[str, list[Any] | tuple[float, float]], config: Config) -> Iterator[dict[str, Any]]:
    rng = random.Random(config.train.seed)
    for _ in range(config.sweep.trials):
        yield {
            key: _rounded(low * (high / low) ** rng.random()) if isinstance(values, tuple) else rng.choice(values)
            for key, values in choices.items()
            for low, high in [values if isinstance(values, tuple) else (0, 0)]
        }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _name(config: Config, settings: dict[str, Any]) -> str:
    """unet-resnet18-lr3.2e-04, and what else differs; fit for a folder."""
    there = config.changed(settings)
    more = {key: value for key, value in settings.items() if key not in NAMED}
    parts = [there.model.arch, there.model.encoder, f"lr{there.train.learning_rate:.1e}"]
    parts += [f"{key.rpartition('.')[2]}{json.dumps(value)}" for key, value in more.items()]
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts)).strip("_")


def concurrent(config: Config, has: cluster.Resources, trials: int) -> int:
    """Trials at once: as many as the cluster holds, so that none waits inside Ray for another's CPUs."""
    one = cluster.shape(config.cluster.model_copy(update={"cpus_per_worker": config.cluster.cpus_per_worker or 1}), has)
    fit = has.cpus // (one.cpus * one.count)
    if one.gpus:
        fit = min(fit, has.gpus // one.count)
    return max(1, min(fit, trials, config.sweep.concurrent or trials))


def leaderboard(
    config: Config, trials: list[Trial], errors: dict[str, str], costs: dict[str, Cost]
) -> list[LeaderboardRow]:
    """Rows from the trials' folders, best mean mIoU first, failed ones last."""
    rows = [_row(config, trial, errors.get(trial.name), costs.get(trial.name)) for trial in trials]
    scores = defaultdict(list)
    for trial, row in zip(trials, rows, strict=True):
        if row.miou is not None:
            scores[trial.point].append(row.miou)
    for i, trial in enumerate(trials):
        if found := scores[trial.point]:
            spread = stdev(found) if len(found) > 1 else None
            rows[i] = replace(rows[i], miou_mean=mean(found), miou_spread=spread)
    rows.sort(key=lambda row: (row.miou is not None, row.miou_mean or 0, row.miou or 0), reverse=True)
    both = [row for row in rows if row.miou is not None and row.label_images_per_s]
    front = pareto_front([(row.miou_mean, 1 / row.label_images_per_s) for row in both])
    on_front = {row.trial for row, there in zip(both, front, strict=True) if there}
    kind, _, share = config.sweep.objective.partition(":")
    chosen = rows[0] if kind == "miou" else cheapest(rows, float(share))
    return [
        replace(row, rank=rank, pareto=row.trial in on_front, chosen=row.trial == chosen.trial)
        for rank, row in enumerate(rows, start=1)
    ]


def cheapest(rows: list[LeaderboardRow], share: float) -> LeaderboardRow:
    """The fastest labeller among those with so much of the best mIoU; the best where no speed was measured."""
    measured = [row for row in rows if row.label_images_per_s and row.miou is not None]
    good = [row for row in measured if row.miou_mean >= share * rows[0].miou_mean]
    return max(good, key=lambda row: row.label_images_per_s, default=rows[0])


def advice(board: list[LeaderboardRow]) -> str:
    """Which model to take, and why."""
    best, cheap = board[0], cheapest(board, PRACTICAL)
    if best.label_images_per_s is None:
        return f"{best.trial} is the best; no model's speed could be measured."
    if cheap.label_images_per_s <= best.label_images_per_s:
        return f"{best.trial} is the best, and none within a tenth of its mIoU labels faster."
    points, share = 100 * (best.miou_mean - cheap.miou_mean), best.label_images_per_s / cheap.label_images_per_s
    speeds = f"{cheap.label_images_per_s:.3g} against {best.label_images_per_s:.3g} images/s"
    return f"{cheap.trial}: {points:.1f} points below the best ({best.trial}) at {share:.2f} of its cost ({speeds})."


def trial_out(out: Path, trial: Trial) -> Path:
    return out / "trials" / trial.name


def trial_config(config: Config, trial: Trial) -> Config:
    """The settings of one trial's training run."""
    return config.changed(trial.settings | {"train.out": str(trial_out(Path(config.sweep.out), trial))})


def preview(config: Config) -> tuple[list[Trial], dict[str, float]]:
    """The trials, and by name the hours that one worker here would train each to its end: a step of each is tried."""
    trials = list_trials(config)
    plan = plan_data(trial_config(config, trials[0]))
    took: dict[str, float] = {}
    hours = {}
    for trial in trials:
        there = trial_config(config, trial)
        key = str((there.model, there.augment.crop, there.train.batch_size))
        if key not in took:
            took[key] = training_step_s(there, plan.label_space.num_classes, plan.size, device(config))
        steps = -(-len(plan.train) // there.train.batch_size) * there.train.epochs
        hours[trial.name] = took[key] * steps / 3600
    return trials, hours


def _runs(config: Config, trials: list[Trial]) -> list[Config]:
    return [trial_config(config, trial) for trial in trials]


def _follow(config: Config, name: str, on_row: OnRow, stack: ExitStack) -> Callable[[], None]:
    """A poll of one trial's new rows, for its trackers and for on_row."""
    claim(config, overwrite=False)
    track = stack.enter_context(trackers.tracking(config))

    def tell(row: dict[str, Any]) -> None:
        track(row)
        on_row(name, row)

    return new_rows(config.train.out, tell)


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

    data = stored(plan, has)
    weights: dict[str, Any] = {}
    for run_config in _runs(config, trials):  # once an encoder, for its first new trial
        if weights.get(start := _start(run_config)) is None:
            weights[start] = cluster.put(start_weights(run_config))
    driver = tune.with_parameters(
        _drive, config=config.model_dump(mode="json"), data=data, worker=worker, weights=weights
    )
    scheduler = _scheduler(config, worker.gpus * worker.count)
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
    history = read_history(trial.train.out)
    for row in history:
        tune.report(row)
    if _spent(trial).exists():
        tune.report({"epoch": len(history), "miou": 0.0, "seconds": 0.0})  # Tune wants a word of every trial
    elif not is_finished(trial.train, history):
        run(trial, data, worker, weights[_start(trial)], callbacks=(TuneReportCallback(),))


def _start(config: Config) -> str:
    return f"{config.model.encoder} {config.model.encoder_weights}"


def _scheduler(config: Config, gpus: int) -> Any:
    """ASHA, which also stops every trial once sweep.time or sweep.gpu_hours is spent, and says so in a file."""
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    spent = _spent(config)
    spent.unlink(missing_ok=True)
    ends_at = time.monotonic() + (config.sweep.time or float("inf"))
    gpu_seconds = (config.sweep.gpu_hours or float("inf")) * 3600

    class Budgeted(ASHAScheduler):
        used = 0.0

        def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
            self.used += result["seconds"] * gpus
            over = time.monotonic() > ends_at or self.used > gpu_seconds
            if over:
                spent.touch()
            if result["epoch"] >= config.train.epochs:
                return TrialScheduler.CONTINUE  # it ends by itself, and gives its CPUs back; stopped, it may not
            return TrialScheduler.STOP if over else super().on_trial_result(controller, trial, result)

    return Budgeted(
        time_attr="epoch",
        max_t=config.train.epochs,
        grace_period=min(config.sweep.grace_epochs, config.train.epochs),
        reduction_factor=config.sweep.reduction_factor,
    )


def _spent(config: Config) -> Path:
    return Path(config.sweep.out) / ".spent"


def _costs(config: Config, trials: list[Trial], worker: cluster.WorkerShape) -> dict[str, Cost]:
    """By trial, one model after another in a process of its own; models that differ in weights alone cost the same."""
    import ray

    before = Path(config.sweep.out) / "leaderboard.json"
    known = {row["trial"]: row for row in json.loads(before.read_bytes())} if before.exists() else {}
    measure = ray.remote(num_cpus=worker.cpus, num_gpus=worker.gpus, max_calls=1)(labelling_cost)
    found: dict[str, Cost] = {}
    costs: dict[str, Cost] = {}
    for trial in trials:
        best = trial_out(Path(config.sweep.out), trial) / BEST
        if not best.exists():
            continue
        model = trial_config(config, trial).model.model_dump_json(exclude={"encoder_weights"})
        row = known.get(trial.name, {})
        if row.get("label_images_per_s"):
            found[model] = Cost(row["label_images_per_s"], row["peak_memory_mib"], row["gmacs"])
        if model not in found:
            try:
                found[model] = ray.get(measure.remote(str(best), "cuda" if worker.gpus else "cpu", worker.cpus))
            except ray.exceptions.RayError:  # such as too little memory; the trial keeps its score
                continue
        costs[trial.name] = found[model]
    return costs


def _row(config: Config, trial: Trial, error: str | None, cost: Cost | None) -> LeaderboardRow:
    folder, settings = trial_out(Path(config.sweep.out), trial), trial_config(config, trial)
    history = read_history(str(folder))
    scored = [row for row in history if row["miou"] is not None]
    best = max(scored, key=lambda row: row["miou"], default={})
    done = "finished" if is_finished(settings.train, history) else "stopped" if history else "not run"
    hours = 1e6 / cost.images_per_s / 3600 if cost else None
    return LeaderboardRow(
        rank=0,
        trial=trial.name,
        arch=settings.model.arch,
        encoder=settings.model.encoder,
        learning_rate=settings.train.learning_rate,
        settings=json.dumps(trial.settings),
        miou=best.get("miou"),
        miou_mean=None,
        miou_spread=None,
        pixel_accuracy=best.get("pixel_accuracy"),
        epochs=len(history),
        status="failed" if error else done,
        parameters=bundle.count_parameters(str(folder / BEST)) if best else None,
        images_per_s=best.get("images_per_s"),
        seconds=sum(row["seconds"] for row in history),
        label_images_per_s=cost.images_per_s if cost else None,
        peak_memory_mib=cost.peak_memory_mib if cost else None,
        gmacs=cost.gmacs if cost else None,
        cost_per_million=hours * config.sweep.price if hours and config.sweep.price else None,
        pareto=False,
        chosen=False,
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
    (chosen,) = (row.trial for row in board if row.chosen)
    bundle.copy_to(str(out / BEST), str(out / "trials" / chosen / BEST))


def _claim(config: Config, overwrite: bool) -> None:
    def differences(before: Config) -> list[str]:
        # Other encoders and rates are more trials of the same sweep; another recipe is another sweep.
        lines = different(before, config, ("data", "augment", "train"))
        if before.train.epochs != config.train.epochs:
            lines.append(f"train.epochs was {before.train.epochs}, is {config.train.epochs}")
        return lines

    out = Path(config.sweep.out)
    made = (SETTINGS, "trials", BEST, "leaderboard.json", "leaderboard.parquet", ".tune", ".spent")
    claim_folder(str(out), "sweep", made, overwrite, differences)
    storage.replace(str(out / SETTINGS), config.to_yaml(SECTIONS).encode())


def _absolute(config: Config) -> Config:
    return absolute(config).changed({"sweep.out": str(Path(config.sweep.out).absolute())})
