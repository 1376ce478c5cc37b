"""The Vision Transformer image tower.

Shapes: B batch, R image side, P patches, W channels, D embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.model.positions import positions_for
from orchestrator.model.transformer import Transformer


class VisionTransformer(nn.Module):
    """ViT with CLIP's one change: a LayerNorm between the embeddings and the transformer.

    Parameters
    ----------
    image_size, patch_size : pixels a side; the second divides the first
    width, layers, heads : of the transformer
    embed_dim : D
    activation : quick_gelu or gelu

    Source: Dosovitskiy et al. 2020; Radford et al. 2021, section 2.4.
    """

    def __init__(
        self, image_size: int, patch_size: int, width: int, layers: int, heads: int, embed_dim: int, activation: str
    ):
        super().__init__()
        positions = (image_size // patch_size) ** 2 + 1
        # Holds the released checkpoints' weight; patches do not overlap, so that it is applied as a matrix.
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(nn.init.normal_(torch.empty(width), std=width**-0.5))
        self.positional_embedding = nn.Parameter(nn.init.normal_(torch.empty(positions, width), std=width**-0.5))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, activation, causal=False)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(nn.init.normal_(torch.empty(width, embed_dim), std=width**-0.5))

    def features(self, image_B3RR: Tensor) -> Tensor:
        """The features before the projection, (B, W): what a linear probe reads."""
        kernel_W3ss = self.conv1.weight
        patch_BPW = F.linear(patches(image_B3RR, kernel_W3ss.shape[-1]), kernel_W3ss.permute(0, 2, 3, 1).flatten(1))
        class_B1W = self.class_embedding.to(patch_BPW.dtype).expand(patch_BPW.shape[0], 1, -1)
        x_BTW = torch.cat([class_B1W, patch_BPW], dim=1)
        x_BTW = x_BTW + positions_for(x_BTW.shape[1], self.positional_embedding)
        class_B = torch.zeros(len(x_BTW), dtype=torch.long, device=x_BTW.device)  # the class token's place
        return self.ln_post(self.transformer(self.ln_pre(x_BTW), class_B))

    def project(self, feature_BW: Tensor) -> Tensor:
        """Features into the joint space, (B, D), of any length."""
        return feature_BW @ self.proj

    def forward(self, image_B3RR: Tensor) -> Tensor:
        return self.project(self.features(image_B3RR))


def patches(image_B3RR: Tensor, size: int) -> Tensor:
    """Pictures cut into squares, row by row: (B, P, size * size * 3), colours last."""
    rows_BrsRC = image_B3RR.permute(0, 2, 3, 1).unflatten(1, (-1, size))
    return rows_BrsRC.unflatten(3, (-1, size)).transpose(2, 3).flatten(3).flatten(1, 2)
