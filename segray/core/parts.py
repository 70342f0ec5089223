"""One shard of a plan → one Parquet part; which parts there are; finishing a run; verifying one.

The promise: every row of the plan is written exactly once. A part is absent or complete and never changes,
because it is built in memory and created exclusively. `_SUCCESS` means that all parts are there.

    OUT/labels/part-00042-of-05000-<plan8>.parquet   all rows of shard 42, ok and error
    OUT/errors.parquet                               the error rows again, without masks
    OUT/summary.json, OUT/_SUCCESS                   totals, scores, the list of parts
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.core import metrics, quality, storage
from segray.core.ahead import ahead
from segray.core.datasets.places import mask_of
from segray.core.frames import FETCHES, Clock
from segray.core.plan import Plan, PlanReader, PlanRow, load_plans, repeated_ids
from segray.core.rows import ROW_SCHEMA, Labelled, LabelRow
from segray.errors import DataError, OutputExists, SegrayError

HUGGINGFACE = {"info": {"features": {name: {"_type": "Image"} for name in ("mask", "confidence")}}}  # for the Hub
LEFTOVER_S = 3600.0  # no part takes that long to be written
ERROR_COLUMNS = ["input_id", "uri", "video_uri", "frame_index", "error_code", "error_message"]


@dataclass(frozen=True)
class Receipt:
    """What a shard came to. created: False when another run had made the part before.

    seconds: of fetch, decode, model, encode and write; `wait` is how long the shard waited for its turns at the model.
    """

    shard: int
    rows: int
    errors: int
    created: bool
    seconds: dict[str, float] = field(default_factory=dict)


def label_shard(
    plan: Plan, rows: list[PlanRow], shard: int, label: Callable[[Plan, list[PlanRow], Clock], Labelled]
) -> Receipt:
    """Label the rows of one shard and create its part. StorageError when it cannot be written.

    label: rows.label_rows with its model, or what calls it in another process.
    """
    if storage.exists(plan.part_uri(shard)):  # another run's, or that of a task whose answer was lost
        return done_receipt(plan, shard)
    clock = Clock()
    done, confusion = label(plan, rows, clock)
    totals = Totals.of(done, confusion)
    with clock("write"):
        created = storage.create(plan.part_uri(shard), _to_parquet(done, plan, totals))
    return Receipt(shard, len(done), totals.errors.total(), created, dict(clock.seconds))


class Counts(TypedDict):
    """Totals as JSON holds them. confusion: None where nothing had truth. notes: where there are any."""

    rows: int
    ok: int
    errors: dict[str, int]
    class_pixels: list[int]
    confusion: list[list[int]] | None
    notes: NotRequired[dict[str, int]]


class Speed(TypedDict):
    """Of the call that finished a run: its seconds, those of each stage in all threads, and the rows it labelled."""

    seconds: float
    images_per_s: float | None
    new_rows: int
    stage_seconds: dict[str, float]


class Summary(Counts, Speed):
    """What `_SUCCESS` says. scores, baseline_miou: None where nothing had truth."""

    plans: list[str]
    model_id: str
    classes: list[str]
    scores: metrics.PlainScores | None
    baseline_miou: float | None
    parts: list[str]


@dataclass
class Totals:
    """Integers that add up over parts, whatever their order, of the rows that are ok.

    confusion is all zero where nothing had truth. notes: by code, of what is not known of rows that are ok.
    """

    rows: int
    errors: Counter[str]
    class_pixels: np.ndarray
    confusion: np.ndarray
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def empty(cls, classes: int) -> Totals:
        return cls(0, Counter(), np.zeros(classes, np.int64), np.zeros((classes, classes), np.int64))

    @classmethod
    def of(cls, rows: list[LabelRow], confusion: np.ndarray) -> Totals:
        totals = cls(len(rows), Counter(), np.zeros(len(confusion), np.int64), confusion)
        for row in rows:
            code = row.get("error_code")
            if row["status"] == "error":
                totals.errors[code or ""] += 1
                continue
            if code:
                totals.notes[code] += 1
            if (pixels := row["class_pixels"]) is not None:
                totals.class_pixels += pixels
        return totals

    def add(self, other: Totals) -> None:
        self.rows += other.rows
        self.errors += other.errors
        self.notes += other.notes
        self.class_pixels += other.class_pixels
        self.confusion += other.confusion

    def to_dict(self) -> Counts:
        counts: Counts = {
            "rows": self.rows,
            "ok": self.rows - self.errors.total(),
            "errors": dict(sorted(self.errors.items())),
            "class_pixels": self.class_pixels.tolist(),
            "confusion": self.confusion.tolist() if self.confusion.any() else None,
        }
        if self.notes:
            counts["notes"] = dict(sorted(self.notes.items()))
        return counts

    @classmethod
    def from_dict(cls, data: Counts) -> Totals:
        totals = cls.empty(len(data["class_pixels"]))
        totals.rows, totals.errors = data["rows"], Counter(data["errors"])
        totals.notes = Counter(data.get("notes", {}))
        totals.class_pixels += np.array(data["class_pixels"], np.int64)
        if data["confusion"] is not None:
            totals.confusion += np.array(data["confusion"], np.int64)
        return totals


def done_shards(plan: Plan) -> set[int]:
    """Shards whose part is there, from one listing."""
    parts = {plan.part_uri(shard): shard for shard in range(plan.shards)}
    return {parts[entry.uri] for entry in storage.iter_files(storage.join(plan.out, "labels")) if entry.uri in parts}


def done_receipt(plan: Plan, shard: int) -> Receipt:
    """The receipt of a part that is there, from its footer."""
    totals = _totals(_open_part(plan.part_uri(shard)))
    return Receipt(shard, totals.rows, totals.errors.total(), created=False)


def finish(plans: list[Plan], speed: Speed, on_part: Callable[[], None] = lambda: None) -> Summary:
    """Write errors.parquet, summary.json and then `_SUCCESS`, once all parts are there; what `_SUCCESS` says.

    A row that a later plan repeats is out of the counts and out of errors.parquet.
    """
    out, first = plans[0].out, plans[0]
    totals, errors = totals_of(plans, on_part)
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
    said = _said(out)
    if said and len(said["plans"]) < len(plans):
        storage.replace(success_uri(out), data)
    else:
        storage.create(success_uri(out), data)
    return read_summary(plans) or summary


def _remove_leftovers(out: str) -> None:
    """Temporary files of writers that were killed on a disk; not those of one that may be at work."""
    if storage.is_s3(out):
        return
    for entry in storage.iter_files(storage.join(out, "labels")):
        name = storage.name_of(entry.uri)
        if name.startswith(".part-") and name.endswith(".tmp") and time.time() - int(entry.stamp) / 1e9 > LEFTOVER_S:
            storage.remove(entry.uri)


def totals_of(plans: list[Plan], on_part: Callable[[], None] = lambda: None) -> tuple[Totals, pa.Table]:
    """The sum over all parts, from their footers, and the rows that are errors, less those that were repeated."""
    totals = Totals.empty(plans[0].label_space.num_classes)
    errors = pa.table({name: pa.array([], ROW_SCHEMA.field(name).type) for name in ERROR_COLUMNS})
    for plan in plans:
        if plan.number:
            repeated = pc.is_in(errors["input_id"], repeated_ids(plan))
            totals.rows -= pc.sum(repeated).as_py() or 0
            errors = errors.filter(pc.invert(repeated))
        with ThreadPoolExecutor(FETCHES) as pool:
            for counts, failed in ahead(pool, _part_totals, map(plan.part_uri, range(plan.shards)), 2 * FETCHES):
                on_part()
                totals.add(counts)
                if failed is not None:
                    errors = pa.concat_tables([errors, failed])
    totals.errors = Counter(errors["error_code"].to_pylist())
    return totals, errors


def _part_totals(uri: str) -> tuple[Totals, pa.Table | None]:
    file = _open_part(uri)
    counts = _totals(file)
    if not counts.errors:
        return counts, None
    rows = file.read(columns=[*ERROR_COLUMNS, "status"])
    return counts, rows.filter(pc.equal(rows["status"], "error")).drop_columns("status").replace_schema_metadata()


def read_summary(plans: list[Plan]) -> Summary | None:
    """What `_SUCCESS` says of these plans, or None while their run is not finished."""
    summary = _said(plans[0].out)
    return summary if summary and summary["plans"] == [plan.plan_id for plan in plans] else None


def finished_plans(labels: str) -> list[Plan]:
    """The plans of finished labels. DataError where there are none, or a run or --extend left off."""
    plans = load_plans(storage.absolute(labels))
    if not plans:
        raise DataError(f"{labels} holds no labels; give the --out of segray label.")
    if left := unfinished(plans):
        raise DataError(f"{labels} is not finished: {left}")
    return plans


def unfinished(plans: list[Plan]) -> str | None:
    """What is left to do and how, in a sentence; None for a finished output."""
    if read_summary(plans) is not None:
        return None
    of, missing = sum(plan.shards for plan in plans), sum(plan.shards - len(done_shards(plan)) for plan in plans)
    what = f"{missing} of its {of} parts are not labelled yet" if missing else "its totals are not written yet"
    return f"{what}. The segray label command that wrote it goes on from there."


def _said(out: str) -> Summary | None:
    uri = success_uri(out)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def failed_rows(plans: list[Plan]) -> dict[str, PlanRow]:
    """The plan rows of a finished run's errors, by id. From the parts: errors.parquet may be an earlier run's."""
    ids = totals_of(plans)[1]["input_id"]
    found: dict[str, PlanRow] = {}
    for plan in plans:
        rows = PlanReader(plan).columns(["input_id", "uri", "raw", "truth_uri"])
        found |= {row["input_id"]: row for row in rows.filter(pc.is_in(rows["input_id"], ids)).to_pylist()}
    return found


def success_uri(out: str) -> str:
    return storage.join(out, "_SUCCESS")


def check_empty(out: str) -> None:
    """OutputExists when a folder without a plan holds files: they are not ours."""
    if any("/_segray/" not in entry.uri for entry in storage.iter_files(out)):
        raise OutputExists(f"{out} holds files that are no labels; give another --out.")


def clear(out: str) -> None:
    """Delete what a labelling run wrote, and nothing else. OutputExists when the folder is not one's."""
    if not storage.exists(storage.join(out, "_segray")):
        check_empty(out)
    for name in ("_SUCCESS", "summary.json", "errors.parquet", "labels", "_segray"):
        storage.remove(storage.join(out, name))


