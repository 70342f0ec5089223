"""A data set → what stands in its masks, and everything that would spoil training, with the files that hold it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from segray.core.datasets.places import read_image, read_mask
from segray.core.samples import Dataset, LabelSpace, MaskChannel, SampleRef, id_text, ids_text
from segray.errors import SegrayError


@dataclass
class CheckResult:
    """problems: each stops training, one line each. notes: worth knowing. pixels: id in mask files → count."""

    frames: dict[str, int]
    pixels: Counter[int] = field(default_factory=Counter)
    frames_with: Counter[int] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


@dataclass(frozen=True)
class _Finding:
    ref: SampleRef
    size: tuple[int, int] | None = None
    counts: dict[int, int] = field(default_factory=dict)
    error: str | None = None


def check(dataset: Dataset, needed: tuple[str, ...], on_frame: Callable[[], None] = lambda: None) -> CheckResult:
    """Decode every frame and mask once. needed: splits that training asks for; on_frame is called a frame."""
    result = CheckResult({split: len(refs) for split, refs in dataset.splits.items()})
    refs = frames_of(dataset)
    unknown: dict[int, list[str]] = {}
    with ThreadPoolExecutor(4) as pool:
        for finding in pool.map(partial(_look, channel=dataset.label_space.mask_channel), refs):
            on_frame()
            _add(result, finding, dataset.label_space, unknown)
    result.problems += [f"no frames in split {split!r}" for split in needed if not dataset.splits.get(split)]
    result.problems += [f"{uri} has no partner" for uri in dataset.unpaired]
    result.problems += _unknown_ids(unknown, dataset.label_space)
    result.notes += [*dataset.notes, *_shared(dataset, needed), *_notes(result, dataset)]
    return result


def frames_of(dataset: Dataset) -> list[SampleRef]:
    """Every frame once, also where splits share some, as VOC's trainval does."""
    return list(dict.fromkeys(ref for refs in dataset.splits.values() for ref in refs))


def _look(ref: SampleRef, channel: MaskChannel | None) -> _Finding:
    try:
        image_hwc, raw_hw = read_image(ref.image), read_mask(ref.mask, channel)
    except SegrayError as error:
        return _Finding(ref, error=str(error))
    ids, counts = np.unique(raw_hw, return_counts=True)
    found = dict(zip(ids.tolist(), counts.tolist(), strict=True))
    height, width = image_hwc.shape[:2]
    if raw_hw.shape != (height, width):
        text = f"{ref.mask} is {raw_hw.shape[0]}×{raw_hw.shape[1]}, its image {height}×{width} (height × width)"
        return _Finding(ref, (height, width), found, text)
    return _Finding(ref, (height, width), found)


def _add(result: CheckResult, finding: _Finding, space: LabelSpace, unknown: dict[int, list[str]]) -> None:
    if finding.error:
        result.problems.append(finding.error)
    if finding.size:
        result.sizes[finding.size] += 1
    result.pixels.update(finding.counts)
    result.frames_with.update(finding.counts.keys())
    for raw in finding.counts.keys() - space.id_map.keys():
        unknown.setdefault(raw, []).append(finding.ref.mask)


def _unknown_ids(unknown: dict[int, list[str]], space: LabelSpace) -> list[str]:
    problems = []
    for raw, files in sorted(unknown.items()):
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        problems.append(
            f"id {id_text(raw)} is unknown; the label space knows {ids_text(space.id_map)}. In {files[0]}{more}. "
            f"Map it: --set data.id_map.{id_text(raw)}=CLASS, or 255 for void"
        )
    if unknown.keys() >= {255} and len(unknown) == 1:
        problems[-1] += " (masks of 0 and 255 are binary: map 255 to class 1)"
    return problems


def _shared(dataset: Dataset, needed: tuple[str, ...]) -> list[str]:
    """Frames that are trained on and validated on."""
    splits = [dataset.splits.get(split, ()) for split in dict.fromkeys(needed)]
    if len(splits) != 2 or not (both := set(splits[0]) & set(splits[1])):
        return []
    first = min(ref.sample_id for ref in both)
    return [f"{len(both)} frames are in {' and in '.join(needed)}, such as {first}: their scores are those of training"]


def _notes(result: CheckResult, dataset: Dataset) -> list[str]:
    notes = []
    if len(result.sizes) > 1:
        sizes = ", ".join(f"{h}×{w} ({n})" for (h, w), n in result.sizes.most_common(4))
        notes.append(f"frames of {len(result.sizes)} sizes: {sizes}; all are resized to data.size")
    if result.pixels.keys() == {0, 255}:
        notes.append("every mask holds 0 and 255 alone: a binary mask, 255 may be meant as class 1, not void")
    space = dataset.label_space
    present = {space.id_map.get(raw) for raw in result.pixels}
    missing = [name for label, name in enumerate(space.names) if label not in present]
    if missing:
        notes.append(f"never seen: {', '.join(missing)}")
    return notes
