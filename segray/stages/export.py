"""Labels → files for other tools; a model bundle → ONNX, its card, the Hugging Face Hub.

    OUT/…                              masks, JSON or Parquet, as the format has them (core.formats)
    OUT/_export/export.json            what is exported
    OUT/_export/00000-00042.jsonl      shard 42 of plan 0 is written: its counts, and records for the final step

A part of the labels is exported completely or again: its piece is written last. Only pieces are kept in memory.
"""

from __future__ import annotations

import json
import os
import posixpath
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import compress, groupby, repeat
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from segray.cluster import connect
from segray.cluster.tasks import Map, spread
from segray.core.formats import WRITERS
from segray.core.formats.frame import PIECE, STATE, TOTALS, Job, LabelledFrame, Options, Writer
from segray.core.formats.names import Names
from segray.core.infer.decode import encoded
from segray.core.io import claims, images, parquet, storage
from segray.core.labels.folder import LabelFolder, Part
from segray.core.labels.plan import PlanReader, PlanRow, place_of
from segray.core.labels.schema import METRICS, LabelRow
from segray.core.models.card import card
from segray.core.models.info import CARD, CONFIG, INFO, WEIGHTS
from segray.core.prefetch import ahead
from segray.core.progress import Progress, untold
from segray.errors import ConfigError, DataError, OutputExists, StorageError, nearest
from segray.sections.labelling import ClusterSection

MARK = f"{STATE}/export.json"
MODEL_FORMATS = ("onnx", "hub")
COLUMNS = [
    *("input_id", "uri", "video_uri", "frame_index", "time_s", "height_px", "width_px", "mask", "mask_rle"),
    *("class_pixels", "class_shares", *METRICS, "model_id"),
]
THREADS = min(8, os.cpu_count() or 1)  # parts that are written at once
S3_THREADS = 32  # the same where a file written is a round trip
ROWS = 16  # rows of a part that are in memory at once


class Exported(NamedTuple):
    """Sums over all parts: frames, errors (rows without a mask), lost (why images could not be read).

    parts, of: how many of the labels' parts are exported, and planned. new: whether this call wrote any.
    """

    frames: int
    errors: int
    lost: list[str]
    parts: int
    of: int
    new: bool
    result: str
    note: str


class _Task(NamedTuple):
    """A part to export, its plan rows, and which ids a later plan repeats. named: each row's name, and its path."""

    part: Part
    rows: list[PlanRow]
    named: list[tuple[str, str]]
    repeated: frozenset[str]


def check_format(to: str) -> None:
    """Raise ConfigError with the nearest names for an unknown format."""
    if to not in WRITERS and to not in MODEL_FORMATS:
        raise ConfigError(f"{to!r} is not a format to export to.{nearest(to, (*WRITERS, *MODEL_FORMATS))}")


def export(
    labels: str,
    to: str,
    out: str,
    options: Options | None = None,
    *,
    overwrite: bool = False,
    cluster: ClusterSection | None = None,
    progress: Progress = untold,
) -> Exported:
    """Write the labels' frames in the format below `out`; the same call resumes an interrupted one.

    cluster: where parts are written as tasks; else threads write them here. progress is in parts. Raises DataError for
    labels without masks or with classes that the format cannot hold, OutputExists if `out` holds something else.
    """
    check_format(to)
    folder = storage.absolute(out)
    labelled = LabelFolder.open(labels)
    first = labelled.plans[0]
    if first.settings["mask_format"] == "none":
        raise DataError(f"{labels} holds no masks; label with --mask-format png to export them.")
    made = WRITERS[to]
    names = Names(labelled.plans)
    options = options or Options()
    job = Job(folder, labelled.space, options)
    writer = made(job)
    about = {"labels": first.plan_id, "format": to, "inputs below": names.root, **_used(made, options)}
    with claims.held(folder, _kind(about)):
        _claim(folder, about, overwrite)
        return _export(job, made, writer, names, labelled, cluster, progress)


