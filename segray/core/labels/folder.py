"""A folder of labels → its plans, the parts that are there, and the rows that count; whatever reads labels asks here.

A plan after the first one adds inputs, or tries failed rows again. A failed row that a later plan repeats does not
count any more, whether it is labelled again yet or not. A folder is finished when `_SUCCESS` names all its plans.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from segray.core.io import parquet, storage
from segray.core.labels.plan import Plan, PlanReader, PlanRow, load_plans, repeated_ids
from segray.core.labels.schema import ROW_SCHEMA
from segray.core.labels.totals import Summary, Totals
from segray.core.prefetch import FETCHES, ahead
from segray.core.progress import Progress, untold
from segray.core.samples import LabelSpace
from segray.errors import DataError

ERROR_COLUMNS = ["input_id", "uri", "video_uri", "frame_index", "error_code", "error_message"]


class Part(NamedTuple):
    """A part that is there. modified_s: when it was made, in seconds of Unix time."""

    plan: Plan
    shard: int
    uri: str
    modified_s: float


class LabelFolder:
    """The labels of some plans of an output, as they are at the first look.

    parts: those that are there, in the order of plans and shards.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = list(plans)
        self.place = plans[0].out

    @classmethod
    def open(cls, labels: str) -> LabelFolder:
        """Open all labels of an output. DataError where there are none."""
        if not (plans := load_plans(storage.absolute(labels))):
            raise DataError(f"{labels} holds no labels; give the --out of segray label.")
        return cls(plans)

    @classmethod
    def open_finished(cls, labels: str) -> LabelFolder:
        """Open all labels of an output. DataError where there are none, or a run or `--extend` is unfinished."""
        folder = cls.open(labels)
        if left := folder.unfinished:
            raise DataError(f"{labels} is not finished: {left}")
        return folder

    @property
    def space(self) -> LabelSpace:
        return self.plans[0].label_space

    @property
    def shards(self) -> int:
        """How many parts are planned."""
        return sum(plan.shards for plan in self.plans)

    @cached_property
    def planned(self) -> int:
        """How many rows will count when all parts are there."""
        return sum(plan.rows for plan in self.plans) - self.repeated

    @property
    def repeated(self) -> int:
        """How many failed rows do not count any more, all in parts that are there."""
        return sum(len(ids) for ids in self._repeats)

    @cached_property
    def parts(self) -> list[Part]:
        there = {entry.uri: entry for entry in storage.iter_files(storage.join(self.place, "labels"))}
        planned = ((plan, shard, plan.part_uri(shard)) for plan in self.plans for shard in range(plan.shards))
        return [Part(plan, shard, uri, there[uri].modified_s) for plan, shard, uri in planned if uri in there]

    @property
    def done(self) -> set[tuple[int, int]]:
        """The numbers of plan and shard of each part that is there."""
        return {(part.plan.number, part.shard) for part in self.parts}

    @cached_property
    def summary(self) -> Summary | None:
        """What `_SUCCESS` says of these plans; None while their run is unfinished."""
        return read_summary(self.plans)

    @property
    def unfinished(self) -> str | None:
        """What is left to do and how, in a sentence; None for finished labels."""
        if self.summary is not None:
            return None
        missing = self.shards - len(self.parts)
        left = f"{missing} of its {self.shards} parts are not labelled yet" if missing else None
        return f"{left or 'its totals are not written yet'}. The segray label command that wrote it resumes there."

    @cached_property
    def _repeats(self) -> list[pa.Array]:
        """Return for each plan the ids of the failed rows that it repeats."""
        none = pa.array([], pa.string())
        return [repeated_ids(plan) if plan.number else none for plan in self.plans]

    def repeated_after(self, plan: Plan) -> pa.Array:
        """Return the ids of the plan's rows that a later plan repeats."""
        later = [ids for other, ids in zip(self.plans, self._repeats, strict=True) if other.number > plan.number]
        return pa.concat_arrays(later) if later else pa.array([], pa.string())

    def current(self, plan: Plan, rows: pa.Table) -> pa.Table:
        """Return those of a plan's rows that count; the rows must have their input_id."""
        repeated = self.repeated_after(plan)
        return rows.filter(pc.invert(pc.is_in(rows["input_id"], repeated))) if len(repeated) else rows

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Give the rows that count, one part at a time: `columns`, `part`, its URI, and `row`, the row's number in it.

        A few parts are read ahead; tables that were given are not kept. DataError for a torn part.
        """

        def read(part: Part) -> pa.Table:
            rows = parquet.read(part.uri, list({*columns, "input_id"}))
            rows = rows.append_column("part", pa.array([part.uri] * len(rows), pa.string()))
            rows = rows.append_column("row", pa.array(range(len(rows)), pa.int64()))
            return self.current(part.plan, rows).select([*columns, "part", "row"])

        with ThreadPoolExecutor(FETCHES) as pool:
            yield from ahead(pool, read, self.parts, 2 * FETCHES)

    def rows(self, columns: Sequence[str]) -> Iterator[Any]:
        """Give the rows of tables() as dicts, with `place`, where their mask is."""
        for table in self.tables(columns):
            for row in table.to_pylist():
                yield row | {"place": mask_place(row)}

    def stamps(self, ids: Iterable[str] | None = None) -> dict[str, str]:
        """Return by input_id the stamp that a row's file had when it was planned; of all rows, or of these alone."""
        wanted = None if ids is None else pa.array(set(ids), pa.string())
        found: dict[str, str] = {}
        for plan in self.plans:
            for rows in PlanReader(plan).batches(["input_id", "stamp"]):
                kept = rows if wanted is None else rows.filter(pc.is_in(rows["input_id"], wanted))
                found |= zip(kept["input_id"].to_pylist(), kept["stamp"].to_pylist(), strict=True)
        return found

    def totals(self, progress: Progress = untold) -> tuple[Totals, pa.Table]:
        """Sum the totals of all parts, from their footers; also return ERROR_COLUMNS of the failed rows that count."""
        totals = Totals.empty(self.space.num_classes)
        errors = [pa.table({name: pa.array([], ROW_SCHEMA.field(name).type) for name in ERROR_COLUMNS})]
        with ThreadPoolExecutor(FETCHES) as pool:
            read = ahead(pool, _part_totals, (part.uri for part in self.parts), 2 * FETCHES)
            for part, (counts, failed) in zip(self.parts, read, strict=True):
                progress(1, self.shards)
                errors.append(self.current(part.plan, failed))
                counts.rows -= len(failed) - len(errors[-1])
                totals.add(counts)
        failed = pa.concat_tables(errors)
        totals.errors = Counter(failed["error_code"].to_pylist())
        return totals, failed

    def failed_rows(self) -> dict[str, PlanRow]:
        """Return the plan rows of a finished run's errors, by id. Parts are read: errors.parquet may be outdated."""
        ids = self.totals()[1]["input_id"]
        found: dict[str, PlanRow] = {}
        for plan in self.plans:
            rows = PlanReader(plan).columns(["input_id", "uri", "raw", "truth_uri"])
            found |= {row["input_id"]: row for row in rows.filter(pc.is_in(rows["input_id"], ids)).to_pylist()}
        return found


