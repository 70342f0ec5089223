"""One shard of a plan → one Parquet part; finishing a run; verifying one. folder reads them.

The promise: every row of the plan is written exactly once. A part is absent or complete and never changes,
because it is built in memory and created exclusively. `_SUCCESS` means that all parts are there.

    OUT/labels/part-00042-of-05000-<plan8>.parquet   all rows of shard 42, ok and error
    OUT/errors.parquet                               the error rows again, without masks
    OUT/summary.json, OUT/_SUCCESS                   totals, scores, the list of parts
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.core import formatting, metrics
from segray.core.clock import Clock
from segray.core.io import claims, parquet, storage
from segray.core.io.locators import mask_of
from segray.core.labels import quality
from segray.core.labels.folder import (
    LabelFolder,
    Part,
    last_summary,
    part_totals,
    read_summary,
    success_uri,
    totals_in,
)
from segray.core.labels.part_file import GROUP_ROWS, PartFile
from segray.core.labels.plan import Plan, PlanReader, PlanRow, damaged_files, load_plans
from segray.core.labels.schema import ROW_SCHEMA, Labelled
from segray.core.labels.totals import Speed, Summary
from segray.core.progress import Progress, untold
from segray.errors import DataError, SegrayError

VERIFIED = ["input_id", "status", "height_px", "width_px", "mask", "mask_rle", "class_pixels"]
SPAN_ROWS = 1000  # a few seconds of work
LEFTOVER_S = 3600.0  # no part takes that long to be written
MADE = ("_SUCCESS", "summary.json", "errors.parquet", "labels", "_segray")


@dataclass(frozen=True)
class Receipt:
    """What happened to a shard. created: False when another run had made the part before.

    seconds: of fetch, decode, model, encode and write; `wait` is how long the shard waited for its turn at the model.
    """

    shard: int
    rows: int
    errors: int
    created: bool
    seconds: dict[str, float] = field(default_factory=dict)


def label_shard(
    plan: Plan,
    rows: list[PlanRow],
    shard: int,
    label: Callable[[Plan, list[PlanRow], Clock], Iterable[Labelled]],
    clock: Clock | None = None,
) -> Receipt:
    """Label the rows of one shard and create its part. StorageError when it cannot be written.

    label: infer.label_rows.label_rows with its model, or a function that calls it in another process. Its rows are
    written as they come. clock: counts the stages.
    """
    if storage.exists(plan.part_uri(shard)):  # another run's, or that of a task whose answer was lost
        return done_receipt(plan, shard)
    clock, part = clock or Clock(), PartFile(plan.label_space)
    for labelled in label(plan, rows, clock):
        with clock("write"):
            part.add(labelled)
    with clock("write"):
        created = storage.create(plan.part_uri(shard), part.finish())
    return Receipt(shard, part.totals.rows, part.totals.errors.total(), created, dict(clock.seconds))


def done_receipt(plan: Plan, shard: int) -> Receipt:
    """Make the receipt of a part that is there, from its footer."""
    totals = part_totals(plan.part_uri(shard))
    return Receipt(shard, totals.rows, totals.errors.total(), created=False)


def finish(plans: list[Plan], speed: Speed, progress: Progress = untold) -> Summary:
    """Write errors.parquet, summary.json and then `_SUCCESS`, once all parts are there; return what `_SUCCESS` says.

    A row that a later plan repeats is neither counted nor listed in errors.parquet.
    """
    out, first = plans[0].out, plans[0]
    totals, errors = LabelFolder(plans).totals(progress)
    scored = bool(totals.confusion.any())
    summary: Summary = {
        "plans": [plan.plan_id for plan in plans],
        "model_id": first.model_id,
        "classes": list(first.label_space.names),
        **totals.to_dict(),
        "scores": metrics.scores(totals.confusion).to_dict() if scored else None,
        "baseline_miou": metrics.majority_baseline(totals.confusion).miou if scored else None,
        "parts": [storage.name_of(plan.part_uri(shard)) for plan in plans for shard in range(plan.shards)],
        **speed,
    }
    if len(load_plans(out)) > len(plans):
        return summary  # another run planned more meanwhile: what is written here speaks of all plans
    sink = pa.BufferOutputStream()
    pq.write_table(errors, sink)
    storage.replace(storage.join(out, "errors.parquet"), sink.getvalue().to_pybytes())
    _remove_leftovers(out)
    data = json.dumps(summary, indent=2).encode()
    storage.replace(storage.join(out, "summary.json"), data)
    said = last_summary(out)
    if said and len(said["plans"]) < len(plans):
        storage.replace(success_uri(out), data)
    else:
        storage.create(success_uri(out), data)
    return read_summary(plans) or summary


def _remove_leftovers(out: str) -> None:
    """Remove temporary files that killed writers left on a disk, but not those that may still be in use."""
    if storage.in_bucket(out):
        return
    for entry in storage.iter_files(storage.join(out, "labels")):
        name = storage.name_of(entry.uri)
        if name.startswith(".part-") and name.endswith(".tmp") and time.time() - int(entry.stamp) / 1e9 > LEFTOVER_S:
            storage.remove(entry.uri)


def check_empty(out: str) -> None:
    """Check that a folder without a plan holds no files, as they would not be ours. Raise OutputExists otherwise."""
    claims.check_free(out, "labels", lambda uri: "/_segray/" in uri)


def clear(out: str) -> None:
    """Delete what a labelling run wrote, and nothing else. OutputExists when the folder is not a labelling run's."""
    if not storage.exists(storage.join(out, "_segray")):
        check_empty(out)
    for name in MADE:
        storage.remove(storage.join(out, name))


