"""A folder of labels → its plans, the parts that are there, and the rows that count; whatever reads labels asks here.

A plan after the first one adds inputs, or tries failed rows again. A failed row that a later plan repeats does not
count any more, whether it is labelled again yet or not. A folder is finished when `_SUCCESS` names all its plans.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.core.formatting import counted
from segray.core.io import parquet, storage
from segray.core.labels.plan import Plan, PlanReader, PlanRow, load_plans, repeated_ids
from segray.core.labels.schema import ROW_SCHEMA
from segray.core.labels.totals import Summary, Totals
from segray.core.prefetch import FETCHES, ahead
from segray.core.progress import Progress, untold
from segray.core.samples import LabelSpace
from segray.errors import DataError

PART = re.compile(r"part-(\d+)-of-\d+-(\w+)\.parquet")
FOOTERS = 32  # footers that are read at once: on S3 each is two round trips
ERROR_COLUMNS = ["input_id", "uri", "video_uri", "frame_index", "error_code", "error_message"]


class Part(NamedTuple):
    """A part that is there. modified_s: when it was made, in seconds of Unix time."""

    plan: Plan
    shard: int
    modified_s: float

    @property
    def uri(self) -> str:
        return self.plan.part_uri(self.shard)


class Parts:
    """The parts that are there, in the order of plans and shards. Each takes eight bytes: a fleet has a million.

    made_s: of each plan by its number, when each of its parts was made, in Unix time; nan for one that is not there.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = plans
        self.made_s = {plan.number: np.full(plan.shards, np.nan) for plan in plans}
        named = {plan.plan_id[:8]: plan for plan in plans}
        for entry in storage.iter_files(storage.join(plans[0].out, "labels"), deep=False):
            name = storage.name_of(entry.uri)
            if (found := PART.fullmatch(name)) and (plan := named.get(found[2])):
                shard = int(found[1])
                if shard < plan.shards and name == storage.name_of(plan.part_uri(shard)):
                    self.made_s[plan.number][shard] = entry.modified_s

    def __len__(self) -> int:
        return sum(int(np.count_nonzero(is_there)) for is_there in self.is_there.values())

    def __iter__(self) -> Iterator[Part]:
        for plan in self.plans:
            made_s = self.made_s[plan.number]
            for shard in np.flatnonzero(self.is_there[plan.number]).tolist():
                yield Part(plan, shard, float(made_s[shard]))

    @cached_property
    def is_there(self) -> dict[int, np.ndarray]:
        """Say by a plan's number which of its shards have a part, bool [shards]."""
        return {number: ~np.isnan(made_s) for number, made_s in self.made_s.items()}


