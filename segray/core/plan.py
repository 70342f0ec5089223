"""Inputs → a frozen plan of shards: every row that the run will write, in order, before the first is made.

    OUT/_segray/plan.json              settings, classes, counts, plan id
    OUT/_segray/plan-<plan8>.parquet   a row an output row; row group k is shard k

A plan is made once and then loaded: a rerun does not list the inputs again, and so cannot miss or double one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.core import storage
from segray.core.datasets.pairs import find_truth, pair_key
from segray.core.images import IMAGE_SUFFIXES
from segray.core.samples import LabelSpace
from segray.core.storage import Entry
from segray.core.video import VIDEO_SUFFIXES, index_video
from segray.errors import DataError, OutputExists

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("input_id", pa.string()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("stamp", pa.string()),
        ("truth_uri", pa.string()),
        ("video_uri", pa.string()),
        ("frame_index", pa.int64()),
        ("pts", pa.int64()),
        ("time_s", pa.float64()),
        ("error", pa.string()),
    ]
)
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """plan_id: hash of settings and inputs. settings: what makes another output, as plain data."""

    out: str
    plan_id: str
    shards: int
    rows: int
    model_id: str
    label_space: LabelSpace
    settings: dict[str, Any]

    def part_uri(self, shard: int) -> str:
        return storage.join(self.out, "labels", f"part-{shard:05}-of-{self.shards:05}-{self.plan_id[:8]}.parquet")

    def to_json(self) -> bytes:
        data = {"schema_version": SCHEMA_VERSION, **self.__dict__, "label_space": self.label_space.to_dict()}
        del data["out"]
        return json.dumps(data, indent=2).encode()


class PlanReader:
    """Rows of a plan by shard; the file's footer is read once."""

    def __init__(self, out: str) -> None:
        plan_id = json.loads(storage.read_bytes(_json_uri(out)))["plan_id"]
        self._file = pq.ParquetFile(storage.open_read(_rows_uri(out, plan_id)))

    def shard(self, shard: int) -> list[dict[str, Any]]:
        return self._file.read_row_group(shard).to_pylist()


def load_plan(out: str) -> Plan | None:
    """The plan of an output folder, or None where there is none."""
    uri = _json_uri(out)
    if not storage.exists(uri):
        return None
    data = json.loads(storage.read_bytes(uri))
    del data["schema_version"]
    return Plan(out=out, **{**data, "label_space": LabelSpace.from_dict(data["label_space"])})


def make_plan(out: str, settings: dict[str, Any], label_space: LabelSpace) -> Plan:
    """List the inputs, cut them into shards, and freeze both; the plan that is there already wins a race.

    Raises DataError when nothing is found, and StorageError for a place that cannot be listed.
    """
    groups = list(_shards(settings["inputs"], settings["truth"], settings["every"], settings["shard_size"]))
    if not groups:
        raise DataError(f"No image or video found in {', '.join(settings['inputs'])}.")
    digest = hashlib.sha256(json.dumps([settings, label_space.to_dict()], sort_keys=True).encode())
    for rows in groups:
        digest.update(json.dumps(rows, sort_keys=True).encode())
    count = sum(len(rows) for rows in groups)
    plan = Plan(out, digest.hexdigest(), len(groups), count, settings["model_id"], label_space, settings)
    # plan.json is created last: it says that the rows are there, and names the file that holds them.
    storage.replace(_rows_uri(out, plan.plan_id), _to_parquet(groups))
    storage.create(_json_uri(out), plan.to_json())
    return load_plan(out) or plan


