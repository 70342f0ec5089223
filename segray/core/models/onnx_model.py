"""An ONNX file as a bundle's model: ONNX Runtime behind the one contract, normalised RGB [B, 3, H, W] → logits.

The file's bytes are the one weight of the model, so that its bundle is saved, checked, copied and loaded like others.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from segray.core.extras import extra
from segray.core.samples import LabelSpace
from segray.errors import ModelError
from segray.sections.training import ModelSection

Kind = Literal["logits", "probabilities", "ids"]
OPTIONS = ("output", "kind")
SURE = 10.0  # logit of the class of an id; the others have 0
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class Facts(NamedTuple):
    """What a file takes and gives. axes: where batch, channels, height and width are; size, batch: None where free."""

    name: str
    dtype: type
    channels_last: bool
    size: tuple[int, int] | None
    batch: int | None


class OnnxModel(torch.nn.Module):
    """output: the file's output that is taken; kind: what it holds. outputs: the number of classes."""

    def __init__(self, options: Mapping[str, Any], outputs: int, file: bytes = b"") -> None:
        super().__init__()
        self.output, self.outputs = str(options["output"]), outputs
        self.kind: Kind = options["kind"]
        self.file = torch.nn.Parameter(
            torch.frombuffer(bytearray(file or b"\0"), dtype=torch.uint8), requires_grad=False
        )
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        data = bytes(state["file"].numpy())
        check_alone(data)
        self.file = torch.nn.Parameter(state["file"], requires_grad=False)
        return None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.coarse(images)
        if logits.shape[-2:] == images.shape[-2:]:
            return logits
        return functional.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits at the size that the file gives."""
        session = self._session(images.device)
        facts = facts_of(session)
        pixels: np.ndarray = images.detach().float().cpu().contiguous().numpy().astype(facts.dtype)
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)) if facts.channels_last else pixels
        step = facts.batch or len(pixels)
        pixels = np.pad(pixels, ((0, -len(pixels) % step), *[(0, 0)] * 3), "edge")  # to whole batches
        parts = np.split(pixels, len(pixels) // step)
        try:
            made = np.concatenate([session.run([self.output], {facts.name: part})[0] for part in parts])
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            if type(error).__name__ != "InvalidArgument":
                raise
            size = "×".join(map(str, images.shape[-2:]))
            raise ModelError(
                f"The ONNX file does not take frames of {size} (height × width): {' '.join(str(error).split())[:200]}."
            ) from error
        return self._logits(torch.from_numpy(made[: len(images)]).to(images.device))

    def _logits(self, found: torch.Tensor) -> torch.Tensor:
        """Turn [B, C, h, w], [B, h, w, C], or ids [B, h, w] with or without an axis of 1, into logits [B, C, h, w]."""
        if self.kind == "ids":
            ids = found.long()
            ids = ids.squeeze(1 if ids.shape[1] == 1 else -1) if ids.ndim == 4 else ids
            if int(ids.max()) >= self.outputs or int(ids.min()) < 0:
                raise ModelError(
                    f"The ONNX file gave class id {int(ids.max())}, and its bundle has {self.outputs} classes; import "
                    "it again with all of them in --classes."
                )
            return SURE * functional.one_hot(ids, self.outputs).movedim(-1, 1).float()
        logits = found.float()
        wanted = (self.outputs, 1) if self.outputs == 2 else (self.outputs,)
        if logits.shape[1] not in wanted and logits.shape[-1] in wanted:
            logits = logits.movedim(-1, 1)
        if logits.shape[1] == 1 and self.outputs == 2:  # the second class alone, and the first is the rest
            rest = 1 - logits if self.kind == "probabilities" else torch.zeros_like(logits)
            logits = torch.cat([rest, logits], 1)
        return logits.clamp_min(1e-12).log() if self.kind == "probabilities" else logits

    def _session(self, device: torch.device) -> Any:
        with self._lock:
            if device.type not in self._sessions:
                self._sessions[device.type] = session_of(bytes(self.file.cpu().numpy()), device)
            return self._sessions[device.type]


def build(config: ModelSection, outputs: int) -> torch.nn.Module:
    """Build the model of a bundle; its file comes with its weights."""
    extra("onnxruntime")
    if config.options.keys() != set(OPTIONS):
        raise ModelError(
            "model.arch onnx is for bundles of ONNX files; make one: segray import FILE.onnx --out BUNDLE."
        )
    return OnnxModel(config.options, outputs)


def session_of(data: bytes, device: torch.device) -> Any:
    """Open a session of ONNX Runtime, on a GPU with TensorRT if it is installed, else CUDA. ModelError if it fails."""
    runtime = extra("onnxruntime")
    there = runtime.get_available_providers()
    wanted = ["CPUExecutionProvider"]
    if device.type == "cuda":
        if "CUDAExecutionProvider" not in there:
            raise ModelError(
                "The installed onnxruntime has no CUDA; pip install onnxruntime-gpu in its place, or label on the "
                "processors: --set cluster.gpu=false."
            )
        wanted.insert(0, "CUDAExecutionProvider")
        if "TensorrtExecutionProvider" in there and importlib.util.find_spec("tensorrt"):
            wanted.insert(0, "TensorrtExecutionProvider")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # failures are raised as well
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(data, options, providers=wanted)
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        text = " ".join(str(error).split())[:300]
        raise ModelError(f"ONNX Runtime cannot run the file: {text}.") from error


def check_alone(data: bytes) -> None:
    """Raise ModelError for bytes that are no ONNX model, or one whose weights are in other files."""
    onnx = extra("onnx")
    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's
        raise ModelError("It is no ONNX file.") from error
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        tensors = list(graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                tensors += [attribute.t, *attribute.tensors]
                graphs += [attribute.g, *attribute.graphs] if attribute.HasField("g") or attribute.graphs else []
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
            raise ModelError("Its weights are in other files; save it as one: onnx.save(onnx.load(FILE), NEW).")


def facts_of(session: Any) -> Facts:
    """Read what the file takes. Raises ModelError for what is no single RGB image."""
    given = session.get_inputs()
    shape = given[0].shape
    if len(given) != 1 or len(shape) != 4 or 3 not in (shape[1], shape[3]) or given[0].type not in DTYPES:
        told = ", ".join(f"{one.name} {one.type} {one.shape}" for one in given)
        raise ModelError(f"It takes {told}; a model takes one input of float RGB images, [B, 3, H, W] or [B, H, W, 3].")
    last = shape[1] != 3
    batch, height, width = (
        side if isinstance(side, int) else None for side in (shape[0], *(shape[1:3] if last else shape[2:]))
    )
    size = (height, width) if height and width else None
    return Facts(given[0].name, DTYPES[given[0].type], last, size, batch)


def segrays_facts(session: Any) -> dict[str, Any] | None:
    """Return the label space, and the fields of BundleInfo, that segray export wrote into a file; None for others'.

    Such a file takes RGB in 0..255 and normalises inside: a bundle's pixels, (x / 255 - 0) / (1 / 255), are these.
    """
    told = session.get_modelmeta().custom_metadata_map
    if not {"segray.classes", "segray.colors", "segray.input_size", "segray.resize"} <= told.keys():
        return None
    names, colors = json.loads(told["segray.classes"]), json.loads(told["segray.colors"])
    shape = {
        "input_size": json.loads(told["segray.input_size"]),
        "resize": told["segray.resize"],
        "longest_px": int(told["segray.longest_px"]) if "segray.longest_px" in told else None,
        "multiple_of": int(told.get("segray.multiple_of", 1)),
        "resample": told.get("segray.resample", "bilinear"),
    }
    pixels = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
    return {"label_space": LabelSpace(tuple(names), tuple(map(tuple, colors))), "shape": shape, "pixels": pixels}


def options_of(session: Any, size: tuple[int, int], classes: int) -> dict[str, str]:
    """Find which output holds the classes, by a frame of noise. Raises ModelError if none does."""
    facts = facts_of(session)
    noise: np.ndarray = np.random.default_rng(0).standard_normal((facts.batch or 1, 3, *size)).astype(facts.dtype)
    noise = noise.transpose(0, 2, 3, 1) if facts.channels_last else noise
    names = [output.name for output in session.get_outputs()]
    told = []
    try:
        outputs = session.run(names, {facts.name: np.ascontiguousarray(noise)})
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ModelError(
            f"It fails with a frame of {size[0]}×{size[1]}: {' '.join(str(error).split())[:200]}."
        ) from error
    for name, found in zip(names, outputs, strict=True):
        if kind := _kind(found, classes):
            return {"output": name, "kind": kind}
        told.append(f"{name} {list(found.shape)} of {found.dtype}")
    raise ModelError(
        f"It gives {', '.join(told)}; logits have one channel for each of the {classes} classes in --classes, and ids "
        "are whole numbers [B, H, W]."
    )


def _kind(found: np.ndarray, classes: int) -> Kind | None:
    if found.dtype.kind in "iu":
        return "ids" if found.ndim == 3 or (found.ndim == 4 and 1 in (found.shape[1], found.shape[3])) else None
    channels = (classes, 1) if classes == 2 else (classes,)
    if found.ndim != 4 or not {found.shape[1], found.shape[3]} & {*channels}:
        return None
    axis = 1 if found.shape[1] in channels else 3
    in_unit = found.min() >= 0 and found.max() <= 1
    adds_up = found.shape[axis] == 1 or np.allclose(found.sum(axis), 1, atol=1e-2)
    return "probabilities" if in_unit and adds_up else "logits"
