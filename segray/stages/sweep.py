"""A space of settings → a leaderboard of score against cost, and the best bundle: Ray Tune around train.py.

Each trial is a training run in a folder of its own, and trials.json holds the state of each. So a sweep that was
stopped resumes with the same command: no state of Tune's is needed or loaded. Ended trials are not started again, and
ASHA is told their epochs before the first trial starts; interrupted ones resume after their last complete epoch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any

from segray.cluster import connect, object_store, resources
from segray.cluster.access import check_places
from segray.config import Config
from segray.core.data.frame_list import FRAMES
from segray.core.extras import extra
from segray.core.infer.cost import labelling_cost, training_step_s
from segray.core.io import claims, storage
from segray.core.models import bundle, check_names, encoder_weights
from segray.core.progress import Progress, untold
from segray.core.samples import Dataset, TrainData
from segray.core.search.pareto import Cost
from segray.core.search.space import Trial, choices_of, list_trials
from segray.core.training.checkpoint import (
    BEST,
    HISTORY,
    SETTINGS,
    STATE,
    EpochRow,
    command_of,
    is_evaluated,
    read_history,
)
from segray.core.training.workers import local_device
from segray.errors import ConfigError, SegrayError, TrainingDiverged
from segray.stages import against
from segray.stages.batch_size import in_epochs, with_batch
from segray.stages.resume import as_begun, before, begun_settings, changed_frames, claim, different
from segray.stages.run_data import DataPlan, check_batch, check_model, check_teacher, plan_data, read_places, stored
from segray.stages.train import run
from segray.trials.leaderboard import (
    AGAINST,
    GIVEN,
    ROWS,
    TABLE,
    TRIALS,
    LeaderboardRow,
    SweepResult,
    known_costs,
    leaderboard,
    planned,
    read_sweep,
    trial_config,
    trial_out,
    write_leaderboard,
)
from segray.trials.queue import OnRow, Turns

SECTIONS = ("data", "model", "augment", "train", "sweep", "cluster")
MADE = (SETTINGS, FRAMES, TRIALS, "trials", BEST, ROWS, TABLE, AGAINST, ".tune")
SAME_STEP = {"out": "", "seed": 0, "epochs": 1, "learning_rate": 1.0, "weight_decay": 0.0}  # a step takes the same time


def has_results(out: str) -> bool:
    """Say whether a trial has completed an epoch."""
    trials = storage.iter_files(storage.join(out, "trials"))
    return storage.exists(storage.join(out, ROWS)) or any(
        storage.name_of(entry.uri) in (STATE, HISTORY) for entry in trials
    )


KIND = claims.Kind("sweep", SETTINGS, MADE, has_results, lambda out: command_of(out) == "sweep")


def sweep(
    config: Config,
    *,
    overwrite: bool = False,
    on_row: OnRow = lambda trial, row: None,
    dataset: Dataset | None = None,
) -> SweepResult:
    """Train every trial, stop the poor ones early, and rank them in `sweep.out`.

    on_row is called in this process with (trial, history row) for each epoch that ends. dataset: instead of the
    settings' data.
    Raises OutputExists if the folder holds a sweep with other settings, or one that is running, and SegrayError if
    all trials fail.
    """
    config = config.absolute()
    out = config.sweep.out
    plan = _check(config, dataset)
    config = in_epochs(config, len(plan.train))
    with claims.held(out, KIND):
        config = _claim(config, overwrite, plan)
        plan = plan.as_begun(config.data)
        with connect.connected(config.cluster, config.cluster.workers, sweeps=True) as has:
            at_once = concurrent(config, has, planned(config))
            worker = resources.shape(config.cluster, has, at_once, config.sweep.trials_per_gpu)
            check_places([*read_places(config), *against.places(config)], [storage.join(out, SETTINGS)])
            worker.tell_if_busy()
            with ExitStack() as stack:
                turns = Turns(config, on_row, stack)
                if turns.are_left():
                    data = stored(config, plan, has)
                    stack.enter_context(data.kept)
                    connect.wait_for(lambda: _tune(config, turns, data, worker), [turns.poll])
            names, alone = [entry.trial for entry in turns.entries.values()], resources.shape(config.cluster, has)
            costs = connect.wait_for(lambda: _costs(config, names, alone), [])
            given = connect.wait_for(lambda: against.measure(config, plan, alone), [])
        board = leaderboard(config, list(turns.entries.values()), costs, given)
        if not any(row.chosen for row in board):
            trials = [row for row in board if row.status != GIVEN]
            first = trials[0].error or trials[0].status if trials else "not run"
            raise SegrayError(f"No trial of {len(trials)} has a score; the first: {first}")
        _publish(out, board)
    return read_sweep(out)


def check_settings(config: Config) -> list[Config]:
    """Check what can be checked without data; return the settings of the trials."""
    trials = list_trials(config)
    if config.sweep.search == "tpe":
        extra("optuna", "sweep")
    if config.sweep.trials_per_gpu > 1 and config.cluster.workers > 1:
        raise ConfigError(
            f"sweep.trials_per_gpu is {config.sweep.trials_per_gpu}, and a trial has {config.cluster.workers} workers, "
            "each of which needs a GPU of its own (NCCL); set one of them to 1."
        )
    runs = [trial_config(config, trial) for trial in trials]
    if config.train.max_steps is not None and "train.batch_size" in choices_of(config):
        raise ConfigError(
            "train.max_steps is set and train.batch_size varied: all trials have the same epochs, whose steps differ "
            "then. Give --epochs instead."
        )
    for one in runs:
        check_names(one.model)
        check_batch(one)
    return runs


def _check(config: Config, dataset: Dataset | None) -> DataPlan:
    """Check all that can be checked before the first trial starts; return the frames that all trials share."""
    runs = check_settings(config)
    plan = plan_data(runs[0], dataset)
    for one in {(one.model.model_dump_json(), one.train.freeze_encoder): one for one in runs}.values():
        check_model(one, plan.label_space.num_classes)
    for teacher in {one.train.teacher for one in runs if one.train.teacher}:
        check_teacher(teacher, plan.label_space, config.model.weights_dir)
    against.check(config, plan.label_space)
    return plan


def concurrent(config: Config, has: resources.Resources, trials: int) -> int:
    """Return how many trials run at once: as many as fit the cluster's nodes, so that none waits inside Ray."""
    narrow = config.cluster.model_copy(update={"cpus_per_worker": config.cluster.cpus_per_worker or 1})
    one = resources.shape(narrow, has, runs_per_gpu=config.sweep.trials_per_gpu)
    return max(1, min(has.fits(one.cpus, one.gpus) // one.count, trials, _most(config)))


def estimate(config: Config, progress: Progress = untold) -> dict[str, float]:
    """Return by trial the seconds of training it to its end on one worker here, from a timed step of each model.

    progress is in models.
    """
    trials = list_trials(config)
    plan = plan_data(trial_config(config, trials[0]))
    config = as_begun(in_epochs(config, len(plan.train)), before(config.sweep.out, KIND, False), plan)
    plan = plan.as_begun(config.data)
    runs = {trial.name: with_batch(trial_config(config, trial)) for trial in trials}
    steps_alike = {
        name: str((there.model, there.augment, there.train.model_copy(update=SAME_STEP)))
        for name, there in runs.items()
    }
    took: dict[str, float] = {}
    seconds = {}
    for name, there in runs.items():
        if (key := steps_alike[name]) not in took:
            took[key] = training_step_s(there, plan.label_space.num_classes, plan.size, local_device(config.cluster))
            progress(1, len(set(steps_alike.values())))
        steps = max(1, len(plan.train) // there.train.batch) * there.train.epochs
        seconds[name] = took[key] * steps
    return seconds


def _tune(config: Config, turns: Turns, data: TrainData, worker: resources.WorkerShape) -> None:
    """Run the trials in turn, under ASHA."""
    from ray import tune

    driver = tune.with_parameters(
        _drive,
        config=config.model_dump(mode="json"),
        data=data,
        worker=worker,
        weights={_start(one): object_store.put(encoder_weights(one.model)) for one in _encoders(config)},
    )
    scheduler = _scheduler(config, turns, worker.gpus * worker.count)
    state = storage.join(config.sweep.out, ".tune")
    storage.remove(state)  # left by a sweep that was killed
    tuner = tune.Tuner(
        # A driver only waits. It holds no CPU (but Tune needs a resource), so it can never keep workers from starting.
        tune.with_resources(driver, {"CPU": 0, "memory": 1}),
        tune_config=tune.TuneConfig(
            search_alg=_searcher(turns, scheduler.is_over, partial(_room, config, worker)),
            scheduler=scheduler,
            num_samples=planned(config),
        ),
        run_config=tune.RunConfig(
            name=storage.name_of(state),
            **connect.ray_storage(config.sweep.out),
            # For lost drivers, as with their node; Ray Train retries what fails in a trial's workers.
            failure_config=tune.FailureConfig(max_failures=config.train.max_failures),
            verbose=0,
        ),
    )
    results: Any = tuner.fit()  # its type does not say that it can be iterated
    for result in results:
        if result.error:
            turns.ended(result.config["trial"]["name"], str(connect.explain(result.error)))
    storage.remove(state)


def _drive(
    params: dict[str, Any],
    config: dict[str, Any],
    data: TrainData,
    worker: resources.WorkerShape,
    weights: dict[str, Any],
) -> None:
    """Run one trial, in a process of Tune's. A failure is reported, because Tune would retry a raised one."""
    from ray import tune

    trial = trial_config(Config(**config), Trial(**params["trial"]))
    try:
        trial = claim(trial, overwrite=False)
        _train(trial, data, worker, weights[_start(trial)])
    except Exception as error:
        scores = {"epoch": len(read_history(trial.train.out)), "miou": float("nan")}
        tune.report({**scores, "failed": str(connect.explain(error))})


def _train(trial: Config, data: TrainData, worker: resources.WorkerShape, weights: Any) -> None:
    """Train from the last complete epoch; once more if the loss is not finite on a GPU.

    A GPU's sums differ a little from run to run. A CPU's do not: it would get the same loss again.
    """
    from ray.tune.integration.ray_train import TuneReportCallback

    fit = partial(run, trial, data, worker, weights, callbacks=(TuneReportCallback(),))
    try:
        fit()
    except TrainingDiverged:
        if not worker.gpus:
            raise
        fit()


def _start(config: Config) -> str:
    return f"{config.model.encoder} {config.model.encoder_weights}"


def _encoders(config: Config) -> Iterator[Config]:
    """Yield settings for each encoder and initialisation of the space; their weights are fetched here, once."""
    choices = choices_of(config)
    keys = [key for key in ("model.encoder", "model.encoder_weights") if key in choices]
    for values in product(*(choices[key] for key in keys)):
        yield config.changed(dict(zip(keys, values, strict=True)))


def _room(config: Config, worker: resources.WorkerShape) -> int:
    """Return how many trials may run at once now: nodes that join later count as well."""
    return max(1, min(connect.resources().fits(worker.cpus, worker.gpus) // worker.count, _most(config)))


def _most(config: Config) -> int:
    return config.sweep.concurrent or sys.maxsize


def _searcher(turns: Turns, is_over: Callable[[], bool], room: Callable[[], int]) -> Any:
    """Return a Searcher that hands Tune the trials in turn, and none while no more have room."""
    from ray.tune.search import Searcher

    class InTurn(Searcher):
        def __init__(self) -> None:
            super().__init__()
            self.names: dict[str, str] = {}
            self.running: set[str] = set()

        def suggest(self, trial_id: str) -> Any:
            if len(self.running) >= room():
                return None
            trial = None if self.names and is_over() else turns.next()  # at least one, however short the time
            if trial is None:
                return Searcher.FINISHED
            self.names[trial_id] = trial.name
            self.running.add(trial_id)
            return {"trial": asdict(trial)}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            self.running.discard(trial_id)
            turns.ended(self.names[trial_id], "Its driver was lost." if error else (result or {}).get("failed"))

    return InTurn()


def _scheduler(config: Config, turns: Turns, gpus: float) -> Any:
    """Return an ASHA scheduler that also stops every trial once sweep.time or sweep.gpu_hours is spent."""
    from ray.tune.schedulers import ASHAScheduler, TrialScheduler

    ends_at = time.monotonic() + (config.sweep.time or float("inf"))
    most_s = (config.sweep.gpu_hours or float("inf")) * 3600

    class Budgeted(ASHAScheduler):
        """ASHA with a budget. It knows trials by name, as an earlier process did, and counts each epoch once."""

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.seconds: dict[tuple[str, int], float] = {}

        def is_over(self) -> bool:
            return time.monotonic() > ends_at or sum(self.seconds.values()) * gpus > most_s

        def join(self, name: str) -> None:
            super().on_trial_add(*_named(name))

        def judge(self, name: str, row: EpochRow) -> str:
            self.seconds[name, row["epoch"]] = row["seconds"]
            if not is_evaluated(row):
                return TrialScheduler.CONTINUE
            found = {**row, "miou": float("nan") if row["miou"] is None else row["miou"]}
            return super().on_trial_result(*_named(name), found)

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            self.join(trial.config["trial"]["name"])

        def on_trial_result(self, controller: Any, trial: Any, result: Any) -> str:
            name = trial.config["trial"]["name"]
            if "failed" in result:
                return TrialScheduler.CONTINUE
            action = self.judge(name, result)
            if result["epoch"] >= config.train.epochs:
                return TrialScheduler.CONTINUE  # it ends by itself and frees its CPUs, which a stopped one may not
            if action == TrialScheduler.STOP:
                turns.set(name, "stopped")
            return TrialScheduler.STOP if self.is_over() else action

        def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
            """Do nothing: all its epochs were judged."""

        def on_trial_remove(self, controller: Any, trial: Any) -> None:
            """Do nothing: its results still count for the others."""

    scheduler = Budgeted(
        time_attr="epoch",
        metric="miou",
        mode="max",
        max_t=config.train.epochs,
        grace_period=min(config.sweep.grace_epochs, config.train.epochs),
        reduction_factor=config.sweep.reduction_factor,
    )
    for entry in turns.entries.values():
        scheduler.join(entry.trial.name)
        for row in read_history(trial_out(config.sweep.out, entry.trial)):
            scheduler.judge(entry.trial.name, row)
    return scheduler


def _named(name: str) -> tuple[Any, Any]:
    """Return a controller and a trial for ASHA, which only looks at the trial's id."""
    return None, SimpleNamespace(trial_id=name)


def _costs(config: Config, trials: list[Trial], worker: resources.WorkerShape) -> dict[str, Cost]:
    """Measure costs by trial, each model in a process of its own; those that differ only in weights share a cost."""
    import ray

    out = config.sweep.out
    known = known_costs(out)
    measure = ray.remote(num_cpus=worker.cpus, num_gpus=worker.gpus, max_calls=1)(labelling_cost)
    found: dict[str, Cost] = {}
    costs: dict[str, Cost] = {}
    for trial in trials:
        best = storage.join(trial_out(out, trial), BEST)
        if not storage.exists(best):
            continue
        model = trial_config(config, trial).model.model_dump_json(exclude={"encoder_weights"})
        if trial.name in known:
            found[model] = known[trial.name]
        if model not in found:
            try:
                found[model] = ray.get(measure.remote(best, "cuda" if worker.gpus else "cpu", worker.cpus))
            except ray.exceptions.RayError:  # such as too little memory; the trial keeps its score
                continue
        costs[trial.name] = found[model]
    return costs


def _publish(out: str, board: list[LeaderboardRow]) -> None:
    """Write leaderboard.json, leaderboard.parquet and best/."""
    write_leaderboard(out, board)
    (chosen,) = (row.trial for row in board if row.chosen)
    bundle.copy_to(storage.join(out, BEST), storage.join(out, "trials", chosen, BEST))


def _claim(config: Config, overwrite: bool, plan: DataPlan) -> Config:
    """Claim `sweep.out` for this sweep; return its settings. What they leave open, each trial chooses for itself."""
    out = config.sweep.out
    config = as_begun(config, before(out, KIND, overwrite), plan)
    frames = plan.frame_list()

    def changed() -> list[str]:
        # Other encoders and rates are more trials of the same sweep; another recipe is another sweep.
        then = begun_settings(out).absolute()
        lines = different(then, config, ("data", "augment", "train"))
        if then.train.epochs != config.train.epochs:
            lines.append(f"train.epochs was {then.train.epochs}, is {config.train.epochs}")
        return lines + changed_frames(out, frames)

    claims.claim(out, KIND, overwrite, changed)
    storage.replace(storage.join(out, SETTINGS), config.to_yaml(SECTIONS).encode())  # whole, as others may read it now
    storage.replace(storage.join(out, FRAMES), frames)
    return config