def plan_settings(
    inputs: Sequence[str],
    truth: str | None,
    every: int,
    shard_size: int,
    model_id: str,
    infer: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What decides a plan beside the files themselves."""
    return {
        "inputs": list(inputs),
        "truth": truth,
        "every": every,
        "shard_size": shard_size,
        "model_id": model_id,
        "infer": dict(infer or {}),
        "schema_version": SCHEMA_VERSION,
    }


def check_same(plan: Plan, settings: dict[str, Any]) -> None:
    """OutputExists that names what differs, when the folder was made with other settings."""
    changed = [f"{key} was {plan.settings.get(key)}, is {value}" for key, value in settings.items()
               if plan.settings.get(key) != value]  # fmt: skip
    if changed:
        raise OutputExists(
            f"{plan.out} was made with other settings ({'; '.join(changed)}). Give another --out, or --overwrite."
        )


def _shards(inputs: Sequence[str], truth: str | None, every: int, shard_size: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of each shard: images by `shard_size`, and spans of one video that start at keyframes."""
    truths = find_truth(truth) if truth else {}
    images, videos = _list_inputs(inputs)
    if truth and not any(pair_key(storage.stem_of(entry.uri)) in truths for entry in images):
        raise DataError(f"No mask in {truth} has the stem of an image; truth pairs by file name.")
    for start in range(0, len(images), shard_size):
        chunk = images[start : start + shard_size]
        yield [_image_row(entry, truths) for entry in chunk]
    for entry in videos:
        yield from _video_shards(entry, every, shard_size)


def _video_shards(entry: Entry, every: int, shard_size: int) -> Iterator[list[dict[str, Any]]]:
    try:
        _check_name(entry.uri)
        index = index_video(entry.uri)
    except DataError as error:
        yield [_row(entry, error=str(error))]  # an input has a row, also one that cannot be opened
        return
    frames = range(0, len(index.pts), every)
    for start in range(0, len(frames), shard_size):
        yield [
            _row(entry, video_uri=entry.uri, frame_index=i, pts=index.pts[i], time_s=index.time_s(i))
            for i in frames[start : start + shard_size]
        ]


def _list_inputs(inputs: Sequence[str]) -> tuple[list[Entry], list[Entry]]:
    """(images, videos), each sorted and without repeats. DataError for an input that does not exist."""
    found: dict[str, Entry] = {}
    for root in inputs:
        entries = storage.list_files(root)
        if not entries and not storage.exists(root):
            raise DataError(f"{root} does not exist; give an image, a video, or a folder of them.")
        found |= {entry.uri: entry for entry in entries if not storage.name_of(entry.uri).startswith(".")}
    ordered = [found[uri] for uri in sorted(found)]
    by_kind = (
        [entry for entry in ordered if _suffix(entry.uri) in kinds] for kinds in (IMAGE_SUFFIXES, VIDEO_SUFFIXES)
    )
    return next(by_kind), next(by_kind)


def _image_row(entry: Entry, truths: dict[str, str]) -> dict[str, Any]:
    try:
        _check_name(entry.uri)
    except DataError as error:
        return _row(entry, error=str(error))
    return _row(entry, truth_uri=truths.get(pair_key(storage.stem_of(entry.uri))))


def _check_name(uri: str) -> None:
    """DataError for a name on disk that is not UTF-8: Python opens it, but Parquet and JSON cannot hold it."""
    if _printable(uri) != uri:
        raise DataError(f"{_printable(uri)} has a name that is not UTF-8; rename it.")


def _printable(uri: str) -> str:
    return os.fsencode(uri).decode(errors="backslashreplace")


def _row(entry: Entry, **more: Any) -> dict[str, Any]:
    text = entry.uri if more.get("frame_index") is None else f"{entry.uri}#{more['frame_index']}"
    input_id = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]
    return {"input_id": input_id, "uri": _printable(entry.uri), "size": entry.size, "stamp": entry.stamp, **more}


def _to_parquet(groups: list[list[dict[str, Any]]]) -> bytes:
    """A row group a shard, so that an actor reads no more than its own."""
    sink = pa.BufferOutputStream()
    writer = pq.ParquetWriter(sink, PLAN_SCHEMA, compression="zstd")
    for shard, rows in enumerate(groups):
        writer.write_table(pa.Table.from_pylist([{**row, "shard": shard} for row in rows], PLAN_SCHEMA))
    writer.close()
    return sink.getvalue().to_pybytes()


def _suffix(uri: str) -> str:
    return f".{uri.rsplit('.', 1)[-1].lower()}"


def _json_uri(out: str) -> str:
    return storage.join(out, "_segray", "plan.json")


def _rows_uri(out: str, plan_id: str) -> str:
    """A name of its own for each plan: one that loses a race must not write over the rows of the winner."""
    return storage.join(out, "_segray", f"plan-{plan_id[:8]}.parquet")
