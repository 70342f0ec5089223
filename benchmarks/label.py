"""How fast labelling is, against what a user would write, Ray Data's documented pipeline, and the model alone.

    python -m benchmarks.label --frames 128 --rounds 3 --kind jpeg360,video --model real
    python -m benchmarks.label --device simulated:40 --kind jpeg360 --model null
    python -m benchmarks.label plan --inputs 10000,100000,1000000
    python -m benchmarks.label memory --frames 10000

Every rival (benchmarks.rivals) runs in a process of its own, one after the other, in another order each round;
speeds and ratios are medians over the rounds, a ratio being of two runs of one round. Frames are drawn streets, a
few of them under many names (hard links, so that the disk's cache holds them); weights are of a few steps of training,
so that masks have the edges of masks and not of noise. All rivals have the same weights, frames, batch size and cores.

    real   a Unet over resnet18, 11 classes, at 352×480, for large frames 512×1024: what it sees, so nearly the
           size of small frames, and half of large ones
    segformer  one over mit_b0, beside transformers' own
    torchvision  its DeepLabV3 over MobileNetV3, beside its own
    null   a Unet over three stages of resnet18, 2 classes, at 32×32: 0.5 ms a frame on 2 cores, so that reading,
           moving, encoding and writing count; its ids are interpolated to the frame's size as real ones are

A simulated device (benchmarks.simulated) takes so many milliseconds for a batch of 8 and no processor: how busy segray
alone keeps it, and how many frames it would label if the device took no time.

The script and the idiom compute no figures (confidence, entropy, pixels and regions of each class); segray does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from benchmarks.measure import medians, memory_mib, print_machine, rounds, spread, verdict
from benchmarks.rivals import RIVALS
from segray.cli import main
from segray.cli.terminal import table

KINDS = {  # height, width of a frame
    "jpeg360": (360, 480),
    "jpeg1024": (1024, 2048),
    "video": (360, 480),
    "video720": (720, 1280),
}
USUAL = "jpeg360,jpeg1024,video"
NULL = {"arch": "unet", "encoder": "resnet18", "options": {"encoder_depth": 3, "decoder_channels": [32, 16, 8]}}
NETS = {
    "real": {},
    "null": NULL,
    "segformer": {"arch": "segformer", "encoder": "mit_b0"},
    "mit_b0": {"arch": "segformer", "encoder": "mit_b0"},  # the same without transformers' own beside it
    "unet34": {"arch": "unet", "encoder": "resnet34"},
    "torchvision": {"arch": "deeplabv3-torchvision", "encoder": "mobilenet_v3_large"},
}
SMP = ("real", "null", "segformer")
NETS_OF = {"script": SMP, "lightning": SMP, "idiom": SMP, "pipeline": ("segformer",), "torchvision": ("torchvision",)}
SIMULATED = "simulated:"  # a device that takes so many milliseconds for a batch
DRAWN = 8
LEAST_SHARDS = 6
KEYFRAME_EVERY = 16
NULL_TIMES = 8  # as many more frames and rows a part: it is so much faster
# (model, device) → segray's least ratio to a rival
TARGETS = {
    ("real", "cpu"): {"script": 1.5, "model": 0.95},
    ("null", "cpu"): {"script": 1.0, "idiom": 3.0},
    ("real", "cuda"): {"model": 0.9},
}


@click.group(invoke_without_command=True)
@click.option("--frames", default=128, show_default=True, help="A run; of 1024×2048 a quarter.")
@click.option("--rounds", "count", default=3, show_default=True)
@click.option("--kind", default=USUAL, show_default=True)
@click.option("--model", default="real,null", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option(
    "--shard",
    default=16,
    show_default=True,
    help="Rows a part; small, so that short runs have several. Of 1024×2048 half. The null model: both ×8.",
)
@click.pass_context
def label(
    context: click.Context, frames: int, count: int, kind: str, model: str, device: str, batch: int, shard: int
) -> None:
    """Images a second of segray and its rivals."""
    if context.invoked_subcommand:
        return
    print_machine()
    with tempfile.TemporaryDirectory(prefix="segray-label-") as folder:
        for name in kind.split(","):
            for net in model.split(","):
                large = name == "jpeg1024"
                times = NULL_TIMES if net == "null" else 1
                all_, rows = times * frames // (4 if large else 1), times * shard // (2 if large else 1)
                job = {"device": device, "batch": batch, "shard": rows, "frames": max(all_, LEAST_SHARDS * rows)}
                job |= set_up(Path(folder), name, net, job["frames"])
                if device.startswith(SIMULATED):
                    keep_busy(name, job, float(device.removeprefix(SIMULATED)), count)
                else:
                    compare(name, net, job, count)


def compare(kind: str, net: str, job: dict[str, Any], count: int) -> None:
    mine = [name for name in RIVALS if net in NETS_OF.get(name, (net,)) and not (name == "pipeline" and job["spans"])]
    results = rounds("benchmarks.rivals", mine, job, count, f"{kind}, {net}, ")
    for result in results:
        result["bare"] = {"images_per_s": result["model"]["bare"]}
    targets = TARGETS.get((net, job["device"]), {})
    rows = []
    for name in [*(name for name in mine if name != "segray"), "bare", "segray"]:
        ratios = [result["segray"]["images_per_s"] / result[name]["images_per_s"] for result in results]
        of_all = [result[name].get("cpu_s", 0.0) / job["frames"] for result in results]
        row = (result_of(results, name, "images_per_s", 2), result_of(results, name, "start_s", 1))
        row += (f"{median(of_all):.3f}" if any(of_all) and name != "model" else "–",)
        row += (result_of(results, name, "most_mib", 0), spread(ratios), verdict(ratios, targets.get(name)))
        rows.append((name, *row))
    facts = f"{job['frames']} frames of {job['size'][0]}×{job['size'][1]}, batch {job['batch']}, {job['device']}"
    columns = ("", "images/s", "start, s", "CPU s a frame, all in", "MiB", "segray ÷ it (least–most)", "target")
    table(f"{kind}, {net} model: {facts}, {count} rounds", columns, rows)
    stages = medians([result["segray"]["stage_ms"] for result in results])
    table("segray, ms a frame over all threads", list(stages), [[f"{ms:.2f}" for ms in stages.values()]])
    stages = medians([result["model"]["split_ms"] for result in results])
    table("of it the model, in one process alone, ms a frame", list(stages), [[f"{ms:.2f}" for ms in stages.values()]])
    begin = medians([result["segray"]["begin_s"] for result in results])
    table("segray's start, s", ("", ""), [(name, f"{seconds:.1f}") for name, seconds in begin.items()])


def keep_busy(kind: str, job: dict[str, Any], batch_ms: float, count: int) -> None:
    """How busy segray keeps a device that takes so long for a batch, and its speed beside one that takes no time."""
    from benchmarks import simulated

    rows, stages = [], {}
    for ms in (batch_ms, 0.0):
        results = rounds("benchmarks.rivals", ["segray"], job | {"simulated_ms": ms}, count, f"{kind}, {ms:g} ms, ")
        speeds = [result["segray"]["images_per_s"] for result in results]
        busy = [speed * ms / 1e3 / simulated.BATCH for speed in speeds]
        own = f"{1e3 * simulated.BATCH / ms:.0f}" if ms else "–"
        rows.append((f"{ms:g} ms", own, f"{median(speeds):.1f}", spread(busy) if ms else "–"))
        stages[f"{ms:g} ms"] = medians([result["segray"]["stage_ms"] for result in results])
    facts = f"{job['frames']} frames of {job['size'][0]}×{job['size'][1]}, shards of {job['shard']}"
    columns = ("a batch takes", "the device's own images/s", "segray's", "device busy (least–most)")
    table(f"{kind}, simulated device: {facts}, {count} rounds", columns, rows)
    names = next(iter(stages.values()))
    rows = [(ms, *(f"{found[name]:.2f}" for name in names)) for ms, found in stages.items()]
    table("segray, ms a frame over all threads", ("", *names), rows)


def result_of(results: Sequence[dict[str, Any]], name: str, key: str, digits: int) -> str:
    """The median of what a rival gave, where it did."""
    found = [result[name].get(key) for result in results]
    return "–" if None in found else f"{median(found):.{digits}f}"


# --- what is labelled, and with what ---------------------------------------------------------------------


def set_up(root: Path, kind: str, net: str, frames: int, *, seen: tuple[int, int] | None = None) -> dict[str, Any]:
    """Bundle and frames on disk, and what the rivals are told of them. seen: the model's input size."""
    usual = (32, 32) if net == "null" else (512, 1024) if kind == "jpeg1024" else (352, 480)
    seen = seen or usual
    return {"input_size": seen, **bundle_of(root, net, seen), **frames_of(root, kind, frames)}


