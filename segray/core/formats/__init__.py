"""Labels as other tools read them: a format is a writer in a module here, and a row in WRITERS.

A writer is made once an export, and refuses classes that its format cannot hold. `part` writes the files of a part's
frames and gives a record for each, plain data; `join` makes from all records what the format has once.
"""

from __future__ import annotations

from segray.core.formats.coco import Coco, Panoptic
from segray.core.formats.cvat import Cvat
from segray.core.formats.frame import Writer
from segray.core.formats.huggingface import HuggingFace
from segray.core.formats.label_studio import LabelStudio
from segray.core.formats.masks import Cityscapes, Png

WRITERS: dict[str, type[Writer]] = {
    "png": Png,
    "cityscapes": Cityscapes,
    "coco": Coco,
    "coco-panoptic": Panoptic,
    "cvat": Cvat,
    "label-studio": LabelStudio,
    "huggingface": HuggingFace,
}
