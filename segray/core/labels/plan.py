"""A frozen plan of shards: every row that a run writes, in order, stored before the first is made.

    OUT/_segray/plan-00000.json        settings, classes, counts, plan id
    OUT/_segray/plan-<plan8>.parquet   a row an output row; row group k is shard k

A plan is made once, by planning.make_plan, and then loaded: a rerun does not list the inputs again, and so cannot miss
or double one. What comes later, new inputs and another try of failed ones, is a further plan of the same output:
plan-00001.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from segray.core.io import storage
from segray.core.io.video_index import Start
from segray.core.samples import LabelSpace
from segray.errors import OutputExists

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("input_id", pa.string()),
        ("uri", pa.string()),
        ("raw", pa.binary()),  # the file's name where it is not UTF-8
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("truth_uri", pa.string()),
        ("video_uri", pa.string()),
        ("frame_index", pa.int64()),
        ("pts", pa.int64()),
        ("before_pts", pa.int64()),  # the frame_key() of the frame that the plan holds before this one
        ("start", pa.struct([(name, pa.int64()) for name in Start._fields])),  # for this frame and the one before
        ("time_s", pa.float64()),
        ("error_code", pa.string()),
        ("error", pa.string()),
        ("repeats", pa.string()),  # the input_id of an earlier plan's failed row that this one replaces
    ]
)
SCHEMA_VERSION = 2


class PlanRow(TypedDict):
    """What PLAN_SCHEMA holds; `shard` stands in the file alone."""

    shard: int | None
    input_id: str
    uri: str
    raw: bytes | None
    size: int
    stamp: str
    truth_uri: str | None
    video_uri: str | None
    frame_index: int | None
    pts: int | None
    before_pts: int | None
    start: dict[str, int | None] | None
    time_s: float | None
    error_code: str | None
    error: str | None
    repeats: str | None


@dataclass(frozen=True)
class Plan:
    """plan_id: hash of settings and inputs. settings: those that change the output, as plain data."""

    out: str
    number: int
    plan_id: str
    shards: int
    rows: int
    model_id: str
    label_space: LabelSpace
    settings: dict[str, Any]

    @property
    def json_uri(self) -> str:
        return storage.join(self.out, "_segray", f"plan-{self.number:05}.json")

    def part_uri(self, shard: int) -> str:
        return storage.join(self.out, "labels", f"part-{shard:05}-of-{self.shards:05}-{self.plan_id[:8]}.parquet")

    def to_json(self) -> bytes:
        data = {"schema_version": SCHEMA_VERSION, **self.__dict__, "label_space": self.label_space.to_dict()}
        del data["out"], data["number"]
        return json.dumps(data, indent=2).encode()


class PlanReader:
    """Rows of a plan by shard; the file's footer is read once."""

    def __init__(self, plan: Plan) -> None:
        self._file = pq.ParquetFile(storage.open_read(rows_uri(plan.out, plan.plan_id)))

    def shard(self, shard: int) -> list[PlanRow]:
        rows: list[PlanRow] = self._file.read_row_group(shard).to_pylist()
        return rows

    def rows_in(self, shard: int) -> int:
        rows: int = self._file.metadata.row_group(shard).num_rows
        return rows

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        batches: Iterator[pa.RecordBatch] = self._file.iter_batches(columns=names)
        return batches

    def columns(self, names: list[str]) -> pa.Table:
        return self._file.read(columns=names)


def place_of(row: PlanRow) -> str:
    """Return where a plan row's file is, with the file system's own spelling of its name."""
    return row["uri"] if row["raw"] is None else os.fsdecode(row["raw"])


def frame_key(row: Mapping[str, Any]) -> int:
    """Return the key by which read_frames() finds a video row's frame: its time stamp, else its index."""
    key: int = row["frame_index"] if row["pts"] is None else row["pts"]
    return key


def repeated_ids(plan: Plan) -> pa.Array:
    """Return the ids of earlier plans' failed rows that this plan replaces. A video's frames may all replace one."""
    return PlanReader(plan).columns(["repeats"])["repeats"].combine_chunks().drop_null().unique()


def load_plans(out: str) -> list[Plan]:
    """Load the plans of an output folder, in the order in which they were made; [] where there is none."""
    numbers = {}
    for entry in storage.iter_files(storage.join(out, "_segray")):
        if found := re.fullmatch(r"plan-(\d{5})\.json", storage.name_of(entry.uri)):
            numbers[int(found[1])] = entry.uri
    return [load_plan(out, number, numbers[number]) for number in sorted(numbers)]


def check_same(plan: Plan, settings: dict[str, Any], ignoring: Iterable[str] = ()) -> None:
    """Raise OutputExists, naming the differences, when the folder was made with other settings."""
    changed = [
        f"{key} was {plan.settings.get(key)}, is {value}"
        for key, value in settings.items()
        if key not in ignoring and plan.settings.get(key) != value
    ]
    if changed:
        raise OutputExists(
            f"{plan.out} was made with other settings ({'; '.join(changed)}). Give another --out, or --overwrite"
            f"{', or --extend for further inputs' if changed[0].startswith('inputs was') else ''}."
        )


def load_plan(out: str, number: int, uri: str) -> Plan:
    data = json.loads(storage.read_bytes(uri))
    if (version := data.pop("schema_version")) != SCHEMA_VERSION:
        raise OutputExists(
            f"{out} was made by a segray whose plans have version {version}, this one's {SCHEMA_VERSION}; "
            "give another --out, or --overwrite."
        )
    return Plan(out=out, number=number, **{**data, "label_space": LabelSpace.from_dict(data["label_space"])})


def rows_uri(out: str, plan_id: str) -> str:
    """Give each plan a file name of its own: a plan that loses a race must not overwrite the winner's rows."""
    return storage.join(out, "_segray", f"plan-{plan_id[:8]}.parquet")
