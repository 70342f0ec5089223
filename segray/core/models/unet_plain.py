"""The U-Net of Ronneberger et al. 2015 (figure 1), from scratch.

As in its many re-implementations, convolutions are padded, so that the output has the input's size, and batch
normalisation stands between convolution and ReLU; `batch_norm: false` leaves it out, as the paper does.
The setting `options: {channels: 64}` is the width of the first stage; it doubles four times.
"""

from __future__ import annotations

import torch
from torch import nn

from segray.sections.training import ModelSection

DEPTH = 4


class UNet(nn.Module):
    """[B, 3, H, W] → logits [B, outputs, H, W]; H and W are multiples of 16."""

    def __init__(self, outputs: int, channels: int = 64, batch_norm: bool = True) -> None:
        super().__init__()
        widths = [channels * 2**stage for stage in range(DEPTH + 1)]
        self.down = nn.ModuleList(_two(a, b, batch_norm) for a, b in zip([3, *widths], widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(_two(a, b, batch_norm) for a, b in pairs)
        self.head = nn.Conv2d(channels, outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # section 3: standard deviation √(2/N), He et al. 2015
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        skips, features = [], images
        for stage, convolve in enumerate(self.down):
            features = convolve(features if stage == 0 else nn.functional.max_pool2d(features, 2))
            skips.append(features)
        skips.pop()
        for enlarge, convolve in zip(self.up, self.merge, strict=True):
            features = convolve(torch.cat([skips.pop(), enlarge(features)], dim=1))
        logits: torch.Tensor = self.head(features)
        return logits


def _two(inputs: int, outputs: int, batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers.append(nn.Conv2d(width, outputs, 3, padding=1, bias=not batch_norm))
        if batch_norm:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def build(config: ModelSection, outputs: int) -> nn.Module:
    return UNet(outputs, batch_norm=config.batch_norm, **config.options)
