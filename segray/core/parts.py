"""One shard of a plan → one Parquet part; which parts there are; finishing a run; verifying one.

The promise: every row of the plan is written exactly once. A part is absent or complete and never changes,
because it is built in memory and created exclusively. `_SUCCESS` means that all parts are there.

    OUT/labels/part-00042-of-05000-<plan8>.parquet   all rows of shard 42, ok and error
    OUT/errors.parquet                               the error rows again, without masks
    OUT/_SUCCESS                                     JSON: totals, scores, the list of parts
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray.core import images, metrics, quality, storage
from segray.core.plan import Plan, PlanReader
from segray.core.predictor import Prediction, Predictor
from segray.core.samples import LabelSpace
from segray.core.video import read_frames
from segray.errors import DataError, InputChanged, InputMissing, OutputExists, SegrayError

DECODE_THREADS = 2
SCORES = ("pixel_accuracy", "miou", "mean_f1", "mean_sensitivity", "mean_specificity")
FIGURES = ("confidence_mean", "entropy_mean", "low_margin_share", "boundary_share", "flicker_share")
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
HUGGINGFACE = {"info": {"features": {name: {"_type": "Image"} for name in ("mask", "confidence")}}}  # for the Hub

ROW_SCHEMA = pa.schema(
    [
        ("input_id", pa.string()),
        ("uri", pa.string()),
        ("video_uri", pa.string()),
        ("frame_index", pa.int64()),
        ("time_s", pa.float64()),
        ("truth_uri", pa.string()),
        ("height_px", pa.int32()),
        ("width_px", pa.int32()),
        ("mask", IMAGE),
        ("confidence", IMAGE),
        ("class_pixels", pa.list_(pa.int64())),
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
CODES = {InputChanged: "input_changed", InputMissing: "input_missing", DataError: "decode_error"}


@dataclass(frozen=True)
class Receipt:
    """What a shard came to. created: False when another run had made the part before."""

    shard: int
    rows: int
    errors: int
    created: bool


@dataclass
class _Row:
    """A plan row on its way: its frame while it is needed, then its results."""

    plan: dict[str, Any]
    image_hwc: np.ndarray | None = None
    error: SegrayError | None = None


def label_shard(plan: Plan, rows: list[dict[str, Any]], shard: int, predictor: Predictor, batch_size: int) -> Receipt:
    """Label the rows of one shard and create its part. StorageError when it cannot be written."""
    totals = Totals.empty(plan.label_space.num_classes)
    done: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for batch in _batches(_decoded(rows, pool), batch_size):
            good = [row for row in batch if row.image_hwc is not None]
            predictions = iter(_predict(predictor, good))
            for row in batch:
                if row.image_hwc is None:
                    done.append(_error_row(plan, row.plan, row.error))
                    continue
                prediction = next(predictions)
                done.append(_ok_row(plan, row.plan, prediction, before, totals))
                before = prediction.mask_hw if row.plan["video_uri"] else None
    totals.rows, totals.errors = len(done), Counter(row["error_code"] for row in done if row["status"] == "error")
    created = storage.create(plan.part_uri(shard), _to_parquet(done, plan, totals))
    return Receipt(shard, len(done), totals.errors.total(), created)


@dataclass
class Totals:
    """Integers that add up over parts, whatever their order. confusion is all zero where nothing had truth."""

    rows: int
    errors: Counter[str]
    class_pixels: np.ndarray
    confusion: np.ndarray

    @classmethod
    def empty(cls, classes: int) -> Totals:
        return cls(0, Counter(), np.zeros(classes, np.int64), np.zeros((classes, classes), np.int64))

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


def done_shards(plan: Plan) -> set[int]:
    """Shards whose part is there, from one listing."""
    parts = {plan.part_uri(shard): shard for shard in range(plan.shards)}
    return {parts[entry.uri] for entry in storage.list_files(storage.join(plan.out, "labels")) if entry.uri in parts}


def part_rows(plan: Plan, shard: int) -> int:
    """Rows of one part, from its footer."""
    return _open_part(plan.part_uri(shard)).metadata.num_rows


def totals_of(plan: Plan, on_part: Callable[[], None] = lambda: None) -> Totals:
    """The sum over all parts, read from their footers alone."""
    totals = Totals.empty(plan.label_space.num_classes)
    for shard in range(plan.shards):
        on_part()
        totals.add(_part_totals(_open_part(plan.part_uri(shard))))
    return totals


def finish(plan: Plan, more: dict[str, Any]) -> dict[str, Any]:
    """Write errors.parquet and then `_SUCCESS`, once all parts are there; what `_SUCCESS` says."""
    totals = totals_of(plan)
    columns = ["input_id", "uri", "frame_index", "error_code", "error_message"]
    if totals.errors:
        tables = [_open_part(plan.part_uri(shard)).read(columns=[*columns, "status"]) for shard in range(plan.shards)]
        failed = pa.concat_tables(table.filter(pa.compute.equal(table["status"], "error")) for table in tables)
        sink = pa.BufferOutputStream()
        pq.write_table(failed.drop_columns("status"), sink)
        storage.replace(storage.join(plan.out, "errors.parquet"), sink.getvalue().to_pybytes())
    scored = bool(totals.confusion.any())
    summary = {
        "plan_id": plan.plan_id,
        "model_id": plan.model_id,
        **totals.to_dict(),
        "scores": metrics.scores(totals.confusion).to_dict() if scored else None,
        "baseline_miou": metrics.majority_baseline(totals.confusion).miou if scored else None,
        "parts": [storage.name_of(plan.part_uri(shard)) for shard in range(plan.shards)],
        **more,
    }
    storage.create(success_uri(plan.out), json.dumps(summary, indent=2).encode())
    return read_summary(plan.out) or summary


def read_summary(out: str) -> dict[str, Any] | None:
    """What `_SUCCESS` says, or None while a run is not finished."""
    return json.loads(storage.read_bytes(success_uri(out))) if storage.exists(success_uri(out)) else None


def success_uri(out: str) -> str:
    return storage.join(out, "_SUCCESS")


def check_empty(out: str) -> None:
    """OutputExists when a folder without a plan holds files: they are not ours."""
    if any("/_segray/" not in entry.uri for entry in storage.list_files(out)):
        raise OutputExists(f"{out} holds files that are no labels; give another --out.")


def clear(out: str) -> None:
    """Delete what a labelling run wrote, and nothing else. OutputExists when the folder is not one's."""
    if not storage.exists(storage.join(out, "_segray")):
        check_empty(out)
    for name in ("_SUCCESS", "errors.parquet", "labels", "_segray"):
        storage.remove(storage.join(out, name))