def _export(
    job: Job,
    made: type[Writer],
    writer: Writer,
    names: Names,
    labelled: LabelFolder,
    cluster: ClusterSection | None,
    progress: Progress,
) -> Exported:
    of, before = labelled.shards, len(job.pieces)
    with _several(cluster, job, labelled, _reads_pictures(made, job)) as run:
        for _ in run(partial(_write_part, job, made, writer), _open(labelled, job, names)):
            progress(1, of)
    there = len(job.pieces)
    finished, count = f"{STATE}/finished", f"{there} parts".encode()
    if not storage.exists(storage.join(job.out, finished)) or job.read(finished) != count:
        writer.join()
        job.put(finished, count)
    frames, errors, lost = _totals(job, labelled)
    return Exported(frames, errors, lost, there, of, there > before, made.result, writer.note)


@contextmanager
def _several(cluster: ClusterSection | None, job: Job, labelled: LabelFolder, pictures: bool) -> Iterator[Map]:
    """Give a map over the tasks of a cluster, or over threads of this process. pictures: whether sources are read."""
    if cluster is not None and connect.is_named(cluster):
        places = [labelled.plans[-1].json_uri]
        if pictures:  # a task that does not see them would leave its frames out
            places += [place_of(PlanReader(plan).shard(0)[0]) for plan in labelled.plans]
        with spread(cluster, places, [storage.join(job.out, MARK)]) as run:
            yield run
        return
    threads = S3_THREADS if storage.in_bucket(job.out) else THREADS
    with ThreadPoolExecutor(threads) as pool:
        yield lambda work, tasks: ahead(pool, work, tasks, threads)


def _reads_pictures(made: type[Writer], job: Job) -> bool:
    return made.pictures or job.options.images


def _used(made: type[Writer], options: Options) -> dict[str, Any]:
    """Return the options that this format takes. Raises ConfigError for a given one that it would ignore."""
    for name, value in asdict(Options()).items():
        if name not in (*made.uses, "images") and getattr(options, name) != value:
            knows = ", ".join(to for to, other in WRITERS.items() if name in other.uses)
            raise ConfigError(f"--{name.replace('_', '-')} is for {knows}; leave it out.")
    return {name: getattr(options, name) for name in (*made.uses, "images")}


def _kind(about: dict[str, Any]) -> claims.Kind:
    made = (*WRITERS[about["format"]].made, *["images"] * about["images"], STATE)
    return claims.Kind("export", MARK, made, has_pieces)


def has_pieces(out: str) -> bool:
    entries = storage.iter_files(storage.join(out, STATE), deep=False)
    return any(PIECE.fullmatch(storage.name_of(entry.uri)) for entry in entries)


def _claim(out: str, about: dict[str, Any], overwrite: bool) -> None:
    """Claim `out` for this export, or check that it is its folder. overwrite deletes what an earlier one wrote."""
    mark = storage.join(out, MARK)
    before: dict[str, Any] = storage.read_json(mark) if storage.exists(mark) else about
    changed = [f"{key} was {before[key]}, is {now}" for key, now in about.items() if before.get(key, now) != now]
    kind = _kind(before)
    left = bool(changed) and not kind.has_results(out)  # left by an export that was killed in its first part
    claims.claim(out, kind, overwrite or left, lambda: changed)
    storage.replace(mark, json.dumps(about, indent=2).encode())


def _open(labelled: LabelFolder, job: Job, names: Names) -> Iterator[_Task]:
    """Yield the parts that are labelled and not exported yet."""
    there = set(job.pieces)
    for plan, parts in groupby(labelled.parts, key=attrgetter("plan")):
        reader, repeated = PlanReader(plan), labelled.repeated_after[plan.number]
        for part in parts:
            if _piece(part) not in there:
                rows = reader.shard(part.shard)
                named = [(names.name(row["uri"], row["frame_index"]), names.below(row["uri"])) for row in rows]
                yield _Task(part, rows, named, repeated.intersection(row["input_id"] for row in rows))


def _piece(part: Part) -> str:
    """Return the name, below OUT, of the file that marks a part as exported."""
    return f"{STATE}/{part.plan.number:05}-{part.shard:05}.jsonl"


