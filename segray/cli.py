"""The command line. A command parses, resolves settings, calls the function of its name, and prints.

Heavy modules are imported inside the commands, so that `segray --help` answers at once.
"""

from __future__ import annotations

import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from segray import __version__
from segray.errors import SegrayError, Terminated
from segray.flags import Setting, settings, stage

if TYPE_CHECKING:
    from segray.config import Config
    from segray.core.datasets.check import CheckResult
    from segray.core.samples import LabelSpace


def preview_sweep(config: Config) -> None:
    from segray.sweep import preview
    from segray.terminal import say, table, waiting

    with waiting("Trying a step of each model"):
        trials, hours = preview(config)
    rows = [(trial.name, hours[trial.name]) for trial in trials]
    about = "; TPE chooses its own as scores come in, these are random ones" if config.sweep.search == "tpe" else ""
    table(f"{len(trials)} trials{about}", ("trial", "hours on this device"), rows)
    say(f"At most {sum(hours.values()):.2g} hours of one worker on this device; poor trials stop early.")


class Example(click.Command):
    """A command whose help keeps its line breaks, so that examples can be copied."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"context_settings": {"max_content_width": 110}, **kwargs})


class Examples(click.Group):
    """A group of such commands."""

    command_class = Example


@click.group(cls=Examples, context_settings={"max_content_width": 110})
@click.version_option(__version__, prog_name="segray")
def cli() -> None:
    """Train, compare and run semantic segmentation of road frames, on a laptop or a Ray cluster.

    \b
    segray demo                                           the whole pipeline on drawn streets, in minutes
    segray sweep --format camvid --data DIR --out runs/s  which encoder is best on your frames
    segray label --model runs/s/best --input DRIVES       masks and metrics for unlabelled frames
    """


@cli.command()
@click.option("--out", default="runs/demo", show_default=True, help="Folder for all results.")
@click.option("--overwrite", is_flag=True, help="Delete the results of an earlier demo in --out first.")
def demo(out: str, overwrite: bool) -> None:
    """Run the whole pipeline on drawn streets, in minutes.

    It draws streets, sweeps two encoders, labels frames and a video, and writes a report.

    \b
    Example:
      segray demo --out runs/demo
    """
    from segray.demo import demo

    demo(out, overwrite=overwrite)


@cli.group(cls=Examples)
def data() -> None:
    """Check, download or draw data sets."""


@data.command("check")
@click.argument("root", required=False)
@click.option("--format", "format_", cls=Setting, setting="data.format")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any data setting, such as data.id_map.255=1.")
def data_check(root: str | None, format_: str, sets: tuple[str, ...]) -> None:
    """Decode all frames and masks and say whether training can start.

    The exit code is 1 if it cannot.

    \b
    Example:
      segray data check --format camvid camvid/
    """
    from segray.config import load, parse_override
    from segray.core.datasets import open_dataset
    from segray.core.datasets.check import check, frames_of
    from segray.terminal import counting, say

    config = load(None, {"data.format": format_, "data.root": root, **dict(map(parse_override, sets))}).data
    dataset = open_dataset(config)
    with counting("frames", len(frames_of(dataset))) as advance:
        result = check(dataset, (config.train_split, config.val_split), lambda: advance(1))
    show_check(result, dataset.label_space)
    if not result.ok:
        say(f"Training cannot start: {len(result.problems)} problem{'s' * (len(result.problems) > 1)}.")
        raise SystemExit(1)
    say("Training can start.")


def show_check(result: CheckResult, space: LabelSpace) -> None:
    from segray.core.samples import id_text
    from segray.terminal import say, table

    total, frames = result.pixels.total() + result.other_pixels, sum(result.sizes.values())
    unknown = sorted(result.pixels.keys() - space.id_map.keys(), key=lambda raw: -result.pixels[raw])
    rows = []
    for raw in sorted(result.pixels.keys() - set(unknown[20:])):
        pixels = result.pixels[raw]
        label = space.id_map.get(raw)
        name = "unknown" if label is None else "void" if label == space.ignore_index else space.names[label]
        shares = (f"{pixels / total:.2%}", f"{result.frames_with[raw] / max(1, frames):.0%}")
        rows.append((id_text(raw), name, pixels, *shares))
    splits = ", ".join(f"{split} {count}" for split, count in result.frames.items())
    table(f"Frames: {splits}", ("id", "class", "pixels", "share", "in frames"), rows)
    if others := sum(result.pixels[raw] for raw in unknown[20:]) + result.other_pixels:
        say(f"… and {len(unknown[20:])} more unknown ids, in {others / total:.2%} of the pixels.")
    for height, width in list(result.sizes)[:1]:
        if len(result.sizes) == 1:
            say(f"Every frame is {height}×{width} (height × width).")
    for note in result.notes[:20]:
        say(f"Note: {note}.")
    if len(result.notes) > 20:
        say(f"… and {len(result.notes) - 20} more notes.")
    for problem in result.problems[:20]:
        say(f"Problem: {problem.rstrip('.')}.")
    if len(result.problems) > 20:
        say(f"… and {len(result.problems) - 20} more.")


@data.command("draw")
@click.argument("root")
@click.option("--train", type=click.IntRange(0), default=48, show_default=True, help="Number of training frames.")
@click.option("--val", type=click.IntRange(0), default=16, show_default=True, help="Number of validation frames.")
@click.option("--size", default="180x240", show_default=True, help="Height x width of the frames.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the town; another seed draws another town.",
)
def data_draw(root: str, train: int, val: int, size: str, seed: int) -> None:
    """Draw labelled streets and a video, in CamVid's layout.

    \b
    Example:
      segray data draw streets/ --train 200 --size 360x480
    """
    from segray.config import load
    from segray.core import storage
    from segray.core.datasets import streets
    from segray.terminal import say, waiting

    pixels = load(None, {"data.size": size}).data.size or (180, 240)
    with waiting("Drawing streets"):
        streets.write(storage.local(root, "a drawn town"), train=train, val=val, size=pixels, seed=seed)
    say(f"Streets are in {root}. Next: segray train --format streets --data {root}")


@data.command("formats")
def data_formats() -> None:
    """List the layouts of labelled frames that --format knows.

    \b
    Example:
      segray data formats
    """
    from segray.core.datasets import FORMATS
    from segray.terminal import table

    table("Layouts", ("--format", "below --data"), [(name, row.layout) for name, row in FORMATS.items()])


@data.command("get")
@click.argument("name")
@click.argument("root")
@click.option("--url", help="URL of a mirror, or path of the archive.")
def data_get(name: str, root: str, url: str | None) -> None:
    """Download a published data set: camvid or voc.

    Other data sets need an account with their owners.

    \b
    Example:
      segray data get camvid camvid/
    """
    from segray.core import storage
    from segray.core.datasets.download import SOURCES, get
    from segray.terminal import counting, say

    with counting("bytes") as advance:
        get(name, storage.local(root, "a download"), url, lambda new, total: advance(new, total=total))
    say(f"{name} is in {root}: {SOURCES[name].about}. Next: segray data check --format {name} {root}")


@cli.command()
@click.argument("text", default="")
def models(text: str) -> None:
    """List architectures, encoders and ready models. TEXT filters them by name; tu-… searches the encoders of timm.

    \b
    Example:
      segray models resnet
      segray models tu-convnext
    """
    from segray.core.models.listing import list_models
    from segray.terminal import say, table, waiting

    with waiting("Counting parameters"):
        found = list_models(text)
    for title, columns, rows in found:
        if rows:
            table(title, columns, rows)
    if not any(rows for _, _, rows in found):
        say(f"Nothing is called {text!r}. Encoders of timm begin with tu-, such as tu-convnext_tiny.")


@cli.command()
@click.argument("name", required=False)
def recipes(name: str | None) -> None:
    """List the recipes that --recipe knows, or print one.

    With NAME, its settings are printed as YAML for --config.

    \b
    Example:
      segray recipes
      segray recipes cityscapes-cnn > city.yaml
    """
    from segray.recipes import RECIPES, named

    if name is not None:
        click.echo(named(name).to_yaml(), nl=False)
        return
    from segray.terminal import table

    table("Recipes", ("--recipe", "for", "from"), [(key, row.about, row.source) for key, row in RECIPES.items()])


@cli.command()
@stage(
    "--format", "--data", "--size", "--arch", "--encoder", "--weights", "--weights-dir", "--freeze-encoder",
    "--loss", "--epochs", "--batch-size", "--lr", "--teacher", "--compile", "--seed", "--workers", "--address",
    out="train.out", sections=("data", "model", "augment", "train", "cluster"), recipe=True,
)  # fmt: skip
def train(config: Config, overwrite: bool) -> None:
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
    from segray.core import storage
    from segray.core.checkpoint import read_history, read_settings
    from segray.terminal import epoch_line, say, waiting
    from segray.train import random_start, train

    out = storage.absolute(config.train.out)
    resumes = bool(read_history(out)) and not overwrite

    def started(device: str) -> None:
        say(f"Training on {device}.")
        if not resumes and (hint := random_start(config)):
            say(hint)

    def epochs() -> int:  # which may come of steps
        return read_settings(out).train.epochs

    with waiting("Starting"):
        result = train(
            config,
            overwrite=overwrite,
            on_row=lambda row: say(epoch_line(row, epochs())),
            on_start=started,
        )
    best = result.best_row
    if len(result.history) < epochs():
        say(f"Stopped early: no better mIoU in {config.train.patience} epochs.")
    miou = "undefined" if best["miou"] is None else f"{best['miou']:.3f}"
    say(f"Best: mIoU {miou} in epoch {best['epoch']}. The model is in {config.train.out}/best.")
    say(f"Next: segray label --model {config.train.out}/best --input FRAMES --out labels")


@cli.group(cls=Examples, invoke_without_command=True)
@stage(
    "--format", "--data", "--size", "--arch", "--encoders", "--weights", "--weights-dir", "--lrs", "--vary", "--search",
    "--trials", "--seeds", "--time", "--gpu-hours", "--objective", "--price", "--epochs", "--batch-size", "--seed",
    "--workers", "--address",
    out="sweep.out", sections=("data", "model", "augment", "train", "sweep", "cluster"), preview=preview_sweep,
    recipe=True, resume=True,
)  # fmt: skip
def sweep(config: Config, overwrite: bool) -> None:
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
      segray sweep --resume --out runs/tpe
      segray sweep show runs/tpe
    """
    from segray.sweep import sweep
    from segray.terminal import say, show_sweep, sweeping

    with sweeping(config.sweep.out) as on_row:
        result = sweep(config, overwrite=overwrite, on_row=on_row)
    show_sweep(result)
    say(f"The best model is in {config.sweep.out}/best.")
    say(f"Next: segray label --model {config.sweep.out}/best --input FRAMES --out labels")