def verify(plan: Plan, on_part: Callable[[], None] = lambda: None) -> list[str]:
    """Every break of the promise, one line each; [] when there is none. Reads all that was written."""
    problems: list[str] = []
    there, reader = done_shards(plan), PlanReader(plan.out)
    totals = Totals.empty(plan.label_space.num_classes)
    for shard in range(plan.shards):
        on_part()
        if shard not in there:
            problems.append(f"{storage.name_of(plan.part_uri(shard))} is missing")
            continue
        problems += _verify_part(plan, reader.shard(shard), shard, totals)
    summary = read_summary(plan.out)
    if summary is None:
        problems.append("_SUCCESS is missing: the run is not finished")
    elif not problems:
        problems += [
            f"_SUCCESS says {key} {summary[key]}, the parts {value}"
            for key, value in totals.to_dict().items()
            if summary[key] != value
        ]
    return problems


def _verify_part(plan: Plan, planned: list[dict[str, Any]], shard: int, totals: Totals) -> list[str]:
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
    counted = _part_totals(file)
    totals.add(counted)
    seen = np.zeros_like(counted.class_pixels)
    problems = []
    for row in rows:
        if row["mask"] is None:
            continue
        try:
            mask = images.decode_mask(row["mask"]["bytes"], "its PNG")
        except DataError as error:
            problems.append(f"{name}: the mask of {row['input_id']} cannot be read: {error}")
            continue
        pixels = np.bincount(mask.ravel(), minlength=len(seen))
        seen += pixels[: len(seen)]
        if mask.shape != (row["height_px"], row["width_px"]) or pixels.tolist() != row["class_pixels"]:
            problems.append(f"{name}: the mask of {row['input_id']} is not what its row says")
    if not np.array_equal(seen, counted.class_pixels):
        problems.append(f"{name}: its totals are not those of its rows")
    return problems


def _decoded(rows: list[dict[str, Any]], pool: ThreadPoolExecutor) -> Iterator[_Row]:
    """Rows in order, each with its frame or the reason why there is none; a few are decoded ahead."""
    if rows[0]["video_uri"]:
        yield from _decoded_video(rows)
        return
    ahead: deque[Future[_Row]] = deque()
    for row in rows:
        ahead.append(pool.submit(_decode_image, row))
        if len(ahead) > 2 * DECODE_THREADS:
            yield ahead.popleft().result()
    while ahead:
        yield ahead.popleft().result()


def _decode_image(row: dict[str, Any]) -> _Row:
    try:
        if row["error"]:
            raise DataError(row["error"])
        data = storage.read_unchanged(row["uri"], row["stamp"])
        return _Row(row, images.decode_image(data, row["uri"]))
    except SegrayError as error:
        return _Row(row, error=error)