def is_labels(place: str) -> bool:
    """Say whether a place is the --out of `segray label`."""
    return storage.exists(storage.join(storage.absolute(place), "_segray"))


def mask_place(row: Any) -> str:
    """Return the place of a mask, for locators.read_mask(), from a row of LabelFolder.tables()."""
    return f"{row['part']}#row={row['row']}"


def part_totals(uri: str) -> Totals:
    """Read the totals of a part's rows from its footer."""
    with parquet.opened(uri) as file:
        return totals_in(file.schema_arrow, uri)


def totals_in(schema: pa.Schema, uri: str) -> Totals:
    """Read the totals of a part's rows from its schema. DataError for a damaged one."""
    try:
        return Totals.from_dict(json.loads(schema.metadata[b"segray"])["totals"])
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{uri} has no totals that can be read. Remove it and run again what wrote it.") from error


def _part_totals(uri: str) -> tuple[Totals, pa.Table]:
    with parquet.opened(uri) as file:
        counts = totals_in(file.schema_arrow, uri)
        if not counts.errors:
            return counts, ROW_SCHEMA.empty_table().select(ERROR_COLUMNS)
        rows = file.read(columns=[*ERROR_COLUMNS, "status"]).replace_schema_metadata()
    return counts, rows.filter(pc.equal(rows["status"], "error")).select(ERROR_COLUMNS)


def read_summary(plans: Sequence[Plan]) -> Summary | None:
    """Read what `_SUCCESS` says now of these plans; None while their run is unfinished."""
    summary = last_summary(plans[0].out)
    return summary if summary and summary["plans"] == [plan.plan_id for plan in plans] else None


def last_summary(out: str) -> Summary | None:
    """Read `_SUCCESS` as it is now, even if it lacks the last plans; None where no run has finished yet."""
    uri = success_uri(out)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def success_uri(out: str) -> str:
    return storage.join(out, "_SUCCESS")
