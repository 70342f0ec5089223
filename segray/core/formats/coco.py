"""COCO: instances as run lengths in one JSON, and panoptic PNGs with theirs.

A category's id is the class id + 1, as 0 is void in panoptic PNGs and no match in pycocotools' COCOeval.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, repeat
from typing import Any, NamedTuple

import numpy as np

from segray.core.extras import extra
from segray.core.formats.frame import Job, LabelledFrame, Writer, write_object
from segray.core.formats.things import things
from segray.core.io import images
from segray.core.labels import quality

# As COCO's own files are called, with the subset `default`: by these names datumaro and CVAT find them.
INSTANCES, PANOPTIC = "annotations/instances_default.json", "annotations/panoptic_default"
MOST_REGIONS = (1 << 16) - 1  # as many as G and B can tell apart; further regions share the last number


class Coco(Writer):
    """annotations/instances_default.json: an annotation for each region: a class, joined by the sides."""

    made, uses, pictures, result = (INSTANCES,), ("min_area",), False, INSTANCES
    note = "An instance is a region of one class: two cars that touch are one. A category's id is the class id + 1."

    def __init__(self, job: Job) -> None:
        self.job, self.masks = job, extra("pycocotools.mask")

    def part(self, name: str, frames: Iterator[LabelledFrame]) -> Iterator[dict[str, Any]]:
        for frame in frames:
            yield {"image": frame.image_facts, "annotations": list(self._annotations(frame.mask_hw))}

    def _annotations(self, mask_hw: np.ndarray) -> Iterator[dict[str, Any]]:
        height, width = mask_hw.shape
        for label, area, counts in instances(mask_hw, self.job.space.num_classes, self.job.options.min_area):
            runs = self.masks.frPyObjects({"size": [height, width], "counts": counts}, height, width)
            yield {
                "category_id": label + 1,
                "segmentation": {"size": [height, width], "counts": runs["counts"].decode()},
                "area": area,
                "bbox": self.masks.toBbox(runs).tolist(),
                "iscrowd": 0,
            }

    def join(self) -> None:
        ids = count(1)
        annotations = (
            {"id": next(ids), "image_id": image_id, **annotation}
            for image_id, record in enumerate(self.job.records(), 1)
            for annotation in record["annotations"]
        )
        _write(self.job, INSTANCES, repeat({}), annotations)


class Panoptic(Writer):
    """annotations/panoptic_default/NAME.png, where a pixel R, G, B is of segment R + 256 G + 65536 B, and its JSON.

    R is the class id + 1. A region of a thing has a number of its own in G and B; of stuff there the rest is 0.
    """

    made, uses, pictures, result = (PANOPTIC, f"{PANOPTIC}.json"), (), False, f"{PANOPTIC}.json"

    def __init__(self, job: Job) -> None:
        self.job, self.things = job, things(job.space)
        what = (
            "Segments of things are regions: two cars that touch are one"
            if any(self.things)
            else "No class is known as a thing, and panopticapi's pq_compute fails where the frames have none"
        )
        self.note = f"{what}. A category's id is the class id + 1."

    def part(self, name: str, frames: Iterator[LabelledFrame]) -> Iterator[dict[str, Any]]:
        for frame in frames:
            runs = segment_runs(frame.mask_hw, self.things)
            ids_hw = np.repeat(runs.ids.astype("<u4"), runs.lengths).reshape(frame.mask_hw.shape)
            pixels = np.ascontiguousarray(ids_hw.view(np.uint8).reshape(*ids_hw.shape, 4)[..., :3])
            self.job.put(f"{PANOPTIC}/{frame.name}.png", images.encode_image(pixels))
            yield {"image": frame.image_facts, "png": f"{frame.name}.png", "segments": _segments(runs)}

    def join(self) -> None:
        annotations = (
            {"image_id": image_id, "file_name": record["png"], "segments_info": record["segments"]}
            for image_id, record in enumerate(self.job.records(), 1)
        )
        kinds = [{"isthing": int(thing)} for thing in self.things]
        _write(self.job, f"{PANOPTIC}.json", kinds, annotations)


class Runs(NamedTuple):
    """Runs of one segment along the rows of a mask: where each begins in it, its length, and its segment's id."""

    width: int
    starts: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray


