"""Names → models: any decoder of segmentation-models-pytorch over any of its encoders."""

from __future__ import annotations

import torch
from torch.nn import functional

from segray.config import ModelSection
from segray.errors import ModelError, nearest

STRIDE = 32  # sides of smp's inputs must be multiples of the deepest encoder stage's


def architectures() -> dict[str, type]:
    """smp's decoders by their lower-case names: unet, fpn, deeplabv3plus, …"""
    import segmentation_models_pytorch as smp

    return dict(smp.MODEL_ARCHITECTURES_MAPPING)


def check_names(config: ModelSection) -> None:
    """ModelError with the nearest names when smp does not know the architecture or the encoder."""
    import segmentation_models_pytorch as smp

    if config.arch.lower() not in architectures():
        raise ModelError(f"model.arch {config.arch!r} is unknown.{nearest(config.arch.lower(), architectures())}")
    encoders = smp.encoders.get_encoder_names()
    # tu-… encoders are timm's, thousands of them, resolved by smp when the model is built.
    if config.encoder not in encoders and not config.encoder.startswith("tu-"):
        raise ModelError(f"model.encoder {config.encoder!r} is unknown.{nearest(config.encoder, encoders)}")


def build(config: ModelSection, num_classes: int, pretrained: bool = True) -> torch.nn.Module:
    """A model with 3 input channels and `num_classes` logits a pixel.

    pretrained=False leaves out the download of `encoder_weights`: ranks that get rank 0's weights.
    Raises ModelError for names that smp does not know, or weights that cannot be had.
    """
    import segmentation_models_pytorch as smp

    check_names(config)
    weights = config.encoder_weights if pretrained and config.encoder_weights != "none" else None
    try:
        return smp.create_model(config.arch, config.encoder, encoder_weights=weights, classes=num_classes)
    except (KeyError, ValueError, RuntimeError, OSError) as error:
        text = str(error).strip("'\"").splitlines()[0]
        raise ModelError(f"{config.arch} with {config.encoder} and {weights or 'no'} weights: {text}") from error


def forward(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Normalised images [B, 3, H, W] of any size → logits [B, C, H, W]: padded to the stride, cropped back.

    Zeros are padded on the right and below: the mean colour.
    """
    height, width = images.shape[-2:]
    pad = (0, -width % STRIDE, 0, -height % STRIDE)
    return model(functional.pad(images, pad))[..., :height, :width]
