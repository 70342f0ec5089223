"""torchvision's DeepLabV3 (Chen et al. 2017), with its auxiliary output; the one that has weights from COCO."""

from __future__ import annotations

from torch import nn

from segray.errors import ModelError
from segray.sections.training import ModelSection

BUILDERS = {
    "resnet50": "deeplabv3_resnet50",
    "resnet101": "deeplabv3_resnet101",
    "mobilenet_v3_large": "deeplabv3_mobilenet_v3_large",
}


def build(config: ModelSection, outputs: int) -> nn.Module:
    """Build a model whose forward returns {"out": logits, "aux": logits}, both at input size."""
    from torchvision.models import segmentation

    if config.options:  # torchvision would ignore them
        raise ModelError(f"{config.arch} takes no model.options; {config.options} is given: leave it out.")
    make = getattr(segmentation, BUILDERS[config.encoder])
    model: nn.Module = make(weights=None, weights_backbone=None, num_classes=outputs, aux_loss=True)
    return model
