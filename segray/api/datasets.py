"""Frames with ground truth that a program names, instead of a folder in a known layout."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from segray.api.results import Place
from segray.core import samples
from segray.core.data.class_names import colored
from segray.core.formatting import counted
from segray.core.io import pairing, storage
from segray.core.samples import IGNORE_INDEX, LabelSpace, SampleRef
from segray.errors import DataError

Colors = Sequence[tuple[int, int, int]]


class Dataset(samples.Dataset):
    """A data set for segray.train() and segray.sweep(), with the splits train and val."""

    @classmethod
    def from_pairs(
        cls,
        images: Iterable[Place],
        masks: Iterable[Place],
        names: Sequence[str] | Mapping[int, str],
        *,
        colors: Colors | None = None,
        void: Collection[int] = (IGNORE_INDEX,),
        val: float | Iterable[Place] = 0.2,
    ) -> Dataset:
        """Make a data set of images and their masks, in the same order.

        names: the classes; a mask holds their positions, or the ids that a mapping gives.
        colors: RGB of each class, for pictures. Masks of colours need data.id_map={"#FF0000": "road", …} in settings.
        void: ids of pixels that count nowhere, as 255 does where it is no class's id.
        val: share of the frames to validate on, by the hash of their paths; or those of the images.
        Raises DataError for lists of other lengths, for an image or a class that is given twice, for an id that is both
        a class and void, and for a split without frames. Files are opened in training.

        >>> data = segray.Dataset.from_pairs(images, masks, names=["road", "sky"])
        >>> {name: len(frames) for name, frames in data.splits.items()}
        {'train': 2, 'val': 2}
        """
        places, truths, void_ids = _paths(images), _paths(masks), _void(void)
        if len(places) != len(truths):
            raise DataError(
                f"{counted(len(places), 'image')} and {counted(len(truths), 'mask')} were given; "
                "give one mask for each image."
            )
        if not places:
            raise DataError("No images were given; name some, as sorted(glob('images/*.png')).")
        if twice := [place for place, count in Counter(places).items() if count > 1]:
            raise DataError(f"{twice[0]} was given twice; name each image once.")
        ids = _classes(names)
        if both := sorted(ids.keys() & void_ids - {IGNORE_INDEX}):
            raise DataError(
                f"Id {both[0]} is void and {ids[both[0]]}; leave it out of void, or name classes as {{id: name}}."
            )
        folder = pairing.common_folder(min(places), max(places))
        refs = [
            SampleRef(place.removeprefix(folder), place, truth) for place, truth in zip(places, truths, strict=True)
        ]
        space = LabelSpace(
            tuple(ids.values()),
            colored([*ids.values()]) if colors is None else tuple(map(_color, colors)),
            dict.fromkeys([*void_ids, IGNORE_INDEX], IGNORE_INDEX) | {raw: i for i, raw in enumerate(ids)},
        )
        return cls("pairs", space, _split(refs, val))


def _listed(given: object) -> list[Any]:
    """Return what a list, a generator or the like holds; of anything else one None, which is no path, id or name."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str | os.PathLike) else [None]


def _paths(given: Iterable[Place]) -> list[str]:
    paths = _listed(given)
    if not all(isinstance(path, str | os.PathLike) for path in paths):
        raise DataError("Images and masks are lists of paths, as sorted(glob('images/*.png')).")
    return [storage.absolute(os.fspath(path)) for path in paths]


def _void(void: Collection[int]) -> set[int]:
    ids = _listed(void)
    if not all(isinstance(raw, int | np.integer) for raw in ids):
        raise DataError(f"void is {void!r}; give the ids of void pixels, as [11, 255].")
    return set(map(int, ids))


def _classes(names: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    """Return the name of each id. Raises DataError where ids are no numbers, or names no names of their own."""
    ids = dict(names) if isinstance(names, Mapping) else dict(enumerate(_listed(names)))
    if isinstance(names, set | frozenset) or not all(isinstance(name, str) and name.strip() for name in ids.values()):
        raise DataError(f"names is {names!r}; give a list of names, as ['road', 'sky'], or {{7: 'road', 8: 'sky'}}.")
    if not all(isinstance(raw, int | np.integer) and raw >= 0 for raw in ids):
        raise DataError(f"names is {names!r}; its keys are the ids in the masks, whole numbers from 0 on.")
    if len(set(ids.values())) < len(ids):
        raise DataError(f"names is {names!r}; every class needs a name of its own.")
    return {int(raw): str(name) for raw, name in ids.items()}


def _color(color: Sequence[int]) -> tuple[int, int, int]:
    channels = _listed(color)
    if len(channels) != 3 or not all(isinstance(one, int | np.integer) and 0 <= one <= 255 for one in channels):
        raise DataError(f"{color!r} is no colour; give red, green and blue from 0 to 255, as (128, 64, 128).")
    red, green, blue = map(int, channels)
    return red, green, blue


def _split(refs: list[SampleRef], val: float | Iterable[Place]) -> dict[str, tuple[SampleRef, ...]]:
    if isinstance(val, float | int | np.number) or not isinstance(val, Iterable):
        if not isinstance(val, float | int | np.number) or not 0 < val < 1:
            raise DataError(f"val is {val}; give a share between 0 and 1, or the images to validate on.")
        splits = dict(zip(("train", "val"), pairing.split_by_hash(refs, val), strict=True))
    else:
        splits = _held_out(refs, [val] if isinstance(val, str | os.PathLike) else val)
    if empty := [name for name, frames in splits.items() if not frames]:
        raise DataError(f"No frames are left for {empty[0]}, of {len(refs)}; give more images, or another val.")
    return splits


def _held_out(refs: list[SampleRef], val: Iterable[Place]) -> dict[str, tuple[SampleRef, ...]]:
    held_out = set(_paths(val))
    if missing := held_out - {ref.image for ref in refs}:
        raise DataError(f"{min(missing)} is to be validated on and is none of the images; name it there, too.")
    return {
        "train": tuple(ref for ref in refs if ref.image not in held_out),
        "val": tuple(ref for ref in refs if ref.image in held_out),
    }
