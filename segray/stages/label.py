"""A bundle and unlabelled frames → masks and metrics in Parquet: Ray Data over the shards of a plan.

A row of the Ray Data dataset is a shard. An actor that holds the model fetches, decodes, infers, encodes and
creates the shard's part itself, and returns a small receipt: a retry is harmless, and no array crosses the
object store. The protocol is core.labels.parts'.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from segray.cluster import connect, resources, tasks
from segray.cluster.access import check_places
from segray.cluster.labeller import Done, Labeller, Lost, Sickness, read_answer
from segray.cluster.signals import held
from segray.cluster.telemetry import Gauges, event
from segray.config import Config
from segray.core.extras import extra
from segray.core.formatting import counted, number
from segray.core.infer.cost import engine_speeds
from segray.core.infer.predictor import side_by_side
from segray.core.io import storage
from segray.core.labels import parts
from segray.core.labels.folder import LabelFolder, read_summary
from segray.core.labels.parts import Receipt
from segray.core.labels.plan import Plan, PlanReader, check_same, load_plans, place_of
from segray.core.labels.planning import make_plan
from segray.core.labels.speed import SpeedLog
from segray.core.labels.totals import Speed, Summary
from segray.core.labels.units import Spread, in_threads
from segray.core.models import ready
from segray.core.models.info import BundleInfo, read_info
from segray.errors import ClusterError, ConfigError, OutputExists, StorageError, TooManyErrors
from segray.sections.labelling import GivenLabelSection, InferSection

if TYPE_CHECKING:
    from segray.cluster.pool import Pool

THERE_BEFORE = "there when this run came to write: made by another run, or by a process of this one before it was lost."
NO_PART_YET = " No part of it is labelled yet: --overwrite loses nothing."
WAITING = 2  # threads that wait for a GPU: for the batch it computes, and for the next, which is queued
ROUNDS = 3  # rounds without a labelled shard after which a run is given up


class Watch(Protocol):
    """Hear the progress of a run."""

    def found(self, files: int) -> None:
        """Hear how many input files were listed so far."""

    def planned(self, rows: int) -> None:
        """Hear how many rows the output will have."""

    def there(self, rows: int) -> None:
        """Hear that so many rows are there of which done() does not tell, as an earlier run labelled them."""

    def done(self, receipt: Receipt) -> None:
        """Hear that a shard is done."""

    def note(self, text: str) -> None:
        """Hear something that the user should know, in a sentence."""


class Unwatched:
    """Ignore the progress of a run."""

    def found(self, files: int) -> None: ...

    def planned(self, rows: int) -> None: ...

    def there(self, rows: int) -> None: ...

    def done(self, receipt: Receipt) -> None: ...

    def note(self, text: str) -> None: ...


def label(config: Config, *, overwrite: bool = False, watch: Watch | None = None) -> Summary:
    """Label every input into `label.out`, or resume with what is not labelled yet. Returns the content of `_SUCCESS`.

    Raises OutputExists when the folder was made from other inputs, model or settings, TooManyErrors when more
    than `label.max_error_rate` of the rows are errors, or all.
    """
    config.label.check_given()
    if config.infer.engine == "onnx":
        extra("onnxruntime")  # or each actor would find out, a minute later
    config, watch = config.absolute(), watch or Unwatched()
    section = with_bundle(config)
    if overwrite:
        parts.clear(section.out)
    if config.infer.engine != "auto":
        return _label(config, section, watch)
    if plans := load_plans(section.out):  # one engine makes all parts of an output
        return _label(config.changed({"infer.engine": plans[0].settings["engine"]}), section, watch)
    with connect.connected(config.cluster, 1) as has:
        engine = _faster_engine(config, section, has, watch)
        return _label(config.changed({"infer.engine": engine}), section, watch)  # in the same Ray


def _label(config: Config, section: GivenLabelSection, watch: Watch) -> Summary:
    plans = _plans(config, section, watch)
    watch.planned(sum(plan.rows for plan in plans))
    summary = read_summary(plans)
    if summary is None or LabelFolder(plans).unfinished:  # somebody removed a part
        started, rows, lost, stages = time.perf_counter(), 0, 0, Counter[str]()
        for receipt in _run(config, section, plans, watch):
            rows += receipt.rows * receipt.created
            lost += not receipt.created
            stages.update(receipt.seconds)
        seconds = time.perf_counter() - started
        if lost:
            watch.note(f"{counted(lost, 'part was', 'parts were')} {THERE_BEFORE}")
        speed: Speed = {
            "seconds": seconds,
            "images_per_s": rows / seconds if rows else None,
            "new_rows": rows,
            "stage_seconds": dict(stages),
        }
        summary = parts.finish(plans, speed)
        event("labelled", section.out, rows=summary["rows"], ok=summary["ok"], seconds=seconds)
    else:
        watch.note("Already finished: nothing is left to label.")
    if summary["rows"] and not summary["ok"]:
        raise TooManyErrors(
            f"Every row is an error ({', '.join(summary['errors'])}); look at error_message in "
            f"{storage.join(section.out, 'errors.parquet')}, mend the inputs, and give --retry-errors, or --overwrite."
        )
    _check_errors(section, summary["rows"] - summary["ok"], summary["rows"])
    return summary


def with_bundle(config: Config) -> GivenLabelSection:
    """Return the settings with the folder of the model's bundle, also if a ready model was named."""
    model = ready.resolve(config.label.given_model(), config.model.weights_dir)
    read_info(model)  # before a Ray is started for it
    return GivenLabelSection(**{**config.label.model_dump(), "model": model})


