"""CVAT's "Segmentation mask 1.1": a zip of masks in the colours of a label map."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

from segray.core.formats.frame import Job, LabelledFrame, Writer
from segray.core.io import images
from segray.core.io.masks import colorize
from segray.core.prefetch import FETCHES, ahead
from segray.core.samples import LabelSpace
from segray.errors import DataError

Color = tuple[int, int, int]
BACKGROUND = "background"  # CVAT's own label for black pixels
BLACK = (0, 0, 0)


class Cvat(Writer):
    """segmentation_mask.zip with labelmap.txt, ImageSets/ and SegmentationClass/, which stands beside it too."""

    made, uses, pictures = ("segmentation_mask.zip", "SegmentationClass"), (), False
    result = "segmentation_mask.zip"

    def __init__(self, job: Job) -> None:
        self.job, self.colors = job, own_colors(job.space)
        bad = [name for name in job.space.names if ":" in name or name.startswith("#")]
        if bad:
            raise DataError(f"CVAT cannot hold the class {bad[0]!r}; rename it: no `:`, and no # at its head.")
        told = zip(job.space.names, job.space.colors, self.colors, strict=True)
        changed = [f"{name} is {color_text(new)}" for name, old, new in told if old != new]
        self.note = f"Void is {BACKGROUND}." + (f" Colours of their own: {'; '.join(changed)}." if changed else "")

    def part(self, name: str, frames: Iterator[LabelledFrame]) -> Iterator[dict[str, Any]]:
        for frame in frames:
            pixels = colorize(frame.mask_hw, self.colors)
            self.job.put(f"SegmentationClass/{frame.name}.png", images.encode_image(pixels))
            yield {"name": frame.name}

    def join(self) -> None:
        labels = {BACKGROUND: BLACK} | dict(zip(self.job.space.names, self.colors, strict=True))
        lines = [f"{name}:{color_text(color)}::" for name, color in labels.items()]
        with self.job.writing(self.result, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", *lines, ""]))
            with archive.open("ImageSets/Segmentation/default.txt", "w", force_zip64=True) as names:
                names.writelines(f"{record['name']}\n".encode() for record in self.job.records())
            masks = (f"SegmentationClass/{record['name']}.png" for record in self.job.records())
            with ThreadPoolExecutor(FETCHES) as pool:
                for name, data in ahead(pool, self._named, masks, FETCHES):
                    archive.writestr(name, data)

    def _named(self, name: str) -> tuple[str, bytes]:
        return name, self.job.read(name)


def own_colors(space: LabelSpace) -> list[Color]:
    """Choose the classes' colours; a black one, or one already used, becomes another. A class `background` is black."""
    taken = {BLACK, *space.colors}
    colors: list[Color] = []
    levels = (64, 192, 128, 255, 0, 32, 224)
    free = ((r, g, b) for r, g, b in product(levels, levels, levels) if (r, g, b) not in taken)
    for name, color in zip(space.names, space.colors, strict=True):
        if name == BACKGROUND:
            colors.append(BLACK)
        else:
            colors.append(next(free) if color == BLACK or color in colors else color)
    return colors


def color_text(color: Color) -> str:
    """Write a colour as text: '128,64,128'."""
    return ",".join(map(str, color))
