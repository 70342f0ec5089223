"""Label parts → what a page shows of them, in one pass: sums, errors by code, frames to look at, classes over time.

What is kept does not grow with the number of rows: parts are read without their masks, counted, and let go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray.core.labels.folder import LabelFolder

EACH = 4  # frames in a gallery
STRETCHES = 16 * EACH
MOMENTS = 160  # at least so many points in a video's curve, where it has so many frames
BATCH = 10_000  # rows that are looked at together
PRESENT = 0.001  # a frame counts as having a class from this share of its pixels on
MIOU_BINS = 1000  # bins of a histogram: quartiles to a tenth of a point

# A label row without its masks.
TEXTS = ("input_id", "uri", "video_uri", "truth_uri", "status", "error_code", "error_message")
NUMBERS = ("time_s", "miou", "pixel_accuracy", "confidence_mean", "entropy_mean", "flicker_share")
COLUMNS = pa.schema(
    [(name, pa.string()) for name in TEXTS]
    + [(name, pa.float64()) for name in NUMBERS]
    + [("frame_index", pa.int64()), ("class_pixels", pa.list_(pa.int64())), ("class_iou", pa.list_(pa.float64()))]
)
LABELLED = COLUMNS.append(pa.field("part", pa.string())).append(pa.field("row", pa.int64()))  # what a folder adds
ROWS = LABELLED.append(pa.field("position", pa.int64()))


@dataclass(frozen=True)
class Pick:
    """An order of frames: by a column, the highest or the lowest first.

    stretches: cut all rows into so many, and take one frame of each, as neighbours look alike; 0: take any.
    """

    column: str
    high: bool
    stretches: int = 0

    def most(self, known: int, each: int) -> int:
        """Return how many of `known` frames to show, `each` at most; best and worst share few out, the odd one best."""
        return min(each, (known + (self.high or self.stretches > 0)) // 2)


PICKS = {
    "best": Pick("miou", high=True),
    "worst": Pick("miou", high=False),
    "correct": Pick("pixel_accuracy", high=True),
    "incorrect": Pick("pixel_accuracy", high=False),
    "spread": Pick("position", high=False, stretches=EACH),
    "uncertain": Pick("entropy_mean", high=True, stretches=STRETCHES),
    "flickering": Pick("flicker_share", high=True, stretches=STRETCHES),
}


class Track:
    """Class pixels and flicker over the time of one video, in at most 2 × MOMENTS bins of `step` frames."""

    def __init__(self, classes: int) -> None:
        self.step, self.frames = 1, 0
        self.time_s, self.flicker = np.full((2, 2 * MOMENTS), np.nan)
        self.pixels = np.zeros((2 * MOMENTS, classes), np.int64)

    def add(self, rows: pa.Table) -> None:
        while self.frames + len(rows) > len(self.time_s) * self.step:
            self._halve()
        at = (self.frames + np.arange(len(rows))) // self.step
        np.fmin.at(self.time_s, at, rows["time_s"].to_numpy())
        np.fmax.at(self.flicker, at, rows["flicker_share"].to_numpy())  # a spike is not averaged away
        np.add.at(self.pixels, at, class_pixels(rows, self.pixels.shape[1]))
        self.frames += len(rows)

    def _halve(self) -> None:
        self.step *= 2
        for values, join in ((self.time_s, np.fmin), (self.flicker, np.fmax), (self.pixels, np.add)):
            values[:MOMENTS] = join(values[::2], values[1::2])
            values[MOMENTS:] = 0 if values is self.pixels else np.nan


class Digest:
    """What is known of the rows that were added, in order. total: how many there will be, about.

    planned: how many the plans have, less those that a later one repeats.
    picked: for each of PICKS the rows that may be shown. listed: the `frames` rows with the lowest mIoU, or the
    lowest confidence where no row has ground truth. tracks: of the first `videos` videos; more_videos: if more exist.
    """

    def __init__(self, classes: int, total: float, *, frames: int, videos: int) -> None:
        self._total, self._frames, self._videos = max(1.0, total), frames, videos
        self.rows = self.ok = self.planned = 0
        self.errors: dict[str, dict[str, Any]] = {}
        self.class_pixels = np.zeros(classes, np.int64)
        self.known: Counter[str] = Counter()  # rows that have a number, by column
        self.miou_sum, self.miou_counts = 0.0, np.zeros(MIOU_BINS, np.int64)
        self.picked = {name: ROWS.empty_table() for name in PICKS}
        self.listed, self.more_videos = ROWS.empty_table(), False
        self.tracks: dict[str, Track] = {}

    def add(self, rows: pa.Table) -> None:
        """Count rows of LABELLED."""
        rows = rows.append_column("position", pa.array(range(self.rows, self.rows + len(rows)), pa.int64()))
        ok = rows.filter(pc.equal(rows["status"], "ok"))
        self.rows += len(rows)
        self.ok += len(ok)
        self._count_errors(rows.filter(pc.equal(rows["status"], "error")))
        self.class_pixels += class_pixels(ok, len(self.class_pixels)).sum(0)
        self.known.update({name: len(ok) - ok[name].null_count for name in (*NUMBERS, "position")})
        self.miou_sum += pc.sum(ok["miou"]).as_py() or 0.0
        self.miou_counts += miou_histogram(ok["miou"])
        for name, pick in PICKS.items():
            found = pa.concat_tables([self.picked[name], ok])
            self.picked[name] = found.take(self._order(found, pick)[: max(EACH, pick.stretches)])
        found = pa.concat_tables([self.listed, ok])
        self.listed = found.take(self._order(found, Pick(self.score, high=False))[: self._frames])
        for uri in pc.unique(ok["video_uri"].drop_null()).to_pylist():
            self._follow(uri, ok)

    @property
    def score(self) -> str:
        """The column by which frames are listed and filtered."""
        return "miou" if self.known["miou"] else "confidence_mean"

    def gallery(self, name: str) -> list[dict[str, Any]]:
        """List the frames to show, in order."""
        pick, rows = PICKS[name], self.picked[name]
        most = pick.most(self.known[pick.column], EACH)
        found: list[dict[str, Any]]
        if pick.column == "position" or not pick.stretches:
            found = rows.slice(0, most).to_pylist()
            return found
        positions = rows["position"].to_pylist()
        kept = apart(positions, most, round(self._total))
        found = rows.to_pylist()
        return [row for row in found if row["position"] in kept]

    def _order(self, rows: pa.Table, pick: Pick) -> np.ndarray:
        values, position = rows[pick.column].to_numpy().astype(np.float64), rows["position"].to_numpy()
        order: np.ndarray = np.lexsort((position, values))
        order = order[np.isfinite(values[order])][:: -1 if pick.high else 1]  # of equal ones best and worst differ, too
        if pick.stretches:
            stretch = position[order] * pick.stretches // self._total
            order = order[np.sort(np.unique(stretch.clip(max=pick.stretches - 1), return_index=True)[1])]
        return order

    def _count_errors(self, failed: pa.Table) -> None:
        for row in failed.select(["error_code", "uri", "error_message"]).to_pylist():
            self.errors.setdefault(row["error_code"], row | {"count": 0})["count"] += 1

    def _follow(self, uri: str, ok: pa.Table) -> None:
        if uri not in self.tracks and len(self.tracks) == self._videos:
            self.more_videos = True
        else:
            track = self.tracks.setdefault(uri, Track(len(self.class_pixels)))
            track.add(ok.filter(pc.equal(ok["video_uri"], uri)))


def read(folder: LabelFolder, *, frames: int, videos: int) -> Digest:
    """Digest the current rows of all parts that are there. DataError for a torn part."""
    total = folder.planned * len(folder.parts) / folder.shards
    digest = Digest(folder.space.num_classes, total, frames=frames, videos=videos)
    digest.planned = folder.planned
    for rows in _batches(table.cast(LABELLED) for table in folder.tables(COLUMNS.names)):
        digest.add(rows)
    return digest


def _batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Join tables to batches of BATCH rows or a few more."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= BATCH:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def class_pixels(ok: pa.Table, num_classes: int) -> np.ndarray:
    """Return the predicted pixels of each class, int64 [rows, C]."""
    pixels: np.ndarray = pc.list_flatten(ok["class_pixels"]).to_numpy()
    return pixels.reshape(-1, num_classes)


def classes_in(row: dict[str, Any]) -> list[int]:
    """List a frame's classes: predicted in PRESENT of its pixels, or in its ground truth and missed altogether."""
    least = PRESENT * sum(row["class_pixels"])
    pairs = zip(row["class_pixels"], row["class_iou"] or repeat(None), strict=False)
    return [i for i, (pixels, iou) in enumerate(pairs) if pixels > least or iou == 0]


def miou_histogram(values: Any) -> np.ndarray:
    """Count an Arrow array of mIoU values into a histogram, int64 [MIOU_BINS]."""
    counts: np.ndarray = np.histogram(values.drop_null().to_numpy(), MIOU_BINS, (0, 1))[0]
    return counts


def quartiles(counts: np.ndarray) -> list[float]:
    """Return minimum, first quartile, median, third quartile and maximum of values in 0..1, from their histogram."""
    ranks = np.array([0, 0.25, 0.5, 0.75, 1]) * (counts.sum() - 1)
    values: list[float] = ((np.searchsorted(counts.cumsum(), ranks, side="right") + 0.5) / len(counts)).tolist()
    return values


def apart(order: Iterable[int], most: int, total: int) -> list[int]:
    """Choose the first `most` positions of an order, without near neighbours: frames of one moment look alike."""
    picks: list[int] = []
    for i in order:
        if len(picks) < most and all(abs(i - other) > total // (4 * most) for other in picks):
            picks.append(int(i))
    return picks
