"""A folder of masks without a list of classes → a classes.csv for its owner to edit, by what stands in the masks."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from segray.core.data import camvid, cityscapes, roles, voc
from segray.core.data.class_names import colored
from segray.core.io import storage
from segray.core.io.locators import read_mask_and_palette
from segray.core.io.pairing import check_root
from segray.core.prefetch import FETCHES
from segray.core.progress import Progress, untold
from segray.core.samples import COLOR, IGNORE_INDEX, LabelSpace, color_id, id_color
from segray.errors import DataError
from segray.sections.training import DataSection

LOOKED_AT = 500  # masks, evenly over all
MOST = 255  # classes of a label space
PUBLISHED = (camvid.COLOR_SPACE, cityscapes.LABEL_SPACE_34, voc.LABEL_SPACE)  # whose colours may be in masks
Rgb = tuple[int, int, int]


def propose(config: DataSection, progress: Progress = untold) -> bytes:
    """Return the text of a classes.csv for the masks of a folder. progress is in masks.

    Up to LOOKED_AT masks are read. Classes get the names of a published data set that has all of their colours, and
    numbers otherwise. DataError where there are no masks, or more ids than a label space holds.
    """
    root = check_root(config.root, "images/ and masks/")
    refs, _ = roles.find(root, config.images, config.masks, config.mask_suffix).paired()
    if not refs:
        raise DataError(f"{root} holds no images with masks; name their folders: --set data.images=… and data.masks=….")
    looked = refs[:: -(-len(refs) // LOOKED_AT)]
    found: set[int] = set()
    shown: dict[int, Rgb] = {}
    with ThreadPoolExecutor(FETCHES) as pool:
        for ref, (raw_hw, palette) in zip(
            looked, pool.map(lambda ref: read_mask_and_palette(ref.mask, config.mask_channel), looked), strict=True
        ):
            progress(1, len(looked))
            found |= set(np.unique(raw_hw).tolist())
            shown |= palette
            if len(found - {IGNORE_INDEX}) > MOST:
                raise DataError(
                    f"{ref.mask} and others hold more than {MOST} ids or colours: they may have been resized with "
                    "interpolation or stored as JPEG, or ids stand in one channel (--set data.mask_channel=red)."
                )
    return _csv(_rows(sorted(found - {IGNORE_INDEX}), shown))


def _rows(ids: list[int], shown: dict[int, Rgb]) -> Iterator[tuple[str, int | None, Rgb]]:
    """Give name, id and colour of each class; a colour in masks needs no id."""
    colors = [id_color(raw) if raw >= COLOR else shown.get(raw) for raw in ids]
    names = _published(color for color in colors if color is not None) if None not in colors else {}
    called = [
        names.get(color or (0, 0, 0), f"class {at if raw >= COLOR else raw}")
        for at, (raw, color) in enumerate(zip(ids, colors, strict=True))
    ]
    for raw, name, color in zip(ids, called, colored(called, colors), strict=True):
        yield name, None if raw >= COLOR else raw, color


def _published(colors: Iterable[Rgb]) -> dict[Rgb, str]:
    """Name colours as the first published data set does that has all of them and gives each a class of its own."""
    wanted = list(colors)
    for space in PUBLISHED:
        names = {color: name for color in wanted if (name := _named(color, space)) is not None}
        if len(names) == len(wanted) == len(set(names.values())):
            return names
    return {}


def _named(color: Rgb, space: LabelSpace) -> str | None:
    if color in space.colors and space.colors.count(color) == 1:
        return space.names[space.colors.index(color)]
    label = space.id_map.get(color_id(*color))
    return None if label is None else "void" if label == IGNORE_INDEX else space.names[label]


def _csv(rows: Iterable[tuple[str, int | None, Rgb]]) -> bytes:
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("name", "id", "r", "g", "b"))
    lines.writerows((name, "" if raw is None else raw, *color) for name, raw, color in rows)
    return text.getvalue().encode()


def write_proposal(config: DataSection, progress: Progress = untold) -> str:
    """Write classes.csv into the folder and return where it is. DataError where there is one."""
    place = storage.join(check_root(config.root, "images/ and masks/"), "classes.csv")
    if storage.exists(place) or not storage.create(place, propose(config, progress)):
        raise DataError(f"{place} exists, and is not changed; edit it, or delete it first.")
    return place
