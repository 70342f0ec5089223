"""Frames with ground truth that a program names, instead of a folder in a known layout."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from segray.core import samples
from segray.core.data.folder import hue
from segray.core.io import pairing, storage
from segray.core.samples import IGNORE_INDEX, LabelSpace, SampleRef
from segray.errors import DataError

Place = str | os.PathLike[str]
Colors = Sequence[tuple[int, int, int]]


class Dataset(samples.Dataset):
    """A data set for segray.train() and segray.sweep(), with the splits train and val."""

    @classmethod
    def from_pairs(
        cls,
        images: Sequence[Place],
        masks: Sequence[Place],
        names: Sequence[str] | Mapping[int, str],
        *,
        colors: Colors | None = None,
        void: Collection[int] = (IGNORE_INDEX,),
        val: float | Sequence[Place] = 0.2,
    ) -> Dataset:
        """Make a data set of images and their masks, in the same order.

        names: the classes; a mask holds their positions, or the ids that a mapping gives.
        colors: RGB of each class, for pictures.
        void: ids of pixels that count nowhere.
        val: share of the frames to validate on, by the hash of their paths; or those of the images.
        Raises DataError for lists of other lengths, or for an image that is given twice. Files are opened in training.

        >>> data = segray.Dataset.from_pairs(images, masks, names=["road", "sky"])
        >>> {name: len(frames) for name, frames in data.splits.items()}
        {'train': 2, 'val': 2}
        """
        if len(images) != len(masks):
            raise DataError(f"{len(images)} images and {len(masks)} masks were given; give one mask for each image.")
        if not images:
            raise DataError("No images were given; name some, as sorted(glob('images/*.png')).")
        places = [storage.absolute(os.fspath(image)) for image in images]
        if twice := [place for place, count in Counter(places).items() if count > 1]:
            raise DataError(f"{twice[0]} was given twice; name each image once.")
        ids = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        folder = pairing.common_folder(min(places), max(places))
        refs = [
            SampleRef(place.removeprefix(folder), place, storage.absolute(os.fspath(mask)))
            for place, mask in zip(places, masks, strict=True)
        ]
        space = LabelSpace(
            tuple(ids.values()),
            tuple(colors or [hue(i, len(ids)) for i in range(len(ids))]),
            dict.fromkeys(void, IGNORE_INDEX) | {raw: i for i, raw in enumerate(ids)},
        )
        return cls("pairs", space, _split(refs, val))


def _split(refs: list[SampleRef], val: float | Sequence[Place]) -> dict[str, tuple[SampleRef, ...]]:
    if isinstance(val, float | int):
        return dict(zip(("train", "val"), pairing.split_by_hash(refs, val), strict=True))
    held_out = {storage.absolute(os.fspath(place)) for place in val}
    if missing := held_out - {ref.image for ref in refs}:
        raise DataError(f"{min(missing)} is to be validated on and is none of the images; name it there, too.")
    return {
        "train": tuple(ref for ref in refs if ref.image not in held_out),
        "val": tuple(ref for ref in refs if ref.image in held_out),
    }
