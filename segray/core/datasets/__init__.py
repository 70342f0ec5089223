"""Layouts of labelled frames. A new one is a module with `open_dataset(config) -> Dataset` and a row in FORMATS."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from segray.config import DataSection
from segray.core import images, storage
from segray.core.datasets import camvid, folder, streets
from segray.core.samples import Dataset, LabelSpace, Sample, SampleRef
from segray.errors import ConfigError, DataError, nearest

STREETS_CACHE = Path(f"~/.cache/segray/streets-{streets.DRAWING}")


def open_streets(config: DataSection) -> Dataset:
    """Drawn streets, in CamVid's layout: drawn once into `root`, or into a cache where none is given."""
    root = Path(config.root) if config.root else STREETS_CACHE.expanduser()
    if not (root / "streets.json").exists():
        streets.write(root)
    return Dataset("streets", camvid.LABEL_SPACE, *camvid.read_splits(str(root.absolute())))


FORMATS = {
    "camvid": camvid.open_dataset,
    "folder": folder.open_dataset,
    "streets": open_streets,
}


def open_dataset(config: DataSection) -> Dataset:
    """The splits of a data set, without reading a pixel; `config.id_map` overrides the layout's own.

    Raises ConfigError for an unknown format and DataError for a folder that is missing or holds no frame.
    """
    if config.format not in FORMATS:
        raise ConfigError(f"data.format is {config.format!r}.{nearest(config.format, FORMATS)}")
    dataset = FORMATS[config.format](config)
    if config.id_map:
        space = dataset.label_space
        dataset = replace(dataset, label_space=replace(space, id_map={**space.id_map, **config.id_map}))
    return dataset


def split_refs(dataset: Dataset, split: str) -> tuple[SampleRef, ...]:
    """The frames of one split. DataError when there is none, or when images and masks do not pair."""
    refs = dataset.splits.get(split, ())
    if not refs:
        raise DataError(f"{dataset.name} has no split {split!r}.{nearest(split, dataset.splits)}")
    if dataset.unpaired:
        raise DataError(
            f"{dataset.unpaired[0]} has no partner ({len(dataset.unpaired)} such files); "
            "every image needs a mask of the same stem. `segray data check` lists them."
        )
    return refs


def read_sample(ref: SampleRef, space: LabelSpace, size: tuple[int, int] | None) -> Sample:
    """Decode one frame, map its ids to classes, and resize both to `size` (height, width) if given."""
    image_hwc = images.decode_image(storage.read_bytes(ref.image), ref.image)
    mask_hw = space.apply(images.decode_mask(storage.read_bytes(ref.mask), ref.mask), ref.mask)
    if mask_hw.shape != image_hwc.shape[:2]:
        raise DataError(
            f"{ref.mask} is {_text(mask_hw)} but its image is {_text(image_hwc)} (height × width); "
            "a mask has its image's size."
        )
    if size is None:
        return Sample(image_hwc, mask_hw)
    return Sample(images.resize_image(image_hwc, size), images.resize_mask(mask_hw, size))


class FileSamples:
    """Samples decoded from their files at each access: for data that fits no memory, and for one process."""

    def __init__(self, refs: tuple[SampleRef, ...], space: LabelSpace, size: tuple[int, int]) -> None:
        self.refs, self.space, self.size = refs, space, size

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(self.refs[index], self.space, self.size)


class MemorySamples:
    """Samples decoded once and kept, uint8."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    @classmethod
    def read(cls, refs: tuple[SampleRef, ...], space: LabelSpace, size: tuple[int, int]) -> MemorySamples:
        with ThreadPoolExecutor(4) as pool:
            return cls(list(pool.map(lambda ref: read_sample(ref, space, size), refs)))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def input_size(config: DataSection, refs: tuple[SampleRef, ...]) -> tuple[int, int]:
    """(height, width) that the model sees: as configured, else that of the first frame."""
    if config.size is not None:
        return config.size
    return images.decode_image(storage.read_bytes(refs[0].image), refs[0].image).shape[:2]


def _text(array: Any) -> str:
    return f"{array.shape[0]}×{array.shape[1]}"
