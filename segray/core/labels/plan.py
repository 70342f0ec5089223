"""A frozen plan of shards: every row that a run writes, in order, stored before the first is made.

    OUT/_segray/plan-00000.json                        settings, classes, plan id, the files of rows, each shard's size
    OUT/_segray/plan-00000-rows-00000-<hash>.parquet   a row an output row, a row group a shard

A plan is made once, by planning.make_plan, and then loaded: a rerun does not list the inputs again, and so cannot miss
or double one. What comes later, new inputs and another try of failed ones, is a further plan of the same output:
plan-00001. Files of rows have a part of their hash in their names, so that a plan that loses a race replaces nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any, NamedTuple, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.core.io import storage
from segray.core.io.video_index import Start
from segray.core.samples import LabelSpace
from segray.errors import OutputExists, StorageError

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
        ("repeats", pa.string()),  # input_ids of earlier plans' failed rows that this one replaces, spaces between
    ]
)
SCHEMA_VERSION = 3
ONE_FILE = 2  # the version before, of which all rows are in one file
OPENED = 2  # files of rows that a reader has open: shards are mostly asked for in order


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


class RowsFile(NamedTuple):
    """A file of a plan's rows, in the folder `_segray`."""

    name: str
    sha256: str
    shards: int


@dataclass(frozen=True)
class Plan:
    """plan_id: hash of settings and inputs. settings: those that change the output, as plain data."""

    out: str
    number: int
    plan_id: str
    shards: int
    rows: int
    files: tuple[RowsFile, ...]
    model_id: str
    label_space: LabelSpace
    settings: dict[str, Any]

    @property
    def json_uri(self) -> str:
        return storage.join(self.out, "_segray", f"plan-{self.number:05}.json")

    def part_uri(self, shard: int) -> str:
        digits = max(5, len(str(self.shards)))  # all names of a plan sort as their numbers do
        name = f"part-{shard:0{digits}}-of-{self.shards:0{digits}}-{self.plan_id[:8]}.parquet"
        return storage.join(self.out, "labels", name)

    def to_json(self, shard_rows: Sequence[int]) -> bytes:
        """shard_rows: of each shard. They stand in the file alone, as a plan is sent to every process that labels."""
        data = {"schema_version": SCHEMA_VERSION, **self.__dict__, "label_space": self.label_space.to_dict()}
        del data["out"], data["number"]
        data |= {"files": [file._asdict() for file in self.files], "shard_rows": list(shard_rows)}
        return json.dumps(data, indent=2).encode()


class PlanReader:
    """Rows of a plan by shard. Files are opened when they are asked for, and their footers read once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._ends = list(accumulate(file.shards for file in plan.files))
        self._opened: dict[int, pq.ParquetFile] = {}

    def shard(self, shard: int) -> list[PlanRow]:
        file, group = self._find(shard)
        rows: list[PlanRow] = file.read_row_group(group).to_pylist()
        return rows

    def rows_in(self, shard: int) -> int:
        return self._shard_rows[shard]

    def batches(self, names: list[str]) -> Iterator[pa.RecordBatch]:
        for number in range(len(self._plan.files)):
            with self._file(number) as file:
                yield from file.iter_batches(columns=names)

    def columns(self, names: list[str]) -> pa.Table:
        fields = pa.schema([PLAN_SCHEMA.field(name) for name in names])
        return pa.Table.from_batches(self.batches(names), fields)

    def _find(self, shard: int) -> tuple[pq.ParquetFile, int]:
        """Return the file that holds a shard, and which row group it is."""
        number = bisect_right(self._ends, shard)
        if number not in self._opened:
            if len(self._opened) == OPENED:
                self._opened.pop(next(iter(self._opened))).close(force=True)
            self._opened[number] = pq.ParquetFile(storage.open_read(self._uri(number)))
        return self._opened[number], shard - self._ends[number] + self._plan.files[number].shards

    @contextmanager
    def _file(self, number: int) -> Iterator[pq.ParquetFile]:
        with storage.open_read(self._uri(number)) as file:
            yield pq.ParquetFile(file)

    def _uri(self, number: int) -> str:
        return storage.join(self._plan.out, "_segray", self._plan.files[number].name)

    @cached_property
    def _shard_rows(self) -> list[int]:
        rows: list[int] | None = storage.read_json(self._plan.json_uri).get("shard_rows")
        if rows is None:
            with self._file(0) as file:
                rows = [file.metadata.row_group(shard).num_rows for shard in range(self._plan.shards)]
        return rows


def place_of(row: PlanRow) -> str:
    """Return where a plan row's file is, with the file system's own spelling of its name."""
    return row["uri"] if row["raw"] is None else os.fsdecode(row["raw"])


def frame_key(row: Mapping[str, Any]) -> int:
    """Return the key by which read_frames() finds a video row's frame: its time stamp, else its index."""
    key: int = row["frame_index"] if row["pts"] is None else row["pts"]
    return key


def repeated_ids(plan: Plan) -> pa.Array:
    """Return the ids of earlier plans' failed rows that this plan replaces. A video's frames may all replace one."""
    named = PlanReader(plan).columns(["repeats"])["repeats"].combine_chunks().drop_null()
    return pc.list_flatten(pc.split_pattern(named, " ")).unique()


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
    data = storage.read_json(uri)
    if (version := data.pop("schema_version")) not in (ONE_FILE, SCHEMA_VERSION):
        raise OutputExists(
            f"{out} was made by a segray whose plans have version {version}, this one's {SCHEMA_VERSION}; "
            "give another --out, or --overwrite."
        )
    if version == ONE_FILE:
        data["files"] = [{"name": f"plan-{data['plan_id'][:8]}.parquet", "sha256": "", "shards": data["shards"]}]
    data.pop("shard_rows", None)
    data |= {"files": tuple(RowsFile(**file) for file in data["files"])}
    return Plan(out=out, number=number, **{**data, "label_space": LabelSpace.from_dict(data["label_space"])})


def damaged_files(plan: Plan) -> Iterator[tuple[str, range]]:
    """Say of each file of rows that is not as it was written what is wrong, and which shards are planned in it."""
    end = 0
    for file in plan.files:
        first, end = end, end + file.shards
        try:
            data = storage.read_bytes(storage.join(plan.out, "_segray", file.name))
        except StorageError as error:
            yield str(error).rstrip("."), range(first, end)
            continue
        if file.sha256 and hashlib.sha256(data).hexdigest() != file.sha256:  # one of ONE_FILE has none
            told = storage.name_of(plan.json_uri)
            yield f"{file.name} is damaged: its hash is not the one in {told}", range(first, end)


def rows_name(number: int, file: int, sha256: str) -> str:
    """Name a file of rows by its bytes, too: a plan that loses a race must not replace the winner's."""
    return f"plan-{number:05}-rows-{file:05}-{sha256[:16]}.parquet"