def plan_settings(section: GivenLabelSection, infer: InferSection, info: BundleInfo) -> dict[str, Any]:
    """Return, as plain data by key, what determines the output besides the files themselves."""
    model = {
        "weights": info.weights_sha256[:12],
        "classes": info.label_space["names"],
        **info.model_dump(mode="json", include={"input_size", "resize", "mean", "std", "temperature"}),
        "model_id": info.model_id,
    }
    how = {"inputs", "truth", "every", "fps", "limit", "sample", "shard_size", "mask_format", "confidence_maps"}
    return {
        **section.model_dump(mode="json", include=how),
        **model,
        **infer.model_dump(mode="json", exclude={"threshold"}),
    }


def _faster_engine(config: Config, section: GivenLabelSection, has: resources.Resources, watch: Watch) -> str:
    """Choose the faster engine by a probe that runs where an actor would."""
    import ray

    shape = _shape(config, section, has)
    if shape.gpus:
        return "torch"
    measure = ray.remote(num_cpus=shape.cpus, max_calls=1)(engine_speeds)
    try:
        speeds = ray.get(measure.remote(section.model, config.infer, shape.cpus))
    except ray.exceptions.RayError as error:
        raise connect.explain(error) from error
    best = max(speeds, key=speeds.__getitem__)
    several = ", ".join(f"{name} {number(speed)}" for name, speed in speeds.items())
    watch.note(f"Engine: {best} ({several} images/s here).")
    return best


def _shape(config: Config, section: GivenLabelSection, has: resources.Resources) -> resources.WorkerShape:
    """Return the actors that have room now: as many as were asked at most, else all GPUs, or one on each node.

    Raises ClusterError if there is no room for one.
    """
    use_gpu = resources.uses_gpus(config.cluster, has)
    nodes = sum(cpus > 0 for cpus, _ in has.nodes)
    asked = section.actors or max(1, has.gpus * section.actors_per_gpu if use_gpu else nodes)
    gpus = resources.gpu_share(section.actors_per_gpu) if use_gpu else 0
    cpus = 1 if use_gpu else has.share(asked)
    resources.WorkerShape(1, cpus, gpus).check(has)
    return resources.WorkerShape(min(asked, has.fits(cpus, gpus)), cpus, gpus)