def _decoded_video(rows: list[dict[str, Any]]) -> Iterator[_Row]:
    """Frames of one video's span; a frame that the decoder does not give becomes an error row."""
    waiting = deque(rows)
    error: SegrayError | None = None
    try:
        storage.check_unchanged(rows[0]["video_uri"], rows[0]["stamp"])
        for frame in read_frames(rows[0]["video_uri"], [row["pts"] for row in rows]):
            while waiting and waiting[0]["pts"] < frame.pts:
                yield _Row(waiting.popleft(), error=_no_frame(rows[0]["video_uri"]))
            if waiting and waiting[0]["pts"] == frame.pts:
                yield _Row(waiting.popleft(), frame.image_hwc)
    except SegrayError as problem:
        error = problem
    for row in waiting:
        yield _Row(row, error=error or _no_frame(row["video_uri"]))


def _no_frame(uri: str) -> DataError:
    return DataError(f"{uri}: the decoder gave no frame at this time stamp; the file is damaged or truncated.")


def _batches(rows: Iterator[_Row], size: int) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _predict(predictor: Predictor, rows: list[_Row]) -> list[Prediction]:
    if not rows:
        return []
    frames = [row.image_hwc for row in rows if row.image_hwc is not None]
    return predictor.predict([predictor.prepare(frame) for frame in frames], [frame.shape[:2] for frame in frames])


def _ok_row(
    plan: Plan, row: dict[str, Any], prediction: Prediction, before: np.ndarray | None, totals: Totals
) -> dict[str, Any]:
    mask = prediction.mask_hw
    pixels = np.bincount(mask.ravel(), minlength=plan.label_space.num_classes)
    totals.class_pixels += pixels
    same_size = before is not None and before.shape == mask.shape
    return {
        **_common(plan, row),
        "height_px": mask.shape[0],
        "width_px": mask.shape[1],
        "mask": {"bytes": images.encode_mask(mask, plan.label_space.colors), "path": f"{row['input_id']}.png"},
        "confidence": _confidence_map(prediction, row),
        "class_pixels": pixels.tolist(),
        "confidence_mean": prediction.confidence_mean,
        "entropy_mean": prediction.entropy_mean,
        "low_margin_share": prediction.low_margin_share,
        "boundary_share": quality.boundary_share(mask),
        "flicker_share": quality.flicker_share(mask, before) if same_size else None,
        "status": "ok",
        **_score(row["truth_uri"], mask, plan.label_space, totals),
    }


def _confidence_map(prediction: Prediction, row: dict[str, Any]) -> dict[str, Any] | None:
    if prediction.confidence_hw is None:
        return None
    grey = images.encode_mask(prediction.confidence_hw, [(i, i, i) for i in range(256)])
    return {"bytes": grey, "path": f"{row['input_id']}-confidence.png"}


def _score(truth_uri: str | None, mask: np.ndarray, space: LabelSpace, totals: Totals) -> dict[str, Any]:
    """Scores of one mask against its truth; a truth that cannot be used makes the row an error, mask kept."""
    if truth_uri is None:
        return {}
    try:
        truth = space.apply(images.decode_mask(storage.read_bytes(truth_uri), truth_uri), truth_uri)
        if truth.shape != mask.shape:
            raise DataError(f"{truth_uri} is {truth.shape}, its image {mask.shape} (height, width).")
    except SegrayError as error:
        return {"status": "error", "error_code": "truth_error", "error_message": str(error)}
    confusion = metrics.confusion_matrix(truth, mask, space.num_classes)
    totals.confusion += confusion
    scores = metrics.scores(confusion).to_dict()
    return {key: scores[key] for key in (*SCORES, "class_iou")}


def _error_row(plan: Plan, row: dict[str, Any], error: SegrayError | None) -> dict[str, Any]:
    code = next((code for kind, code in CODES.items() if isinstance(error, kind)), "read_error")
    return {**_common(plan, row), "status": "error", "error_code": code, "error_message": str(error)}


def _common(plan: Plan, row: dict[str, Any]) -> dict[str, Any]:
    kept = {key: row[key] for key in ("input_id", "uri", "video_uri", "frame_index", "time_s", "truth_uri")}
    return {**kept, "model_id": plan.model_id, "plan_id": plan.plan_id}


def _to_parquet(rows: list[dict[str, Any]], plan: Plan, totals: Totals) -> bytes:
    """A whole part in memory: a writer that fails half-way would publish a short file that looks whole."""
    about = {"totals": totals.to_dict(), "label_space": plan.label_space.to_dict()}
    schema = ROW_SCHEMA.with_metadata({"huggingface": json.dumps(HUGGINGFACE), "segray": json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def _open_part(uri: str) -> pq.ParquetFile:
    return pq.ParquetFile(storage.open_read(uri))


def _part_totals(file: pq.ParquetFile) -> Totals:
    return Totals.from_dict(json.loads(file.schema_arrow.metadata[b"segray"])["totals"])
