"""A bundle and unlabelled frames → masks and figures in Parquet: Ray Data over the shards of a plan.

A row of the Ray Data dataset is a shard. An actor that holds the model fetches, decodes, infers, encodes and
creates the shard's part itself, and returns a small receipt: a retry is harmless, and no array crosses the
object store. The protocol is core.parts'.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from segray import cluster
from segray.config import Config, InferSection, LabelSection
from segray.core import parts, storage
from segray.core.models import bundle
from segray.core.parts import Receipt
from segray.core.plan import Plan, PlanReader, check_same, load_plan, make_plan, plan_settings
from segray.errors import ClusterError, ConfigError, DataError, StorageError

ROUNDS = 2  # shards whose actor died are tried once more before the run gives up

OnReceipt = Callable[[Receipt, Plan], None]


def label(
    config: Config, *, overwrite: bool = False, on_receipt: OnReceipt = lambda receipt, plan: None
) -> dict[str, Any]:
    """Label every input in `label.out`, or go on with what is not labelled yet; what `_SUCCESS` then says.

    on_receipt is called in this process for each shard that is done, first for those that were there before.
    Raises OutputExists when the folder was made from other inputs, model or settings, DataError when more than
    `label.max_error_rate` of the rows are errors.
    """
    section = absolute(config.label, config.model.weights_dir)
    if overwrite:
        parts.clear(section.out)
    plan = _plan(section, config.infer)
    summary = parts.read_summary(plan.out)
    if summary is None:
        started = time.perf_counter()
        rows = _run(config, section, plan, on_receipt)
        seconds = time.perf_counter() - started
        speed = {"seconds": seconds, "images_per_s": rows / seconds if rows else None}
        summary = parts.finish(plan, speed)
    if summary["rows"] - summary["ok"] > section.max_error_rate * summary["rows"]:
        raise DataError(
            f"{summary['rows'] - summary['ok']} of {summary['rows']} rows are errors, more than "
            f"{section.max_error_rate:.0%}; {section.out}/errors.parquet lists them."
        )
    return summary


def absolute(section: LabelSection, weights_dir: str | None = None) -> LabelSection:
    """Places that hold in Ray's worker processes. ConfigError when model or inputs are not given.

    weights_dir: where a ready model's weights are, on machines without internet.
    """
    if not section.model:
        raise ConfigError("label.model is not given; name the bundle: --model runs/train/best.")
    if not section.inputs:
        raise ConfigError("label.inputs is empty; name images, videos or folders: --input FOLDER.")
    return section.model_copy(
        update={
            "model": storage.absolute(bundle.resolve(section.model, weights_dir)),
            "inputs": [storage.absolute(place) for place in section.inputs],
            "truth": storage.absolute(section.truth) if section.truth else None,
            "out": storage.absolute(section.out),
        }
    )


def _plan(section: LabelSection, infer: InferSection) -> Plan:
    info = bundle.read_info(section.model)
    how = {**infer.model_dump(mode="json", exclude={"threshold"}), "confidence_maps": section.confidence_maps}
    settings = plan_settings(section.inputs, section.truth, section.every, section.shard_size, info.model_id, how)
    plan = load_plan(section.out)
    if plan is None:
        parts.check_empty(section.out)
        plan = make_plan(section.out, settings, bundle.label_space(info))
    check_same(plan, settings)
    return plan


def _run(config: Config, section: LabelSection, plan: Plan, on_receipt: OnReceipt) -> int:
    """Label the shards that have no part; the number of rows that this took."""
    rows = 0
    done = parts.done_shards(plan)
    for shard in sorted(done):
        on_receipt(Receipt(shard, parts.part_rows(plan, shard), 0, created=False), plan)
    todo = sorted(set(range(plan.shards)) - done)
    if not todo:
        return 0
    with cluster.connected(config.cluster) as has:
        for _ in range(ROUNDS):
            for receipt in _label_shards(config, section, plan, todo, has):
                rows += receipt.rows
                on_receipt(receipt, plan)
            todo = sorted(set(todo) - parts.done_shards(plan))
            if not todo:
                return rows
    raise ClusterError(
        f"{len(todo)} shards could not be labelled, the first {todo[0]}: their processes died. "
        "The same command tries again; Ray's session folder holds the logs."
    )


def _label_shards(config: Config, section: LabelSection, plan: Plan, todo: list[int], has: cluster.Resources) -> Any:
    """Receipts of the shards, as they are made."""
    import ray.data

    cluster.hush()
    use_gpu = has.gpus > 0 if config.cluster.gpu is None else config.cluster.gpu
    actors = min(section.actors or (has.gpus if use_gpu else 1), len(todo))
    shape = cluster.WorkerShape(actors, 1 if use_gpu else max(1, has.cpus // actors), int(use_gpu))
    shape.check(has)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a shard whose actor died is found by listing, and tried again
    receipts = ray.data.from_items([{"shard": shard} for shard in todo], override_num_blocks=len(todo)).map_batches(
        Labeller,
        fn_constructor_args=(section, config.infer, plan, shape.cpus, "cuda" if use_gpu else "cpu"),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=shape.cpus,
        num_gpus=shape.gpus,
        max_restarts=1,
        max_task_retries=1,
    )
    cluster.hush()  # Ray Data sets its loggers up anew when a dataset is made
    for row in receipts.iter_rows():
        if row["failure"]:
            raise StorageError(row["failure"])
        yield Receipt(int(row["shard"]), int(row["rows"]), int(row["errors"]), bool(row["created"]))


class Labeller:
    """An actor of Ray Data's pool: the model, and the shards that it is given."""

    def __init__(self, section: LabelSection, infer: InferSection, plan: Plan, threads: int, device: str) -> None:
        import torch

        from segray.core.predictor import Predictor

        torch.set_num_threads(threads)
        self.plan, self.batch_size = plan, section.batch_size
        self.predictor = Predictor(section.model, device, infer, confidence_maps=section.confidence_maps)
        self.reader = PlanReader(plan.out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        shard = int(batch["shard"][0])
        try:
            receipt = parts.label_shard(self.plan, self.reader.shard(shard), shard, self.predictor, self.batch_size)
            row = {**asdict(receipt), "failure": ""}
        except StorageError as error:  # a full disk or a lost store ends the run; input that fails is a row
            row = {"shard": shard, "rows": 0, "errors": 0, "created": False, "failure": str(error)}
        return {key: [value] for key, value in row.items()}