def _plans(config: Config, section: GivenLabelSection, watch: Watch) -> list[Plan]:
    """Return the output's plans, after making a first or a further one if needed."""
    info = read_info(section.model)
    settings, space = plan_settings(section, config.infer, info), info.space
    plans = load_plans(section.out)
    ignoring: tuple[str, ...] = ()

    def over_cluster(place: str) -> AbstractContextManager[tasks.Map]:
        return tasks.spread(config.cluster, [section.model, place])

    spread: Spread = over_cluster if connect.is_named(config.cluster) else in_threads
    make = partial(make_plan, section.out, on_note=watch.note, spread=spread, hang_s=section.input_timeout)
    if plans and (section.retry_errors or section.extend):
        ignoring = ("inputs", "truth")
        check_same(plans[0], settings, ignoring)
    if not plans:
        parts.check_empty(section.out)
        _check_store(section, watch)
        connect.check_address(config.cluster)  # a plan would be left behind otherwise
        make(settings, space, on_found=watch.found)
    elif section.retry_errors:
        if read_summary(plans) is None:
            watch.note("The run before is not finished: that is done first. The same command then retries errors.")
        elif failed := LabelFolder(plans).failed_rows():
            make(plans[0].settings, space, plans, failed)
    elif section.extend:
        if section.limit:
            raise ConfigError(f"label.limit is {section.limit}, and an output with a limit cannot be extended.")
        made = make(settings, space, plans, on_found=watch.found)
        if made is None:
            watch.note("No new input was found.")
    plans = load_plans(section.out)
    mine = next((plan for plan in plans if plan.settings["inputs"] == settings["inputs"]), plans[0])
    try:
        check_same(mine, settings, ignoring)  # also if another run froze its plan first
    except OutputExists as error:
        # A plan alone is not removed: another run may be working on it.
        raise OutputExists(f"{error}{'' if LabelFolder(plans).parts else NO_PART_YET}") from None
    return plans


def _check_store(section: GivenLabelSection, watch: Watch) -> None:
    if storage.refuses_to_overwrite(section.out):
        return
    text = f"The store of {section.out} overwrites files that must be created once"
    if section.strict:
        raise StorageError(f"{text}; write to another one, or leave label.strict out.")
    watch.note(f"{text}: of two runs at once, the later one's parts stay. Rows are whole and single all the same.")


def _run(config: Config, section: GivenLabelSection, plans: list[Plan], watch: Watch) -> Iterator[Receipt]:
    """Label the shards that have no part; yield the receipts of this run."""
    folder = LabelFolder(plans)
    readers = [PlanReader(plan) for plan in plans]
    todo, suspects = folder.missing(), np.zeros(folder.shards, bool)
    left = _rows_in(folder, readers, todo)
    if there := sum(plan.rows for plan in plans) - left:
        watch.there(there)
    if not todo.any():
        return
    with connect.connected(config.cluster, 1) as has, closing(Gauges(section.out)) as gauges:
        config = _settled(config, has)
        check_places(_read_places(section, readers), [plans[-1].json_uri])
        gauges.set("segray_frames_left", left)
        event("labelling", section.out, rows=left, shards=int(todo.sum()))
        _say_room(section, _shape(config, section, has), watch)
        speed = SpeedLog(section.out)
        sickness, idle, errors = Sickness(watch.note), 0, 0  # errors: a lower bound of those that will remain
        while idle < ROUNDS:
            plain = todo & ~suspects
            careful = not plain.any()
            if careful:
                one = "shard that failed or was lost with its process is"
                several = "shards that failed or were lost with their processes are"
                watch.note(f"{counted(todo.sum(), one, several)} labelled input by input now.")
            before, back = sickness.left_out, list[Lost]()
            with closing(_pool(config, section, plans, todo if careful else plain, careful, before)) as pool:
                with closing(_receipts(pool, sickness, back)) as receipts:
                    for receipt in receipts:
                        errors, left = errors + receipt.errors, left - receipt.rows
                        speed.labelled(receipt.rows)
                        gauges.set("segray_frames_left", left)
                        watch.done(receipt)
                        _check_errors(section, errors, folder.planned)
                        yield receipt
                undone = LabelFolder(plans).missing() & todo
                if untold := left - _rows_in(folder, readers, undone):  # by a process that was lost before it answered
                    left -= untold
                    watch.there(untold)
                if not undone.any():
                    return
                started_again = sickness.left_out != before
                idle = 0 if started_again or (undone < todo).any() else idle + 1
                for number, shard in _suspects(back, set() if started_again else pool.unfinished(undone)):
                    suspects[folder.starts[number] + shard] = True
                todo = undone
    first = int(todo.argmax())
    raise ClusterError(
        f"{counted(todo.sum(), 'shard')} could not be labelled, "
        f"the first {first - folder.starts[folder.starts <= first][-1]}: "
        f"{sickness.last or 'their processes died'}. "
        "The same command tries again; Ray's session folder holds the logs."
    )


