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
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.core import images, inputs, metrics, quality, storage
from segray.core.ahead import ahead, prefetch
from segray.core.datasets.places import mask_of
from segray.core.plan import Plan, PlanReader, Row, load_plans, place_of, repeated_ids
from segray.core.predictor import Prediction, Predictor
from segray.core.samples import LabelSpace
from segray.core.video import read_frames
from segray.errors import (
    DataError,
    InputChanged,
    InputMissing,
    InputTooLarge,
    InputUnreadable,
    ModelError,
    OutputExists,
    SegrayError,
)

FETCHES = 16  # inputs that are read at once: from S3 each is a round trip
THREADS = 4  # that decode and encode beside the model
SCORES = ("pixel_accuracy", "miou", "mean_f1", "mean_sensitivity", "mean_specificity")
FIGURES = ("confidence_mean", "entropy_mean", "low_margin_share", "boundary_share", "flicker_share")
STAGES = ("fetch", "decode", "model", "encode", "write")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RUNS = pa.struct([("values", pa.list_(pa.uint8())), ("lengths", pa.list_(pa.int32()))])
HUGGINGFACE = {"info": {"features": {name: {"_type": "Image"} for name in ("mask", "confidence")}}}  # for the Hub

ROW_SCHEMA = pa.schema(
    [
        ("input_id", pa.string()),
        ("uri", pa.string()),
        ("video_uri", pa.string()),
        ("frame_index", pa.int64()),
        ("pts", pa.int64()),
        ("time_s", pa.float64()),
        ("truth_uri", pa.string()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("mask", IMAGE),
        ("mask_rle", RUNS),
        ("confidence", IMAGE),
        ("class_pixels", pa.list_(pa.int64())),
        ("class_shares", pa.list_(pa.float64())),
        ("component_counts", pa.list_(pa.int64())),
        *[(name, pa.float64()) for name in FIGURES],
        ("status", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("model_id", pa.string()),
        ("plan_id", pa.string()),
        *[(name, pa.float64()) for name in SCORES],
        ("class_iou", pa.list_(pa.float64())),
    ]
)
KEPT = ("input_id", "uri", "video_uri", "frame_index", "pts", "time_s", "truth_uri")  # from the plan's row


CODES = {
    InputChanged: "input_changed",
    InputMissing: "input_missing",
    InputUnreadable: "read_error",
    InputTooLarge: "out_of_memory",
    DataError: "decode_error",
}
ERROR_COLUMNS = ["input_id", "uri", "video_uri", "frame_index", "error_code", "error_message"]


@dataclass(frozen=True)
class Receipt:
    """What a shard came to. created: False when another run had made the part before.

    seconds: work of each of STAGES, over all threads, and `wait`: how long the model waited for frames.
    """

    shard: int
    rows: int
    errors: int
    created: bool
    seconds: dict[str, float] = field(default_factory=dict)


class Labelled(NamedTuple):
    """Finished rows, in the plan's order, and what they add up to."""

    rows: list[Row]
    totals: Totals


class Clock:
    """Seconds by stage, counted in any thread."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


@dataclass
class _Frame:
    """A plan row on its way: its pixels, as they are and as the model sees them, or the reason why there are none.

    lead: shown to the model only to compare the next frame with; it stands in another shard.
    """

    row: Row
    image_hwc: np.ndarray | None = None
    prepared: np.ndarray | None = None
    error: DataError | None = None
    lead: bool = False


def label_shard(
    plan: Plan, rows: list[Row], shard: int, label: Callable[[Plan, list[Row], Clock], Labelled]
) -> Receipt:
    """Label the rows of one shard and create its part. StorageError when it cannot be written.

    label: label_rows with its model, or what calls it in another process.
    """
    clock = Clock()
    done, totals = label(plan, rows, clock)
    with clock("write"):
        created = storage.create(plan.part_uri(shard), _to_parquet(done, plan, totals))
    return Receipt(shard, len(done), totals.errors.total(), created, dict(clock.seconds))


def label_rows(plan: Plan, rows: list[Row], clock: Clock, predictor: Predictor, batch_size: int) -> Labelled:
    """Every row with its mask and figures, or with its error; one that cannot be read is no reason to stop.

    Frames are fetched, decoded and resized in threads before the model asks for them, and encoded behind it.
    """
    totals, encoded = Totals.empty(plan.label_space.num_classes), deque[Future[_Done]]()
    done: list[Row] = []

    def collect(most: int) -> None:
        while len(encoded) > most:
            result = encoded.popleft().result()
            done.append(result.row)
            totals.count(result)

    with ThreadPoolExecutor(FETCHES) as fetching, ThreadPoolExecutor(THREADS) as pool:
        frames = prefetch(_decoded(rows, predictor, clock, fetching, pool), batch_size)
        before: np.ndarray | None = None
        for batch in _batches(frames, batch_size, clock):
            predictions = iter(_predict(predictor, batch, clock))
            for frame in batch:
                prediction = next(predictions) if frame.image_hwc is not None else None
                if not frame.lead:
                    neighbour = before if frame.row["before_pts"] is not None else None
                    encoded.append(pool.submit(_finish_row, plan, frame, prediction, neighbour, clock))
                before = prediction.mask_hw if prediction and frame.row["video_uri"] else None
            collect(2 * batch_size)
        collect(0)
    return Labelled(done, totals)


@dataclass
class Totals:
    """Integers that add up over parts, whatever their order, of the rows that are ok.

    confusion is all zero where nothing had truth.
    """

    rows: int
    errors: Counter[str]
    class_pixels: np.ndarray
    confusion: np.ndarray

    @classmethod
    def empty(cls, classes: int) -> Totals:
        return cls(0, Counter(), np.zeros(classes, np.int64), np.zeros((classes, classes), np.int64))

    def count(self, done: _Done) -> None:
        """Add one row; of failed ones nothing but their code."""
        self.rows += 1
        if done.row["status"] == "error":
            self.errors[done.row["error_code"]] += 1
        else:
            self.class_pixels += done.row["class_pixels"]
            if done.confusion is not None:
                self.confusion += done.confusion

    def add(self, other: Totals) -> None:
        self.rows += other.rows
        self.errors += other.errors
        self.class_pixels += other.class_pixels
        self.confusion += other.confusion

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "ok": self.rows - self.errors.total(),
            "errors": dict(sorted(self.errors.items())),
            "class_pixels": self.class_pixels.tolist(),
            "confusion": self.confusion.tolist() if self.confusion.any() else None,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Totals:
        totals = cls.empty(len(data["class_pixels"]))
        totals.rows, totals.errors = data["rows"], Counter(data["errors"])
        totals.class_pixels += np.array(data["class_pixels"], np.int64)
        if data["confusion"] is not None:
            totals.confusion += np.array(data["confusion"], np.int64)
        return totals


@dataclass(frozen=True)
class _Done:
    row: Row
    confusion: np.ndarray | None = None


def done_shards(plan: Plan) -> set[int]:
    """Shards whose part is there, from one listing."""
    parts = {plan.part_uri(shard): shard for shard in range(plan.shards)}
    return {parts[entry.uri] for entry in storage.iter_files(storage.join(plan.out, "labels")) if entry.uri in parts}


def done_receipt(plan: Plan, shard: int) -> Receipt:
    """The receipt of a part that is there, from its footer."""
    totals = _totals(_open_part(plan.part_uri(shard)))
    return Receipt(shard, totals.rows, totals.errors.total(), created=False)


def finish(plans: list[Plan], more: dict[str, Any], on_part: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Write errors.parquet, summary.json and then `_SUCCESS`, once all parts are there; what `_SUCCESS` says.

    A row that a later plan repeats is out of the counts and out of errors.parquet.
    """
    out, first = plans[0].out, plans[0]
    totals, errors = totals_of(plans, on_part)
    scored = bool(totals.confusion.any())
    summary = {
        "plans": [plan.plan_id for plan in plans],
        "model_id": first.model_id,
        "classes": list(first.label_space.names),
        **totals.to_dict(),
        "scores": metrics.scores(totals.confusion).to_dict() if scored else None,
        "baseline_miou": metrics.majority_baseline(totals.confusion).miou if scored else None,
        "parts": [storage.name_of(plan.part_uri(shard)) for plan in plans for shard in range(plan.shards)],
        **more,
    }
    if len(load_plans(out)) > len(plans):
        return summary  # another run planned more meanwhile: what is written here speaks of all plans
    sink = pa.BufferOutputStream()
    pq.write_table(errors, sink)
    storage.replace(storage.join(out, "errors.parquet"), sink.getvalue().to_pybytes())
    data = json.dumps(summary, indent=2).encode()
    storage.replace(storage.join(out, "summary.json"), data)
    said = _said(out)
    if said and len(said["plans"]) < len(plans):
        storage.replace(success_uri(out), data)
    else:
        storage.create(success_uri(out), data)
    return read_summary(plans) or summary


def totals_of(plans: list[Plan], on_part: Callable[[], None] = lambda: None) -> tuple[Totals, pa.Table]:
    """The sum over all parts, from their footers, and the rows that are errors, less those that were repeated."""
    totals = Totals.empty(plans[0].label_space.num_classes)
    errors = pa.table({name: pa.array([], ROW_SCHEMA.field(name).type) for name in ERROR_COLUMNS})
    for plan in plans:
        if plan.number:
            repeated = pc.is_in(errors["input_id"], repeated_ids(plan))
            totals.rows -= pc.sum(repeated).as_py() or 0
            errors = errors.filter(pc.invert(repeated))
        for shard in range(plan.shards):
            on_part()
            file = _open_part(plan.part_uri(shard))
            counts = _totals(file)
            totals.add(counts)
            if counts.errors:
                rows = file.read(columns=[*ERROR_COLUMNS, "status"])
                failed = rows.filter(pc.equal(rows["status"], "error")).drop_columns("status")
                errors = pa.concat_tables([errors, failed.replace_schema_metadata()])
    totals.errors = Counter(errors["error_code"].to_pylist())
    return totals, errors


def read_summary(plans: list[Plan]) -> dict[str, Any] | None:
    """What `_SUCCESS` says of these plans, or None while their run is not finished."""
    summary = _said(plans[0].out)
    return summary if summary and summary["plans"] == [plan.plan_id for plan in plans] else None


def _said(out: str) -> dict[str, Any] | None:
    uri = success_uri(out)
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def failed_rows(plans: list[Plan]) -> dict[str, Row]:
    """The plan rows of a finished run's errors, by id. From the parts: errors.parquet may be an earlier run's."""
    ids = totals_of(plans)[1]["input_id"]
    found: dict[str, Row] = {}
    for plan in plans:
        rows = PlanReader(plan).columns(["input_id", "uri", "raw"])
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
        problems.append("_SUCCESS is missing: the run is not finished")
    elif not problems:
        totals, _ = totals_of(plans)
        problems += [
            f"_SUCCESS says {key} {summary[key]}, the parts {value}"
            for key, value in totals.to_dict().items()
            if summary[key] != value
        ]
    return problems


def _verify_part(plan: Plan, planned: list[Row], shard: int) -> list[str]:
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


def _decoded(
    rows: list[Row], predictor: Predictor, clock: Clock, fetching: Executor, pool: Executor
) -> Iterator[_Frame]:
    """Rows in order, each with its frame or the reason why there is none."""

    def decode(fetched: tuple[Row, bytes | DataError]) -> _Frame:
        row, data = fetched
        if isinstance(data, DataError):
            return _Frame(row, error=data)
        try:
            with clock("decode"):
                image = images.decode_image(data, _source(row))
                return _Frame(row, image, predictor.prepare(image))
        except DataError as error:
            return _Frame(row, error=error)

    def fetch(row: Row) -> tuple[Row, bytes | DataError]:
        try:
            with clock("fetch"):
                return row, _read(row)
        except DataError as error:
            return row, error

    for (kind, *_), found in groupby(rows, _kind):
        group = list(found)
        if kind == "video":
            yield from _decoded_video(group, predictor, clock)
        else:
            fetched = ahead(fetching, fetch, group, FETCHES) if kind == "image" else _table_cells(group, clock)
            yield from ahead(pool, decode, fetched, THREADS)


def _kind(row: Row) -> tuple[str, str]:
    """Rows with one of these are read together."""
    if row["error"] is not None or row["frame_index"] is None:
        return "image", ""
    return ("video" if row["pts"] is not None else "table"), row["uri"]


def _source(row: Row) -> str:
    return row["uri"] if row["frame_index"] is None else f"{row['uri']}, row {row['frame_index']}"


def _read(row: Row) -> bytes:
    if row["error"] is not None:  # its code stands in the plan too
        raise DataError(row["error"])
    return storage.read_unchanged(place_of(row), row["stamp"])


def _table_cells(rows: list[Row], clock: Clock) -> Iterator[tuple[Row, bytes | DataError]]:
    """The encoded images of one Parquet file's rows."""
    waiting, error = deque(rows), None
    place = place_of(rows[0])
    try:
        storage.check_unchanged(place, rows[0]["stamp"])
        cells = inputs.read_images(place, [row["frame_index"] for row in rows])
        while waiting:
            with clock("fetch"), storage.reading_input(place):
                data = next(cells)
            row = waiting.popleft()
            yield row, data if data is not None else DataError(f"{_source(row)} is empty.")
    except DataError as problem:
        error = problem
    except (pa.ArrowException, OSError, StopIteration) as problem:
        error = DataError(f"{rows[0]['uri']} cannot be read: {storage.reason(problem)}.")
    for row in waiting:
        yield row, error


def _decoded_video(rows: list[Row], predictor: Predictor, clock: Clock) -> Iterator[_Frame]:
    """Frames of one video's span; a frame that the decoder does not give becomes an error row.

    The frame that the plan has before the first one leads, so that flicker does not depend on where spans begin.
    """
    place, waiting = place_of(rows[0]), deque(_Frame(row) for row in rows)
    if rows[0]["before_pts"] is not None:
        waiting.appendleft(_Frame({**rows[0], "pts": rows[0]["before_pts"]}, lead=True))
    error: DataError | None = None
    try:
        storage.check_unchanged(place, rows[0]["stamp"])
        found = read_frames(place, [frame.row["pts"] for frame in waiting])
        while True:
            with clock("decode"), storage.reading_input(place):
                decoded = next(found, None)
                prepared = None if decoded is None else predictor.prepare(decoded.image_hwc)
            if decoded is None:
                break
            while waiting and waiting[0].row["pts"] < decoded.pts:
                yield _lost(waiting.popleft())
            if waiting and waiting[0].row["pts"] == decoded.pts:
                frame = waiting.popleft()
                frame.image_hwc, frame.prepared = decoded.image_hwc, prepared
                yield frame
    except DataError as problem:
        error = problem
    for frame in waiting:
        yield _lost(frame, error)


def _lost(frame: _Frame, error: DataError | None = None) -> _Frame:
    uri = frame.row["uri"]
    frame.error = error or DataError(
        f"{uri}: the decoder gave no frame at this time stamp; the file is damaged or truncated."
    )
    return frame


def _batches(frames: Iterator[_Frame], size: int, clock: Clock) -> Iterator[list[_Frame]]:
    while True:
        with clock("wait"):
            batch = list(islice(frames, size))
        if not batch:
            return
        yield batch


def _predict(predictor: Predictor, batch: list[_Frame], clock: Clock) -> list[Prediction]:
    """A prediction for each frame that has pixels; one that does not fit the GPU's memory has none any more."""
    good = [frame for frame in batch if frame.image_hwc is not None]
    if not good:
        return []
    try:
        with clock("model"):
            return predictor.predict([frame.prepared for frame in good], [frame.image_hwc.shape[:2] for frame in good])
    except ModelError as error:
        if len(good) > 1:
            return [prediction for frame in good for prediction in _predict(predictor, [frame], clock)]
        good[0].error, good[0].image_hwc = InputTooLarge(str(error)), None
        return []


def _finish_row(
    plan: Plan, frame: _Frame, prediction: Prediction | None, before: np.ndarray | None, clock: Clock
) -> _Done:
    if prediction is None:
        codes = (code for kind, code in CODES.items() if isinstance(frame.error, kind))
        code = frame.row["error_code"] or next(codes, "read_error")
        return _Done(lost_row(plan, frame.row, code, str(frame.error)).rows[0])
    with clock("encode"):
        return _ok_row(plan, _common(plan, frame.row), prediction, before)


def lost_row(plan: Plan, row: Row, code: str, message: str) -> Labelled:
    """A row of which nothing is known but that it could not be labelled."""
    done = _Done({**_common(plan, row), "status": "error", "error_code": code, "error_message": message})
    totals = Totals.empty(plan.label_space.num_classes)
    totals.count(done)
    return Labelled([done.row], totals)


def _common(plan: Plan, row: Row) -> Row:
    return {key: row[key] for key in KEPT} | {"model_id": plan.model_id, "plan_id": plan.plan_id}


def _ok_row(plan: Plan, common: Row, prediction: Prediction, before: np.ndarray | None) -> _Done:
    mask, space = prediction.mask_hw, plan.label_space
    pixels = quality.class_pixels(mask, space.num_classes)
    same_size = before is not None and before.shape == mask.shape
    scores, confusion = _score(common["truth_uri"], mask, space)
    row = {
        **common,
        "height_px": mask.shape[0],
        "width_px": mask.shape[1],
        **_encoded(plan, mask, common["input_id"]),
        "confidence": _confidence_map(prediction, common["input_id"]),
        "class_pixels": pixels.tolist(),
        "class_shares": (pixels / mask.size).tolist(),
        "component_counts": quality.component_counts(mask, space.num_classes).tolist(),
        "confidence_mean": prediction.confidence_mean,
        "entropy_mean": prediction.entropy_mean,
        "low_margin_share": prediction.low_margin_share,
        "boundary_share": quality.boundary_share(mask),
        "flicker_share": quality.flicker_share(mask, before) if same_size else None,
        "status": "ok",
        **scores,
    }
    return _Done(row, confusion)


def _encoded(plan: Plan, mask: np.ndarray, input_id: str) -> Row:
    if plan.settings["mask_format"] == "png":
        return {"mask": {"bytes": images.encode_mask(mask, plan.label_space.colors), "path": f"{input_id}.png"}}
    if plan.settings["mask_format"] == "rle":
        flat = mask.ravel()
        starts = np.flatnonzero(np.diff(flat, prepend=flat[0] + 1))
        return {"mask_rle": {"values": flat[starts], "lengths": np.diff(starts, append=flat.size)}}
    return {}


def _confidence_map(prediction: Prediction, input_id: str) -> Row | None:
    if prediction.confidence_hw is None:
        return None
    grey = images.encode_mask(prediction.confidence_hw, [(i, i, i) for i in range(256)])
    return {"bytes": grey, "path": f"{input_id}-confidence.png"}


def _score(truth_uri: str | None, mask: np.ndarray, space: LabelSpace) -> tuple[Row, np.ndarray | None]:
    """Scores of one mask against its truth; a truth that cannot be used makes the row an error, mask kept."""
    if truth_uri is None:
        return {}, None
    try:
        with storage.reading_input(truth_uri):
            data = storage.read_bytes(truth_uri)
        truth = space.apply(images.decode_mask(data, truth_uri), truth_uri)
        if truth.shape != mask.shape:
            raise DataError(f"{truth_uri} is {truth.shape}, its image {mask.shape} (height, width).")
    except DataError as error:
        return {"status": "error", "error_code": "truth_error", "error_message": str(error)}, None
    confusion = metrics.confusion_matrix(truth, mask, space.num_classes)
    scores = metrics.scores(confusion).to_dict()
    return {key: scores[key] for key in (*SCORES, "class_iou")}, confusion


def _to_parquet(rows: list[Row], plan: Plan, totals: Totals) -> bytes:
    """A whole part in memory: a writer that fails half-way would publish a short file that looks whole."""
    about = {"totals": totals.to_dict(), "label_space": plan.label_space.to_dict()}
    schema = ROW_SCHEMA.with_metadata({"huggingface": json.dumps(HUGGINGFACE), "segray": json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _open_part(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_read(uri))


def _totals(file: pq.ParquetFile) -> Totals:
    return Totals.from_dict(json.loads(file.schema_arrow.metadata[b"segray"])["totals"])
