"""What each lever of the labelling engine gives, and whether it changes labels.

    python -m benchmarks.levers --model real,segformer

model    one after the other, each with those before it: PyTorch's default, channels_last, batch norm folded into
         convolutions, a part of the threads for each of two callers with a frame or two at once (segray's fp32); then
         each alone in that one's place: torch.compile, ONNX Runtime, bf16. Beside the speed: the share of pixels whose
         class is another than with the first, and mIoU on drawn streets. The weights are of a few steps, so that many
         pixels are near ties: a trained model's are fewer
pixels   Pillow against what segray uses, for a frame of 1024×2048: the same pixels, or how far they are apart; and
         JPEG's own way to decode at half the size, which is not used
"""

from __future__ import annotations

import io
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.label import bundle_of
from benchmarks.measure import print_machine
from segray.cli import main
from segray.cli.terminal import say, table
from segray.errors import ConfigError

SIZE, SEEN, FRAMES, BATCH = (360, 480), (352, 480), 16, 8
LEAST_S = 4.0
CPUS = len(os.sched_getaffinity(0))


@click.command()
@click.option("--model", default="real,segformer", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def levers(model: str, device: str) -> None:
    """Speed and labels, lever by lever."""
    print_machine()
    with tempfile.TemporaryDirectory(prefix="segray-levers-") as folder:
        for net in model.split(","):
            forward(bundle_of(Path(folder), net, SEEN)["model"], net, device)
    pixels()


def forward(uri: str, net: str, device: str) -> None:
    import torch

    from segray.config import InferSection
    from segray.core import metrics
    from segray.core.data import streets
    from segray.core.data.camvid import VOID_ID
    from segray.core.infer.predictor import Predictor, side_by_side
    from segray.core.models import bundle
    from segray.core.models import forward as run
    from segray.core.models.fold import fold_batch_norm

    drawn = [streets.draw(100 + i, SIZE) for i in range(FRAMES)]
    truth = np.stack([np.where(one.mask_hw == VOID_ID, 255, one.mask_hw) for one in drawn])
    torch.set_num_threads(CPUS)
    model, info = bundle.load(uri)
    plain = Predictor(uri, device, InferSection(precision="fp32"))
    frames = [plain.prepare(one.image_hwc) for one in drawn]
    batches = [frames[i : i + BATCH] for i in range(0, FRAMES, BATCH)]

    @torch.inference_mode()
    def eager(net_: Any, layout: Any) -> np.ndarray:
        found = []
        for batch in batches:
            tensor = plain._normal(np.stack(batch)).contiguous(memory_format=layout)
            wide = torch.nn.functional.interpolate(run(net_, tensor), SIZE, mode="bilinear")
            found.append(wide.argmax(1).to(torch.uint8).cpu().numpy())
        return np.concatenate(found)

    def engine(predictor: Predictor) -> np.ndarray:
        with ThreadPoolExecutor(side_by_side(CPUS)) as pool:
            found = pool.map(lambda batch: predictor.predict(batch, [SIZE] * len(batch)), batches)
            return np.stack([one.mask_hw for batch in found for one in batch])

    model, folded = model.to(device), fold_batch_norm(model.cpu())
    works: dict[str, Callable[[], np.ndarray]] = {
        "PyTorch's default": lambda: eager(model.to(device), torch.contiguous_format),
        "channels_last": lambda: eager(model.to(memory_format=torch.channels_last), torch.channels_last),
        "batch norm folded": lambda: eager(
            folded.to(device, memory_format=torch.channels_last), torch.channels_last
        ),
        "side by side: segray, fp32": lambda: engine(plain),
    }  # fmt: skip
    compiled, started = Predictor(uri, device, InferSection(precision="fp32")), time.perf_counter()
    compiled.model.compile()
    try:
        engine(compiled)
        works[f"torch.compile, after {time.perf_counter() - started:.0f} s"] = partial(engine, compiled)
    except RuntimeError as error:  # such as no C++ compiler
        say(str(error).splitlines()[0])
    for name, infer in (("ONNX Runtime", {"engine": "onnx", "precision": "fp32"}), ("bf16", {"precision": "bf16"})):
        try:
            works[name] = partial(engine, Predictor(uri, device, InferSection(**infer)))
        except ConfigError as error:
            say(str(error))
    rows, first = [], None
    for name, work in works.items():
        ids, speed = work(), FRAMES / seconds(work)
        first = first or (ids, speed)
        confusion = metrics.confusion_matrix(truth, ids, len(info.label_space["names"]))
        differ = f"{(ids != first[0]).mean():.4%}"
        rows.append((name, f"{speed:.2f}", f"{speed / first[1]:.2f}", differ, f"{metrics.scores(confusion).miou:.4f}"))
    columns = ("", "images/s", "÷ the first", "pixels of another class", "mIoU")
    table(f"{net} model, {FRAMES} frames of {SIZE[0]}×{SIZE[1]}, batch {BATCH}, {device}", columns, rows)


def pixels() -> None:
    from PIL import Image

    from segray.core import transforms
    from segray.core.data import streets
    from segray.core.io import images
    from segray.core.io.masks import encode_mask

    size, half = (1024, 2048), (512, 1024)
    drawn = streets.draw(0, size)
    file = io.BytesIO()
    Image.fromarray(drawn.image_hwc).save(file, "JPEG", quality=90)
    jpeg, colors = file.getvalue(), streets.LABEL_SPACE.colors

    def pillow_png() -> bytes:
        out, image = io.BytesIO(), Image.fromarray(drawn.mask_hw)
        image.putpalette(bytes(range(256)) * 3)
        image.save(out, "PNG")
        return out.getvalue()

    def small(draft: bool) -> np.ndarray:
        image = Image.open(io.BytesIO(jpeg))
        if draft:
            image.draft("RGB", half[::-1])
        return np.asarray(image.convert("RGB").resize(half[::-1], Image.Resampling.BILINEAR))

    def fitted() -> np.ndarray:
        return transforms.fit(images.decode_image(jpeg, "frame"), half)

    def from_small(other: np.ndarray) -> str:
        far = np.abs(small(False).astype(int) - other)
        return f"apart by {far.max()} of 255 at most, by more than 4 in {(far > 4).mean():.1%}"

    mine, theirs = images.decode_image(jpeg, "frame"), np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    apart = np.abs(mine.astype(int) - theirs).max()
    png = encode_mask(drawn.mask_hw, colors)
    same = np.array_equal(np.asarray(Image.open(io.BytesIO(png))), drawn.mask_hw)
    rows = [
        ("JPEG → RGB, Pillow", ms(lambda: np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))), ""),
        ("JPEG → RGB, segray", ms(lambda: images.decode_image(jpeg, "frame")), f"apart by {apart} of 255 at most"),
        ("JPEG → RGB at half the size, Pillow", ms(lambda: small(False)), ""),
        ("JPEG → RGB at half the size, segray", ms(fitted), from_small(fitted())),
        ("the same, decoded at that size, Pillow", ms(lambda: small(True)), from_small(small(True))),
        ("mask → PNG, Pillow", ms(pillow_png), f"{len(pillow_png()) / 1024:.0f} KiB"),
        ("mask → PNG, segray", ms(lambda: encode_mask(drawn.mask_hw, colors)),
         f"{len(png) / 1024:.0f} KiB, {'the same pixels' if same else 'OTHER PIXELS'}"),
    ]  # fmt: skip
    table("A frame of 1024×2048, one thread", ("", "ms", ""), rows)


def ms(work: Callable[[], Any]) -> str:
    return f"{1e3 * seconds(work):.2f}"


def seconds(work: Callable[[], Any]) -> float:
    """Of one call, on average, over LEAST_S."""
    work()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < LEAST_S:
        work()
        count += 1
    return (time.perf_counter() - started) / count


if __name__ == "__main__":
    main(levers)
