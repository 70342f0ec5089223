"""Which classes can be counted: COCO's things, of the label spaces that are known here."""

from __future__ import annotations

from segray.core.samples import LabelSpace

# Classes that have instances: cityscapesScripts' helpers/labels.py; VOC's objects; CamVid's moving ones.
THINGS = frozenset(
    {
        *("person", "rider", "car", "truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
        *("aeroplane", "bird", "boat", "bottle", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike"),
        *("pottedplant", "sheep", "sofa", "tvmonitor", "pedestrian", "bicyclist"),
    }
)
# Of ADE20K's 150, by position, as its names are other spaces' stuff too: the Places challenge of 2017 has 100 things.
ADE20K = 150
ADE20K_STUFF = frozenset(
    {
        *(*range(7), 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79),
        *(84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145),
    }
)


def things(space: LabelSpace) -> list[bool]:
    """Say of each class whether it is a thing.

    >>> things(LabelSpace(("road", "car"), ((128, 64, 128), (0, 0, 142))))
    [False, True]
    """
    if space.num_classes == ADE20K:
        return [i not in ADE20K_STUFF for i in range(ADE20K)]
    return [name.lower() in THINGS for name in space.names]
