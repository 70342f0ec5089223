"""List every name that a model can be made of, with its cost, for `segray models`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from segray.core.models import ARCHITECTURES
from segray.core.models.ready import READY

Table = tuple[str, tuple[str, ...], list[tuple[Any, ...]]]


class _NoValues(TorchFunctionMode):
    """Skip drawing initial values under torch.device("meta"), but not mit_b…'s linspace, whose values are read."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}) | ({"device": "cpu"} if func is torch.linspace else {}))


def list_models(text: str = "") -> list[Table]:
    """List (title, columns, rows) of architectures, encoders and ready models whose name contains `text`.

    Encoders are built without memory (torch's meta device) to count their parameters. timm has thousands of encoders,
    which smp takes as tu-NAME: they are listed by name if the text begins with tu-.
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
        pretrained = set(timm.list_models(f"*{wanted}*", pretrained=True))
        return [
            (f"tu-{name}", None, None, "yes" if any(p.split(".")[0] == name for p in pretrained) else "")
            for name in timm.list_models(f"*{wanted}*")
        ]
    from segmentation_models_pytorch.encoders import encoders

    rows = []
    for name, about in sorted(encoders.items()):
        if text in name:
            parameters, stride = _cost(name)
            rows.append((name, parameters, stride, ", ".join(about["pretrained_settings"])))
    return rows


def _cost(name: str) -> tuple[str, int]:
    from segmentation_models_pytorch.encoders import get_encoder

    with torch.device("meta"), _NoValues(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder = get_encoder(name, weights=None)
    return f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.1f} M", encoder.output_stride
