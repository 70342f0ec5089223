"""A bundle and unlabelled frames → masks and metrics in Parquet: Ray Data over the shards of a plan.

A row of the Ray Data dataset is a shard. An actor that holds the model fetches, decodes, infers, encodes and
creates the shard's part itself, and returns a small receipt: a retry is harmless, and no array crosses the
object store. The protocol is core.labels.parts'.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import chain
from typing import Any, Protocol

from segray.cluster import connect, resources
from segray.cluster.access import check_places
from segray.cluster.labeller import Labeller, Lost, Sickness, read_answer
from segray.cluster.signals import held
from segray.cluster.telemetry import Gauges, event
from segray.config import Config
from segray.core.extras import extra
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
from segray.core.models import ready
from segray.core.models.info import BundleInfo, read_info
from segray.errors import ClusterError, ConfigError, OutputExists, StorageError, TooManyErrors
from segray.sections.labelling import GivenLabelSection, InferSection

NO_PART_YET = " No part of it is labelled yet: --overwrite loses nothing."
WAITING = 2  # threads that wait for a GPU: for the batch it computes, and for the next, which is queued
ROUNDS = 3  # rounds without a labelled shard after which a run is given up

Shard = tuple[int, int]  # the number of a plan, and of a shard of it


class Watch(Protocol):
    """Hear the progress of a run."""

    def found(self, files: int) -> None:
        """Hear how many input files were listed so far."""

    def planned(self, rows: int) -> None:
        """Hear how many rows the output will have."""

    def done(self, receipt: Receipt) -> None:
        """Hear that a shard is done; shards of earlier runs come first."""

    def note(self, text: str) -> None:
        """Hear something that the user should know, in a sentence."""


class Unwatched:
    """Ignore the progress of a run."""

    def found(self, files: int) -> None: ...

    def planned(self, rows: int) -> None: ...

    def done(self, receipt: Receipt) -> None: ...

    def note(self, text: str) -> None: ...


def label(config: Config, *, overwrite: bool = False, watch: Watch | None = None) -> Summary:
    """Label every input into `label.out`, or resume with what is not labelled yet. Returns the content of `_SUCCESS`.

    Raises OutputExists when the folder was made from other inputs, model or settings, TooManyErrors when more
    than `label.max_error_rate` of the rows are errors.
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
    with connect.connected(config.cluster, section.actors or 1) as has:
        engine = _faster_engine(config, section, has, watch)
        return _label(config.changed({"infer.engine": engine}), section, watch)  # in the same Ray


def _label(config: Config, section: GivenLabelSection, watch: Watch) -> Summary:
    plans = _plans(config, section, watch)
    watch.planned(sum(plan.rows for plan in plans))
    summary = read_summary(plans)
    if summary is None or LabelFolder(plans).unfinished:  # somebody removed a part
        started = time.perf_counter()
        receipts = list(_run(config, section, plans, watch))
        seconds = time.perf_counter() - started
        rows = sum(receipt.rows for receipt in receipts if receipt.created)
        if lost := sum(not receipt.created for receipt in receipts):
            watch.note(f"{lost} parts were made by another run meanwhile.")
        stages: dict[str, float] = {}
        for stage, stage_s in chain.from_iterable(receipt.seconds.items() for receipt in receipts):
            stages[stage] = stages.get(stage, 0.0) + stage_s
        images_per_s = rows / seconds if rows else None
        speed: Speed = {
            "seconds": seconds,
            "images_per_s": images_per_s,
            "new_rows": rows,
            "stage_seconds": stages,
        }
        summary = parts.finish(plans, speed)
        event("labelled", section.out, rows=summary["rows"], ok=summary["ok"], seconds=seconds)
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
    several = ", ".join(f"{name} {speed:.3g}" for name, speed in speeds.items())
    watch.note(f"Engine: {best} ({several} images/s here).")
    return best


def _shape(
    config: Config, section: GivenLabelSection, has: resources.Resources, most: int = sys.maxsize
) -> resources.WorkerShape:
    """Return the actors' resources, with `most` actors at most."""
    use_gpu = resources.uses_gpus(config.cluster, has)
    actors = min(section.actors or (has.gpus * section.actors_per_gpu if use_gpu else 1), most)
    gpus = resources.gpu_share(section.actors_per_gpu) if use_gpu else 0
    shape = resources.WorkerShape(actors, 1 if use_gpu else has.share(actors), gpus)
    shape.check(has)
    return shape


