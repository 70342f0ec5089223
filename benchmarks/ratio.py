"""Train on circles and ellipses in frames of three aspect ratios: stretched to a square, and with their ratios kept.

    python -m benchmarks.ratio --seeds 3

A stretched circle is an ellipse, and the other way round: only data.resize=keep can tell the two classes apart.
A plain U-Net from random weights, 240 frames, 10 epochs of batch 8; IoU by class on 60 frames, at the best epoch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
from PIL import Image

from benchmarks.measure import print_machine
from segray.cli import main
from segray.cli.terminal import say, table
from segray.config import load
from segray.core.models.info import read_info
from segray.stages.train import train

FRAMES, SIZES = 300, ((64, 64), (45, 90), (90, 45))
GROUND, CIRCLE, ELLIPSE = range(3)
LONG = 2**0.5  # an ellipse's axes over a circle's, and a circle's over its other ones: twice as long as wide


def draw(rng: np.random.Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw up to three shapes that do not touch: an image, uint8 [H, W, 3], and its mask, uint8 [H, W]."""
    mask = np.zeros((height, width), np.uint8)
    rows, columns = np.ogrid[:height, :width]
    for _ in range(3):
        kind, radius = rng.integers(CIRCLE, ELLIPSE + 1), rng.uniform(5, 9)
        stretch = 1.0 if kind == CIRCLE else LONG if rng.random() < 0.5 else 1 / LONG
        tall, wide = radius * stretch, radius / stretch
        y, x = rng.uniform(tall, height - tall), rng.uniform(wide, width - wide)

        def inside(margin: int, y: float = y, x: float = x, tall: float = tall, wide: float = wide) -> np.ndarray:
            found: np.ndarray = ((rows - y) / (tall + margin)) ** 2 + ((columns - x) / (wide + margin)) ** 2 < 1
            return found

        if not mask[inside(3)].any():
            mask[inside(0)] = kind
    grey = np.where(mask[..., None] > GROUND, 60, 190) + rng.normal(0, 8, (height, width, 1))
    return np.broadcast_to(grey.clip(0, 255), (height, width, 3)).astype(np.uint8), mask


def write(root: Path) -> None:
    """Write the frames as the layout `folder`."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    for i in range(FRAMES):
        for part, pixels in zip(("images", "masks"), draw(rng, *SIZES[i % len(SIZES)]), strict=True):
            Image.fromarray(pixels).save(root / part / f"{i:03}.png")
    (root / "classes.csv").write_text("name\nground\ncircle\nellipse\n")


@click.command()
@click.option("--seeds", default=1, show_default=True)
@click.option("--only", default="stretch,keep", show_default=True)
def ratio(seeds: int, only: str) -> None:
    """Train with each value of data.resize."""
    print_machine()
    rows = []
    with tempfile.TemporaryDirectory(prefix="segray-ratio-") as root:
        write(Path(root))
        for resize in only.split(","):
            for seed in range(seeds):
                out = f"{root}/{resize}-{seed}"
                given = {
                    "data.format": "folder", "data.root": root, "data.size": "64x64", "data.resize": resize,
                    "model.arch": "unet-plain", "model.options": {"channels": 8}, "train.out": out,
                    "train.epochs": 10, "train.learning_rate": 3e-3, "train.ema": 0.99, "train.seed": seed,
                    "cluster.workers": 0, "cluster.gpu": False,
                }  # fmt: skip
                best = train(load(None, given)).best
                rows.append((resize, str(seed), *(f"{iou:.3f}" for iou in read_info(best).scores["class_iou"])))
                say(" ".join(rows[-1]))
    table("64×64", ("data.resize", "seed", "ground", "circle", "ellipse"), rows)


if __name__ == "__main__":
    main(ratio)
