"""The nouns of the package: a label space, a sample on disk, a decoded sample.

Shapes and types everywhere: `image_hwc` is uint8 RGB [H, W, 3]; `mask_hw` is uint8 class ids [H, W],
where `LabelSpace.ignore_index` marks pixels that count nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from segray.errors import DataError

IGNORE_INDEX = 255


@dataclass(frozen=True)
class LabelSpace:
    """Classes in order, their colours, and how ids in mask files become classes.

    names: class i is called names[i]; at most 255 classes.
    colors: RGB, one a class.
    id_map: id in a mask file → class, or IGNORE_INDEX for void. An id outside it is an error, never guessed.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    id_map: Mapping[int, int] = field(default_factory=dict)
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= IGNORE_INDEX:
            raise DataError(f"{len(self.names)} classes given; a label space holds 1 to {IGNORE_INDEX}.")
        if len(self.colors) != len(self.names):
            raise DataError(f"{len(self.names)} class names but {len(self.colors)} colours; give one each.")
        if not self.id_map:
            identity = {i: i for i in range(len(self.names))} | {self.ignore_index: self.ignore_index}
            object.__setattr__(self, "id_map", identity)

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` gives the same label space back."""
        return {
            "names": list(self.names),
            "colors": [list(color) for color in self.colors],
            "id_map": {str(raw): label for raw, label in sorted(self.id_map.items())},
            "ignore_index": self.ignore_index,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSpace:
        return cls(
            names=tuple(data["names"]),
            colors=tuple((int(r), int(g), int(b)) for r, g, b in data["colors"]),
            id_map={int(raw): int(label) for raw, label in data["id_map"].items()},
            ignore_index=int(data["ignore_index"]),
        )

    def apply(self, raw_hw: np.ndarray, source: str) -> np.ndarray:
        """Ids as they stand in a mask file → class ids, uint8 [H, W].

        Raises DataError that names `source` and the first id that the label space does not know.
        """
        table = np.full(256, -1, dtype=np.int16)
        for raw, label in self.id_map.items():
            table[raw] = label
        mapped = table[raw_hw]
        if mapped.min(initial=0) < 0:
            unknown = sorted(int(i) for i in np.unique(raw_hw[mapped < 0]))
            raise DataError(
                f"{source} has class id {unknown[0]}; the label space knows {ids_text(self.id_map)}. "
                "Map it in data.id_map, to a class or to 255 for void."
            )
        return mapped.astype(np.uint8)


def ids_text(ids: Iterable[int]) -> str:
    """Ids with runs joined.

    >>> ids_text([0, 1, 2, 3, 11])
    '0–3, 11'
    """
    runs: list[list[int]] = []
    for i in sorted(ids):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


@dataclass(frozen=True)
class SampleRef:
    """One labelled frame on disk: a stable id and the places of its image and mask."""

    sample_id: str
    image: str
    mask: str


@dataclass(frozen=True)
class Dataset:
    """Splits of labelled frames and the label space that they share.

    unpaired: images without a mask and masks without an image; training refuses them, `data check` lists them.
    """

    name: str
    label_space: LabelSpace
    splits: Mapping[str, tuple[SampleRef, ...]]
    unpaired: tuple[str, ...] = ()


class Sample(NamedTuple):
    """A decoded frame: image_hwc uint8 [H, W, 3], mask_hw uint8 [H, W]."""

    image_hwc: np.ndarray
    mask_hw: np.ndarray


class Samples(Protocol):
    """Decoded samples by position, in the order of their split; the same every time."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