@sweep.command("show")
@click.argument("out")
def sweep_show(out: str) -> None:
    """Print the leaderboard and the progress of a sweep.

    They are read from its files, also while it runs.

    \b
    Example:
      segray sweep show runs/sweep
    """
    from segray.leaderboard import read_sweep
    from segray.terminal import show_sweep

    show_sweep(read_sweep(out))


@cli.command()
@click.argument("evaluate__model", metavar="MODEL|LABELS", required=False)
@stage(
    "--format", "--data", "--split", "--masks", "--conditions", "--window", "--flip", "--calibrate", "--weights-dir",
    out="evaluate.out", sections=("data", "infer", "evaluate", "cluster"),
)  # fmt: skip
def evaluate(config: Config, overwrite: bool) -> None:
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
    from segray.evaluate import PICTURES, evaluate
    from segray.terminal import counting, say, show_scores

    with counting("frames") as advance:
        result = evaluate(config, overwrite=overwrite, on_frame=lambda done, total: advance(1, total=total))
    show_scores(result)
    out = config.evaluate.out
    say(f"Scores are in {out}/scores.json, by frame in {out}/images.parquet, pictures in {out}/{PICTURES}.")


@cli.command()
@click.argument("run_a")
@click.argument("run_b")
@click.option("--out", help="Folder for compare.json and a picture of the images that changed most.")
@click.option("--images", default=10, show_default=True, help="Number of images to list that changed most.")
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap.")
def compare(run_a: str, run_b: str, out: str | None, images: int, seed: int) -> None:
    """Say whether two evaluations differ by more than noise.

    Both are of the same frames; mIoU and each class are compared.

    \b
    Example:
      segray compare runs/resnet18-val runs/mobilenet-val
      segray compare runs/resnet18-val runs/mobilenet-val --images 5 --out runs/compared
    """
    from segray.compare import compare
    from segray.terminal import say, show_comparison, waiting

    with waiting("Drawing images"):
        result = compare(run_a, run_b, out=out, count=images, seed=seed)
    show_comparison(result)
    if out is not None:
        pictured = "" if result["no_picture"] else f", those images in {out}/changed.png"
        say(f"The comparison is in {out}/compare.json{pictured}.")


