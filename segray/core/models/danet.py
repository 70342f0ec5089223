"""DANet (Fu et al. 2019, Dual Attention Network for Scene Segmentation) over any encoder of smp.

Two attention modules look at the last features, which the encoder returns at output stride 8 where it can be
dilated, as in the paper (section 3.1). Their sum gives the main output; each alone gives an auxiliary one, which
is trained, too. The position module compares all pixels of that feature map with each other: its memory grows
with (H/8 · W/8)².
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from segray.sections.training import ModelSection


class PositionAttention(nn.Module):
    """Equations 1 and 2: features A [B, C, H, W] → the same shape; at first the identity, as α starts at 0."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.query, self.key = nn.Conv2d(channels, reduced, 1), nn.Conv2d(channels, reduced, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        # s_ji = exp(B_i · C_j) / Σ_i exp(B_i · C_j): j asks with C, i answers with B; no scaling by √channels
        tokens = (part(features).flatten(2).transpose(1, 2) for part in (self.key, self.query, self.value))
        asked, keys, values = (one.unsqueeze(1) for one in tokens)  # one head: the ONNX exporter needs it
        found = functional.scaled_dot_product_attention(asked, keys, values, scale=1.0)  # Σ_i s_ji D_i
        return self.alpha * found.squeeze(1).transpose(1, 2).reshape(features.shape) + features


class ChannelAttention(nn.Module):
    """Equations 3 and 4: features A [B, C, H, W] → the same shape; at first the identity, as β starts at 0.

    This follows the equations; the authors' code subtracts the energies from their maximum before the softmax, which
    reverses their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        rows = features.flatten(2)
        attention = (rows @ rows.transpose(1, 2)).softmax(-1)  # x_ji = exp(A_i · A_j) / Σ_i exp(A_i · A_j)
        return self.beta * (attention @ rows).reshape(features.shape) + features


class DANet(nn.Module):
    """[B, 3, H, W] → (main, position, channel) logits in training, main alone in evaluation."""

    def __init__(self, encoder: Any, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        channels = encoder.out_channels[-1]
        inner = max(16, channels // 4)
        self.position_in, self.channel_in = _conv(channels, inner), _conv(channels, inner)
        self.position, self.channel = PositionAttention(inner, max(8, inner // 8)), ChannelAttention()
        self.position_out, self.channel_out = _conv(inner, inner), _conv(inner, inner)
        self.heads = nn.ModuleList(nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(inner, outputs, 1)) for _ in range(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        features = self.encoder(images)[-1]
        position = self.position_out(self.position(self.position_in(features)))
        channel = self.channel_out(self.channel(self.channel_in(features)))
        main, *auxiliary = self.heads
        outputs = [main(position + channel)]
        if self.training:
            outputs += [head(part) for head, part in zip(auxiliary, (position, channel), strict=True)]
        size = images.shape[-2:]
        outputs = [functional.interpolate(o, size, mode="bilinear", align_corners=False) for o in outputs]
        return tuple(outputs) if self.training else outputs[0]


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def build(config: ModelSection, outputs: int) -> nn.Module:
    from segmentation_models_pytorch.encoders import get_encoder

    try:
        encoder = get_encoder(config.encoder, weights=None, output_stride=8)
    except (ValueError, NotImplementedError, RuntimeError, TypeError):  # VGG, transformers and others cannot be dilated
        encoder = get_encoder(config.encoder, weights=None)
    return DANet(encoder, outputs, **config.options)
