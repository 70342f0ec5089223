"""A dataset folder of the Hugging Face Hub: Parquet with images, masks and metrics, and a card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.core.formats.frame import Job, LabelledFrame, Writer
from segray.core.io.masks import encode_mask
from segray.core.labels.schema import IMAGE, METRICS, ROW_SCHEMA

ROWS = 16  # rows of a row group: some 50 MB of frames
COPIED = ("height_px", "width_px", "frame_index", "time_s", "class_shares", *METRICS, "model_id")
FEATURES = {"info": {"features": {name: {"_type": "Image"} for name in ("image", "mask")}}}
SCHEMA = pa.schema(
    [("image", IMAGE), ("mask", IMAGE), ("file_name", pa.string()), *(ROW_SCHEMA.field(name) for name in COPIED)],
    metadata={"huggingface": json.dumps(FEATURES)},
)
CARD = """\
---
pretty_name: Labelled frames
task_categories:
- image-segmentation
tags:
- semantic-segmentation
- segray
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---

# Labelled frames

{frames} frames with masks that a model made, not people: metrics of its confidence stand beside each.

```python
frame = datasets.load_dataset("FOLDER OR REPO", split="train")[0]
frame["image"], frame["mask"]  # PIL images; the mask's pixels are class ids, {void} is void
```

| id | class | colour |
|---|---|---|
{classes}
"""


class HuggingFace(Writer):
    """data/*.parquet, a card, and id2label.json, as transformers' segmentation models want the classes."""

    made, uses, pictures, result = ("data", "README.md", "id2label.json"), (), True, "README.md"
    note = "The folder is a dataset: datasets.load_dataset(folder)."

    def __init__(self, job: Job) -> None:
        self.job = job

    def part(self, name: str, frames: Iterator[LabelledFrame]) -> Iterator[dict[str, Any]]:
        rows = map(self._row, frames)
        if not (first := list(islice(rows, ROWS))):
            return
        with self.job.writing(f"data/{name}.parquet", "wb") as file, pq.ParquetWriter(file, SCHEMA) as parts:
            while first:
                parts.write_table(pa.Table.from_pylist(first, SCHEMA))
                yield from ({} for _ in first)
                first = list(islice(rows, ROWS))

    def _row(self, frame: LabelledFrame) -> dict[str, Any]:
        mask = frame.row["mask"] or {"bytes": encode_mask(frame.mask_hw, self.job.space.colors)}
        paths = {"image": frame.picture, "mask": f"{frame.name}.png"}
        cells = {"image": frame.image, "mask": mask["bytes"]}
        row: dict[str, Any] = {key: {"bytes": cells[key], "path": path} for key, path in paths.items()}
        copied: dict[str, Any] = {**frame.row}
        return row | {"file_name": frame.picture} | {key: copied[key] for key in COPIED}

    def join(self) -> None:
        space = self.job.space
        named = enumerate(zip(space.names, space.colors, strict=True))
        classes = "\n".join(f"| {i} | {name} | {', '.join(map(str, color))} |" for i, (name, color) in named)
        frames = sum(part["frames"] for part in self.job.totals())
        self.job.put("README.md", CARD.format(frames=frames, void=space.ignore_index, classes=classes).encode())
        self.job.put("id2label.json", json.dumps(dict(enumerate(space.names)), indent=2).encode())
