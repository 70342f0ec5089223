"""Labels → the frames with the highest scores, spread over videos and folders.

Of each frame 32 bytes are kept, and no row.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray.core.io import parquet
from segray.core.labels.folder import LabelFolder
from segray.core.prefetch import FETCHES, ahead
from segray.core.progress import Progress, untold

# The column behind each order; rare classes are found from the class shares of all frames.
ORDERS = {"uncertainty": "entropy_mean", "flicker": "flicker_share", "rare-class": "class_shares"}
# A frame's score; a hash of its video or folder; its time in the video, else its number among all frames that are ok;
# the number of its part, and that of its row there.
FRAME = np.dtype([("score", "f8"), ("scene", "u8"), ("at", "f8"), ("part", "i4"), ("row", "i4")])
FOLDER = r"(^|/)[^/]*$"  # what stands after it

Score = Callable[[pa.ChunkedArray], np.ndarray]  # a column → a score of each row


class Frames:
    """The frames that have a score, in the order of the labels. table: what is kept of each, as FRAME."""

    def __init__(self, parts: Iterable[np.ndarray], uris: list[str]) -> None:
        self.table = np.concatenate([np.empty(0, FRAME), *parts])
        self.uris = uris

    def __len__(self) -> int:
        return len(self.table)

    def best(self, count: int, apart: float) -> list[int]:
        """Return the positions of the frames to take, best first; see spread()."""
        return spread(self.table["score"], self.table["scene"], self.table["at"], count, apart)

    def score(self, position: int) -> float:
        return float(self.table["score"][position])

    def read(self, picks: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """Read columns of some frames' rows, with `part` and `row`."""
        parts: defaultdict[int, list[int]] = defaultdict(list)
        for pick in picks:
            parts[int(self.table["part"][pick])].append(pick)

        def read(part: int) -> list[tuple[int, dict[str, Any]]]:
            numbers = self.table["row"][parts[part]]
            rows = parquet.read(self.uris[part], columns).take(numbers).to_pylist()
            places = ({"part": self.uris[part], "row": number} for number in numbers.tolist())
            return [(pick, row | place) for pick, row, place in zip(parts[part], rows, places, strict=True)]

        with ThreadPoolExecutor(FETCHES) as pool:
            found = dict(one for some in ahead(pool, read, parts, 2 * FETCHES) for one in some)
        return [found[pick] for pick in picks]


def scored(folder: LabelFolder, by: str, progress: Progress = untold) -> Frames:
    """Score all frames by one of ORDERS. progress is in parts; rare classes take two passes."""
    of = len(folder.parts) * (1 + (by == "rare-class"))
    score = _rarity(folder, progress, of) if by == "rare-class" else lambda values: values.to_numpy()
    found, uris, before = list[np.ndarray](), list[str](), 0
    for part, rows in folder.by_part(["uri", "video_uri", "time_s", ORDERS[by], "status"]):
        ok = rows.filter(pc.equal(rows["status"], "ok"))
        frames = np.empty(len(ok), FRAME)
        frames["score"], frames["scene"] = score(ok[ORDERS[by]]), _scenes(ok)
        number = pa.array(before + np.arange(len(ok), dtype=np.float64))
        frames["at"] = pc.coalesce(ok["time_s"].combine_chunks(), number).to_numpy()
        frames["part"], frames["row"] = len(uris), ok["row"].to_numpy()
        found.append(frames[np.isfinite(frames["score"])])
        uris.append(part.uri)
        before += len(ok)
        progress(1, of)
    return Frames(found, uris)


def _rarity(folder: LabelFolder, progress: Progress, of: int) -> Score:
    """Return what scores class shares: the mean over classes of the frame's share divided by that in all frames."""
    total, frames = np.zeros(1), 0
    for _, rows in folder.by_part(["class_shares", "status"]):
        shares = _shares(rows.filter(pc.equal(rows["status"], "ok"))["class_shares"])
        total, frames = total + shares.sum(0), frames + len(shares)
        progress(1, of)
    mean = total / max(1, frames)

    def score(values: pa.ChunkedArray) -> np.ndarray:
        rarity: np.ndarray = (_shares(values)[:, mean > 0] / mean[mean > 0]).mean(1)
        return rarity

    return score


def _shares(values: pa.ChunkedArray) -> np.ndarray:
    shares: np.ndarray = pc.list_flatten(values).to_numpy()
    return shares.reshape(len(values), -1) if len(values) else np.zeros((0, 1))


def _scenes(rows: pa.Table) -> np.ndarray:
    """Hash the video or the folder of each row, uint64."""
    folders = pc.replace_substring_regex(rows["uri"], FOLDER, "")
    names = pc.coalesce(rows["video_uri"], folders).combine_chunks().dictionary_encode()
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names.dictionary.to_pylist()]
    hashes: np.ndarray = np.frombuffer(b"".join(digests), np.uint64)[names.indices.to_numpy()]
    return hashes


def spread(scores: np.ndarray, scenes: np.ndarray, at: np.ndarray, count: int, apart: float) -> list[int]:
    """Choose `count` positions, highest score first: each scene's best, then the second of each, and so on.

    Those of a scene are at least `apart` from one another in `at`. Of equal scores the first counts as higher.
    """
    order = np.lexsort((-scores, scenes))  # scene by scene, the best first
    begins = np.flatnonzero(np.append(True, scenes[order[1:]] != scenes[order[:-1]])[: len(order)])
    if len(begins) >= count:  # the best of each is enough
        return _ranked(order[begins].tolist(), scores)[:count]
    lanes = [_apart(lane, at, apart) for lane in np.split(order, begins[1:])]
    picks: list[int] = []
    while lanes and len(picks) < count:
        heads = [(lane, head) for lane in lanes if (head := next(lane, None)) is not None]
        picks += _ranked([head for _, head in heads], scores)[: count - len(picks)]
        lanes = [lane for lane, _ in heads]
    return _ranked(picks, scores)


def _ranked(positions: list[int], scores: np.ndarray) -> list[int]:
    return sorted(positions, key=lambda i: (-scores[i], i))


def _apart(order: np.ndarray, at: np.ndarray, apart: float) -> Iterator[int]:
    """Give those positions of an order that are `apart` from all that were given before.

    Taken ones are kept by cells as long as that, so that only neighbours are compared.
    """
    taken: defaultdict[float, list[float]] = defaultdict(list)
    for i in map(int, order):
        place = float(at[i])
        cell = float(np.floor(place / apart)) if apart > 0 else 0.0
        near = (other for step in (-2, -1, 0, 1, 2) for other in taken.get(cell + step, ()))  # 2: division rounds
        if apart <= 0 or all(abs(place - other) >= apart for other in near):
            taken[cell].append(place)
            yield i
