"""Residual attention blocks, shared by the text tower and the Vision Transformer.

Shapes: B batch, T tokens, W channels, H heads. Parameter names follow the released checkpoints
(`attn.in_proj_weight`, `mlp.c_fc` ...), so that weights move in and out without a table.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.model.attention import SelfAttention, pick
from orchestrator.model.recompute import recomputed


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x): the activation of the released weights.

    Written with SiLU, y * sigmoid(y): of the tensors on the way, the backward pass keeps one and not two.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) * (1 / 1.702)


def activation_layer(name: str) -> nn.Module:
    """The module of `ModelConfig.activation`."""
    return QuickGELU() if name == "quick_gelu" else nn.GELU()


class ResidualAttentionBlock(nn.Module):
    """Pre-LayerNorm attention and a perceptron four times as wide, each added to its input."""

    def __init__(self, width: int, heads: int, activation: str):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(width, 4 * width),
                act=activation_layer(activation),
                c_proj=nn.Linear(4 * width, width),
            )
        )

    def forward(self, x_BTW: Tensor, causal: bool, place_B: Tensor | None = None) -> Tensor:
        """All positions (B, T, W), or that of each sequence which is named (B, W)."""
        if place_B is None:
            x = x_BTW + self.attn(self.ln_1(x_BTW), causal)
        else:
            x = pick(x_BTW, place_B) + self.attn.at(self.ln_1(x_BTW), place_B, causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of residual attention blocks, of whose output one position a sequence is read.

    Initialisation as in the paper's released code: standard deviations W^-1/2 for the attention's input projection,
    (2 W)^-1/2 for the first layer of the perceptron, and W^-1/2 (2 layers)^-1/2 for what is added to the residual.
    """

    def __init__(self, width: int, layers: int, heads: int, activation: str, causal: bool):
        super().__init__()
        self.causal = causal
        self.checkpoint_activations = False
        blocks = [ResidualAttentionBlock(width, heads, activation) for _ in range(layers)]
        self.resblocks = nn.ModuleList(blocks)
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        for block in blocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=residual_std)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.normal_(block.mlp.get_parameter("c_fc.weight"), std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.get_parameter("c_proj.weight"), std=residual_std)

    def forward(self, x_BTW: Tensor, place_B: Tensor) -> Tensor:
        """The last block's output (B, W) at the positions place_B; that block computes nothing else.

        Under autocast the sums that pass from block to block are of its type, too, for memory and time: layer norm and
        the positions' embeddings have left them in float32.
        """
        x, kind = x_BTW, x_BTW.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):  # not on the meta device
            x = x_BTW.to(torch.get_autocast_dtype(kind))
        for number, block in enumerate(self.resblocks, start=1):
            inputs = (x, self.causal, place_B if number == len(self.resblocks) else None)
            x = recomputed(block, *inputs) if self.checkpoint_activations else block(*inputs)
        return x
