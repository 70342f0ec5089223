"""Masks as a tree of PNGs: segray's layout `folder`, and Cityscapes results."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from segray.core.data.class_files import is_void
from segray.core.data.class_names import cityscapes_id
from segray.core.formats.frame import Job, LabelledFrame, Writer
from segray.core.io import images
from segray.core.io.masks import encode_mask
from segray.errors import DataError


class Png(Writer):
    """masks/NAME.png, palette or grey PNGs of class ids, and classes.csv; with images/ what `--format folder` reads."""

    made, uses, pictures, result, note = ("masks", "classes.csv"), ("grey",), False, "masks", "255 is void."

    def __init__(self, job: Job) -> None:
        self.job = job

    def part(self, name: str, frames: Iterator[LabelledFrame]) -> Iterator[dict[str, Any]]:
        for frame in frames:
            stored = frame.row["mask"]
            if self.job.options.grey:
                data = images.encode_image(frame.mask_hw)
            else:
                data = stored["bytes"] if stored else encode_mask(frame.mask_hw, self.job.space.colors)
            self.job.put(f"masks/{frame.name}.png", data)
            yield {}

    def join(self) -> None:
        space = self.job.space
        void = any(map(is_void, space.names))  # their names alone would make such classes void
        self.job.put("classes.csv", classes_csv(space.names, space.colors, scored=void))


def classes_csv(names: Sequence[str], colors: Sequence[tuple[int, int, int]], *, scored: bool = False) -> bytes:
    """Write the table of classes of the layout `folder`, whose ids are positions. scored: keep those called void."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("name", "id", "r", "g", "b", *["scored"] * scored))
    for i, (name, color) in enumerate(zip(names, colors, strict=True)):
        lines.writerow((name, i, *color, *["yes"] * scored))
    return text.getvalue().encode()


class Cityscapes(Writer):
    """masks/CITY/NAME.png, grey PNGs of labelIds; cityscapesScripts pairs them by CITY_SEQUENCE_FRAME at their head."""

    made, uses, pictures, result, note = ("masks",), (), False, "masks", "Void is 0, `unlabeled`."

    def __init__(self, job: Job) -> None:
        self.job = job
        found = list(map(cityscapes_id, job.space.names))
        if unknown := [name for name, label_id in zip(job.space.names, found, strict=True) if label_id is None]:
            raise DataError(
                f"No official label of Cityscapes is called {', '.join(unknown)}. Train on classes that it has, "
                "with data.class_map, or export --to png."
            )
        self.id_of_class = np.zeros(256, np.uint8)
        self.id_of_class[: len(found)] = [label_id for label_id in found if label_id is not None]

    def part(self, name: str, frames: Iterator[LabelledFrame]) -> Iterator[dict[str, Any]]:
        for frame in frames:
            self.job.put(f"masks/{frame.name}.png", images.encode_image(self.id_of_class[frame.mask_hw]))
            yield {}

    def join(self) -> None:
        pass
