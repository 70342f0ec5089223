"""COCO: instances as run lengths in one JSON, and panoptic PNGs with theirs.

A category's id is the class id + 1, as 0 is void in panoptic PNGs and no match in pycocotools' COCOeval.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import numpy as np
from scipy import ndimage

from segray.core import images, quality
from segray.core.extras import extra
from segray.core.formats.frame import Frame, Job, replacing, write_object


class Coco:
    """coco.json: an annotation for each region of one class whose pixels are joined by their sides."""

    made, uses, pictures, result = ("coco.json",), ("min_area",), False, "coco.json"
    note = "An instance is a region of one class: two cars that touch are one. A category's id is the class id + 1."

    def __init__(self, job: Job) -> None:
        self.job, self.masks = job, extra("pycocotools.mask")

    def part(self, name: str, frames: Iterator[Frame]) -> Iterator[dict[str, Any]]:
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
        _write(self.job, "coco.json", {}, annotations)


class Panoptic:
    """panoptic/NAME.png, where a pixel R, G, B belongs to segment R + 256 G + 65536 B, and panoptic.json."""

    made, uses, pictures, result = ("panoptic", "panoptic.json"), (), False, "panoptic.json"
    note = "A segment is a whole class (isthing 0): instances are not told apart. Its id is the class id + 1."

    def __init__(self, job: Job) -> None:
        self.job = job

    def part(self, name: str, frames: Iterator[Frame]) -> Iterator[dict[str, Any]]:
        classes = self.job.space.num_classes
        for frame in frames:
            segment_hw = np.where(frame.mask_hw < classes, frame.mask_hw + np.uint8(1), 0).astype(np.uint8)
            # At most 255 classes: an id is its red channel.
            pixels = np.stack([segment_hw, np.zeros_like(segment_hw), np.zeros_like(segment_hw)], axis=-1)
            self.job.put(f"panoptic/{frame.name}.png", images.encode_image(pixels))
            yield {"image": frame.image_facts, "png": f"{frame.name}.png", "segments": _segments(segment_hw, classes)}

    def join(self) -> None:
        annotations = (
            {"image_id": image_id, "file_name": record["png"], "segments_info": record["segments"]}
            for image_id, record in enumerate(self.job.records(), 1)
        )
        _write(self.job, "panoptic.json", {"isthing": 0}, annotations)


def instances(mask_hw: np.ndarray, num_classes: int, min_area: int) -> Iterator[tuple[int, int, list[int]]]:
    """Ids uint8 [H, W] → (class, pixels, COCO's counts) of each region of min_area pixels or more.

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


def _segments(segment_hw: np.ndarray, classes: int) -> list[dict[str, Any]]:
    boxes = ndimage.find_objects(segment_hw, classes)
    areas = np.bincount(segment_hw.ravel(), minlength=classes + 1)
    return [
        {
            "id": i,
            "category_id": i,
            "area": int(areas[i]),
            "bbox": [box[1].start, box[0].start, box[1].stop - box[1].start, box[0].stop - box[0].start],
            "iscrowd": 0,
        }
        for i, box in enumerate(boxes, 1)
        if box is not None
    ]


def _write(job: Job, name: str, more: dict[str, Any], annotations: Iterator[dict[str, Any]]) -> None:
    """images and annotations, one after the other: the records are read twice, and not kept."""
    named = enumerate(zip(job.space.names, job.space.colors, strict=True), 1)
    categories = [
        {"id": i, "name": class_name, "supercategory": "", "color": list(color), **more}
        for i, (class_name, color) in named
    ]
    pictures = ({"id": i, **record["image"]} for i, record in enumerate(job.records(), 1))
    with replacing(job.out / name) as file:
        write_object(file, {"categories": categories, "images": pictures, "annotations": annotations})
