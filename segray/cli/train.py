"""Commands about models: train, sweep, evaluate, compare."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

import click

from segray.cli.app import Examples, cli, resuming
from segray.cli.flags import stage
from segray.core.formatting import counted

if TYPE_CHECKING:
    from segray.config import Config
    from segray.core.samples import Dataset
    from segray.stages.evaluate import Evaluation
    from segray.stages.train import TrainResult
    from segray.trials.leaderboard import SweepResult


def check_train(config: Config) -> None:
    """Check the names of the model, and that the batch has images for all workers."""
    from segray.core.models import check_names
    from segray.stages.run_data import check_batch

    check_names(config.model)
    check_batch(config)


def check_sweep(config: Config) -> None:
    """Check the settings of all trials."""
    from segray.stages.sweep import check_settings

    check_settings(config)


def list_sweep(config: Config) -> None:
    """Print the trials of a sweep, as a comment below its settings."""
    from segray.cli.terminal import say
    from segray.core.search.space import list_trials

    trials = list_trials(config)
    about = "; TPE chooses its own as scores come in, these are random ones" if config.sweep.search == "tpe" else ""
    say("\n".join([f"# {counted(len(trials), 'trial')}{about}:", *(f"#   {trial.name}" for trial in trials)]))


def estimate_sweep(config: Config) -> None:
    """Print how long each trial trains."""
    from segray.cli.terminal import counting, say, table
    from segray.core.formatting import duration
    from segray.stages.sweep import estimate

    with counting("models") as advance:
        seconds = estimate(config, advance)
    rows = [(name, duration(each)) for name, each in seconds.items()]
    table(counted(len(rows), "trial"), ("trial", "time on this device"), rows)
    say(f"At most {duration(sum(seconds.values()))} of one worker on this device; poor trials stop early.")


@cli.command()
@stage(
    "--format", "--data", "--size", "--arch", "--encoder", "--weights", "--weights-dir", "--freeze-encoder",
    "--loss", "--epochs", "--batch-size", "--lr", "--teacher", "--compile", "--seed", "--workers", "--address",
    out="train.out", sections=("data", "model", "augment", "train", "cluster"), check=check_train, recipe=True,
)  # fmt: skip
def train(config: Config, overwrite: bool, dataset: Dataset | None = None) -> TrainResult:
    """Train one model. The same command again resumes after the last complete epoch.

    \b
    Example:
      segray train --format camvid --data camvid/ --arch unet --encoder mobilenet_v2 \\
                   --size 180x240 --epochs 3 --out runs/camvid
      segray train --format cityscapes --data cityscapes/ --arch deeplabv3plus --encoder resnet50 \\
                   --weights imagenet --set augment.crop=512x1024 --set train.ema=0.999
      segray train --format camvid --data camvid/ --recipe small-data --epochs 100 --out runs/small
      segray train --config camvid.yaml --set train.loss='{cross_entropy: 1, dice: 0.5}'
    """
    from segray.cli.terminal import epoch_line, say, stepping
    from segray.core.io import storage
    from segray.core.models.info import read_info
    from segray.core.training.checkpoint import has_results, read_history, read_settings
    from segray.stages.train import hardly_learnt, random_start, train

    out = storage.absolute(config.train.out)
    resumes = bool(read_history(out)) and not overwrite

    def started(device: str) -> None:
        say(f"Training on {device}.")
        if not resumes and (hint := random_start(config)):
            say(hint)

    def epochs() -> int:  # max_steps may have set them
        return read_settings(out).train.epochs

    with resuming(lambda: has_results(out)), stepping() as on_step:
        result = train(
            config,
            overwrite=overwrite,
            on_plan=say,
            on_row=lambda row: say(epoch_line(row, epochs())),
            on_start=started,
            on_step=on_step,
            dataset=dataset,
        )
    best = result.best_row
    if (patience := config.train.patience) and len(result.history) < epochs():
        say(f"Stopped early: no better mIoU in {counted(patience, 'epoch')}.")
    miou = "undefined" if best["miou"] is None else f"{best['miou']:.3f}"
    say(f"Best: mIoU {miou} in epoch {best['epoch']}. The model is in {config.train.out}/best.")
    if note := hardly_learnt(read_info(result.best)):
        say(note)
    say(f"Next: segray label --model {quote(config.train.out)}/best --input FRAMES --out labels")
    return result


@cli.group(cls=Examples, invoke_without_command=True)
@stage(
    "--format", "--data", "--size", "--arch", "--encoders", "--weights", "--weights-dir", "--lrs", "--vary", "--search",
    "--trials", "--seeds", "--time", "--gpu-hours", "--objective", "--price", "--against", "--epochs", "--batch-size",
    "--seed", "--workers", "--address",
    out="sweep.out", sections=("data", "model", "augment", "train", "sweep", "cluster"), check=check_sweep,
    preview=list_sweep, estimate=estimate_sweep, recipe=True, resume=True,
)  # fmt: skip
def sweep(config: Config, overwrite: bool, dataset: Dataset | None = None) -> SweepResult:
    """Search over encoders, learning rates and any other settings.

    Trials are compared by score and cost, and poor ones stop early. The same command again resumes; so does
    --resume with --out alone.

    \b
    Example:
      segray sweep --format camvid --data camvid/ --encoder resnet18 --encoder mobilenet_v2 \\
                   --lr 1e-4..1e-2 --trials 4 --epochs 3 --out runs/sweep
      segray sweep --format camvid --data camvid/ --lr 1e-3 --vary model.arch=unet,fpn \\
                   --vary train.loss=cross_entropy,dice --seeds 3 --time 8h --price 1.20 --objective pareto:0.9
      segray sweep --format camvid --data camvid/ --search tpe --trials 30 --lr 1e-4..1e-1 \\
                   --vary train.loss=dice,ohem --out runs/tpe
      segray sweep --format camvid --data camvid/ --encoder resnet18 --encoder mobilenet_v2 \\
                   --against runs/camvid/best --against hf:nvidia/segformer-b0-finetuned-cityscapes-1024-1024
      segray sweep --config camvid.yaml --estimate
      segray sweep --resume --out runs/tpe
      segray sweep show runs/tpe
    """
    from segray.cli.terminal import console, say, show_sweep, sweeping
    from segray.core.formatting import counted
    from segray.core.io import storage
    from segray.core.models.info import read_info
    from segray.stages.sweep import has_results, sweep
    from segray.stages.train import hardly_learnt
    from segray.trials.leaderboard import planned

    if not console.is_terminal:  # which has a board
        say(f"The sweep has {counted(planned(config), 'trial')}; each epoch that ends is a line.")

    with resuming(lambda: has_results(storage.absolute(config.sweep.out))), sweeping(config.sweep.out) as on_row:
        result = sweep(config, overwrite=overwrite, on_row=on_row, dataset=dataset)
    show_sweep(result)
    say(f"The best model is in {config.sweep.out}/best.")
    if note := hardly_learnt(read_info(result.best)):
        say(note)
    say(f"Next: segray label --model {quote(config.sweep.out)}/best --input FRAMES --out labels")
    return result


@sweep.command("show")
@click.argument("out")
def sweep_show(out: str) -> None:
    """Print the leaderboard and the progress of a sweep.

    They are read from its files, also while it runs.

    \b
    Example:
      segray sweep show runs/sweep
    """
    from segray.cli.terminal import show_sweep
    from segray.trials.leaderboard import read_sweep

    show_sweep(read_sweep(out))


@cli.command()
@click.argument("evaluate__model", metavar="MODEL|LABELS", required=False)
@stage(
    "--format", "--data", "--split", "--masks", "--conditions", "--window", "--flip", "--calibrate", "--weights-dir",
    out="evaluate.out", sections=("data", "infer", "evaluate", "cluster"),
)  # fmt: skip
def evaluate(config: Config, overwrite: bool) -> Evaluation:
    """Score a model or finished labels against ground truth.

    Frames are scored at their own size: by class, by frame and by condition, with pictures.

    \b
    Example:
      segray evaluate runs/camvid/best --format camvid --data camvid/ --out runs/camvid-val
      segray evaluate runs/city/best --format cityscapes --data cityscapes/ --window 512x1024 --flip \\
                      --set infer.scales='[0.75, 1, 1.25]'
      segray evaluate deeplabv3-coco --format cityscapes --data cityscapes/
      segray evaluate runs/camvid/best --format camvid --data camvid/ --calibrate --out runs/camvid-calibrated
      segray evaluate labels/val --truth camvid/valannot --conditions weather.csv --out runs/labels-val
    """
    from segray.cli.terminal import counting, say, show_scores
    from segray.stages.evaluate import PICTURES, evaluate

    with counting("frames") as advance:
        result = evaluate(config, overwrite=overwrite, progress=advance)
    show_scores(result)
    out = config.evaluate.out
    say(f"Scores are in {out}/scores.json, by frame in {out}/images.parquet, pictures in {out}/{PICTURES}.")
    say(f"Next: segray report {quote(out)} --out {quote(out)}.html")
    return result


@cli.command()
@click.argument("run_a")
@click.argument("run_b")
@click.option("--out", help="Folder for compare.json and a picture of the images that changed most.")
@click.option(
    "--images",
    type=click.IntRange(0),
    default=10,
    show_default=True,
    help="Number of images to list that changed most.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--overwrite", is_flag=True, help="Delete the comparison that is in --out first.")
def compare(run_a: str, run_b: str, out: str | None, images: int, seed: int, overwrite: bool) -> None:
    """Say whether two evaluations differ by more than noise.

    Both are of the same frames; mIoU and each class are compared.

    \b
    Example:
      segray compare runs/resnet18-val runs/mobilenet-val
      segray compare runs/resnet18-val runs/mobilenet-val --images 5 --out runs/compared
    """
    from segray.cli.terminal import say, show_comparison, waiting
    from segray.stages.compare import compare

    with waiting("Drawing images"):
        result = compare(run_a, run_b, out=out, count=images, seed=seed, overwrite=overwrite)
    show_comparison(result)
    if out is not None:
        pictured = "" if result["no_picture"] else f", those images in {out}/changed.png"
        say(f"The comparison is in {out}/compare.json{pictured}.")
