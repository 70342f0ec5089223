"""What a frame costs as there are more of them, larger ones, more classes, more actors: straight lines, or why not.

    python -m benchmarks.growth --frames 1000,10000,100000 --actors 1,2,4 --classes 2,19,150 --sizes 360x480,2160x3840

Each line is a run of `segray label` in a fresh process, with a Ray of its own; speeds are of its steady state.

frames    of 96×128 and the null model: what is not the model
actors    processes, each with its share of the processors; frames of 360×480 and the Unet over resnet18
classes   of that Unet, frames of 360×480
sizes     of the frames, which that Unet sees at 352×480: decoding, resizing, ids and masks grow, the model does not
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import click

from benchmarks.label import LEAST_SHARDS, bundle_of, write_images
from benchmarks.measure import print_machine, run
from segray.cli import main
from segray.cli.terminal import say, table
from segray.sections.values import parse_size

SMALL, USUAL, SEEN = (96, 128), (360, 480), (352, 480)
COLUMNS = ("images/s", "ms a frame", "ms a frame and megapixel", "CPU s a frame, all in", "start, s", "MiB at most")


@click.command()
@click.option("--frames", default="1000,10000", show_default=True)
@click.option("--actors", default="1,2,4", show_default=True)
@click.option("--classes", default="2,19,150", show_default=True)
@click.option("--sizes", default="360x480,720x1280,1024x2048,2160x3840", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def growth(frames: str, actors: str, classes: str, sizes: str, device: str) -> None:
    """Cost of a frame against what grows."""
    print_machine()
    with tempfile.TemporaryDirectory(prefix="segray-growth-") as folder:
        root, usual = Path(folder), bundle_of(Path(folder), "real", SEEN)
        null = bundle_of(root, "null", (32, 32))
        show(
            "frames", [(f"{int(count):,}", one(root, null, SMALL, device, int(count), 256)) for count in counts(frames)]
        )
        cores = len(os.sched_getaffinity(0))
        if more := [count for count in counts(actors) if count > cores and device == "cpu"]:
            say(f"{cores} processors hold no {' and no '.join(map(str, more))} actors.")
        held = [count for count in counts(actors) if count not in more]
        show("actors", [(str(count), one(root, usual, USUAL, device, 128, 8, actors=count)) for count in held])
        nets = [(str(count), bundle_of(root, "real", SEEN, count)) for count in counts(classes)]
        show("classes", [(name, one(root, net, USUAL, device, 96, 16)) for name, net in nets])
        rows = [
            (size.replace("x", "×"), one(root, usual, parse_size(size), device, 48, 8)) for size in sizes.split(",")
        ]
        show("size", rows)


def counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def one(
    root: Path, net: dict[str, Any], size: tuple[int, int], device: str, frames: int, shard: int, **more: Any
) -> dict[str, Any]:
    """A run's result, with what was labelled."""
    shard = min(shard, frames // LEAST_SHARDS)
    folder = root / f"{size[0]}x{size[1]}-{frames}"
    if not folder.exists():
        write_images([folder / f"{i:06}.jpg" for i in range(frames)], size)
    job = net | {"inputs": [str(folder)], "spans": [], "device": device, "batch": 8, "shard": shard, "frames": frames}
    return run("benchmarks.rivals", "segray", job | more) | {"frames": frames, "megapixels": size[0] * size[1] / 1e6}


def show(what: str, runs: list[tuple[str, dict[str, Any]]]) -> None:
    rows = []
    for name, found in runs:
        each_ms = 1e3 / found["images_per_s"]
        figures = (found["images_per_s"], each_ms, each_ms / found["megapixels"], found["cpu_s"] / found["frames"])
        rows.append(
            (name, *(f"{value:.4g}" for value in figures), f"{found['start_s']:.1f}", f"{found['most_mib']:.0f}")
        )
    table(f"Against {what}", (what, *COLUMNS), rows)


if __name__ == "__main__":
    main(growth)
