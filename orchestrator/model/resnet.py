"""CLIP's modified ResNet image tower.

Three changes to a ResNet: a stem of three convolutions in place of one, strides made by average pooling before a
convolution (so that nothing is sampled without a blur), and attention pooling in place of the global average.

Shapes: B batch, R image side, C channels, P positions of the last feature map, H heads, D embedding.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.model.attention import attend_from_one
from orchestrator.model.positions import positions_for
from orchestrator.model.recompute import recomputed

EXPANSION = 4


class Pointwise(nn.Conv2d):
    """A 1x1 convolution without bias, on CPUs as a matrix product, which is faster; most so where maps are small."""

    def __init__(self, channels_in: int, channels_out: int):
        super().__init__(channels_in, channels_out, 1, bias=False)

    def forward(self, x_BCss: Tensor) -> Tensor:
        if x_BCss.device.type != "cpu":
            return super().forward(x_BCss)
        # Through the same permutation the weight's gradient lies in memory as the weight does, which DDP asks for.
        weight_OC = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(x_BCss.permute(0, 2, 3, 1), weight_OC).permute(0, 3, 1, 2)


class Bottleneck(nn.Module):
    """1x1, 3x3, (average pool), 1x1 convolutions beside an average-pooled shortcut (ResNet-D)."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        channels_out = channels * EXPANSION
        self.conv1 = Pointwise(channels_in, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = Pointwise(channels, channels_out)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride) if stride > 1 else nn.Identity()),
                        ("0", Pointwise(channels_in, channels_out)),
                        ("1", nn.BatchNorm2d(channels_out)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = self.bn3(self.conv3(self.avgpool(x)))
        return F.relu(x + shortcut, inplace=True)


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels_in, channels, stride)
    return nn.Sequential(first, *(Bottleneck(channels * EXPANSION, channels, 1) for _ in range(blocks - 1)))


class AttentionPool(nn.Module):
    """One layer of attention whose only query is the mean position.

    Parameters
    ----------
    side : positions a side of the feature map
    channels : C
    heads : H, divides channels
    embed_dim : D
    """

    def __init__(self, side: int, channels: int, heads: int, embed_dim: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(
            nn.init.normal_(torch.empty(side**2 + 1, channels), std=channels**-0.5)
        )
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, embed_dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=channels**-0.5)

    def forward(self, x_BCss: Tensor) -> Tensor:
        x_BPC = x_BCss.flatten(2).transpose(1, 2)
        x_BPC = torch.cat([x_BPC.mean(dim=1, keepdim=True), x_BPC], dim=1)
        x_BPC = x_BPC + positions_for(x_BPC.shape[1], self.positional_embedding)
        key, value = ((part.weight, part.bias) for part in (self.k_proj, self.v_proj))
        return self.c_proj(attend_from_one(self.q_proj(x_BPC[:, 0]), x_BPC, self.heads, key, value))


class ModifiedResNet(nn.Module):
    """CLIP's ResNet.

    Parameters
    ----------
    image_size : R, a multiple of 32
    layers : bottleneck blocks of each of the four stages
    width : channels of the first stage, before the expansion by 4
    heads : of the attention pool
    embed_dim : D

    Source: Radford et al. 2021, section 2.4; He et al. 2018 (ResNet-D); Zhang 2019 (antialiased strides).
    """

    def __init__(self, image_size: int, layers: list[int], width: int, heads: int, embed_dim: int):
        super().__init__()
        self.checkpoint_activations = False
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(width * EXPANSION, width * 2, layers[1], stride=2)
        self.layer3 = _stage(width * 2 * EXPANSION, width * 4, layers[2], stride=2)
        self.layer4 = _stage(width * 4 * EXPANSION, width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool(image_size // 32, width * 8 * EXPANSION, heads, embed_dim)
        # Each block starts as its shortcut alone.
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)

    def feature_map(self, image_B3RR: Tensor) -> Tensor:
        """The last feature map, (B, C, R/32, R/32)."""
        x = F.relu(self.bn1(self.conv1(image_B3RR)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x)), inplace=True), 2)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = recomputed(block, x) if self.checkpoint_activations else block(x)
        return x

    def features(self, image_B3RR: Tensor) -> Tensor:
        """The features that a linear probe reads: the attention pool's output, (B, D)."""
        return self(image_B3RR)

    def project(self, feature_BD: Tensor) -> Tensor:
        """The features as they are: the attention pool has projected them."""
        return feature_BD

    def forward(self, image_B3RR: Tensor) -> Tensor:
        return self.attnpool(self.feature_map(image_B3RR))