def frames_of(root: Path, kind: str, frames: int) -> dict[str, Any]:
    """Drawn frames on disk, which are made once."""
    size = KINDS[kind]
    if kind.startswith("video"):
        video = root / f"{kind}-{frames}.mp4"
        if not video.exists():
            write_video(video, size, frames)
        from segray.core.io.video import index_video

        index = index_video(str(video))
        starts = [*(index.keys[i] for i in index.keyframes), index.keys[-1] + 1]
        spans = [(first, end - 1) for first, end in pairwise(starts)]
        return {"size": size, "files": [str(video)], "inputs": [str(video)], "spans": spans}
    folder = root / f"{kind}-{frames}"
    files = [folder / f"{i:06}.jpg" for i in range(frames)]
    if not folder.exists():
        write_images(files, size)
    return {"size": size, "files": [str(file) for file in files], "inputs": [str(folder)], "spans": []}


def write_images(files: Sequence[Path], size: tuple[int, int]) -> None:
    from PIL import Image

    from segray.core.data import streets

    files[0].parent.mkdir(parents=True)
    for i, file in enumerate(files):
        if i < DRAWN:
            Image.fromarray(streets.draw(i, size).image_hwc).save(file, quality=90)
        else:
            file.hardlink_to(files[i % DRAWN])