def _plans(config: Config, section: GivenLabelSection, watch: Watch) -> list[Plan]:
    """Return the output's plans, after making a first or a further one if needed."""
    info = read_info(section.model)
    settings, space = plan_settings(section, config.infer, info), info.space
    plans = load_plans(section.out)
    ignoring: tuple[str, ...] = ()
    if plans and (section.retry_errors or section.extend):
        ignoring = ("inputs", "truth")
        check_same(plans[0], settings, ignoring)
    if not plans:
        parts.check_empty(section.out)
        _check_store(section, watch)
        connect.check_address(config.cluster)  # a plan would be left behind otherwise
        make_plan(section.out, settings, space, on_found=watch.found, on_note=watch.note)
    elif section.retry_errors:
        if read_summary(plans) is None:
            watch.note("The run before is not finished: that is done first. The same command then retries errors.")
        elif failed := LabelFolder(plans).failed_rows():
            make_plan(section.out, plans[0].settings, space, plans, failed, on_note=watch.note)
    elif section.extend:
        if section.limit:
            raise ConfigError(f"label.limit is {section.limit}, and an output with a limit cannot be extended.")
        if make_plan(section.out, settings, space, plans, on_found=watch.found, on_note=watch.note) is None:
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
    done, rows = folder.done, folder.planned
    todo = {(plan.number, shard) for plan in plans for shard in range(plan.shards)} - done
    errors = 0  # a lower bound of the errors that will remain
    readers = [PlanReader(plan) for plan in plans]
    for number, shard in sorted(done):  # with as many rows as planned, no part has to be opened
        watch.done(Receipt(shard, readers[number].rows_in(shard), 0, created=False))
    if not todo:
        return
    processes = -(-min(section.actors or 1, len(todo)) // section.actors_per_gpu)
    with connect.connected(config.cluster, processes) as has, closing(Gauges(section.out)) as gauges:
        check_places(_read_places(section, readers), [plans[-1].json_uri])
        left = sum(readers[number].rows_in(shard) for number, shard in todo)
        gauges.set("segray_frames_left", left)
        event("labelling", section.out, rows=left, shards=len(todo))
        sickness, suspects, idle = Sickness(watch.note), set[Shard](), 0
        speed = SpeedLog(section.out)
        _shape(config, section, has, len(todo)).tell_if_busy()
        while idle < ROUNDS:
            plain = todo - suspects
            given, back = plain or set(todo), set[Shard]()
            if not plain:
                watch.note(f"{len(todo)} shards failed or were lost with their processes: labelled input by input now.")
            shape = _shape(config, section, has, len(given))
            with closing(_label_shards(config, section, plans, sorted(given), has, shape, not plain)) as answers:
                for answer in answers:
                    if isinstance(answer, Lost):
                        sickness.lost(answer, shape.count)
                        if answer.sick:  # the process failed, which says nothing about the shard
                            back.add((answer.plan, answer.shard))
                        continue
                    sickness.labelled()
                    errors, left = errors + answer.errors, left - answer.rows
                    speed.labelled(answer.rows)
                    gauges.set("segray_frames_left", left)
                    watch.done(answer)
                    _check_errors(section, errors, rows)
                    yield answer
            undone = todo - LabelFolder(plans).done
            if not undone:
                return
            idle = 0 if undone < todo else idle + 1
            todo, suspects = undone, suspects | ((given & undone) - back)
    why = sickness.last or "their processes died"
    raise ClusterError(
        f"{len(todo)} shards could not be labelled, the first {min(todo)[1]}: {why}. "
        "The same command tries again; Ray's session folder holds the logs."
    )


def _read_places(section: GivenLabelSection, readers: list[PlanReader]) -> list[str]:
    """List where actors read: the model, and one input of each plan, as inputs mostly lie together."""
    return [section.model, *(place_of(reader.shard(0)[0]) for reader in readers)]


def _check_errors(section: GivenLabelSection, errors: int, rows: int) -> None:
    if errors > section.max_error_rate * rows:
        raise TooManyErrors(
            f"{errors} of {rows} rows are errors, more than {section.max_error_rate:.0%}; "
            f"look at error_message in {section.out}/labels, then raise label.max_error_rate or mend the inputs."
        )


def _label_shards(
    config: Config,
    section: GivenLabelSection,
    plans: list[Plan],
    todo: list[Shard],
    has: resources.Resources,
    shape: resources.WorkerShape,
    careful: bool,
) -> Generator[Receipt | Lost]:
    """Yield the result of each shard as soon as it is known."""
    connect.hush()
    at_once = shards_at_once(has, shape)
    given = (section, config.infer, plans, shape.cpus, "cuda" if shape.gpus else "cpu", careful)
    yield from spread(todo, Labeller, given, shape, at_once)


def shards_at_once(has: resources.Resources, shape: resources.WorkerShape) -> int:
    """Return how many shards a process works on, a thread each; on a GPU a few wait, which need no processor."""
    return side_by_side(has.cpus_beside(shape)) + WAITING if shape.gpus else side_by_side(shape.cpus)


def spread(
    todo: list[Shard], labeller: type, given: tuple[Any, ...], shape: resources.WorkerShape, at_once: int
) -> Iterator[Receipt | Lost]:
    """Yield the results of a pool of actors, each made by labeller(*given), with `at_once` shards in work."""
    with held():
        import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a shard whose actor died is found by listing, and tried again
    items = [{"plan": number, "shard": shard} for number, shard in todo]
    receipts = ray.data.from_items(items, override_num_blocks=len(todo)).map_batches(
        labeller,
        fn_constructor_args=given,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(
            size=shape.count,
            max_concurrent_calls_per_actor=at_once,
            max_tasks_in_flight_per_actor=at_once + 1,  # an actor that dies loses the shards queued for it
            enable_true_multi_threading=True,
        ),
        num_cpus=shape.cpus,
        num_gpus=shape.gpus,
        max_restarts=-1,
        max_task_retries=1,  # an input that ends its actor does so at most twice
    )
    connect.hush()  # Ray Data sets its loggers up anew when a dataset is made
    found: Any = receipts.iter_rows()
    with closing(iter(found)) as rows:
        for row in rows:
            yield read_answer(row["receipt"])
