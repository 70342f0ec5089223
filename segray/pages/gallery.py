"""Frames as rows of thumbnails for a page: image, ground truth, prediction, errors, overlay, each a data: URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from segray.core.io import images, locators, storage
from segray.core.io.masks import decode_mask, encode_mask, overlay, resize_mask
from segray.core.labels.digest import PICKS, Digest, classes_in
from segray.core.labels.folder import LabelFolder, mask_place
from segray.core.samples import LabelSpace
from segray.errors import InputChanged, SegrayError

THUMB_PX = 400  # longer side; about 20 kB a JPEG
TITLES = {
    "best": "Best frames",
    "worst": "Worst frames",
    "correct": "Correctly classified frames",
    "incorrect": "Incorrectly classified frames",
    "spread": "A spread of frames",
    "uncertain": "Most uncertain frames",
    "flickering": "Most flickering frames",
}  # by the names in PICKS
VOID_RGB, WRONG_RGB = (128, 128, 128), (235, 30, 70)

Row = dict[str, Any]  # a row as a template uses it


class Galleries(NamedTuple):
    """Rows with their pictures by title, each frame once, and how many frames were left out for lack of room."""

    by_title: dict[str, list[Row]]
    left: int


def of_labels(folder: LabelFolder, digest: Digest, room: int) -> Galleries:
    """Draw galleries of labels in `room` bytes at most; if no frame has ground truth, frames spread over the labels."""
    names = [name for name in PICKS if not (name == "spread" and digest.known["miou"])]
    chosen = {TITLES[name]: [described(row) for row in digest.gallery(name)] for name in names}
    stamps = folder.stamps(row["input_id"] for rows in chosen.values() for row in rows)
    return fill(chosen, lambda row: label_row(row, folder.space, stamps.get(row["input_id"])), room)


def of_evaluation(rows: Sequence[Row], space: LabelSpace, room: int) -> Galleries:
    """Draw galleries of evaluated frames, whose rows hold truth and prediction, in `room` bytes at most."""
    chosen = {}
    for name, pick in PICKS.items():
        mine = [row for row in rows if {name, TITLES[name]} & {*row["shown"]}]  # version 0.1 stored the title
        chosen[TITLES[name]] = sorted(mine, key=itemgetter(pick.column), reverse=pick.high)
    return fill(chosen, lambda row: evaluated_row(row, space), room)


def fill(chosen: Mapping[str, list[Row]], draw: Callable[[Row], Row], room: int) -> Galleries:
    """Draw the first frame of each gallery, then the second of each, and so on, while there is room.

    A frame of several galleries is in the first one alone, and `also` has the titles of the others.
    """
    drawn: dict[str, Row] = {}
    kept: dict[str, list[Row]] = {title: [] for title in chosen}
    for title, row in _by_turns(chosen):
        if row["id"] not in drawn:
            pictured = draw(row)
            room -= sum(map(len, pictured["panels"].values()))
            if room < 0:
                break
            drawn[row["id"]] = pictured
        kept[title].append(drawn[row["id"]])
    left = len({row["id"] for rows in chosen.values() for row in rows} - drawn.keys())
    titles: dict[str, list[str]] = {}
    for title, rows in kept.items():
        for row in rows:
            titles.setdefault(row["id"], []).append(title)
    shown = {
        title: [row | {"also": titles[row["id"]][1:]} for row in rows if titles[row["id"]][0] == title]
        for title, rows in kept.items()
    }
    return Galleries({title: rows for title, rows in shown.items() if rows}, left)


def _by_turns(chosen: Mapping[str, list[Row]]) -> Iterator[tuple[str, Row]]:
    for rank in range(max(map(len, chosen.values()), default=0)):
        yield from ((title, rows[rank]) for title, rows in chosen.items() if rank < len(rows))


def label_row(row: Row, space: LabelSpace, stamp: str | None) -> Row:
    """Return a label row with its pictures; a picture that cannot be read becomes a note.

    stamp: that of the image's file when it was labelled.
    """

    def truth() -> np.ndarray:
        uri = row["truth_uri"]
        return space.apply(locators.read_mask(uri, space.mask_channel), uri)

    prediction = partial(locators.read_mask, mask_place(row))
    return row | pictures(locators.image_place(row), stamp, truth if row["truth_uri"] else None, prediction, space)


def evaluated_row(row: Row, space: LabelSpace) -> Row:
    truth, prediction = (
        lambda name=name: decode_mask(row[name]["bytes"], f"{name} of {row['sample_id']}")
        for name in ("truth", "prediction")
    )
    return row | pictures(row["image"], row.get("image_stamp"), truth, prediction, space)  # version 0.1 has no stamps


def described(row: Row) -> Row:
    """Return a label row with its id, name and classes for the page."""
    name = storage.name_of(row["uri"])
    if row["frame_index"] is not None:
        name += f" · {'frame' if row['video_uri'] else 'row'} {row['frame_index']}"
    return row | {"id": row["input_id"], "name": name, "classes": classes_in(row)}


def pictures(
    place: str,
    stamp: str | None,
    truth: Callable[[], np.ndarray] | None,
    prediction: Callable[[], np.ndarray],
    space: LabelSpace,
) -> dict[str, Any]:
    """Return `panels`, data URIs by caption without those that cannot be read, and `notes`, the reasons.

    An image whose file has another stamp now is another picture than that of the masks.
    """
    notes: list[str] = []
    if (pred := _try(prediction, notes)) is None:
        return {"panels": {}, "notes": notes}
    scale = min(1.0, THUMB_PX / max(pred.shape))
    size = tuple(max(1, round(side * scale)) for side in pred.shape)
    image = _try(lambda: images.resize_image(_unchanged(place, stamp), size), notes)
    true = _try(lambda: resize_mask(truth(), size), notes) if truth else None
    return {"panels": panels(image, true, resize_mask(pred, size), space), "notes": notes}


def panels(image: np.ndarray | None, truth: np.ndarray | None, pred: np.ndarray, space: LabelSpace) -> dict[str, str]:
    """Return data URIs of Image, Ground truth, Prediction, Errors and Overlay, without those that lack their input."""
    found = {} if image is None else {"Image": jpeg(image)}
    if truth is not None:
        found["Ground truth"] = mask_png(truth, space)
    found["Prediction"] = mask_png(pred, space)
    if truth is not None:
        found["Errors"] = jpeg(error_map(image, truth, pred, space.ignore_index))
    if image is not None:
        found["Overlay"] = jpeg(overlay(image, pred, space.colors))
    return found


def error_map(image: np.ndarray | None, truth: np.ndarray, pred: np.ndarray, ignore_index: int) -> np.ndarray:
    """Draw RGB [H, W, 3]: wrong pixels red and void grey, over the dimmed image (black without one)."""
    grey = np.zeros((*pred.shape, 1)) if image is None else image.mean(2, keepdims=True) * 0.45
    shown = np.repeat(grey, 3, axis=2).astype(np.uint8)
    shown[truth != pred] = WRONG_RGB
    shown[truth == ignore_index] = VOID_RGB
    return shown


def _unchanged(place: str, stamp: str | None) -> np.ndarray:
    try:
        return locators.read_image(place, stamp=stamp)
    except InputChanged:
        raise InputChanged(f"{storage.name_of(place)} has changed since its masks were made.") from None


def jpeg(image_hwc: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(image_hwc).save(out, format="JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def mask_png(mask_hw: np.ndarray, space: LabelSpace) -> str:
    return f"data:image/png;base64,{base64.b64encode(encode_mask(mask_hw, space.colors)).decode()}"


def _try(read: Callable[[], np.ndarray], notes: list[str]) -> np.ndarray | None:
    try:
        return read()
    except SegrayError as error:
        notes.append(str(error))
        return None
