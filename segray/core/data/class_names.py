"""What the name of a class says: which names mean the same, and the colour of a class that was given none."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from segray.core.data.cityscapes import LABELS

# Names that mean the same, according to the annotation guides of COCO/VOC, Cityscapes and CamVid. A rider is a person
# to VOC; its cars exclude trucks; CamVid's cars include vans. CamVid's bicyclist is a person with a bicycle, and so
# matches neither class.
SYNONYMS = (
    {"person", "pedestrian", "rider"},
    {"motorbike", "motorcycle"},
    {"sidewalk", "pavement"},
    {"vegetation", "tree"},
    {"traffic sign", "sign symbol", "sign"},
)
CITYSCAPES = tuple(name for name, _, _ in LABELS)
Rgb = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)  # void, and the paper of a report
CHOICE = np.array(list(product(range(30, 256, 37), repeat=3)))  # 343 colours, more than a label space has classes


def match(name: str, names: Sequence[str]) -> int | None:
    """Return the position of this class, or of a synonym, or None."""
    same = next((group for group in SYNONYMS if name in group), {name})
    return next((names.index(known) for known in (name, *sorted(same)) if known in names), None)


def cityscapes_id(name: str) -> int | None:
    """Return the id of Cityscapes' label of this name, in any writing.

    >>> cityscapes_id("Traffic_Sign"), cityscapes_id("tree"), cityscapes_id("crack")
    (20, 21, None)
    """
    return match(name.lower().replace("_", " ").replace("-", " "), CITYSCAPES)


def colored(names: Sequence[str], given: Sequence[Rgb | None] = ()) -> tuple[Rgb, ...]:
    """Return the colour of each class: the given one, else Cityscapes' of its name, else one far from all others.

    >>> colored(["road", "crack", "Car"], [None, None, (9, 9, 9)])
    ((128, 64, 128), (30, 252, 30), (9, 9, 9))
    """
    colors = list(given or [None] * len(names))
    for i, name in enumerate(names):
        official = cityscapes_id(name)
        if colors[i] is None and official is not None and LABELS[official][2] not in (BLACK, *colors):
            colors[i] = LABELS[official][2]
    taken = [BLACK, WHITE, *(color for color in colors if color is not None)]
    apart = np.min([_apart(color) for color in taken], axis=0)
    for i, color in enumerate(colors):
        if color is None:
            red, green, blue = CHOICE[apart.argmax()].tolist()
            colors[i] = red, green, blue
            apart = np.minimum(apart, _apart((red, green, blue)))
    return tuple(color for color in colors if color is not None)


def _apart(color: Rgb) -> np.ndarray:
    """Return the squared distance of each CHOICE from this colour."""
    distance: np.ndarray = ((CHOICE - color) ** 2).sum(1)
    return distance