class LabelFolder:
    """The labels of some plans of an output, as they are at the first look."""

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
        return sum(map(len, self._repeats.values()))

    @cached_property
    def parts(self) -> Parts:
        return Parts(self.plans)

    def missing(self) -> np.ndarray:
        """Say of each shard of all plans, in that order, whether its part is not there, bool [shards]."""
        return np.concatenate([~self.parts.is_there[plan.number] for plan in self.plans])

    @cached_property
    def starts(self) -> np.ndarray:
        """The position of each plan's first shard among those of all plans."""
        return np.cumsum([0, *(plan.shards for plan in self.plans[:-1])])

    @cached_property
    def summary(self) -> Summary | None:
        """What `_SUCCESS` says of these plans; None while their run is unfinished."""
        return read_summary(self.plans)

    @property
    def unfinished(self) -> str | None:
        """What is left to do and how, in a sentence; None for finished labels whose parts are all there."""
        missing = self.shards - len(self.parts)
        if self.summary is not None and not missing:
            return None
        parts = counted(self.shards, "part is", "parts are")
        left = f"{missing:,} of its {parts} {'gone' if self.summary else 'not labelled yet'}"
        if not missing:
            left = "its totals are not written yet"
        return f"{left}. The segray label command that wrote it resumes there."

    @cached_property
    def _repeats(self) -> dict[int, frozenset[str]]:
        """Return by a plan's number the ids of the failed rows that it repeats."""
        return {plan.number: frozenset(repeated_ids(plan).to_pylist()) for plan in self.plans if plan.number}

    @cached_property
    def repeated_after(self) -> dict[int, frozenset[str]]:
        """Return by a plan's number the ids of rows that a later plan repeats."""
        later = {plan.number: [self._repeats[n] for n in self._repeats if n > plan.number] for plan in self.plans}
        return {number: frozenset().union(*ids) for number, ids in later.items()}

    def current(self, plan: Plan, rows: pa.Table) -> pa.Table:
        """Return those of a plan's rows that count; the rows must have their input_id."""
        if not (repeated := self.repeated_after[plan.number]):
            return rows
        # An Arrow is_in() would hash all repeated ids again for each part.
        return rows.filter(pa.array([one not in repeated for one in rows["input_id"].to_pylist()], pa.bool_()))

    def by_part(self, columns: Sequence[str]) -> Iterator[tuple[Part, pa.Table]]:
        """Give each part with its rows that count: `columns`, and `row`, the row's number in it.

        A few parts are read ahead; tables that were given are not kept. DataError for a torn part.
        """

        def read(part: Part) -> tuple[Part, pa.Table]:
            rows = parquet.read(part.uri, list({*columns, "input_id"}))
            rows = rows.append_column("row", pa.array(np.arange(len(rows))))
            return part, self.current(part.plan, rows).select([*columns, "row"])

        with ThreadPoolExecutor(FETCHES) as pool:
            yield from ahead(pool, read, self.parts, 2 * FETCHES)

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Give the rows that count as by_part() does, with `part`, the part's URI."""
        for part, rows in self.by_part(columns):
            yield rows.add_column(len(columns), "part", pa.repeat(part.uri, len(rows)))

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
        errors = [ROW_SCHEMA.empty_table().select(ERROR_COLUMNS)]
        with ThreadPoolExecutor(FOOTERS) as pool:
            for part, counts, failed in ahead(pool, _part_totals, self.parts, 2 * FOOTERS):
                progress(1, self.shards)
                if len(failed):
                    errors.append(self.current(part.plan, failed))
                    counts.rows -= len(failed) - len(errors[-1])
                totals.add(counts)
        failed = pa.concat_tables(errors)
        totals.errors = Counter(failed["error_code"].to_pylist())
        return totals, failed

    def failed_rows(self) -> dict[str, PlanRow]:
        """Return the plan rows of a finished run's errors, by id. Parts are read: errors.parquet may be outdated."""
        ids = frozenset(self.totals()[1]["input_id"].to_pylist())
        found: dict[str, PlanRow] = {}
        for plan in self.plans:
            for rows in PlanReader(plan).batches(["input_id", "uri", "raw", "truth_uri"]):
                failed = pa.array([one in ids for one in rows["input_id"].to_pylist()], pa.bool_())
                found |= {row["input_id"]: row for row in rows.filter(failed).to_pylist()}
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
        return totals_in(file.metadata, uri)


def totals_in(footer: pq.FileMetaData, uri: str) -> Totals:
    """Read the totals of a part's rows from its footer. DataError for a damaged one."""
    try:
        return Totals.from_dict(json.loads(footer.metadata[b"segray"])["totals"])
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{uri} has no totals that can be read. Remove it and run again what wrote it.") from error


def _part_totals(part: Part) -> tuple[Part, Totals, pa.Table]:
    with parquet.opened(part.uri, ahead=0, pre_buffer=True) as file:
        counts = totals_in(file.metadata, part.uri)
        if not counts.errors:
            return part, counts, ROW_SCHEMA.empty_table().select(ERROR_COLUMNS)
        rows = file.read(columns=[*ERROR_COLUMNS, "status"]).replace_schema_metadata()
    return part, counts, rows.filter(pc.equal(rows["status"], "error")).select(ERROR_COLUMNS)


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
