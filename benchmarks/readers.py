"""How fast frames that fit no memory are read for training, against torch's DataLoader with as many workers.

    python -m benchmarks.readers --frames 240 --kind png

Every contender runs in a process of its own, one after the other, in another order each round. It decodes each frame of
a drawn set once an epoch, in a random order, maps the ids of its mask to classes, and gives batches of random crops,
uint8; nothing is trained on them. A few streets are drawn, and shifted along the road for the others.

    dataloader  a Dataset of files with Pillow, a table of 256 classes, and a crop, in as many workers as there are CPUs
    segray      as `segray train` reads: threads, and decoded frames kept on the disk; cropped where the model is
    uncached    the same with cluster.cache_gib=0
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.measure import print_machine, rounds, spread, verdict
from segray.cli import main
from segray.cli.terminal import table

DRAWN = 4
RATIOS = {"first_per_s": 1.0, "images_per_s": 2.0}  # of segray to torch's DataLoader, what is aimed at
Job = dict[str, Any]


@click.command()
@click.option("--frames", default=240, show_default=True)
@click.option("--size", default="1024x2048", show_default=True)
@click.option("--crop", default="512x1024", show_default=True)
@click.option("--kind", type=click.Choice(["png", "jpg"]), default="png", show_default=True)
@click.option("--epochs", default=3, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--rounds", "count", default=3, show_default=True)
@click.option("--only", default="", help="Some of the contenders, with commas between.")
def readers(frames: int, size: str, crop: str, kind: str, epochs: int, batch: int, count: int, only: str) -> None:
    """Frames read a second, in the first epoch and in those after it."""
    from segray.sections.values import parse_size

    print_machine()
    names = only.split(",") if only else list(CONTENDERS)
    with tempfile.TemporaryDirectory(prefix="segray-readers-") as folder:
        write(Path(folder), frames, parse_size(size), kind)
        job = {"data": folder, "size": parse_size(size), "crop": parse_size(crop), "epochs": epochs, "batch": batch}
        results = rounds("benchmarks.readers", names, job, count)
    rows = []
    for name in names:
        keys = ("first_per_s", "images_per_s", "cpu_s", "most_mib")
        first, later, cpu_s, memory = (np.median([result[name][key] for result in results]) for key in keys)
        rows.append((name, f"{first:.1f}", f"{later:.1f}", f"{1000 * cpu_s / frames / epochs:.0f}", f"{memory:.0f}"))
    columns = ("", "frames/s, first epoch", "later", "CPU ms a frame, all in", "MiB")
    table(f"{frames} frames of {size} ({kind}), crops of {crop}, batch {batch}, {count} rounds", columns, rows)
    if {"segray", "dataloader"} <= {*names}:
        rows = []
        for key, least in RATIOS.items():
            ratios = [result["segray"][key] / result["dataloader"][key] for result in results]
            rows.append((f"segray ÷ dataloader, {'first epoch' if 'first' in key else 'later'}", spread(ratios),
                         verdict(ratios, least)))  # fmt: skip
        table("Ratios of one round (least–most)", ("", "", "target"), rows)


def write(folder: Path, frames: int, size: tuple[int, int], kind: str) -> None:
    from PIL import Image

    from segray.core.data import streets

    drawn = [streets.draw(seed, size) for seed in range(DRAWN)]
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(frames):
        image_hwc, mask_hw = (np.roll(pixels, 37 * i, axis=1) for pixels in drawn[i % DRAWN])
        Image.fromarray(image_hwc).save(folder / "images" / f"{i:05}.{kind}", compress_level=3, quality=90)
        Image.fromarray(mask_hw).save(folder / "masks" / f"{i:05}.png")


def files(job: Job) -> list[tuple[str, str]]:
    """Images with their masks."""
    images = sorted((Path(job["data"]) / "images").iterdir())
    return [(str(image), str(Path(job["data"]) / "masks" / f"{image.stem}.png")) for image in images]


def speeds(epochs: Iterator[int]) -> dict[str, float]:
    """Of passes that say how many frames they read."""
    rates, began = [], time.perf_counter()
    for count in epochs:
        rates.append(count / (time.perf_counter() - began))
        began = time.perf_counter()
    return {"first_per_s": rates[0], "images_per_s": float(np.mean(rates[1:]))}


def dataloader(job: Job) -> dict[str, float]:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    from segray.core.data.streets import LABEL_SPACE

    classes = np.full(256, 255, np.uint8)
    classes[list(LABEL_SPACE.id_map)] = list(LABEL_SPACE.id_map.values())

    class Frames(Dataset[Any]):
        files = files(job)

        def __len__(self) -> int:
            return len(self.files)

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            image, mask = (np.asarray(Image.open(place)) for place in self.files[i])
            window = crop(job)
            return torch.from_numpy(image[window].copy()), torch.from_numpy(classes[mask[window]])

    loader = DataLoader(Frames(), job["batch"], shuffle=True, num_workers=job["cpus"], persistent_workers=True)
    return speeds(sum(len(images) for images, _ in loader) for _ in range(job["epochs"]))


def crop(job: Job) -> tuple[slice, slice]:
    """A random place of the crop's size."""
    begins = (random.randrange(side - part + 1) for side, part in zip(job["size"], job["crop"], strict=True))
    rows, columns = (slice(begin, begin + part) for begin, part in zip(begins, job["crop"], strict=True))
    return rows, columns


def segray(job: Job, limit: int | None = None) -> dict[str, float]:
    import torch

    from segray.core.data import FileSamples
    from segray.core.data.frame_cache import FrameCache
    from segray.core.data.streets import LABEL_SPACE
    from segray.core.samples import SampleRef
    from segray.core.training.batches import read_batches

    torch.set_num_threads(job["cpus"])
    refs, size = tuple(SampleRef(image, image, mask) for image, mask in files(job)), tuple(job["size"])

    def epochs() -> Iterator[int]:
        for epoch in range(job["epochs"]):
            order = np.random.default_rng(epoch).permutation(len(refs)).tolist()
            steps = [order[i : i + job["batch"]] for i in range(0, len(order), job["batch"])]
            count = 0
            for images, masks in read_batches(samples, size, steps, torch.device("cpu")):
                windows = [crop(job) for _ in images]
                cropped = [torch.stack([one[at] for one, at in zip(whole, windows, strict=True)])
                           for whole in (images, masks)]  # fmt: skip
                count += len(cropped[0])
            yield count

    with FrameCache(len(refs), size, limit) as cache:
        samples = FileSamples(refs, LABEL_SPACE, size, cache)
        return speeds(epochs())


CONTENDERS = {"dataloader": dataloader, "segray": segray, "uncached": lambda job: segray(job, 0)}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CONTENDERS:
        told = json.loads(sys.argv[2])
        Path(told["result"]).write_text(json.dumps(CONTENDERS[sys.argv[1]](told)))
    else:
        main(readers)
