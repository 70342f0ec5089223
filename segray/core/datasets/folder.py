"""Any folder of images and masks with a list of classes.

root/classes.csv            name[,id][,r,g,b], with that header; id is what masks hold, by default the row
root/images/train/…         or root/images/… without splits: then a share goes to val, by name
root/masks/train/…          the same paths, as PNGs of class ids; 255 is void
"""

from __future__ import annotations

import colorsys
import csv
import hashlib
import io

from segray.config import DataSection
from segray.core import storage
from segray.core.datasets.pairs import check_root, pair
from segray.core.samples import IGNORE_INDEX, Dataset, LabelSpace, SampleRef
from segray.errors import DataError


def open_dataset(config: DataSection) -> Dataset:
    """Splits as folders below images/ and masks/, or else one folder, shared out by the names' hashes."""
    root = check_root(config.root, "images/, masks/ and classes.csv")
    space = read_classes(storage.join(root, config.classes))
    refs, unpaired = pair(storage.join(root, config.images), storage.join(root, config.masks))
    if not refs and not unpaired:
        raise DataError(f"{root} holds no images in {config.images}/ and masks in {config.masks}/.")
    return Dataset("folder", space, split(refs, config), tuple(unpaired))


def split(refs: list[SampleRef], config: DataSection) -> dict[str, tuple[SampleRef, ...]]:
    """Frames by split; a frame without a split's folder goes where its name's hash says, on every machine."""
    named = (config.train_split, config.val_split, "test")
    splits: dict[str, list[SampleRef]] = {}
    has_folders = any(ref.sample_id.split("/")[0] in named for ref in refs)
    for ref in refs:
        if has_folders:
            key = ref.sample_id.split("/")[0]
        else:
            draw = int.from_bytes(hashlib.sha256(ref.sample_id.encode(errors="surrogateescape")).digest()[:4])
            key = config.val_split if draw < config.val_share * 2**32 else config.train_split
        splits.setdefault(key, []).append(ref)
    return {key: tuple(group) for key, group in splits.items()}


def read_classes(uri: str) -> LabelSpace:
    """classes.csv → label space. DataError says which line is wrong."""
    text = storage.read_bytes(uri).decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text), skipinitialspace=True))
    if not rows or "name" not in rows[0]:
        raise DataError(f"{uri} needs a header line with `name`, and optionally id,r,g,b; then a line a class.")
    try:
        ids = [int(row.get("id") or i) for i, row in enumerate(rows)]
        colors = [_color(row, i, len(rows)) for i, row in enumerate(rows)]
    except ValueError as error:
        raise DataError(f"{uri}: {error}; id, r, g and b are whole numbers from 0 to 255.") from None
    if len(set(ids)) < len(ids) or not all(0 <= i < IGNORE_INDEX for i in ids):
        raise DataError(f"{uri}: ids must differ and lie in 0 to {IGNORE_INDEX - 1}; 255 is void.")
    id_map = {raw: label for label, raw in enumerate(ids)} | {IGNORE_INDEX: IGNORE_INDEX}
    return LabelSpace(tuple(row["name"] for row in rows), tuple(colors), id_map)


def _color(row: dict[str, str], index: int, count: int) -> tuple[int, int, int]:
    if row.get("r"):
        red, green, blue = (int(row[channel]) for channel in "rgb")
        if not all(0 <= channel <= 255 for channel in (red, green, blue)):
            raise ValueError(f"colour {red},{green},{blue}")
        return red, green, blue
    hue = colorsys.hsv_to_rgb(index / count, 0.65, 0.9)
    return tuple(round(255 * channel) for channel in hue)
