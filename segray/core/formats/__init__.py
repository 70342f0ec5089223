"""Labels as other tools read them: a format is a writer in a module here, and a row in FORMATS.

A writer is made once an export, and refuses classes that its format cannot hold. `part` writes the files of a part's
frames and gives a record for each, plain data; `join` makes from all records what the format has once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from segray.core.formats.coco import Coco, Panoptic
from segray.core.formats.cvat import Cvat
from segray.core.formats.frame import Frame, Job
from segray.core.formats.huggingface import HuggingFace
from segray.core.formats.label_studio import LabelStudio
from segray.core.formats.masks import Cityscapes, Png


class Writer(Protocol):
    """made: files and folders of OUT that are its own. uses: options that change them. pictures: whether it needs them.

    result: what to open, below OUT. note: what a person should know of the result.
    """

    made: tuple[str, ...]
    uses: tuple[str, ...]
    pictures: bool
    result: str
    note: str

    def __init__(self, job: Job) -> None: ...

    def part(self, name: str, frames: Iterator[Frame]) -> Iterator[dict[str, Any]]: ...

    def join(self) -> None: ...


FORMATS: dict[str, type[Writer]] = {
    "png": Png,
    "cityscapes": Cityscapes,
    "coco": Coco,
    "coco-panoptic": Panoptic,
    "cvat": Cvat,
    "label-studio": LabelStudio,
    "huggingface": HuggingFace,
}
