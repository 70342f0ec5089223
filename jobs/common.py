"""What the jobs share: settings from the .yaml, a run for each variant, its evaluation, one table, curves, report."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from segray.cli import main
from segray.cli.terminal import counting, epoch_line, say, show_scores, table, waiting
from segray.config import Config, load, parse_override
from segray.core.data import streets
from segray.core.io import storage
from segray.core.training.checkpoint import read_history
from segray.stages.evaluate import evaluate
from segray.stages.report import report
from segray.stages.train import train

Variants = Mapping[str, Mapping[str, Any]]
COLUMNS = {
    "F1 = Dice": "mean_f1",
    "accuracy": "pixel_accuracy",
    "mIoU": "miou",
    "sensitivity": "mean_sensitivity",
    "specificity": "mean_specificity",
}
SMOKE = {  # the job's model, losses and schedule on streets that are drawn in seconds
    "data.format": "streets",
    "data.size": "48x64",
    "data.class_map": {},
    "augment.crop": None,
    "model.encoder_weights": "none",
    "train.freeze_encoder": False,  # of random weights
    "train.epochs": 1,
    "train.batch_size": 4,
    "cluster.workers": 0,
    "evaluate.split": "val",
    "infer.window": None,
}


def job(file: str, doc: str, run: Callable[[Config, bool], None], smoke: Mapping[str, Any] | None = None) -> None:
    """The command line of a job: `run` gets its settings, and whether this is a smoke test."""
    name = Path(file).stem

    @click.command(help=doc.replace("\n\n", "\n\n\b\n"))
    @click.option("--data", help="Folder of the data set.")
    @click.option("--out", default=f"runs/{name}", show_default=True, help="Where results go.")
    @click.option("--config", default=str(Path(file).with_suffix(".yaml")), help="Settings; default: the job's own.")
    @click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any setting.")
    @click.option("--smoke", "quick", is_flag=True, help="A minute on drawn streets.")
    @click.option("--dry-run", is_flag=True, help="Print the resolved settings, and do nothing.")
    def command(data: str | None, out: str, config: str, sets: tuple[str, ...], quick: bool, dry_run: bool) -> None:
        given = {"data.root": data} if data else {}
        drawn = storage.local(f"runs/{name}" if storage.in_bucket(out) else out, "streets") / "streets"
        if quick:
            given = {**SMOKE, **(smoke or {}), "data.root": str(drawn)}
        settings = load(config, {"train.out": out, **given, **dict(parse_override(text) for text in sets)})
        if dry_run:
            click.echo(settings.to_yaml(), nl=False)
            return
        if quick:
            streets.write(drawn, train=8, val=4, size=(96, 128), video_s=0)
        run(settings.absolute(), quick)

    main(command)


def compare(config: Config, variants: Variants) -> list[dict[str, Any]]:
    """Train and evaluate each variant in `train.out`/NAME; the rows of the table, which is printed and kept."""
    out = config.train.out
    rows, folders = [], []
    for name, changes in variants.items():
        variant = config.changed({**changes, "train.out": storage.join(out, name)})
        say(f"{name}: {variant.model.arch} over {variant.model.encoder}")
        with waiting(name):
            train(
                variant,
                on_row=lambda row, total=variant.train.epochs: say(f"  {epoch_line(row, total)}"),
                on_start=lambda device: say(f"  on {device}"),
            )
        runs, evaluation = storage.join(out, name), storage.join(out, f"{name}-evaluation")
        rows.append({"run": name, **score(variant, storage.join(runs, "best"), evaluation)})
        folders += [runs, evaluation]
    cells = [[row["run"], *(row[key] for key in COLUMNS.values())] for row in rows]
    table(storage.name_of(out), ("run", *COLUMNS), cells)
    storage.replace(storage.join(out, "results.json"), json.dumps(rows, indent=2).encode())
    histories = {name: read_history(storage.join(out, name)) for name in variants}
    storage.replace(storage.join(out, "curves.png"), curves(histories))
    page = report(folders, storage.join(out, "report.html"), overwrite=True)
    say(f"The report is {page}; curves are in {out}/curves.png.")
    return rows


def score(config: Config, model: str, out: str) -> dict[str, Any]:
    """Evaluate a bundle on the job's validation frames; its headline scores."""
    with counting("frames") as advance:
        result = evaluate(
            config.changed({"evaluate.model": model, "evaluate.out": out}),
            overwrite=True,
            progress=advance,
        )
    show_scores(result)
    say(f"The best and the worst frames are in {out}/frames.png.")
    return {key: result["scores"][key] for key in COLUMNS.values()} | {"baseline_miou": result["baseline_miou"]}


def curves(histories: Mapping[str, list[dict[str, Any]]]) -> bytes:
    """A PNG of loss (dotted: training), pixel accuracy and mIoU by epoch, a line a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from segray.pages.charts import axis_of_epochs

    figure = Figure(figsize=(13, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    for axis, (title, key) in zip(
        axes, {"loss (dotted: training)": "val_loss", "accuracy": "pixel_accuracy", "mIoU": "miou"}.items(), strict=True
    ):
        for i, (name, rows) in enumerate(histories.items()):
            epochs = [row["epoch"] for row in rows]
            axis.plot(epochs, [row[key] for row in rows], "o-", markersize=3, color=f"C{i}", label=name)
            if key == "val_loss":
                axis.plot(epochs, [row["loss"] for row in rows], ".:" if len(rows) == 1 else ":", color=f"C{i}")
        axis.set_title(title)
        axis_of_epochs(axis)
        axis.grid(alpha=0.3)
    axes[-1].legend(fontsize=8)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    return data.getvalue()
