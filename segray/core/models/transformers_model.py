"""A segmentation model of transformers behind the one contract: normalised RGB [B, 3, H, W] → logits for each pixel.

Semantic heads (Segformer, UPerNet, DPT, BEiT, MobileViT, …) give logits. The universal ones (Mask2Former, OneFormer,
MaskFormer, EoMT) give masks with class probabilities; transformers' post_process_semantic_segmentation sums
probability × mask to a score of each class, and the logits are the logarithms of these scores.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from segray.core.extras import extra
from segray.errors import ModelError
from segray.sections.training import ModelSection

UNIVERSAL = ("mask2former", "maskformer", "oneformer", "eomt", "eomt_dinov3")
OPTIONS = ("config", "flip_channels", "masks_px", "split_px", "pad_px", "pad_value", "task")
LEAST_SCORE = 1e-30  # what the logarithm of a score begins at
REACHING = ("auto_map", "quantization_config", "attn_implementation", "_attn_implementation", "experts_implementation")
NAME = re.compile(r"[\w.-]+")  # of a timm model; hf-hub:… and local-dir:… would be read


class TransformersModel(torch.nn.Module):
    """flip_channels: the model takes BGR. masks_px: (height, width) that masks are interpolated to before the sum.

    split_px: frames are cut along their longer side into overlapping squares of that side, whose scores are averaged.
    pad_px, pad_value: frames are padded to that (height, width) with these normalised colours, and scores cropped back.
    task: tokens of OneFormer's task.
    """

    def __init__(self, model: Any, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.flip_channels = bool(options.get("flip_channels"))
        self.masks_px, self.split_px = options.get("masks_px"), options.get("split_px")
        self.pad_px, self.pad_value = options.get("pad_px"), options.get("pad_value")
        self.task = options.get("task")
        self.scores = model.config.model_type in UNIVERSAL  # logits are logarithms of what is interpolated
        self.any_size = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return as_large(self.coarse(images), images, scores=self.scores)

    def coarse(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits at the size that the model gives them."""
        images = images.flip(1) if self.flip_channels else images
        if not self.scores:
            other = {"interpolate_pos_encoding": True} if self.any_size and not self._is_own_size(images) else {}
            logits: torch.Tensor = self.model(pixel_values=images, **other).logits
            return logits
        scores = self._split(images) if self.split_px else self._whole(images)
        return scores.clamp_min(LEAST_SCORE).log()

    def _is_own_size(self, images: torch.Tensor) -> bool:
        own = getattr(self.model.config, "image_size", None)
        return own is None or tuple(images.shape[-2:]) == (tuple(own) if isinstance(own, list | tuple) else (own, own))

    def _whole(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        if self.pad_px is None:
            return self._scores(images)
        down, right = (max(0, side - mine) for side, mine in zip(self.pad_px, (height, width), strict=True))
        value = torch.tensor(self.pad_value, device=images.device).view(1, -1, 1, 1)
        padded = functional.pad(images - value, (0, right, 0, down)) + value
        return self._scores(padded)[..., :height, :width]

    def _split(self, images: torch.Tensor) -> torch.Tensor:
        """Average the scores of overlapping squares, as EomtImageProcessor.merge_image_patches does."""
        height, width = images.shape[-2:]
        side, axis = int(self.split_px or 0), 2 if height > width else 3
        starts = list(_starts(max(height, width), side))
        found = self._scores(torch.cat([images.narrow(axis, start, side) for start in starts]))
        total = found.new_zeros(len(images), found.shape[1], height, width)
        seen = torch.zeros_like(total[:, :1])
        for start, part in zip(starts, found.split(len(images)), strict=True):
            total.narrow(axis, start, side).add_(part)
            seen.narrow(axis, start, side).add_(1)
        return total / seen.clamp_min_(1)

    def _scores(self, images: torch.Tensor) -> torch.Tensor:
        """Sum class probability × mask over the queries: [B, C, h, w]."""
        task = (
            {} if self.task is None else {"task_inputs": torch.tensor([self.task] * len(images), device=images.device)}
        )
        found = self.model(pixel_values=images, **task)
        with torch.autocast(images.device.type, enabled=False):  # sums of 100 products
            masks = found.masks_queries_logits.float()
            if self.masks_px is not None:
                masks = functional.interpolate(masks, tuple(self.masks_px), mode="bilinear", align_corners=False)
            classes = found.class_queries_logits.float().softmax(-1)[..., :-1]  # the last is "no object"
            return torch.einsum("bqc,bqhw->bchw", classes, masks.sigmoid())

    def save_pretrained(self, folder: str) -> None:
        """Write config.json and model.safetensors, from which transformers loads the model, too."""
        with quiet():
            self.model.save_pretrained(folder)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what save_pretrained() wrote, by transformers' own loader, which knows older names of layers."""
        self.model = loaded(type(self.model), None, self.model.config, state_dict=dict(state))
        return None


def as_large(logits: torch.Tensor, images: torch.Tensor, *, scores: bool = False) -> torch.Tensor:
    """Interpolate logits to the images' height and width; of logarithms of scores, the scores are interpolated."""
    size = images.shape[-2:]
    if logits.shape[-2:] == size:
        return logits
    if scores:
        return functional.interpolate(logits.exp(), size, mode="bilinear", align_corners=False).log()
    return functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def _starts(length: int, side: int) -> Iterator[int]:
    """Yield where squares of `side` px begin, as EomtImageProcessor._split_image does."""
    count = math.ceil(length / side)
    overlap = (count * side - length) / (count - 1) if count > 1 else 0
    return (int(i * (side - overlap)) for i in range(count))


def build(config: ModelSection, outputs: int) -> torch.nn.Module:
    """Build the model that options.config describes, with random weights and `outputs` classes."""
    options = config.options
    if not isinstance(options.get("config"), dict):
        raise ModelError(
            "model.arch hf is for bundles of transformers' models: name one by --model hf:OWNER/NAME, or its folder."
        )
    if more := options.keys() - set(OPTIONS):
        raise ModelError(f"model.options.{min(more)} is not one of arch hf's: {', '.join(OPTIONS)}.")
    read = config_of({**options["config"], "num_labels": outputs})
    return TransformersModel(class_of(read)._from_config(read, dtype=torch.float32), options)


def config_of(described: Mapping[str, Any]) -> Any:
    """Make transformers' configuration from the content of config.json.

    Raises ModelError for one that names code, or a backbone that would be read from elsewhere.
    """
    extra("transformers", "hub")
    from transformers import CONFIG_MAPPING

    kind = described.get("model_type")
    if kind not in CONFIG_MAPPING:
        raise ModelError(f"model_type {kind!r} is none that transformers has code for; code from elsewhere is not run.")
    plain = {key: value for key, value in described.items() if key not in REACHING}
    _check_own(plain)
    return CONFIG_MAPPING[kind].from_dict(plain)


def _check_own(described: Mapping[str, Any], path: str = "") -> None:
    """Raise ModelError where a configuration names a backbone that transformers would fetch, or code."""
    for key, value in described.items():
        if isinstance(value, dict):
            _check_own(value, f"{path}{key}.")
        elif path and key in REACHING and value:
            raise ModelError(f"{path}{key} of config.json names what is no part of the model; take it out.")
    backbone = described.get("backbone")
    is_timm = described.get("model_type") == "timm_backbone" and NAME.fullmatch(str(backbone))
    if backbone and described.get("backbone_config") is None and not is_timm:
        raise ModelError(
            f"{path}backbone of config.json names {backbone!r}, which would be fetched; save the model with its "
            "backbone_config."
        )


def class_of(config: Any) -> Any:
    """Return transformers' class for a configuration. Raises ModelError if it is not one of semantic segmentation."""
    from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

    mapping = AutoModelForSemanticSegmentation._model_mapping
    if config.model_type in UNIVERSAL:
        mapping = AutoModelForUniversalSegmentation._model_mapping
    if type(config) not in mapping:
        known = sorted({kind.model_type for kind in AutoModelForSemanticSegmentation._model_mapping} | {*UNIVERSAL})
        raise ModelError(
            f"{config.model_type} has no head for semantic segmentation in transformers; those that have one are "
            f"{', '.join(known)}."
        )
    return mapping[type(config)]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings: its errors are raised."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def loaded(made: Any, folder: Path | None, config: Any, **more: Any) -> Any:
    """Load weights into a class of transformers: safetensors alone. RuntimeError if some are missing."""
    with quiet():
        model, told = made.from_pretrained(
            folder, config=config, use_safetensors=True, local_files_only=True, output_loading_info=True,
            dtype=torch.float32, **more,
        )  # fmt: skip
    if missing := sorted(key for key in told["missing_keys"] if not key.startswith("criterion.")):  # which is a loss
        raise RuntimeError(f"{len(missing)} of its weights are missing, such as {missing[0]}")
    return model.eval()
