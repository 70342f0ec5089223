"""Finished labels → the frames that are most worth a person's time, spread over videos and folders."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from segray.core.io import locators, storage
from segray.core.io.locators import FrameOf
from segray.core.io.masks import overlay
from segray.core.labels.folder import LabelFolder, mask_place
from segray.errors import ConfigError, DataError, OutputExists, nearest

# The column behind each order; rare classes are found from the class shares of all frames.
ORDERS = {"uncertainty": "entropy_mean", "flicker": "flicker_share", "rare-class": "class_shares"}
COLUMNS = ["input_id", "uri", "video_uri", "frame_index", "time_s"]
OUT_SUFFIXES = (".jsonl", ".parquet")


class _Labelled(FrameOf):
    """COLUMNS of a label row, with its part and its row in it."""

    time_s: float | None
    part: str
    row: int


class Chosen(_Labelled):
    """A frame that a person should look at, with its score."""

    score: float


def select(labels: str, by: str, count: int, apart: float = 2.0) -> list[Chosen]:
    """Choose the `count` frames with the highest scores, best first.

    uncertainty is mean entropy. flicker is the share of pixels that differ from the frame before. rare-class is the
    mean over classes of the frame's share divided by the share in all frames (1 is an average frame). Frames of a
    video are at least `apart` seconds apart, frames of a folder at least as many files; the best of each video and
    folder comes before the second of any other. Raises DataError for labels that do not exist, or lack the metric.
    """
    if by not in ORDERS:
        raise ConfigError(f"{by!r} is not an order of frames.{nearest(by, ORDERS)}")
    rows = _read(labels, ORDERS[by])
    values = rows[ORDERS[by]]
    if by == "rare-class":
        shares = np.array(values.to_pylist(), dtype=np.float64).reshape(len(rows), -1)
        mean = shares.mean(0) if len(rows) else shares.sum(0)
        scores = (shares[:, mean > 0] / mean[mean > 0]).mean(1)
    else:
        scores = values.to_numpy()
    if not np.isfinite(scores).any():
        raise DataError(
            f"No frame in {labels} has a {ORDERS[by]}; flicker needs videos, and only rows of status ok count."
        )
    order = [int(i) for i in np.argsort(-scores, kind="stable") if np.isfinite(scores[i])]
    picks = _spread(order, rows, count, apart)
    return [{**row, "score": float(scores[i])} for i, row in zip(picks, _rows(rows, picks), strict=True)]


def check_new(out: str | None, folder: Path | None, count: int) -> None:
    """Raise OutputExists if the list, or a picture of a rank up to `count`, would replace a file."""
    if out is not None and storage.exists(storage.absolute(out)):
        raise OutputExists(f"{out} exists already. Choose another --out, or pass --overwrite.")
    pictures = (_picture(folder, rank) for rank in range(1, count + 1)) if folder else iter(())
    if there := next((picture for picture in pictures if picture.exists()), None):
        raise OutputExists(f"{there} exists already. Choose another --pictures, or pass --overwrite.")


def _picture(folder: Path, rank: int) -> Path:
    return folder / f"{rank:03}.png"


def write(rows: Sequence[Chosen], out: str) -> None:
    """Write the frames as .jsonl or .parquet."""
    kept = [{key: value for key, value in row.items() if key in (*COLUMNS, "score")} for row in rows]
    if out.endswith(".parquet"):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(kept), sink)
        data = sink.getvalue()
    else:
        data = "".join(json.dumps(row) + "\n" for row in kept).encode()
    storage.replace(storage.absolute(out), data)


def write_pictures(rows: Sequence[Chosen], labels: str, folder: Path) -> list[str]:
    """Draw each frame beside itself under its mask, as <rank>.png. Returns why some could not be drawn."""
    labelled = LabelFolder.open(labels)
    space, with_masks = labelled.space, labelled.plans[0].settings["mask_format"] != "none"
    folder.mkdir(parents=True, exist_ok=True)
    problems, stamps = [], labelled.stamps(row["input_id"] for row in rows)
    for rank, row in enumerate(rows, 1):
        try:
            with storage.reading_input(row["uri"]):
                image = locators.read_image(locators.image_place(row), stamp=stamps.get(row["input_id"]))
            mixed = [overlay(image, locators.read_mask(mask_place(row)), space.colors)] if with_masks else []
        except DataError as error:
            problems.append(str(error))
            continue
        Image.fromarray(np.concatenate([image, *mixed], axis=1)).save(_picture(folder, rank))
    return problems


def _read(labels: str, column: str) -> pa.Table:
    folder = LabelFolder.open(labels)
    if not folder.parts:
        raise DataError(f"{labels} has no part yet; run the same segray label command again.")
    tables = (rows.filter(pc.equal(rows["status"], "ok")) for rows in folder.tables([*COLUMNS, column, "status"]))
    return pa.concat_tables(tables)


def _spread(order: list[int], rows: pa.Table, count: int, apart: float) -> list[int]:
    """Return the positions of the frames to take: each video's or folder's first, then each one's second, and so on."""
    videos, uris, times = (rows[name].to_pylist() for name in ("video_uri", "uri", "time_s"))
    taken: dict[str, list[float]] = defaultdict(list)
    ranked = []
    for i in order:
        scene = videos[i] or uris[i].rpartition("/")[0]
        at = times[i] if times[i] is not None else float(i)
        if all(abs(at - other) >= apart for other in taken[scene]):
            ranked.append((len(taken[scene]), i))
            taken[scene].append(at)
    chosen = {i for _, i in sorted(ranked, key=lambda one: one[0])[:count]}
    return [i for _, i in ranked if i in chosen]


def _rows(rows: pa.Table, picks: list[int]) -> list[_Labelled]:
    chosen: list[_Labelled] = rows.select([*COLUMNS, "part", "row"]).take(pa.array(picks, pa.int64())).to_pylist()
    return chosen
