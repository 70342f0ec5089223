"""Names → models, all with one contract: normalised images [B, 3, H, W] in, logits for each pixel out.

A new architecture is a module with a builder `(config, outputs) -> nn.Module` and a row in ARCHITECTURES.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from segray.core.models import danet, onnx_model, torchvision_deeplab, transformers_model, unet_plain, weights
from segray.errors import ModelError, UnknownModel, nearest
from segray.sections.training import ModelSection

encoder_weights, preprocessing, has_imagenet = weights.encoder_weights, weights.preprocessing, weights.has_imagenet
STRIDE = 32  # sides of an input must be multiples of the deepest features' stride; 32 suits every one
NO_ENCODER = ("none",)
TIMM = re.compile(r"tu-[\w.-]+")  # no colon: timm reads tu-hf-hub:… from the network and tu-local-dir:… from the disk
REACHING = ("pretrained", "checkpoint", "cache_dir")  # arguments of timm.create_model that do so
POSITIONS = "must match the size of tensor"  # what torch says where an encoder has positions for other sizes
# Arguments of smp's models that other settings give, or that would break the contract.
OURS = {"self", "kwargs", "encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params"}

# PyTorch's remark on layers without channels, which build() refuses.
warnings.filterwarnings("ignore", message="Initializing zero-element tensors")


@dataclass(frozen=True)
class Architecture:
    """build: (settings, output channels) → model with random weights. encoders: the names it takes; None: smp's.

    auxiliary: whether training gives more outputs than the main one. pooled: whether it normalises pooled
    features, which takes two images a worker. least_px: sides that it cannot go below; smaller input is padded.
    """

    build: Callable[[ModelSection, int], torch.nn.Module]
    about: str
    encoders: tuple[str, ...] | None = None
    auxiliary: bool = False
    pooled: bool = False
    least_px: int = 1


def _smp(config: ModelSection, outputs: int) -> torch.nn.Module:
    import segmentation_models_pytorch as smp

    options = dict(config.options)
    known = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[config.arch].__init__).parameters.keys() - OURS
    for name in options.keys() - known:
        if name in OURS or not config.encoder.startswith("tu-"):  # timm's encoders have settings of their own
            raise ModelError(f"model.options.{name} is not one of {config.arch}'s.{nearest(name, known)}")
    if config.arch == "dpt":
        options.setdefault("dynamic_img_size", True)  # a ViT's positions are resized to the frame
    if config.encoder.startswith("tu-swin"):
        options.setdefault("strict_img_size", False)  # windows are padded, and their masks are made for the frame
    model: Any = smp.create_model(config.arch, config.encoder, encoder_weights=None, classes=outputs, **options)
    if STRIDE % model.encoder.output_stride:
        raise ValueError(f"its patches are {model.encoder.output_stride} px; --set model.options.patch_size=16")
    if config.arch == "segformer":
        for stage in model.decoder.mlp_stage:
            stage.register_forward_hook(_plain_strides)
    built: torch.nn.Module = model
    return built


def _plain_strides(stage: torch.nn.Module, given: Any, output: torch.Tensor) -> torch.Tensor:
    """Give a single frame's transposed output the strides of PyTorch's fast paths: 3.9 → 7.6 frames/s on a core."""
    return output.clone(memory_format=torch.channels_last)


ARCHITECTURES: dict[str, Architecture] = {
    "unet": Architecture(_smp, "U-Net decoder with skip connections (Ronneberger et al. 2015)"),
    "unetplusplus": Architecture(_smp, "nested, dense skip connections (Zhou et al. 2018)"),
    "manet": Architecture(_smp, "multi-scale attention (Fan et al. 2020)"),
    "linknet": Architecture(_smp, "U-Net that adds instead of joining; light (Chaurasia & Culurciello 2017)"),
    "fpn": Architecture(_smp, "feature pyramid (Kirillov et al. 2017)"),
    "pspnet": Architecture(_smp, "pyramid pooling; coarse and fast (Zhao et al. 2017)", pooled=True),
    "pan": Architecture(_smp, "pyramid attention (Li et al. 2018)", pooled=True, least_px=128),
    "deeplabv3": Architecture(_smp, "atrous pyramid, output stride 8 (Chen et al. 2017)", pooled=True),
    "deeplabv3plus": Architecture(_smp, "atrous pyramid and a decoder (Chen et al. 2018)", pooled=True),
    "upernet": Architecture(_smp, "pyramid pooling over a feature pyramid (Xiao et al. 2018)", pooled=True),
    "segformer": Architecture(_smp, "all stages through one MLP; made for mit_b0…b5 (Xie et al. 2021)"),
    "dpt": Architecture(_smp, "dense prediction from a ViT, such as tu-vit_base_patch16_224 (Ranftl et al. 2021)"),
    "unet-plain": Architecture(unet_plain.build, "the U-Net of 2015, from scratch, without an encoder", NO_ENCODER),
    "danet": Architecture(danet.build, "position and channel attention (Fu et al. 2019)", auxiliary=True),
    "deeplabv3-torchvision": Architecture(
        torchvision_deeplab.build, "torchvision's DeepLabV3", tuple(torchvision_deeplab.BUILDERS), True, True
    ),
}

# Of models from elsewhere, which keep their own sizes; model.encoder tells people what they are.
FROM_ELSEWHERE: dict[str, Architecture] = {
    "hf": Architecture(transformers_model.build, "a model of transformers", NO_ENCODER),
    "onnx": Architecture(onnx_model.build, "an ONNX file", NO_ENCODER),
}


def check_names(config: ModelSection) -> None:
    """Raise UnknownModel with the nearest names for an unknown architecture, or an encoder that it does not take.

    Names and options by which timm would read a file or the network are refused, too: a bundle may come from anywhere.
    """
    import segmentation_models_pytorch as smp

    if config.arch in FROM_ELSEWHERE:
        return
    if config.arch not in ARCHITECTURES:
        raise UnknownModel(f"model.arch {config.arch!r} is unknown.{nearest(config.arch.lower(), ARCHITECTURES)}")
    if found := [name for name in config.options if name.startswith(REACHING)]:
        raise ModelError(f"model.options.{found[0]} would read what is no part of the model; leave it out.")
    theirs = ARCHITECTURES[config.arch].encoders
    # tu-… encoders are timm's, thousands of them, resolved by smp when the model is built.
    if theirs == NO_ENCODER or (theirs is None and TIMM.fullmatch(config.encoder)):
        return
    encoders = theirs or smp.encoders.get_encoder_names()
    if config.encoder not in encoders:
        raise UnknownModel(f"model.encoder {config.encoder!r} is unknown.{nearest(config.encoder, encoders)}")


def name_of(config: ModelSection) -> str:
    """Name a model for people: 'unet over resnet18', 'segformer (hf)', or an architecture that has no encoder."""
    if config.arch in FROM_ELSEWHERE:
        return f"{config.encoder} ({config.arch})"
    return f"{config.arch} over {config.encoder}" if config.has_encoder else config.arch


def build(config: ModelSection, num_classes: int) -> torch.nn.Module:
    """Build a model with random weights for `num_classes` classes.

    Raises ModelError for unknown names, and for an encoder or options with which the architecture cannot be built.
    """
    check_names(config)
    if config.one_logit and num_classes != 2:
        raise ModelError(f"model.one_logit is for two classes, the data has {num_classes}; merge with data.class_map.")
    row = (ARCHITECTURES | FROM_ELSEWHERE)[config.arch]
    try:
        model = row.build(config, 1 if config.one_logit else num_classes)
    except ModelError:
        raise
    except Exception as error:  # any option may reach any layer, each with errors of its own
        text = [*str(error.args[0] if isinstance(error, KeyError) else error).splitlines(), type(error).__name__][0]
        shown = config.options and config.arch in ARCHITECTURES and "model.options" not in text
        given = f" (model.options {config.options})" if shown else ""
        raise ModelError(f"{name_of(config)} cannot be built: {text}{given}") from error
    for name, parameter in model.named_parameters():
        if not parameter.numel():  # PyTorch builds such a layer, and cannot run it
            raise ModelError(
                f"{name_of(config)} cannot run with model.options {config.options}: {name} "
                f"would have {'×'.join(map(str, parameter.shape))} weights; give every layer 1 channel or more."
            )
    facts: Any = model  # torch's stubs allow only tensors and modules as attributes of a module
    facts.least_px, facts.one_logit = row.least_px, config.one_logit
    facts.as_is = config.arch in FROM_ELSEWHERE
    return model


def coarse(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Run images through the model; return the main logits [B, C, h, w] at the size that it gives them.

    A model from elsewhere may leave it to its user to interpolate them to the frame, which is exact in one step alone.
    """
    own: Callable[[torch.Tensor], torch.Tensor] | None = getattr(model, "coarse", None)
    return forward(model, images) if own is None else _two_of_one(model, own(images))