def segment_runs(mask_hw: np.ndarray, things: Sequence[bool]) -> Runs:
    """Turn ids uint8 [H, W] into runs of segments.

    Segment ids: 0 is void; a stuff class has its class id + 1; each region of a thing adds 256 × its number to that.
    [[0, 1], [1, 0]] where 1 is a thing → ids 1, 258, 514, 1
    """
    starts, region_of_run = quality.regions(mask_hw)
    classes = mask_hw.ravel()[starts].astype(np.int64)
    known = classes < len(things)
    ids = np.where(known, classes + 1, 0)
    counted = known & np.append(things, False)[np.minimum(classes, len(things))]
    _, numbers = np.unique(region_of_run[counted], return_inverse=True)
    ids[counted] += 256 * np.minimum(numbers + 1, MOST_REGIONS)
    return Runs(mask_hw.shape[1], starts, np.diff(starts, append=mask_hw.size), ids)


def instances(mask_hw: np.ndarray, num_classes: int, min_area: int) -> Iterator[tuple[int, int, list[int]]]:
    """Give (class, pixels, COCO's counts) for each region of min_area pixels or more in ids uint8 [H, W].

    counts: pixels outside, inside, outside, … down the columns, from the left. [[0, 1], [1, 1]] of 2 classes →
    (0, 1, [0, 1, 3]), (1, 3, [1, 3])
    """
    ids = np.ascontiguousarray(mask_hw.T)  # rows are columns: runs go down
    starts, region_of_run = quality.regions(ids)
    ends = np.append(starts[1:], ids.size)
    pixels = np.bincount(region_of_run, weights=ends - starts).astype(np.int64)
    wanted = np.flatnonzero((pixels[region_of_run] >= min_area) & (ids.ravel()[starts] < num_classes))
    order = wanted[np.argsort(region_of_run[wanted], kind="stable")]
    for runs in np.split(order, np.flatnonzero(np.diff(region_of_run[order])) + 1) if len(order) else ():
        first, last = starts[runs], ends[runs]
        joined = first[1:] == last[:-1]  # from the foot of a column on at the head of the next
        edges = np.stack([first[np.append(True, ~joined)], last[np.append(~joined, True)]], axis=1).ravel()
        counts = np.diff(edges, prepend=0).tolist()
        tail = [ids.size - int(last[-1])] if last[-1] < ids.size else []
        yield int(ids.ravel()[first[0]]), int(pixels[region_of_run[runs[0]]]), counts + tail


def _segments(runs: Runs) -> list[dict[str, Any]]:
    ids, segment = np.unique(runs.ids, return_inverse=True)
    areas = np.bincount(segment, weights=runs.lengths).astype(np.int64)
    rows, lefts = np.divmod(runs.starts, runs.width)
    low, high = np.full((2, len(ids)), runs.starts[-1] + runs.width), np.zeros((2, len(ids)), np.int64)
    for axis, (first, end) in enumerate(((lefts, lefts + runs.lengths), (rows, rows + 1))):
        np.minimum.at(low[axis], segment, first)
        np.maximum.at(high[axis], segment, end)
    boxes = np.concatenate([low, high - low]).T.tolist()
    return [
        {"id": one, "category_id": one % 256, "area": area, "bbox": box, "iscrowd": 0}
        for one, area, box in zip(ids.tolist(), areas.tolist(), boxes, strict=True)
        if one
    ]


def _write(job: Job, name: str, more: Iterable[dict[str, Any]], annotations: Iterator[dict[str, Any]]) -> None:
    """Write images and then annotations: the records are read twice, and not kept. more: what each category adds."""
    named = enumerate(zip(job.space.names, job.space.colors, more, strict=False), 1)
    categories = [
        {"id": i, "name": class_name, "supercategory": "", "color": list(color), **facts}
        for i, (class_name, color, facts) in named
    ]
    pictures = ({"id": i, **record["image"]} for i, record in enumerate(job.records(), 1))
    with job.writing(name) as file:
        head = {"info": {"description": "Labels by segray"}, "licenses": [], "categories": categories}
        write_object(file, head | {"images": pictures, "annotations": annotations})
