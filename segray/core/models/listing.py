"""List every name that a model can be made of, with its cost, for `segray models`.

encoders.csv has a row for each encoder of segmentation-models-pytorch, as counting takes half a minute. With another
version of it, write the file again: python -m segray.core.models.listing > segray/core/models/encoders.csv
"""

from __future__ import annotations

import csv
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from segray.core.models import ARCHITECTURES
from segray.core.models.ready import READY

Table = tuple[str, tuple[str, ...], list[tuple[Any, ...]]]
COSTS = Path(__file__).with_name("encoders.csv")


class Encoder(NamedTuple):
    """A row of encoders.csv, as text. parameters_m: millions of them; weights: names of pretrained ones."""

    name: str
    parameters_m: str
    output_stride: str
    weights: str


class _NoValues(TorchFunctionMode):
    """Skip drawing initial values under torch.device("meta"), but not mit_b…'s linspace, whose values are read."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {}))


def list_models(text: str = "") -> list[Table]:
    """List (title, columns, rows) of architectures, encoders and ready models whose name contains `text`.

    timm has thousands of encoders, which smp takes as tu-NAME: they are listed by name if the text begins with tu-.
    """
    text = text.lower()
    architectures = [
        (name, row.about, "yes" if row.auxiliary else "", ", ".join(row.encoders or ()))
        for name, row in ARCHITECTURES.items()
        if text in name
    ]
    ready = [(name, row.encoder, "COCO, VOC's 21 classes") for name, row in READY.items() if text in name]
    if "smp-hub/segformer-b0-512x512-ade-160k".startswith(text) or text.startswith("smp-hub"):
        ready.append(("smp-hub/NAME", "as published", "smp's checkpoints on the Hugging Face hub"))
    if text.startswith("hf:") or "hf:owner/name".startswith(text):
        ready.append(("hf:OWNER/NAME", "as published", "segmentation models of transformers on the Hugging Face Hub"))
    return [
        ("Architectures (--arch)", ("name", "what it is", "aux", "encoders, if not any"), architectures),
        ("Encoders (--encoder)", ("name", "parameters", "output stride", "pretrained weights"), _encoders(text)),
        ("Ready models (--model, evaluate)", ("name", "encoder", "trained on"), ready),
    ]


def _encoders(text: str) -> list[tuple[Any, ...]]:
    if text.startswith("tu-"):
        import timm

        wanted = text.removeprefix("tu-")
        pretrained = {name.partition(".")[0] for name in timm.list_models(f"*{wanted}*", pretrained=True)}
        return [
            (f"tu-{name}", None, None, "yes" if name in pretrained else "") for name in timm.list_models(f"*{wanted}*")
        ]
    return [
        (row.name, f"{row.parameters_m} M", int(row.output_stride), row.weights)
        for row in read_costs()
        if text in row.name
    ]


def read_costs() -> list[Encoder]:
    with COSTS.open(newline="") as file:
        return [Encoder(*row) for row in list(csv.reader(file))[1:]]


def cost(name: str) -> Encoder:
    """Count an encoder's parameters; it is built without memory, on torch's meta device."""
    from segmentation_models_pytorch.encoders import encoders, get_encoder

    with torch.device("meta"), _NoValues(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = get_encoder(name, weights=None)
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    weights = ", ".join(encoders[name]["pretrained_settings"])
    return Encoder(name, f"{millions:.1f}", str(encoder.output_stride), weights)


if __name__ == "__main__":
    from segmentation_models_pytorch.encoders import encoders

    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(Encoder._fields)
    lines.writerows(cost(name) for name in sorted(encoders))
