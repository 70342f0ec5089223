"""Commands about labels: label, verify, select, show, overlay, export."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from segray.cli.app import cli, resuming
from segray.cli.flags import Setting, flag, stage
from segray.core.formatting import counted

if TYPE_CHECKING:
    from segray.config import Config
    from segray.core.labels.totals import Summary


def check_label(config: Config) -> None:
    """Check that what the run needs is named and installed."""
    from segray.core.extras import extra

    config.label.check_given()
    if config.infer.engine == "onnx":
        extra("onnxruntime")  # or each actor would find out, a minute later


@cli.command()
@stage(
    "--model", "--input", "--truth", "--every", "--fps", "--limit", "--sample", "--extend", "--retry-errors",
    "--mask-format", "--max-error-rate", "--window", "--flip", "--engine", "--weights-dir", "--actors", "--address",
    out="label.out", sections=("infer", "label", "cluster"), check=check_label,
)  # fmt: skip
def label(config: Config, overwrite: bool) -> Summary:
    """Label images and videos: write masks and metrics as Parquet. The same command again resumes.

    \b
    Example:
      segray label --model runs/sweep/best --input drive.mp4 --every 10 --out labels/drive
      segray label --model runs/sweep/best --input camvid/val --truth camvid/valannot --out labels/val
      segray label --model runs/sweep/best --input s3://drives/2026/ --sample 0.01 --out s3://labels/look
      segray label --model runs/sweep/best --input s3://drives/2026/ --extend --out s3://labels/all
    """
    from segray.cli.terminal import labelling, say, show_labels
    from segray.core.labels.folder import is_labels
    from segray.stages.label import label

    with resuming(lambda: is_labels(config.label.out)), labelling() as watch:
        summary = label(config, overwrite=overwrite, watch=watch)
    out = config.label.out
    show_labels(out, summary)
    place = quote(out)
    say(f"Next: segray report {place} --out {place}.html, or segray export {place} --to png --out {place}-masks")
    return summary


@cli.command()
@click.argument("out")
@click.option("--sample", default=1.0, help="Read only this share of the parts, such as 0.01; always the same ones.")
@flag("--address")
def verify(out: str, sample: float, **given: Any) -> None:
    """Check that finished labels are complete and undamaged.

    Every planned row must be there exactly once, with a whole mask. The exit code is 1 if that is not so. All
    processors of this machine read, or those of the cluster that is named.

    \b
    Example:
      segray verify labels/val
      segray verify s3://labels/drives --sample 0.01
    """
    from segray.cli.flags import settings
    from segray.cli.terminal import counting, say
    from segray.stages.verify import verify

    cluster = settings(None, (), **given).cluster
    with counting("parts") as advance:
        found = verify(out, sample, cluster, advance)
    for problem in found.problems[:20]:
        say(f"Problem: {problem}.")
    unread = counted(found.parts - found.read, "part was", "parts were")
    left = "" if found.read == found.parts else f" The rows of {unread} not read."
    if found.problems:
        say(f"{counted(len(found.problems), 'problem')} in {counted(found.parts, 'part')}.{left}")
        raise SystemExit(1)
    if left:
        say(f"All {found.parts} parts are there, and {found.read} of them are undamaged.{left}")
    else:
        rows, parts = counted(found.rows, "row"), counted(found.parts, "undamaged part")
        say(f"Every row is there exactly once: {rows} in {parts}.")


def note_unfinished(labels: str) -> None:
    """Say what is missing from labels that can be looked at before their run has finished."""
    from segray.cli.terminal import say
    from segray.core.labels.folder import LabelFolder

    if left := LabelFolder.open(labels).unfinished:
        say(f"{labels} is not finished: {left}")


@cli.command()
@click.argument("labels")
@click.option(
    "--by", default="uncertainty", show_default=True, help="Order of the frames: uncertainty, flicker or rare-class."
)
@click.option("--count", type=click.IntRange(1), default=20, show_default=True, help="Number of frames to list.")
@click.option(
    "--apart",
    default=2.0,
    show_default=True,
    help="Smallest distance of two frames, in seconds of a video or files of a folder.",
)
@click.option("--out", help="File for the list, .jsonl or .parquet, local or in a bucket.")
@click.option("--pictures", help="Folder for a picture of each frame beside its mask.")
@click.option("--overwrite", is_flag=True, help="Replace the list and the pictures if they exist.")
def select(
    labels: str, by: str, count: int, apart: float, out: str | None, pictures: str | None, overwrite: bool
) -> None:
    """List the frames of labels that are most worth a person's look.

    They are spread over videos and folders, and may be of labels that are not finished.

    \b
    Example:
      segray select labels/drives --by uncertainty --count 50 --pictures look/
      segray select s3://labels/all --by rare-class --count 500 --out annotate.jsonl
    """
    from segray.cli.terminal import counting, say, table
    from segray.core.io import storage
    from segray.errors import ConfigError
    from segray.stages.select import OUT_SUFFIXES, check_new, select, write, write_pictures

    folder = None if pictures is None else storage.local(pictures, "a folder of pictures")
    if out is not None and not out.endswith(OUT_SUFFIXES):
        raise ConfigError(f"{out} ends in none of {', '.join(OUT_SUFFIXES)}; name such a file.")
    if not overwrite:
        check_new(out, folder, count)
    with counting("parts") as advance:
        rows = select(labels, by, count, apart, advance)
    note_unfinished(labels)
    cells = [(i, row["score"], row["uri"], row["frame_index"], row["time_s"]) for i, row in enumerate(rows, 1)]
    table(f"{counted(len(rows), 'frame')} by {by}", ("rank", "score", "file", "frame", "time s"), cells)
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
@click.option("--out", default=".", show_default=True, help="Folder for the two pictures, local or in a bucket.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any infer setting, such as infer.flip=true.")
@click.option("--overwrite", is_flag=True, help="Replace the pictures if they exist.")
def show(place: str, model: str, out: str, sets: tuple[str, ...], overwrite: bool) -> None:
    """Write the segmentation map and the overlay of one frame.

    \b
    Example:
      segray show frame.png --model runs/sweep/best --out look/
      segray show 'drive.mp4#frame=120' --model deeplabv3-coco
    """
    from segray.cli.terminal import say, waiting
    from segray.config import load, parse_override

    config = load(None, {"label.model": model, **dict(map(parse_override, sets))})
    with waiting("Starting"):
        from segray.stages.show import show

        pictures = show(place, config, out, overwrite=overwrite)
    for picture in pictures:
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
    from segray.cli.terminal import counting, say
    from segray.core.io import storage
    from segray.errors import OutputExists
    from segray.stages.show import overlay_video

    if storage.local(out, "a video").exists() and not overwrite:
        raise OutputExists(f"{out} exists already. Choose another --video, or pass --overwrite.")
    with counting("frames") as advance:
        count = overlay_video(labels, out, name, advance)
    note_unfinished(labels)
    say(f"{counted(count, 'frame is', 'frames are')} in {out}.")


@cli.command()
@click.argument("source")
@click.option("--to", required=True, help="Format, from the list above.")
@click.option("--out", help="Folder of the export; for onnx the file.")
@click.option("--images", is_flag=True, help="Also write the images, below OUT/images; video frames become PNG.")
@click.option("--grey", is_flag=True, help="Write grey masks for png; OpenCV and convert('L') change palette colours.")
@click.option(
    "--min-area",
    type=click.IntRange(0),
    default=64,
    show_default=True,
    help="Size of the smallest instance in pixels, for coco.",
)
@click.option(
    "--image-root", default="", help="URL before the image names, for label-studio. Default: the paths of the images."
)
@click.option("--repo", help="Repository OWNER/NAME, for hub. A new one is private.")
@click.option("--dry-run", is_flag=True, help="Say what would be uploaded and exit, for hub.")
@flag("--address")
@click.option("--overwrite", is_flag=True, help="Delete the results of an earlier export in --out first.")
def export(
    source: str,
    to: str,
    out: str | None,
    repo: str | None,
    cluster__address: str | None,
    dry_run: bool,
    overwrite: bool,
    **given: Any,
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
      segray export s3://labels/drives --to png --out s3://labels/masks --address 10.0.0.1:6379
      segray export runs/sweep/best --to onnx --out model.onnx
      segray export runs/sweep/best --to hub --repo OWNER/NAME --dry-run
    """
    from segray.cli.flags import settings
    from segray.cli.terminal import counting, say, waiting
    from segray.core.formats.frame import Options
    from segray.core.io import storage
    from segray.errors import ConfigError
    from segray.stages import export as exports

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
    cluster = settings(None, (), cluster__address=cluster__address).cluster
    with resuming(lambda: exports.has_pieces(storage.absolute(out))), counting("parts") as advance:
        done = exports.export(source, to, out, Options(**given), overwrite=overwrite, cluster=cluster, progress=advance)
    there = "" if done.new else " It was there already."
    frames = counted(done.frames, "frame is", "frames are")
    say(f"{frames} in {out}/{done.result}; error rows left out: {done.errors}.{there} {done.note}")
    if done.parts < done.of:
        parts = counted(done.of, "part is", "parts are")
        say(f"{done.parts:,} of {parts} labelled so far; when more are, the same command exports them.")
    for reason in done.lost[:20]:
        say(f"Left out: {reason}")
    if len(done.lost) > 20:
        say(f"… and {counted(len(done.lost) - 20, 'more frame')} whose images cannot be read.")
