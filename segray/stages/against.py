"""Models that a sweep is compared with → their scores on its validation frames, and what they cost as labellers.

OUT/against.json    a line a model, so that a resumed sweep measures none twice
"""

from __future__ import annotations

import logging
from typing import Any

from segray.cluster import connect, resources
from segray.config import Config
from segray.core import metrics
from segray.core.infer.cost import labelling_cost
from segray.core.infer.predictor import Predictor
from segray.core.models import ready
from segray.core.models.info import read_info
from segray.core.samples import LabelSpace
from segray.core.scoring.at_size import classes_for, confusion_at
from segray.errors import ModelError, SegrayError
from segray.sections.values import is_ready_model
from segray.stages.run_data import DataPlan
from segray.trials.leaderboard import Given, read_given, write_given

log = logging.getLogger("segray")


def check(config: Config, space: LabelSpace) -> None:
    """Find the models of `sweep.against`, and say which classes they lack. Raises ModelError for one of no use."""
    for name in dict.fromkeys(config.sweep.against):
        try:
            _, missing = classes_for(read_info(ready.resolve(name, config.model.weights_dir)).space, space)
        except ModelError as error:
            raise ModelError(f"{name} cannot be compared with (sweep.against). {error}") from error
        if missing:
            log.warning(f"{name} does not predict {', '.join(missing)}, which counts as 0 in its mIoU.")


def places(config: Config) -> list[str]:
    """List the models that nodes read by path; one that has a name is fetched by each machine."""
    return [name for name in config.sweep.against if not is_ready_model(name)]


def measure(config: Config, plan: DataPlan, worker: resources.WorkerShape) -> list[Given]:
    """Score and time each model of `sweep.against`, in a process of its own, and write OUT/against.json."""
    out = config.sweep.out
    known = {row[:3]: row for row in read_given(out) if row.error is None}
    found: dict[tuple[Any, ...], Given] = {}
    for name in dict.fromkeys(config.sweep.against):
        row = _unmeasured(name, config, plan)
        found[row[:3]] = known.get(row[:3]) or (row if row.error else _measured(row, config, plan, worker))
        write_given(out, list((known | found).values()))  # at once, as measuring the next one may take long
    write_given(out, list(found.values()))
    return list(found.values())


def _unmeasured(name: str, config: Config, plan: DataPlan) -> Given:
    """Return the row of a model without its scores; with an error if it was deleted while the trials ran."""
    try:
        info = read_info(ready.resolve(name, config.model.weights_dir))
    except SegrayError as error:
        return Given(name, "", plan.data_id, "", "", error=str(error))
    encoder = info.model.encoder if info.model.has_encoder else ""
    return Given(name, info.model_id, plan.data_id, info.model.arch, encoder)


def _measured(row: Given, config: Config, plan: DataPlan, worker: resources.WorkerShape) -> Given:
    import ray

    task = ray.remote(num_cpus=worker.cpus, num_gpus=worker.gpus, max_calls=1)(_look)
    try:
        return ray.get(task.remote(row, config.model.weights_dir, plan, worker))
    except ray.exceptions.RayError as error:  # such as too little memory
        return row._replace(error=str(connect.explain(error)))


def _look(row: Given, weights_dir: str | None, plan: DataPlan, worker: resources.WorkerShape) -> Given:
    """Measure the cost first: its memory is what this process grows by."""
    place, device = ready.resolve(row.name, weights_dir), "cuda" if worker.gpus else "cpu"
    cost = labelling_cost(place, device, int(worker.cpus))
    confusion = confusion_at(Predictor(place, device), plan.val, plan.label_space, plan.size, plan.resize)
    scores = metrics.scores(confusion).to_dict()
    return row._replace(miou=scores["miou"], pixel_accuracy=scores["pixel_accuracy"], cost=cost)