def _receipts(pool: Pool, sickness: Sickness, back: list[Lost]) -> Generator[Receipt]:
    """Yield receipts until the pool ends, or has to start again. What comes back unlabelled is added to `back`."""
    with closing(pool.answers()) as answers:
        try:
            for answer in map(read_answer, answers):
                if isinstance(answer, Done):
                    sickness.labelled(answer.actor)
                    yield answer.receipt
                    continue
                back.append(answer)
                if sickness.lost(answer, pool):
                    return
        except connect.NeverUp as error:
            sickness.never_up(error, pool)


def _suspects(back: list[Lost], unfinished: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the shards whose inputs may be at fault, and not the process that gave them back."""
    failed = {(lost.plan, lost.shard) for lost in back if not lost.sick}
    return failed | unfinished - {(lost.plan, lost.shard) for lost in back}


def _rows_in(folder: LabelFolder, readers: list[PlanReader], todo: np.ndarray) -> int:
    """Count the rows of these shards of all plans."""
    rows = 0
    for plan, reader, start in zip(folder.plans, readers, folder.starts, strict=True):
        of = todo[start : start + plan.shards]
        rows += plan.rows if of.all() else sum(reader.rows_in(int(shard)) for shard in np.flatnonzero(of))
    return rows


def _say_room(section: GivenLabelSection, shape: resources.WorkerShape, watch: Watch) -> None:
    shape.tell_if_busy()
    if section.actors and shape.count < section.actors:
        there = f"{shape.count} of the {section.actors} labelling processes asked"
        watch.note(f"The cluster has room for {there} ({shape}). The others start when nodes come.")


def _settled(config: Config, has: resources.Resources) -> Config:
    """Return the settings with GPUs or without, as the run begins: it goes on so when all nodes with GPUs are gone."""
    cluster = config.cluster.model_copy(update={"gpu": resources.uses_gpus(config.cluster, has)})
    return config.model_copy(update={"cluster": cluster})


def _read_places(section: GivenLabelSection, readers: list[PlanReader]) -> list[str]:
    """List where actors read: the model, and one input of each plan, as inputs mostly lie together."""
    return [section.model, *(place_of(reader.shard(0)[0]) for reader in readers)]


def _check_errors(section: GivenLabelSection, errors: int, rows: int) -> None:
    if errors > section.max_error_rate * rows:
        raise TooManyErrors(
            f"{errors} of {rows} rows are errors, more than {section.max_error_rate:.0%}; "
            f"look at error_message in {section.out}/labels, then raise label.max_error_rate or mend the inputs."
        )


def _pool(
    config: Config,
    section: GivenLabelSection,
    plans: list[Plan],
    given: np.ndarray,
    careful: bool,
    without: frozenset[str],
) -> Pool:
    with held():
        from segray.cluster.pool import Pool
    has = connect.holding(config.cluster, 1, without)
    shape = _shape(config, section, has)
    options = (section, config.infer, plans, shape.cpus, "cuda" if shape.gpus else "cpu", careful)
    starts = LabelFolder(plans).starts
    return Pool(given, starts, Labeller, options, shape, shards_at_once(has, shape), section.actors, without)


def shards_at_once(has: resources.Resources, shape: resources.WorkerShape) -> int:
    """Return how many shards a process works on, a thread each; on a GPU a few wait, which need no processor."""
    return side_by_side(has.cpus_beside(shape)) + WAITING if shape.gpus else side_by_side(shape.cpus)
