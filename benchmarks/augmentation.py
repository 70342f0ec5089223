"""Compare the default augmentation, which is a flip, with none, with more and with the recipes', at equal steps.

    python -m benchmarks.augmentation --data camvid/ --frames 120 --size 48x64 --epochs 20

The same Unet over resnet18 from random weights, batch 8, EMA 0.99, one after the other in this process; mIoU on val
after the last epoch, not the best one. Differences of a seed or of another machine are as large as a few hundredths.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from typing import Any

import click

from benchmarks.measure import print_machine
from segray.cli import main
from segray.cli.terminal import say, table
from segray.config import Config, load
from segray.core.data import MemorySamples
from segray.core.samples import TrainData
from segray.core.training import loop
from segray.core.training.checkpoint import EpochRow
from segray.core.training.workers import LocalWorker
from segray.recipes import RECIPES
from segray.sections.training import AugmentSection
from segray.stages.run_data import DataPlan, plan_data

COLORS = {"augment.brightness": 0.125, "augment.contrast": 0.3, "augment.saturation": 0.3}
BEFORE = {**COLORS, "augment.brightness": 0.3, "augment.scale": [0.5, 2.0], "augment.rotate_deg": 5.0}  # of version 0.1
OF_RECIPES = {f"augment.{key}" for key in AugmentSection.model_fields} - {"augment.crop"}  # frames are smaller here

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "nothing": {"augment.flip": 0.0},
    "default, colours": COLORS,
    "default, zoom 1–2": {"augment.scale": [1.0, 2.0]},
    "default, zoom 0.5–2": {"augment.scale": [0.5, 2.0]},
    "default, rotation ± 5°": {"augment.rotate_deg": 5.0},
    "default of 0.1": BEFORE,
    **{
        f"recipe {name}": {key: value for key, value in RECIPES[name].settings.items() if key in OF_RECIPES}
        for name in ("camvid-cnn", "cityscapes-cnn", "small-data")
    },
}


class Watch(LocalWorker):
    """Keeps the rows that a run reports."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[EpochRow] = []

    def report(self, row: EpochRow) -> None:
        self.rows.append(row)


@click.command()
@click.option("--data", required=True, help="Labelled frames.")
@click.option("--format", "format_", default="camvid", show_default=True)
@click.option("--frames", type=int, help="Training frames, evenly spaced; default: all.")
@click.option("--size", default="48x64", show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--precision", default="auto", show_default=True)
@click.option("--only", default="", help="Some of the variants, with semicolons between.")
def augmentation(
    data: str, format_: str, frames: int | None, size: str, epochs: int, seeds: int, precision: str, only: str
) -> None:
    """Train the default and what it is compared with."""
    print_machine()
    given = {
        "data.format": format_, "data.root": data, "data.size": size, "train.epochs": epochs, "train.ema": 0.99,
        "train.precision": precision, "train.eval_every": epochs, "cluster.workers": 0,
        "model.options": {"decoder_channels": [64, 48, 32, 16, 16]},
    }  # fmt: skip
    config = load(None, given)
    plan = plan_data(config)
    if frames is not None:
        plan = replace(plan, train=plan.train[:: len(plan.train) // frames][:frames])
    samples = read(plan)
    rows = []
    for name in only.split(";") if only else VARIANTS:
        started = time.perf_counter()
        ran = [last(config.changed(VARIANTS[name] | {"train.seed": seed}), samples) for seed in range(seeds)]
        mious = [row["miou"] or 0.0 for row in ran]
        mean = sum(mious) / seeds
        rows.append((name, mean, max(mious) - min(mious), ran[0]["train_miou"], round(time.perf_counter() - started)))
        say(f"{name}: {mean:.3f}")
    steps = max(1, len(plan.train) // config.train.batch_size) * epochs
    title = f"{len(plan.train)} frames at {size}, {steps} steps of {config.train.batch_size}, {seeds} seeds"
    columns = ("augmentation", "val mIoU", "spread", "on training frames", "seconds")
    table(title, columns, [(row[0], *(f"{value:.3f}" for value in row[1:4]), row[4]) for row in rows])


def read(plan: DataPlan) -> TrainData:
    return plan.with_samples(
        *(MemorySamples.read(refs, plan.label_space, plan.size, plan.resize) for refs in (plan.train, plan.val))
    )


def last(config: Config, samples: TrainData) -> EpochRow:
    """The last row of one run."""
    worker = Watch()
    with tempfile.TemporaryDirectory(prefix="segray-augmentation-") as folder:
        loop.fit(worker, config.changed({"train.out": folder}), samples)
    return worker.rows[-1]


if __name__ == "__main__":
    main(augmentation)
