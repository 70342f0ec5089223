"""Finished labels → the frames that are most worth a person's time, spread over videos and folders."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from segray.core.io import locators, storage
from segray.core.io.locators import FrameOf
from segray.core.io.masks import overlay
from segray.core.labels.folder import LabelFolder, mask_place
from segray.core.labels.ranking import ORDERS, scored
from segray.core.progress import Progress, untold
from segray.errors import ConfigError, DataError, OutputExists, nearest

COLUMNS = ["input_id", "uri", "video_uri", "frame_index", "time_s"]
OUT_SUFFIXES = (".jsonl", ".parquet")


class Chosen(FrameOf):
    """A frame that a person should look at: COLUMNS of its label row, its score, its part and its row in it."""

    time_s: float | None
    part: str
    row: int
    score: float


def select(labels: str, by: str, count: int, apart: float = 2.0, progress: Progress = untold) -> list[Chosen]:
    """Choose the `count` frames with the highest scores, best first.

    uncertainty is mean entropy. flicker is the share of pixels that differ from the frame before. rare-class is the
    mean over classes of the frame's share divided by the share in all frames (1 is an average frame). Frames of a
    video are at least `apart` seconds apart, frames of a folder at least as many files; the best of each video and
    folder comes before the second of any other. progress is in parts. Raises DataError for labels that do not exist,
    or lack the metric.
    """
    if by not in ORDERS:
        raise ConfigError(f"{by!r} is not an order of frames.{nearest(by, ORDERS)}")
    folder = LabelFolder.open(labels)
    if not len(folder.parts):
        raise DataError(f"{labels} has no part yet; run the same segray label command again.")
    frames = scored(folder, by, progress)
    if not len(frames):
        raise DataError(
            f"No frame in {labels} has a {ORDERS[by]}; flicker needs videos, and only rows of status ok count."
        )
    picks = frames.best(count, apart)
    chosen: list[Any] = [
        {**row, "score": frames.score(pick)} for pick, row in zip(picks, frames.read(picks, COLUMNS), strict=True)
    ]
    return chosen


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