def _write_part(job: Job, made: type[Writer], writer: Writer, task: _Task) -> None:
    """Write the files of a part's frames, then its piece: the records of its frames, and a last line of counts."""
    status = parquet.read(task.part.uri, ["input_id", "status"]).to_pylist()
    wanted = [row["status"] == "ok" and row["input_id"] not in task.repeated for row in status]
    errors = [row["input_id"] for row in status if row["status"] == "error"]
    with job.writing(_piece(task.part)) as piece:
        rows = compress(_rows(task.part.uri), wanted)
        planned, named = list(compress(task.rows, wanted)), compress(task.named, wanted)
        pictures = encoded(planned) if _reads_pictures(made, job) else repeat(None, len(planned))
        lost: list[str] = []

        def frames() -> Iterator[LabelledFrame]:
            for row, picture, (name, below) in zip(rows, pictures, named, strict=True):
                try:
                    picture = _upright(picture, row["uri"])
                except DataError as error:
                    lost.append(str(error))
                    continue
                frame = _frame(name, below, row, picture, job.options.images)
                if job.options.images and picture is not None:
                    job.put(f"images/{frame.picture}", picture)
                yield frame

        count = 0
        for record in writer.part(storage.stem_of(_piece(task.part)), frames()):
            count += 1
            if record:
                piece.write(json.dumps(record) + "\n")
        totals = {"plan": task.part.plan.number, "frames": count, "errors": errors, "lost": lost}
        piece.write(f"{TOTALS}{json.dumps(totals)}}}\n")


def _upright(picture: bytes | DataError | None, uri: str) -> bytes | None:
    """Return the picture in the orientation of its mask. Raises the reason if there is no picture."""
    if isinstance(picture, DataError):
        raise picture
    return None if picture is None else images.upright(picture, uri)


def _rows(uri: str) -> Iterator[LabelRow]:
    for batch in parquet.batches(uri, ROWS, COLUMNS):
        yield from batch.to_pylist()


def _frame(name: str, below: str, row: LabelRow, image: bytes | None, written: bool) -> LabelledFrame:
    """Make the format's frame. written: its image is written under the frame's name; else the source's name is used."""
    if row["frame_index"] is not None:
        picture = f"{name}.{images.kind(image) if image else 'png'}"
    else:
        picture = name + posixpath.splitext(below)[1] if written else below
    return LabelledFrame(name, picture, row, image)


def _totals(job: Job, labelled: LabelFolder) -> tuple[int, int, list[str]]:
    """Sum frames, error rows that were not tried again, and images that could not be read, over all pieces."""
    frames, errors, lost = 0, 0, []
    for part in job.totals():
        frames += part["frames"]
        errors += len(set(part["errors"]) - labelled.repeated_after[part["plan"]])
        lost += part["lost"]
    return frames, errors, lost


def to_onnx(model: str, out: str, *, overwrite: bool = False) -> Any:
    """Write a bundle or a ready model as one ONNX file and check it. Returns core.models.onnx_file.Check."""
    from segray.core.models import onnx_file, ready

    if storage.exists(storage.absolute(out)) and not overwrite:
        raise OutputExists(f"{out} is there already. Give another --out, or --overwrite.")
    return onnx_file.write(ready.resolve(model), out)


def push(model: str, repo: str, *, dry_run: bool = False) -> tuple[str, dict[str, int]]:
    """Upload a bundle with a new card to the Hugging Face Hub. Returns (its URL, bytes of each file).

    A missing repository is created as a private one. Names of places on this machine are left out of segray.json.
    Raises StorageError if the Hub refuses, or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # an error of its HTTP library, which may change

    from segray.core.models import bundle, ready

    uri = ready.resolve(model)
    _, info = bundle.load(uri)
    info = info.without_places()
    files = {name: storage.read_bytes(storage.join(uri, name)) for name in (WEIGHTS, CONFIG)}
    files |= {INFO: info.model_dump_json(indent=2).encode(), CARD: card(info).encode()}
    sizes = {name: len(data) for name, data in files.items()}
    if dry_run:
        return repo, sizes
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            hub = HfApi()
            address = hub.create_repo(repo, private=True, exist_ok=True)
            said = f"segray model {info.model_id}"
            hub.upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=said)
        except (OSError, ValueError, HTTPError) as error:
            raise StorageError(
                f"{repo} cannot be uploaded: {storage.reason(error)}. Name it OWNER/NAME, and log in: hf auth login."
            ) from error
    return str(address), sizes
