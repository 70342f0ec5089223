"""A model as ONNX, checked against the original: one file from pixels to logits, or ONNX Runtime in place of PyTorch.

Input `image` of a file: float32 RGB [B, 3, H, W] in 0..255, resized by the caller; the normalisation is inside.
Output `logits`: float32 [B, C, H, W], divided by the temperature.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from segray.core.data import streets
from segray.core.extras import extra
from segray.core.io import storage
from segray.core.models import STRIDE, bundle, coarse, forward, name_of
from segray.core.models.info import BundleInfo
from segray.core.transforms import PAD_RGB
from segray.errors import ModelError

TOLERANCE = 1e-3  # share of the largest logit, or of 1
OPSET = 18
FRAMES = 2  # size of the batch that is compared: one frame of noise, the others drawn


class Check(NamedTuple):
    """dynamic: whether height and width are free. difference: the largest between logits; `largest`: their maximum."""

    dynamic: bool
    sizes: list[tuple[int, int]]
    difference: float
    largest: float


class Whole(torch.nn.Module):
    """A model with the steps before and after it: normalisation, and division by the temperature."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: torch.nn.Module, info: BundleInfo) -> None:
        super().__init__()
        self.model, self.temperature = model, info.temperature
        self.register_buffer("mean", 255 * torch.tensor(info.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(info.std).view(1, 3, 1, 1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return forward(self.model, (image - self.mean) / self.std) / self.temperature


class Bare(torch.nn.Module):
    """A model alone: normalised images → its main logits, at the size that it gives them."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return coarse(self.model, image)


def write(uri: str, out: str) -> Check:
    """Write the bundle as an ONNX file. Raises ModelError if it cannot be exported, or its logits differ.

    Height and width are free if the architecture can be exported so, else those of the bundle.
    """
    _check_extras()
    model, info = bundle.load(uri)
    if info.model.arch == "onnx":
        raise ModelError(f"{name_of(info.model)} is an ONNX file already: the one that it was imported from.")
    data, check = _made(Whole(model, info).eval(), info, lambda pixels: pixels)
    storage.replace(storage.absolute(out), data)
    return check


def session(
    model: torch.nn.Module, info: BundleInfo, threads: int, *, any_size: bool
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the model in ONNX Runtime on the CPU: normalised images [B, 3, H, W] → logits, from any thread.

    threads: 1 is the caller's own; more belong to the session, shared by all callers. any_size: images may differ from
    the bundle's input size. Raises ModelError if the model cannot be exported for that, or gives other logits.
    """
    _check_extras()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (info.mean, info.std))
    data, check = _made(Bare(model).eval(), info, lambda pixels: (pixels / 255 - mean) / std)
    if any_size and not check.dynamic:
        raise ModelError(
            f"{name_of(info.model)} is ONNX for {'×'.join(map(str, info.input_size))} alone; "
            "take --engine torch, or leave out window and scales."
        )
    run = _session(data, threads).run
    return lambda batch: torch.from_numpy(run(None, {"image": batch.contiguous().numpy()})[0])


def _check_extras() -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        extra(module)


def _made(
    whole: torch.nn.Module, info: BundleInfo, seen: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[bytes, Check]:
    """Export a module and check it. seen: turns frames in 0..255 into the module's input."""
    height, width = info.input_size
    problem: Exception | str = ""
    for sizes in ([(height, width), (height + 32, width + 72)], [(height, width)]):
        try:
            data = _export(whole, info, dynamic=len(sizes) > 1)
            check = _check(whole, data, sizes, seen)
        except Exception as error:  # errors of the exporter, the compiler and onnxruntime have no other common base
            problem = storage.reason(error)[:300]
            continue
        if check.difference <= TOLERANCE * max(1.0, check.largest):
            return data, check
        problem = f"its logits differ by {check.difference:.2g} from the model's, which go up to {check.largest:.3g}"
    raise ModelError(f"{name_of(info.model)} cannot be written as ONNX: {problem}.")


def _export(whole: torch.nn.Module, info: BundleInfo, *, dynamic: bool) -> bytes:
    (height, width), free = info.input_size, {0: torch.export.Dim("batch")}
    if dynamic:
        # From a size that is padded, torch.export infers that every size is, and fails (torch 2.15).
        height, width = (side + -side % STRIDE for side in (height, width))
        free |= {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            whole,
            (torch.zeros(2, 3, height, width),),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": free},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if not dynamic and info.resize != "keep":  # all frames have to be of the one size
        info = info.model_copy(update={"resize": "stretch", "longest_px": None, "multiple_of": 1})
    program.model.metadata_props.update(facts(info))
    data: bytes = program.model_proto.SerializeToString()
    return data


def facts(info: BundleInfo) -> dict[str, str]:
    """Return the file's metadata: what a program without segray has to know; lists are JSON."""
    space = info.label_space
    return {
        "segray.model_id": info.model_id,
        "segray.model": name_of(info.model),
        "segray.input": "RGB, float32, 0..255, [batch, 3, height, width]; normalised inside",
        "segray.output": "logits, [batch, class, height, width]; divided by the temperature",
        "segray.input_size": json.dumps(info.input_size),
        "segray.resize": info.resize,
        **({"segray.longest_px": str(info.longest_px)} if info.longest_px else {}),
        **({"segray.multiple_of": str(info.multiple_of)} if info.multiple_of > 1 else {}),
        **({"segray.resample": info.resample} if info.resample != "bilinear" else {}),
        **({"segray.padding": json.dumps(PAD_RGB)} if info.resize == "keep" else {}),
        "segray.mean": json.dumps(info.mean),
        "segray.std": json.dumps(info.std),
        "segray.temperature": str(info.temperature),
        "segray.classes": json.dumps(space["names"]),
        "segray.colors": json.dumps(space["colors"]),
    }


def _check(
    whole: torch.nn.Module, data: bytes, sizes: list[tuple[int, int]], seen: Callable[[torch.Tensor], torch.Tensor]
) -> Check:
    """Compare both on noise and drawn streets of these sizes."""
    runtime = _session(data, 0)
    difference, largest = 0.0, 0.0
    for size in sizes:
        frames = [np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)]
        frames += [streets.draw(i, size).image_hwc for i in range(1, FRAMES)]
        batch = seen(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()).contiguous()
        with torch.inference_mode():
            wanted = whole(batch).numpy()
        (given,) = runtime.run(None, {"image": batch.numpy()})
        difference = max(difference, float(np.abs(given - wanted).max()))
        largest = max(largest, float(np.abs(wanted).max()))
    return Check(len(sizes) > 1, sizes, difference, largest)


def _session(data: bytes, threads: int) -> Any:
    """Open a session of ONNX Runtime. threads: 0 is as many as there are processors."""
    runtime = extra("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # failures are raised as well
    options.intra_op_num_threads = threads
    return runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's output: its errors say what matters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
