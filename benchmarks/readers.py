"""How fast frames that fit no memory are read for training, against torch's DataLoader with as many workers.

    python -m benchmarks.readers --frames 300 --kind png

Every contender runs in a process of its own, one after the other, in another order each round. It decodes each frame of
a drawn set once an epoch, in a random order, maps the ids of its mask to classes, and gives batches of random crops,
uint8; nothing is trained on them. A few streets are drawn, shifted along the road, and copied for the others.

The first epoch begins with the start of workers, threads and cache; imports come before it. CPU is the time of all the
contender's processes, which other work on the machine changes less than the rates; memory is the most that they held
together, looked at once a second (PSS: what several of them share counts once).

    dataloader  a Dataset of files with Pillow, a table of 256 classes, and a crop, in as many workers as there are CPUs
    segray      as `segray train` reads: threads, and decoded frames kept on the disk; cropped where the model is
    uncached    the same with cluster.cache_gib=0
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

from benchmarks.measure import print_machine, rounds, spread, verdict
from segray.cli import main
from segray.cli.terminal import table

DRAWN, ENCODED = 4, 64
RATIOS = {  # of segray to torch's DataLoader, and the least that is aimed at
    "first_per_s": ("frames/s, first epoch", 1.0),
    "images_per_s": ("frames/s, later", 2.0),
    "first_per_cpu_s": ("frames/CPU second, first epoch", 1.0),
    "later_per_cpu_s": ("frames/CPU second, later", 2.0),
}
Job = dict[str, Any]


@click.command()
@click.option("--frames", default=300, show_default=True)
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
        job["weigh_every"] = 2
        results = rounds("benchmarks.readers", names, job, count)
    rows = []
    for name in names:
        first, later, *per_cpu_s = (np.median([result[name][key] for result in results]) for key in RATIOS)
        memory = max(result[name]["most_mib"] for result in results)
        numbers = (first, later, *(1000 / rate for rate in per_cpu_s))
        rows.append((name, *(f"{number:.1f}" for number in numbers), f"{memory:.0f}"))
    columns = ("", "frames/s, first epoch", "later", "CPU ms a frame, first epoch", "later", "most MiB")
    table(f"{frames} frames of {size} ({kind}), crops of {crop}, batch {batch}, {count} rounds", columns, rows)
    if {"segray", "dataloader"} <= {*names}:
        rows = []
        for key, (what, least) in RATIOS.items():
            ratios = [result["segray"][key] / result["dataloader"][key] for result in results]
            rows.append((what, spread(ratios), verdict(ratios, least)))
        table("segray ÷ dataloader, median of the rounds (least–most)", ("", "", "target"), rows)


def write(folder: Path, frames: int, size: tuple[int, int], kind: str) -> None:
    from PIL import Image

    from segray.core.data import streets

    drawn = [streets.draw(seed, size) for seed in range(DRAWN)]
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(frames):
        if i >= ENCODED:
            for place in (f"images/{{:05}}.{kind}", "masks/{:05}.png"):
                shutil.copy(folder / place.format(i % ENCODED), folder / place.format(i))
            continue
        image_hwc, mask_hw = (np.roll(pixels, 37 * i, axis=1) for pixels in drawn[i % DRAWN])
        Image.fromarray(image_hwc).save(folder / "images" / f"{i:05}.{kind}", compress_level=3, quality=90)
        Image.fromarray(mask_hw).save(folder / "masks" / f"{i:05}.png")


def files(job: Job) -> list[tuple[str, str]]:
    """Images with their masks."""
    images = sorted((Path(job["data"]) / "images").iterdir())
    return [(str(image), str(Path(job["data"]) / "masks" / f"{image.stem}.png")) for image in images]


def speeds(epochs: Iterator[int]) -> dict[str, float]:
    """Of epochs that say how many frames they read: the first, and the others together."""
    marks = np.array([(0, time.perf_counter(), cpu_s()), *((count, time.perf_counter(), cpu_s()) for count in epochs)])
    (first, first_s, first_cpu_s), (later, later_s, later_cpu_s) = (
        (marks[begin + 1 : end, 0].sum(), *(marks[end - 1, 1:] - marks[begin, 1:]))
        for begin, end in ((0, 2), (1, len(marks)))
    )
    return {"first_per_s": first / first_s, "images_per_s": later / later_s,
            "first_per_cpu_s": first / first_cpu_s, "later_per_cpu_s": later / later_cpu_s}  # fmt: skip


def cpu_s() -> float:
    """Of this process and its workers."""
    times = [process.cpu_times() for process in psutil.Process().children(recursive=True)]
    return time.process_time() + sum(spent.user + spent.system for spent in times)


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
        with FrameCache(len(refs), size, limit) as cache:
            samples = FileSamples(refs, LABEL_SPACE, size, cache)
            for epoch in range(job["epochs"]):
                order = np.random.default_rng(epoch).permutation(len(refs)).tolist()
                steps = [order[i : i + job["batch"]] for i in range(0, len(order), job["batch"])]
                batches = read_batches(samples, size, steps, torch.device("cpu"))
                yield sum(len(cropped(images, masks)) for images, masks in batches)

    def cropped(*batch: torch.Tensor) -> torch.Tensor:
        windows = [crop(job) for _ in batch[0]]
        images, _ = (torch.stack([one[at] for one, at in zip(whole, windows, strict=True)]) for whole in batch)
        return images

    return speeds(epochs())


CONTENDERS = {"dataloader": dataloader, "segray": segray, "uncached": lambda job: segray(job, 0)}

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in CONTENDERS:
        told = json.loads(sys.argv[2])
        Path(told["result"]).write_text(json.dumps(CONTENDERS[sys.argv[1]](told)))
    else:
        main(readers)