@cli.command()
@stage(
    "--model", "--input", "--truth", "--every", "--fps", "--limit", "--sample", "--extend", "--retry-errors",
    "--mask-format", "--max-error-rate", "--window", "--flip", "--engine", "--actors", "--address",
    out="label.out", sections=("infer", "label", "cluster"),
)  # fmt: skip
def label(config: Config, overwrite: bool) -> None:
    """Label images and videos: write masks and metrics as Parquet. The same command again resumes.

    \b
    Example:
      segray label --model runs/sweep/best --input drive.mp4 --every 10 --out labels/drive
      segray label --model runs/sweep/best --input camvid/val --truth camvid/valannot --out labels/val
      segray label --model runs/sweep/best --input s3://drives/2026/ --sample 0.01 --out s3://labels/look
      segray label --model runs/sweep/best --input s3://drives/2026/ --extend --out s3://labels/all
    """
    from segray.label import label
    from segray.terminal import labelling, show_labels

    with labelling() as watch:
        summary = label(config, overwrite=overwrite, watch=watch)
    show_labels(config.label.out, summary)


@cli.command()
@click.argument("out")
def verify(out: str) -> None:
    """Check that finished labels are complete and undamaged.

    Every planned row must be there exactly once, with a whole mask. The exit code is 1 if that is not so.

    \b
    Example:
      segray verify labels/val
    """
    from segray.core import parts
    from segray.core.label_folder import LabelFolder
    from segray.terminal import counting, say

    folder = LabelFolder.open(out)
    with counting("parts", folder.shards) as advance:
        problems = parts.verify(folder.plans, lambda: advance(1))
    for problem in problems[:20]:
        say(f"Problem: {problem}.")
    if problems:
        say(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {folder.shards} parts.")
        raise SystemExit(1)
    say(
        f"All {sum(plan.rows for plan in folder.plans)} rows are there exactly once, "
        f"in {folder.shards} undamaged parts."
    )


def note_unfinished(labels: str) -> None:
    """Say what is missing of labels that may be looked at before their run is finished."""
    from segray.core.label_folder import LabelFolder
    from segray.terminal import say

    if left := LabelFolder.open(labels).unfinished:
        say(f"{labels} is not finished: {left}")


@cli.command()
@click.argument("labels")
@click.option(
    "--by", default="uncertainty", show_default=True, help="Order of the frames: uncertainty, flicker or rare-class."
)
@click.option("--count", default=20, show_default=True, help="Number of frames to list.")
@click.option(
    "--apart",
    default=2.0,
    show_default=True,
    help="Smallest distance of two frames, in seconds of a video or files of a folder.",
)
@click.option("--out", help="File for the list, .jsonl or .parquet, local or on s3://.")
@click.option("--pictures", help="Folder for a picture of each frame beside its mask.")
def select(labels: str, by: str, count: int, apart: float, out: str | None, pictures: str | None) -> None:
    """List the frames of labels that are most worth a person's look.

    They are spread over videos and folders, and may be of labels that are not finished.

    \b
    Example:
      segray select labels/drives --by uncertainty --count 50 --pictures look/
      segray select s3://labels/all --by rare-class --count 500 --out annotate.jsonl
    """
    from segray.core import storage
    from segray.errors import ConfigError
    from segray.select import OUT_SUFFIXES, select, write, write_pictures
    from segray.terminal import say, table

    folder = None if pictures is None else storage.local(pictures, "a folder of pictures")
    if out is not None and not out.endswith(OUT_SUFFIXES):
        raise ConfigError(f"{out} ends in none of {', '.join(OUT_SUFFIXES)}; name such a file.")
    rows = select(labels, by, count, apart)
    note_unfinished(labels)
    cells = [(i, row["score"], row["uri"], row["frame_index"], row["time_s"]) for i, row in enumerate(rows, 1)]
    table(f"{len(rows)} frames by {by}", ("rank", "score", "file", "frame", "time s"), cells)
    if out is not None:
        write(rows, out)
        say(f"They are listed in {out}.")
    if folder is not None:
        for problem in write_pictures(rows, labels, folder):
            say(f"Problem: {problem}")
        say(f"Pictures are in {pictures}.")


@cli.command()
@click.argument("place", metavar="IMAGE|VIDEO#frame=N")
@click.option("--model", required=True, cls=Setting, setting="label.model")
@click.option("--out", default=".", show_default=True, help="Folder for the two pictures, local or on s3://.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any infer setting, such as infer.flip=true.")
def show(place: str, model: str, out: str, sets: tuple[str, ...]) -> None:
    """Write the segmentation map and the overlay of one frame.

    \b
    Example:
      segray show frame.png --model runs/sweep/best --out look/
      segray show 'drive.mp4#frame=120' --model deeplabv3-coco
    """
    from segray.config import load, parse_override
    from segray.show import show
    from segray.terminal import say

    config = load(None, {"label.model": model, **dict(map(parse_override, sets))})
    for picture in show(place, config, out):
        say(picture)


@cli.command()
@click.argument("labels")
@click.option("--video", "out", required=True, metavar="OUT.mp4", help="The H.264 video to write.")
@click.option("--input", "name", help="End of the video's path, for labels of several videos.")
@click.option("--overwrite", is_flag=True, help="Replace the video if it exists.")
def overlay(labels: str, out: str, name: str | None, overwrite: bool) -> None:
    """Render a labelled video with its masks over it.

    \b
    Example:
      segray overlay labels/street --video street.mp4
      segray overlay s3://labels/2026 --input drives/0412.mp4 --video 0412.mp4
    """
    from segray.core import storage
    from segray.errors import OutputExists
    from segray.show import overlay_video
    from segray.terminal import counting, say

    if storage.local(out, "a video").exists() and not overwrite:
        raise OutputExists(f"{out} exists already. Choose another --video, or pass --overwrite.")
    with counting("frames") as advance:
        count = overlay_video(labels, out, name, lambda total: advance(1, total=total))
    note_unfinished(labels)
    say(f"{count} frames are in {out}.")


@cli.command()
@click.argument("source")
@click.option("--to", required=True, help="Format, from the list above.")
@click.option("--out", help="Folder of the export; for onnx the file.")
@click.option("--images", is_flag=True, help="Also write the images, below OUT/images; video frames become PNG.")
@click.option("--min-area", default=64, show_default=True, help="Size of the smallest instance in pixels, for coco.")
@click.option(
    "--image-root", default="", help="URL before the image names, for label-studio. Default: the paths of the images."
)
@click.option("--repo", help="Repository OWNER/NAME, for hub. A new one is private.")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded and exit, for hub.")
@click.option("--overwrite", is_flag=True, help="Delete the results of an earlier export in --out first.")
def export(
    source: str, to: str, out: str | None, repo: str | None, dry_run: bool, overwrite: bool, **given: Any
) -> None:
    """Export labels or a model bundle to the formats of other tools. The same command again resumes.

    \b
    Of labels:  png            masks and classes.csv; with --images what --format folder trains on
                cityscapes     results of labelIds, for cityscapesScripts and its benchmark
                coco           instances, a region of one class each
                coco-panoptic  panoptic PNGs, a segment a region of things, and a stuff
                cvat           zip of "Segmentation mask 1.1"
                label-studio   tasks with predictions as brush strokes
                huggingface    dataset folder with images, masks and metrics
    Of a model: onnx           one file, checked against the model
                hub            upload to the Hugging Face Hub, with a card

    \b
    Example:
      segray export labels/drives --to cvat --out for-cvat
      segray export labels/drives --to png --images --out corrected
      segray export runs/sweep/best --to onnx --out model.onnx
      segray export runs/sweep/best --to hub --repo OWNER/NAME --dry-run
    """
    from segray import export as exports
    from segray.core.formats.frame import Options
    from segray.errors import ConfigError
    from segray.terminal import counting, say, waiting

    exports.check_format(to)
    if to == "hub":
        if repo is None:
            raise ConfigError("--repo is not given; name the repository: --repo OWNER/NAME.")
        with waiting("Uploading"):
            address, sizes = exports.push(source, repo, dry_run=dry_run)
        files = ", ".join(f"{name} ({size:,} bytes)" for name, size in sizes.items())
        say(f"{'Nothing is uploaded. It would be' if dry_run else 'Uploaded'}: {files}, to {address}.")
        return
    if dry_run or repo is not None:
        raise ConfigError(f"--repo and --dry-run are for --to hub, not {to}; leave them out.")
    if out is None:
        raise ConfigError("--out is not given; name where the export goes.")
    if to == "onnx":
        with waiting("Writing and checking"):
            check = exports.to_onnx(source, out, overwrite=overwrite)
        say(f"The model is {out}: {'any' if check.dynamic else 'this one'} height and width, any batch.")
        say(f"Its logits go up to {check.largest:.3g} and differ by at most {check.difference:.2g} from the model's.")
        return
    with counting("parts") as advance:
        done = exports.export(
            source, to, out, Options(**given), overwrite=overwrite, on_part=lambda of: advance(1, total=of)
        )
    there = "" if done.new else " It was there already."
    say(f"{done.frames} frames are in {out}/{done.result}; error rows left out: {done.errors}.{there} {done.note}")
    if done.parts < done.of:
        say(f"{done.parts} of {done.of} parts are labelled so far; when more are, the same command exports them.")
    for reason in done.lost[:20]:
        say(f"Left out: {reason}")
    if len(done.lost) > 20:
        say(f"… and {len(done.lost) - 20} more frames whose images cannot be read.")


@cli.command()
@click.argument("report__runs", nargs=-1, metavar="[FOLDER]...")
@stage("--labels", out="report.out", sections=("report",))
def report(config: Config, overwrite: bool) -> None:
    """Write one HTML page about runs, evaluations and labels.

    It takes the folders that train, sweep, evaluate, compare and label wrote.

    \b
    Example:
      segray report runs/sweep runs/sweep-val labels/val --out report.html
    """
    from segray.report import report
    from segray.terminal import say, waiting

    with waiting("Writing the report"):
        page = report([*config.report.runs, *config.report.labels], config.report.out, overwrite=overwrite)
    say(f"The report is {page}.")


CLUSTER = click.option(
    "--address", help="Dashboard of the cluster's head, such as http://10.0.0.1:8265. Default: RAY_ADDRESS."
)


@cli.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", metavar="train|sweep|label|evaluate|jobs.NAME")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@CLUSTER
@click.option("--no-wait", is_flag=True, help="Send the job and exit.")
@click.option("--python", help="Python on the cluster. Default: the path of this one, or with --pip the cluster's own.")
@click.option(
    "--pip",
    multiple=True,
    metavar="REQUIREMENT",
    help="Package to install for the job; a wheel file is sent along. Repeat the flag for more.",
)
def submit(
    command: str, args: tuple[str, ...], address: str | None, no_wait: bool, python: str | None, pip: tuple[str, ...]
) -> None:
    """Run a command as a job on a cluster.

    Its output is followed, and its exit code is the one that submit ends with.

    Its flags are the command's own. Ctrl-C leaves the job running. What it reads and writes is on s3://, or in
    folders that the cluster's nodes mount.

    \b
    Example:
      segray submit --address http://10.0.0.1:8265 label --model s3://models/best --input s3://drives/ --out s3://labels/1
      segray submit --no-wait sweep --format camvid --data /shared/camvid --lr 1e-3 --workers 4 --out /shared/sweep
      segray submit --pip dist/segray-0.1.0-py3-none-any.whl train --config camvid.yaml --out /shared/run
      segray submit jobs.camvid_best --data /shared/camvid --out /shared/best
    """
    import shlex

    from segray import submit as jobs
    from segray.terminal import say, size

    config, flags, dry_run = submitted(command, list(args))
    if dry_run:
        click.echo(config.to_yaml(), nl=False)
        return
    client = jobs.connect(address)
    sent = jobs.submit(client, command, config, flags, python=python, pip=pip, shown=shlex.join([command, *args]))
    say(f"Sent {sent.files} files, {size(sent.size)}. The job is {sent.job}.")
    if no_wait:
        say(f"Follow it: segray logs {sent.job} -f")
        return
    follow(client, sent.job)


def submitted(command: str, args: list[str]) -> tuple[Config, list[str], bool]:
    """Resolve the command line of a job: its settings, the flags that remain, and whether it is a dry run."""
    from segray import submit as jobs
    from segray.errors import ConfigError, nearest

    if command.startswith("jobs."):
        return *jobs.job_settings(command, args), "--dry-run" in args
    if command not in jobs.COMMANDS:
        raise ConfigError(f"{command} cannot be sent as a job.{nearest(command, (*jobs.COMMANDS, 'jobs.NAME'))}")
    given = dict(cli.commands[command].make_context(command, args).params)
    dry_run, overwrite = given.pop("dry_run"), given.pop("overwrite")
    config = jobs.for_cluster(settings(given.pop("file"), given.pop("sets"), **given))
    if command == "label":
        config.label.check_given()
    return config, ["--overwrite"] * overwrite, dry_run


def follow(client: Any, job: str) -> None:
    """Show a job's output until it ends, and end with its exit code. Ctrl-C leaves the job running."""
    from segray import submit as jobs
    from segray.terminal import say

    try:
        code = jobs.follow(
            client, job, lambda text: click.echo(text, nl=False), lambda text: click.echo(text, err=True)
        )
    except KeyboardInterrupt as stop:
        say(f"The job keeps running. Follow it: segray logs {job} -f. Stop it: segray stop {job}")
        sys.exit(getattr(stop, "exit_code", 130))
    no_python = " Its interpreter is not on the cluster: see --python and --pip." if code == 127 else ""
    say(f"The job {job} ended with exit code {code}.{no_python}")
    sys.exit(code)


@cli.command()
@CLUSTER
def jobs(address: str | None) -> None:
    """List the jobs of a cluster, newest first.

    \b
    Example:
      segray jobs --address http://10.0.0.1:8265
    """
    from segray import submit
    from segray.terminal import duration, moment, say, table

    rows = []
    for info in submit.jobs(submit.connect(address)):
        started, ended = info.start_time or 0, info.end_time or time.time() * 1000
        command = (info.metadata or {}).get("command") or info.entrypoint
        took = duration((ended - started) / 1000) if started else None
        rows.append((info.submission_id, info.status.value, moment(started / 1000), took, command))
    if not rows:
        say("No job was sent to this cluster yet.")
        return
    table(f"{len(rows)} jobs", ("job", "status", "started", "took", "command"), rows)


@cli.command()
@click.argument("job")
@CLUSTER
@click.option("-f", "--follow", "go_on", is_flag=True, help="Follow the job to its end, and end with its exit code.")
def logs(job: str, address: str | None, go_on: bool) -> None:
    """Print the output of a job.

    \b
    Example:
      segray logs segray-label-1a2b3c4d -f
    """
    from segray import submit

    client = submit.connect(address)
    if go_on:
        follow(client, job)
    click.echo(submit.logs(client, job), nl=False)


@cli.command()
@click.argument("job")
@CLUSTER
def stop(job: str, address: str | None) -> None:
    """Stop a job. What it has finished is kept, and the same command resumes.

    \b
    Example:
      segray stop segray-label-1a2b3c4d
    """
    from segray import submit
    from segray.terminal import say

    running = submit.stop(submit.connect(address), job)
    say(f"{job} is stopped." if running else f"{job} had ended before.")


@cli.command()
@click.argument("out")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def status(out: str, as_json: bool) -> None:
    """Show the progress of a run from its folder.

    The run is one of train, sweep or label, and may be running elsewhere.

    \b
    Example:
      segray status s3://labels/2026
      segray status runs/sweep --json
    """
    import json
    from dataclasses import asdict

    from segray.status import status
    from segray.terminal import show_status

    found = status(out)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        show_status(out, found)


def main(command: click.Command = cli) -> None:
    """Run a command and end the process.

    Exit codes: 0 done, 1 failed, 2 usage or settings, 3 more errors than the limit, 130 Ctrl-C, 143 SIGTERM. What is
    ours is one line on stderr.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SegrayError as error:
        click.echo(f"segray: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt) as stop:
        click.echo(f"segray: stopped.{' The same command resumes here.' * (command is cli)}", err=True)
        sys.exit(Terminated.exit_code if isinstance(stop.__cause__ or stop, Terminated) else 130)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(*_: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who asks twice must not cut the tidying up short; SIGKILL can
    raise Terminated


if __name__ == "__main__":
    main()