def write_video(file: Path, size: tuple[int, int], frames: int) -> None:
    """H.264 of a street, forth and back."""
    import av

    from segray.core.data import streets

    drawn = [streets.draw(0, size, i / 10).image_hwc for i in range(4 * DRAWN)]
    drawn += drawn[-2:0:-1]
    with av.open(str(file), mode="w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": str(KEYFRAME_EVERY), "sc_threshold": "0"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(drawn[i % len(drawn)], format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def bundle_of(root: Path, net: str, seen: tuple[int, int], classes: int | None = None) -> dict[str, Any]:
    """A bundle that has seen a few steps of streets; of so many classes, the streets' if need be with others after."""
    import torch

    from segray.config import ModelSection
    from segray.core.data import streets
    from segray.core.models import build, bundle, forward
    from segray.core.models.info import BundleInfo
    from segray.core.samples import LabelSpace

    torch.manual_seed(0)
    space = streets.LABEL_SPACE if net != "null" else LabelSpace(("background", "road"), ((0, 0, 0), (128, 64, 128)))
    if classes is not None:
        known = list(zip(space.names, space.colors, strict=True))[:classes]
        known += [(f"class{i}", (i, i, i)) for i in range(len(known), classes)]
        space = LabelSpace(*(tuple(values) for values in zip(*known, strict=True)))
    section = ModelSection(**NETS[net])
    info = BundleInfo(model=section, label_space=space.to_dict(), input_size=seen)
    folder = root / f"{net}-{seen[0]}x{seen[1]}-{space.num_classes}"
    if not folder.exists():
        model = build(section, space.num_classes)
        teach(model, partial(forward, model), info, net)
        bundle.save(folder, model.eval(), info)
    there = {"model": str(folder), "mean": info.mean, "std": info.std, "classes": space.num_classes}
    return there | ({"hf": segformer_of(root, info)} if net == "segformer" else {})


def teach(model: Any, forward: Callable[[Any], Any], info: Any, net: str) -> None:
    """A few steps on streets."""
    import torch
    from torch.nn.functional import cross_entropy

    from segray.core.data import streets
    from segray.core.data.camvid import VOID_ID
    from segray.core.data.streets.world import ROAD
    from segray.core.samples import IGNORE_INDEX
    from segray.core.transforms import normalize, to_float

    torch.set_num_threads(1)  # beside other work, two wait for each other most of the time
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    samples = [streets.draw(seed, (64, 96)) for seed in range(16)]
    images = normalize(to_float(torch.from_numpy(np.stack([one.image_hwc for one in samples]))), info.mean, info.std)
    masks = torch.from_numpy(np.stack([one.mask_hw for one in samples])).long()
    masks[masks == VOID_ID] = IGNORE_INDEX
    if len(info.label_space["names"]) == 2:
        masks = (masks == ROAD).long()
    images, masks = images.to(device), masks.to(device)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        cross_entropy(forward(images), masks, ignore_index=IGNORE_INDEX).backward()
        optimizer.step()
    model.cpu()


def segformer_of(root: Path, info: Any) -> str:
    """transformers' own, as its pipeline loads it."""
    from torch.nn.functional import interpolate
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    folder = root / f"hf-{info.input_size[0]}x{info.input_size[1]}"
    if not folder.exists():
        model = SegformerForSemanticSegmentation(SegformerConfig(num_labels=len(info.label_space["names"])))
        teach(model, lambda images: interpolate(model(images).logits, images.shape[-2:], mode="bilinear"), info, "real")
        model.eval().save_pretrained(folder)
        height, width = info.input_size
        SegformerImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)
    return str(folder)


# --- listing and planning, and memory --------------------------------------------------------------------


@label.command()
@click.option("--inputs", default="10000,100000,1000000", show_default=True)
def plan(inputs: str) -> None:
    """Seconds and memory of listing and planning so many empty files, in folders of 1000; planning opens none."""
    print_machine()
    rows = []
    with tempfile.TemporaryDirectory(prefix="segray-plan-") as folder:
        for count in map(int, inputs.split(",")):
            job = json.dumps(settings_of(Path(folder), "null", make_tree(Path(folder) / str(count), count), None))
            command = [sys.executable, "-m", "benchmarks.label", "plan-once", job]
            rows.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))
    columns = (
        "inputs", "list + plan, s", "processor, s", "of it listing, s", "MiB before", "MiB at most",
        "plan on disk, MiB", "shards",
    )  # fmt: skip
    table("Listing and planning, a fresh process each", columns, rows)