class Span(NamedTuple):
    """Parts of a plan that are read together."""

    plan: Plan
    shards: list[int]


class Spread(Protocol):
    """A map that may run its calls elsewhere, some at once; the results come in order."""

    def __call__(self, work: Callable[[Span], list[str]], spans: Iterable[Span], /) -> Iterable[list[str]]: ...


def verify(plans: list[Plan], progress: Progress = untold, *, sample: float = 1.0, spread: Spread = map) -> list[str]:
    """List every violation of the promise, one line each; [] when there is none. Reads all that was written.

    sample: the share of the parts whose rows are read, always the same ones; that all are there, what their footers
    sum up to, and the plans are checked all the same. Parts are not read whose rows are planned in a damaged file.
    progress is in parts that are read.
    """
    folder = LabelFolder(plans)
    problems = [
        f"{storage.name_of(plan.part_uri(shard))} is missing"
        for plan in plans
        for shard in np.flatnonzero(~folder.parts.is_there[plan.number]).tolist()
    ]
    damaged = [(plan, *found) for plan in plans for found in damaged_files(plan)]
    problems += [line for _, line, _ in damaged]
    spans = _spans(folder, sample, [(plan, shards) for plan, _, shards in damaged])
    of = sum(len(span.shards) for span in spans)
    for span, found in zip(spans, spread(verify_span, spans), strict=True):
        problems += found
        progress(len(span.shards), of)
    if folder.summary is None:
        speaks = "speaks of the plans before the last" if last_summary(folder.place) else "is missing"
        problems.append(f"_SUCCESS {speaks}: the run is not finished, and the same command resumes")
    elif not problems:
        said: dict[str, object] = {**folder.summary}
        try:
            counted = folder.totals()[0].to_dict()
        except DataError as error:
            return [str(error).rstrip(".")]
        problems += [
            f"_SUCCESS says {key} {said.get(key)}, the parts {value}"
            for key, value in counted.items()
            if said.get(key) != value
        ]
    return problems


def _spans(folder: LabelFolder, sample: float, without: list[tuple[Plan, range]]) -> list[Span]:
    """Cut the parts that are there, or the share of them with the lowest hashes, into spans of about SPAN_ROWS rows."""

    def rank(part: Part) -> bytes:
        return hashlib.sha256(f"{part.plan.plan_id} {part.shard}".encode()).digest()

    parts = list(folder.parts)
    if sample < 1:
        chosen = heapq.nsmallest(math.ceil(sample * len(parts)), parts, key=rank)
        parts = sorted(chosen, key=lambda part: (part.plan.number, part.shard))
    parts = [part for part in parts if not any(part.plan is plan and part.shard in shards for plan, shards in without)]
    spans: list[Span] = []
    for plan, group in groupby(parts, key=attrgetter("plan")):
        shards = [part.shard for part in group]
        size = max(1, SPAN_ROWS * plan.shards // plan.rows)
        spans += [Span(plan, shards[i : i + size]) for i in range(0, len(shards), size)]
    return spans


def verify_span(span: Span) -> list[str]:
    """List what is wrong with the parts of a span."""
    reader = PlanReader(span.plan)
    return [line for shard in span.shards for line in _verify_part(span.plan, reader.shard(shard), shard)]


def _verify_part(plan: Plan, planned: list[PlanRow], shard: int) -> list[str]:
    name = storage.name_of(plan.part_uri(shard))
    problems, ids = [], []
    try:
        with storage.open_read(plan.part_uri(shard)) as opened:
            file = pq.ParquetFile(opened, buffer_size=parquet.BUFFER, pre_buffer=False)  # no more at once than a group
            if not file.schema_arrow.equals(ROW_SCHEMA):
                return [f"{name} has other columns than a part"]
            counted = totals_in(file.metadata, name)
            seen = np.zeros_like(counted.class_pixels)
            for batch in file.iter_batches(GROUP_ROWS):  # of all columns, as any may be damaged
                for row in batch.select(VERIFIED).to_pylist():
                    ids.append(row["input_id"])
                    if problem := _verify_row(row, seen):
                        problems.append(f"{name}: the mask of {row['input_id']} {problem}")
    except DataError as error:
        return [str(error).rstrip(".")]
    except (OSError, ValueError, pa.ArrowException, SegrayError) as error:
        return [f"{name} cannot be read: {storage.reason(error)}"]
    if ids != [row["input_id"] for row in planned]:
        return [f"{name} holds {formatting.counted(len(ids), 'row')} that are not the plan's {len(planned)}"]
    if not np.array_equal(seen, counted.class_pixels):
        problems.append(f"{name}: its totals are not those of its rows")
    return problems


def _verify_row(row: dict[str, Any], seen: np.ndarray) -> str | None:
    """Say what is wrong with a row's mask; add its class pixels to those that were seen if it counts."""
    try:
        mask = mask_of(row, "it")
    except DataError as error:
        return f"cannot be read: {error}"
    if row["status"] == "ok":
        seen += row["class_pixels"]
    if mask is not None and (
        mask.shape != (row["height_px"], row["width_px"])
        or quality.class_pixels(mask, len(seen)).tolist() != row["class_pixels"]
    ):
        return "is not what its row says"
    return None