def verify(plans: list[Plan], on_part: Callable[[], None] = lambda: None) -> list[str]:
    """Every break of the promise, one line each; [] when there is none. Reads all that was written."""
    problems: list[str] = []
    for plan in plans:
        there, reader = done_shards(plan), PlanReader(plan)
        for shard in range(plan.shards):
            on_part()
            if shard in there:
                problems += _verify_part(plan, reader.shard(shard), shard)
            else:
                problems.append(f"{storage.name_of(plan.part_uri(shard))} is missing")
    summary = read_summary(plans)
    if summary is None:
        speaks = "speaks of the plans before the last" if _said(plans[0].out) else "is missing"
        problems.append(f"_SUCCESS {speaks}: the run is not finished, and the same command goes on")
    elif not problems:
        totals, _ = totals_of(plans)
        said: dict[str, object] = {**summary}
        problems += [
            f"_SUCCESS says {key} {said[key]}, the parts {value}"
            for key, value in totals.to_dict().items()
            if said[key] != value
        ]
    return problems


def _verify_part(plan: Plan, planned: list[PlanRow], shard: int) -> list[str]:
    name = storage.name_of(plan.part_uri(shard))
    try:
        file = _open_part(plan.part_uri(shard))
        rows = file.read().to_pylist()
    except (OSError, ValueError, SegrayError) as error:
        return [f"{name} cannot be read: {storage.reason(error)}"]
    if not file.schema_arrow.equals(ROW_SCHEMA) or b"segray" not in (file.schema_arrow.metadata or {}):
        return [f"{name} has other columns than a part, or no totals"]
    if [row["input_id"] for row in rows] != [row["input_id"] for row in planned]:
        return [f"{name} holds {len(rows)} rows that are not the plan's {len(planned)}"]
    counted = _totals(file)
    seen = np.zeros_like(counted.class_pixels)
    problems = []
    for row in rows:
        try:
            mask = mask_of(row, "it")
        except DataError as error:
            problems.append(f"{name}: the mask of {row['input_id']} cannot be read: {error}")
            continue
        if row["status"] == "ok":
            seen += row["class_pixels"]
        if mask is not None and (
            mask.shape != (row["height_px"], row["width_px"])
            or quality.class_pixels(mask, len(seen)).tolist() != row["class_pixels"]
        ):
            problems.append(f"{name}: the mask of {row['input_id']} is not what its row says")
    if not np.array_equal(seen, counted.class_pixels):
        problems.append(f"{name}: its totals are not those of its rows")
    return problems


def _to_parquet(rows: list[LabelRow], plan: Plan, totals: Totals) -> bytes:
    """A whole part in memory: a writer that fails half-way would publish a short file that looks whole."""
    about = {"totals": totals.to_dict(), "label_space": plan.label_space.to_dict()}
    schema = ROW_SCHEMA.with_metadata({"huggingface": json.dumps(HUGGINGFACE), "segray": json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _open_part(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_read(uri))


def _totals(file: pq.ParquetFile) -> Totals:
    return Totals.from_dict(json.loads(file.schema_arrow.metadata[b"segray"])["totals"])