def make_tree(root: Path, count: int) -> Path:
    for start in range(0, count, 1000):
        folder = root / f"drive{start // 100_000:03}" / f"camera{start // 1000 % 100:02}"
        folder.mkdir(parents=True)
        for i in range(start, min(count, start + 1000)):
            os.close(os.open(f"{folder}/{i:08}.jpg", os.O_CREAT))
    return root


def settings_of(root: Path, net: str, inputs: Path, shard: int | None) -> dict[str, Any]:
    """Of a run over a folder of images: its output folder, and the settings of its plan."""
    from segray.config import Config
    from segray.core.models.info import read_info
    from segray.stages.label import plan_settings

    with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # training's memory is not labelling's
        uri = pool.submit(bundle_of, root, net, (32, 32)).result()["model"]
    out = f"{inputs}-labels"
    given = {"label.model": uri, "label.inputs": [str(inputs)], "label.out": out, "label.shard_size": shard}
    config = Config().changed(given)
    return {"uri": uri, "out": out, "settings": plan_settings(config.label, config.infer, read_info(uri))}


@label.command(hidden=True)
@click.argument("job")
def plan_once(job: str) -> None:
    from segray.core.io import inputs, storage
    from segray.core.labels.planning import make_plan
    from segray.core.models.info import read_info

    told = json.loads(job)
    space = read_info(told["uri"]).space
    before_mib, started, worked = memory_mib()[0], time.perf_counter(), time.process_time()
    made = make_plan(told["out"], told["settings"], space)
    seconds, processor, most_mib = time.perf_counter() - started, time.process_time() - worked, memory_mib()[1]
    worked = time.process_time()
    inputs.find_inputs(told["settings"]["inputs"])
    listing = time.process_time() - worked
    disk_mib = sum(entry.size for entry in storage.iter_files(f"{told['out']}/_segray")) / 2**20
    values = (seconds, processor, listing, before_mib, most_mib, disk_mib)
    row = (made.rows, *(round(value, 1) for value in values), made.shards)
    sys.stdout.write(json.dumps(row))


@label.command()
@click.option("--frames", default=10_000, show_default=True)
def memory(frames: int) -> None:
    """Memory of one process that labels shard after shard, null model: after the first, and after all."""
    from segray.core.infer.label_rows import label_rows
    from segray.core.infer.predictor import Predictor
    from segray.core.labels import parts
    from segray.core.labels.plan import PlanReader
    from segray.core.labels.planning import make_plan
    from segray.core.models.info import read_info

    print_machine()
    found = []
    with tempfile.TemporaryDirectory(prefix="segray-memory-") as folder:
        root = Path(folder)
        write_images([root / "frames" / f"{i:06}.jpg" for i in range(frames)], (96, 128))
        told = settings_of(root, "null", root / "frames", 64)
        made = make_plan(told["out"], told["settings"], read_info(told["uri"]).space)
        reader, work = PlanReader(made), partial(label_rows, predictor=Predictor(told["uri"]), batch_size=8)
        started, done = time.perf_counter(), 0
        report = {0, 1, *(made.shards * share // 4 - 1 for share in (1, 2, 3, 4))}
        for shard in range(made.shards):
            done += parts.label_shard(made, reader.shard(shard), shard, work).rows
            if shard in report:
                found.append((shard + 1, done, *memory_mib(), done / (time.perf_counter() - started)))
    table("One process, frames of 96×128", ("shards", "frames", "MiB now", "MiB at most", "images/s"), found)


if __name__ == "__main__":
    main(label)
