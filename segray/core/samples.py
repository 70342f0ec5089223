"""The nouns of the package: a label space, a sample on disk, a decoded sample.

Shapes and types everywhere: `image_hwc` is uint8 RGB [H, W, 3]; `mask_hw` is uint8 class ids [H, W],
where `LabelSpace.ignore_index` marks pixels that count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from segray.errors import DataError

IGNORE_INDEX = 255
BYTES_A_PIXEL = 4  # bytes of a decoded sample: RGB and the mask
MaskChannel = Literal["red", "green", "blue"]
CHANNELS: tuple[MaskChannel, ...] = get_args(MaskChannel)
ROWS = 32  # rows of a mask that are mapped at once: NumPy takes 8 bytes for each index
COLOR = 1 << 24  # a pixel of a colour mask has the id COLOR | 0xRRGGBB, so that no colour is mistaken for an id


@dataclass(frozen=True)
class LabelSpace:
    """Classes in order, their colours, and how ids in mask files become classes.

    names: class i is called names[i]; at most 255 classes.
    colors: RGB, one a class.
    id_map: id in a mask file → class, or IGNORE_INDEX for void; colours are ids too (COLOR | 0xRRGGBB). An id
        outside it is an error, never guessed.
    mask_channel: red, green or blue: colour masks hold their ids in that channel.
    listed_in: the file that its owner wrote the classes in, for messages; a bundle does not keep it.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    id_map: Mapping[int, int] = field(default_factory=dict)
    ignore_index: int = IGNORE_INDEX
    mask_channel: MaskChannel | None = None
    listed_in: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE_INDEX:
            raise DataError(f"{len(self.names)} classes given; a label space holds 1 to {IGNORE_INDEX}.")
        if len(self.colors) != len(self.names):
            raise DataError(f"{len(self.names)} class names but {len(self.colors)} colours; give one each.")
        if not self.id_map:
            identity = {i: i for i in range(len(self.names))} | {self.ignore_index: self.ignore_index}
            object.__setattr__(self, "id_map", identity)
        for raw, label in self.id_map.items():
            if not (0 <= label < len(self.names) or label == self.ignore_index):
                raise DataError(
                    f"Id {id_text(raw)} is mapped to class {label}; classes are 0 to {len(self.names) - 1}, and "
                    f"{self.ignore_index} is void. Change it in data.id_map."
                )

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def or_list_it(self) -> str:
        """The end of a message about an id that no class has."""
        return f", or add a line for it to {self.listed_in}" if self.listed_in else ""

    def known_like(self, raw: int) -> str:
        """Write the known ids of the kind of `raw`, numbers or colours; all of them if there is none of that kind."""
        alike = [one for one in self.id_map if (one < COLOR) == (raw < COLOR)]
        return ids_text(alike or self.id_map)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data, from which `from_dict` makes the same label space."""
        return {
            "names": list(self.names),
            "colors": [list(color) for color in self.colors],
            "id_map": {str(raw): label for raw, label in sorted(self.id_map.items())},
            "ignore_index": self.ignore_index,
        } | ({} if self.mask_channel is None else {"mask_channel": self.mask_channel})

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSpace:
        return cls(
            names=tuple(data["names"]),
            colors=tuple((int(r), int(g), int(b)) for r, g, b in data["colors"]),
            id_map={int(raw): int(label) for raw, label in data["id_map"].items()},
            ignore_index=int(data["ignore_index"]),
            mask_channel=data.get("mask_channel"),
        )

    def apply(self, raw_hw: np.ndarray, source: str) -> np.ndarray:
        """Map ids as they are stored in a mask file, any unsigned type, to class ids, uint8 [H, W].

        Raises DataError that names `source` and the first id that the label space does not know.
        """
        classes_hw = np.empty(raw_hw.shape, np.uint8)
        for at in range(0, len(raw_hw), ROWS):
            ids = raw_hw[at : at + ROWS]
            found = self._table.take(ids, mode="clip")
            if not found.all():
                unknown = int(ids[found == 0].min())
                raise DataError(
                    f"{source} has class id {id_text(unknown)}; the label space knows {self.known_like(unknown)}. "
                    f"Map it in data.id_map, to a class or to 255 for void{self.or_list_it}."
                )
            found -= 1
            classes_hw[at : at + ROWS] = found
        return classes_hw

    @cached_property
    def _table(self) -> np.ndarray:
        """The class + 1 of each id, 0 for unknown ids; larger ids are clipped to the end, which is 0.

        With colours it takes 64 MiB, of which only the pages of colours in masks are ever in memory.
        """
        held = {raw: label for raw, label in self.id_map.items() if 0 <= raw < 2 * COLOR}  # ids that files can hold
        table = np.zeros(max(held, default=0) + 2, np.uint16)
        table[list(held)] = [label + 1 for label in held.values()]
        return table

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_table"}


def color_id(red: int, green: int, blue: int) -> int:
    """Return the id of a colour in a mask file."""
    return COLOR | red << 16 | green << 8 | blue


def id_color(raw: int) -> tuple[int, int, int]:
    """Return the colour, red, green, blue, that an id of `color_id` stands for.

    >>> id_color(color_id(128, 0, 64))
    (128, 0, 64)
    """
    return raw >> 16 & 255, raw >> 8 & 255, raw & 255


def id_text(raw: int) -> str:
    """Write an id for people.

    >>> id_text(7), id_text(color_id(128, 0, 64))
    ('7', '#800040')
    """
    return str(raw) if raw < COLOR else f"#{raw - COLOR:06X}"


def ids_text(ids: Iterable[int]) -> str:
    """Write ids for people, with runs joined.

    >>> ids_text([0, 1, 2, 3, 11])
    '0–3, 11'
    """
    runs: list[list[int]] = []
    ids = sorted(ids)
    for i in (i for i in ids if i < COLOR):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    colors = [id_text(i) for i in ids if i >= COLOR]
    return ", ".join([str(a) if a == b else f"{a}–{b}" for a, b in runs] + colors[:12] + ["…"] * (len(colors) > 12))


@dataclass(frozen=True)
class SampleRef:
    """One labelled frame on disk: a stable id and the places of its image and mask (core.io.locators).

    stamp: that of the image's file when segray labelled it; a file with another one is not read. None: read as it is.
    """

    sample_id: str
    image: str
    mask: str
    stamp: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Splits of labelled frames and the label space that they share.

    unpaired: images without a mask and masks without an image; training refuses them, `data check` lists them.
    notes: decisions made in reading the folder that are worth knowing.
    """

    name: str
    label_space: LabelSpace
    splits: Mapping[str, tuple[SampleRef, ...]]
    unpaired: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Sample(NamedTuple):
    """A decoded frame: image_hwc uint8 [H, W, 3], mask_hw uint8 [H, W]."""

    image_hwc: np.ndarray
    mask_hw: np.ndarray


class Samples(Protocol):
    """Decoded samples by position, in the order of their split; the same every time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class TrainData:
    """The data of a training run. size: (height, width) of every sample; data_id: hash of names and classes.

    kept: a context that each process enters while it reads, if samples are kept on the disk.
    """

    train: Samples
    val: Samples
    label_space: LabelSpace
    size: tuple[int, int]
    data_id: str = ""
    train_ids: tuple[str, ...] = ()
    kept: AbstractContextManager[object] = field(default_factory=nullcontext)
