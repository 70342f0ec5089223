"""Commands about data and models: data check, classes, convert, draw, formats, get; models; import; recipes."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Any

import click

from segray.cli.app import Examples, cli, resuming
from segray.cli.flags import Setting, flag
from segray.core.formatting import counted

if TYPE_CHECKING:
    from typing import Literal

    from segray.core.data.check import CheckResult
    from segray.core.samples import LabelSpace
    from segray.stages.convert import Converted

IMPORT_SIZE = "Height x width that frames are resized to. Default: the ONNX file's own, or a shorter side of 512 px."
IMPORT_SET = "A setting of the sections model and data, such as model.mean=[0.5,0.5,0.5] or data.resize=keep."


@cli.group(cls=Examples)
def data() -> None:
    """Check, convert, download or draw data sets."""


@data.command("check")
@click.argument("data__root", metavar="ROOT")
@click.option("--format", "format_", cls=Setting, setting="data.format")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any data setting, such as data.id_map.255=1.")
def data_check(data__root: str, format_: str, sets: tuple[str, ...]) -> None:
    """Decode all frames and masks and say whether training can start.

    The exit code is 1 if it cannot.

    \b
    Example:
      segray data check camvid/
      segray data check --format cityscapes34 cityscapes/
    """
    from segray.cli.terminal import counting, say
    from segray.config import load, parse_override
    from segray.core.data import open_dataset
    from segray.core.data.check import check, frames_of

    config = load(None, {"data.format": format_, "data.root": data__root, **dict(map(parse_override, sets))}).data
    dataset = open_dataset(config)
    with counting("frames", len(frames_of(dataset))) as advance:
        result = check(dataset, (config.train_split, config.val_split), advance, config.root)
    show_check(result, dataset.label_space)
    if not result.ok:
        say(f"Training cannot start: {counted(len(result.problems), 'problem')}.")
        raise SystemExit(1)
    say("Training can start.")


def show_check(result: CheckResult, space: LabelSpace) -> None:
    from segray.cli.terminal import say, table
    from segray.core.samples import id_text

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
        say(f"… and {counted(len(unknown[20:]), 'more unknown id')}, in {others / total:.2%} of the pixels.")
    for height, width in list(result.sizes)[:1]:
        if len(result.sizes) == 1:
            say(f"Every frame is {height}×{width} (height × width).")
    for note in result.notes[:20]:
        say(f"Note: {note}.")
    if len(result.notes) > 20:
        say(f"… and {counted(len(result.notes) - 20, 'more note')}.")
    for problem in result.problems[:20]:
        say(f"Problem: {problem.rstrip('.')}.")
    if len(result.problems) > 20:
        say(f"… and {len(result.problems) - 20} more.")


@data.command("classes")
@click.argument("data__root", metavar="ROOT")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Any data setting, such as data.masks=seg.")
def data_classes(data__root: str, sets: tuple[str, ...]) -> None:
    """Write a classes.csv for a folder of images and masks.

    It lists the ids or colours that stand in the masks, under names that are yours to edit.

    \b
    Example:
      segray data classes mine/
    """
    from segray.cli.terminal import counting, say
    from segray.config import load, parse_override
    from segray.core.data.proposal import write_proposal
    from segray.core.io import storage

    config = load(None, {"data.root": data__root, **dict(map(parse_override, sets))}).data
    with counting("masks") as advance:
        place = write_proposal(config, advance)
    say(storage.read_bytes(place).decode().rstrip())
    say(f"These classes are in {place}: give them names there. A class called void counts nowhere.")
    say(f"Next: segray data check {quote(data__root)}")


@data.command("convert")
@click.argument("annotations")
@click.argument("out")
@click.option(
    "--from",
    "kind",
    metavar="FORMAT",
    help="coco, coco-panoptic, cvat, label-studio, labelme, yolo or huggingface. Default: found by looking.",
)
@click.option("--images", help="Folder or zip of the images, where they do not lie beside the annotations.")
@click.option(
    "--background",
    type=click.Choice(["void", "class"]),
    help="What pixels are that nobody annotated. Default: void, unless the annotations have a class background.",
)
@click.option("--link", is_flag=True, help="Make symbolic links to the images, and not hard links or copies.")
@click.option("--overwrite", is_flag=True, help="Delete an earlier conversion in OUT first.")
def data_convert(
    annotations: str,
    out: str,
    kind: str | None,
    images: str | None,
    background: Literal["void", "class"] | None,
    link: bool,
    overwrite: bool,
) -> None:
    """Convert annotations of another tool into a folder to train on.

    ANNOTATIONS is the file, folder or zip that the tool gave out. OUT gets images/, masks/ and classes.csv.
    The same command resumes an interrupted conversion.

    \b
    Example:
      segray data convert instances_train2017.json coco/ --images train2017/
      segray data convert task.zip mine/
    """
    from segray.cli.terminal import counting
    from segray.core.io import storage
    from segray.stages.convert import convert, pieces

    with resuming(lambda: bool(pieces(storage.local(out, "a conversion")))), counting("frames") as advance:
        done = convert(
            annotations, out, kind=kind, images=images, background=background, link=link, overwrite=overwrite,
            progress=advance,
        )  # fmt: skip
    show_conversion(done, out)


def show_conversion(done: Converted, out: str) -> None:
    from segray.cli.terminal import say, table

    total = sum(done.pixels.values())
    rows = [
        (i, one.name, done.pixels.get(i, 0) / total, done.frames_with.get(i, 0)) for i, one in enumerate(done.classes)
    ]
    void = [("255", "void", done.pixels.get(None, 0) / total, done.frames_with.get(None, 0))]
    table(f"Classes, from {done.format}", ("id", "class", "share of pixels", "frames"), [*rows, *void])
    for line in (*done.notes, *done.left_out):
        say(f"Note: {line}.")
    if done.background is None:
        say("Pixels that nobody annotated are void, and count nowhere; --background class makes them a class.")
    else:
        say(f"Pixels that nobody annotated are {done.background}; --background void makes them void.")
    there = counted(done.total, "frame is", "frames are")
    say(f"{done.frames:,} of {there} in {out}{'' if done.new else ', as before'}. Next: segray data check {quote(out)}")


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
    from segray.cli.terminal import say, waiting
    from segray.config import load
    from segray.core.data import streets
    from segray.core.io import storage

    pixels = load(None, {"data.size": size}).data.size or (180, 240)
    with waiting("Drawing streets"):
        streets.write(storage.local(root, "a drawn town"), train=train, val=val, size=pixels, seed=seed)
    say(f"Streets are in {root}. Next: segray train --data {quote(root)}")


@data.command("formats")
def data_formats() -> None:
    """List the layouts and the annotations that are read.

    \b
    Example:
      segray data formats
    """
    from segray.cli.terminal import table
    from segray.core.annotations import READERS
    from segray.core.data import LAYOUTS

    table("Layouts", ("--format", "below --data"), [(name, row.layout) for name, row in LAYOUTS.items()])
    table(
        "Annotations, for segray data convert", ("--from", "what is read"), [(n, r.about) for n, r in READERS.items()]
    )


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
    from segray.cli.terminal import counting, say
    from segray.core.data.download import SOURCES, get
    from segray.core.io import storage

    with resuming(), counting("bytes") as advance:
        get(name, storage.local(root, "a download"), url, advance)
    say(f"{name} is in {root}: {SOURCES[name].about}. Next: segray data check --format {name} {quote(root)}")


@cli.command()
@click.argument("text", default="")
def models(text: str) -> None:
    """List architectures, encoders and ready models. TEXT filters them by name; tu-… searches the encoders of timm.

    \b
    Example:
      segray models resnet
      segray models tu-convnext
    """
    from segray.cli.terminal import say, table
    from segray.core.models.listing import list_models

    found = list_models(text)
    for title, columns, rows in found:
        if rows:
            table(title, columns, rows)
    if not any(rows for _, _, rows in found):
        say(f"Nothing is called {text!r}. Encoders of timm begin with tu-, such as tu-convnext_tiny.")


@cli.command("import")
@click.argument("file")
@click.option("--out", required=True, help="Folder for the bundle, local or in a bucket.")
@click.option(
    "--classes", help="The model's classes: their number, their names with commas between, or a file that lists them."
)
@flag("--arch")
@flag("--encoder")
@click.option("--size", "data__size", metavar="HxW", help=IMPORT_SIZE)
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help=IMPORT_SET)
@click.option("--overwrite", is_flag=True, help="Replace the bundle in --out.")
def import_(file: str, out: str, classes: str | None, sets: tuple[str, ...], overwrite: bool, **given: Any) -> None:
    """Make a bundle of a model that you have.

    FILE is a state dict (.pt, .pth, .ckpt, .safetensors) of an architecture and encoder of `segray models`, an ONNX
    file, which runs in ONNX Runtime, a folder that save_pretrained of segmentation-models-pytorch or transformers
    wrote, or a ready model's name. Nothing is unpickled but tensors, and no code is run.

    \b
    Example:
      segray import best.ckpt --arch unet --encoder resnet34 --classes classes.csv --size 512x1024 --out bundles/unet
      segray import deeplab.pth --arch deeplabv3plus --encoder resnet50 --classes 19 --out bundles/deeplab
      segray import pidnet.onnx --classes road,sky,car --out bundles/pidnet
      segray import smp-folder/ --classes classes.csv --size 512x512 --out bundles/smp
      segray import hf:OWNER/NAME --out s3://bucket/bundles/name
    """
    from segray.cli.flags import settings
    from segray.cli.terminal import say
    from segray.core.models import name_of
    from segray.core.models.imported import import_model

    made = import_model(file, out, settings(None, sets, **given), classes, overwrite=overwrite)
    for note in made.notes:
        say(f"Note: {note}.")
    say(
        f"{out} is a bundle of {name_of(made.info.model)}, {made.info.space.num_classes} classes. "
        f"Next: segray label --model {quote(out)} --input FRAMES"
    )


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
    from segray.cli.terminal import table

    table("Recipes", ("--recipe", "for", "from"), [(key, row.about, row.source) for key, row in RECIPES.items()])