def _two_of_one(model: torch.nn.Module, logits: torch.Tensor) -> torch.Tensor:
    """Turn the one logit z of a model that has one into the two logits (0, z), whose softmax is z's sigmoid."""
    if not getattr(model, "one_logit", False):
        return logits
    return torch.cat([torch.zeros_like(logits), logits], 1)


def forward(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Run images of any size through the model; return the main logits [B, C, H, W]."""
    return forward_all(model, images)[0]


def forward_all(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return main logits [B, C, H, W], then the auxiliary ones, for images of any size.

    Images are padded to the stride with zeros, the mean colour, on the right and below, and the logits cropped back; a
    model from elsewhere sees them as they are.
    One logit becomes two, so that losses, scores and labelling need no special case.
    """
    height, width = images.shape[-2:]
    built = getattr(model, "module", model)  # inside DistributedDataParallel
    least = getattr(built, "least_px", 1)
    down, right = (max(side + -side % STRIDE, least) - side for side in (height, width))
    if not getattr(built, "as_is", False):
        images = functional.pad(images, (0, right, 0, down))
    try:
        outputs = model(images)
    except (AssertionError, RuntimeError) as error:  # an encoder's, about the size
        if isinstance(error, RuntimeError) and POSITIONS not in str(error):
            raise
        raise ModelError(_not_taken(built, images, str(error))) from error
    if isinstance(outputs, dict):  # torchvision's models return a dict
        outputs = tuple(outputs.values())
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return tuple(_two_of_one(built, output[..., :height, :width]) for output in outputs)


def _not_taken(model: torch.nn.Module, images: torch.Tensor, text: str) -> str:
    sizes = (getattr(part, "img_size", None) for part in model.modules())
    taken = next((size for size in sizes if isinstance(size, tuple)), None)
    side = f"its encoder takes {taken[0]}×{taken[1]}: --size {taken[0]}x{taken[1]}" if taken else "give another --size"
    return (
        f"The model does not take frames of {images.shape[-2]}×{images.shape[-1]} pixels (height × width, padded to "
        f"{STRIDE}); {side}. ({text or 'its library says no more'})"
    )


def load_encoder(model: torch.nn.Module, state: weights.Weights) -> None:
    """Start the model's encoder from a state dict. Raises ModelError if the weights are another encoder's."""
    weights.load_encoder(encoder_of(model), state)


def encoder_of(model: torch.nn.Module) -> Any:
    """Return the part that is pretrained, frozen, or given a rate of its own; None if there is none."""
    model = getattr(model, "module", model)  # inside DistributedDataParallel
    return getattr(model, "encoder", None) or getattr(model, "backbone", None)
