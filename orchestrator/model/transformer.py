"""Residual attention blocks, shared by the text tower and the Vision Transformer.

Shapes: B batch, T tokens, W channels, H heads. Parameter names follow the released checkpoints
(`attn.in_proj_weight`, `mlp.c_fc` ...), so that weights move in and out without a table.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class SelfAttention(nn.Module):
    """Multi-head self-attention over (B, T, W).

    Parameters
    ----------
    width : W, channels
    heads : H, divides width
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BTW: Tensor, causal: bool) -> Tensor:
        qkv = F.linear(x_BTW, self.in_proj_weight, self.in_proj_bias)
        q_BHTh, k_BHTh, v_BHTh = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        if q_BHTh.device.type == "cpu" and q_BHTh.dtype == torch.bfloat16 and q_BHTh.requires_grad:
            out_BHTh = _plain_attention(q_BHTh, k_BHTh, v_BHTh, causal)
        else:
            out_BHTh = F.scaled_dot_product_attention(q_BHTh, k_BHTh, v_BHTh, is_causal=causal)
        return self.out_proj(out_BHTh.transpose(1, 2).flatten(2))


def _plain_attention(q_BHTh: Tensor, k_BHTh: Tensor, v_BHTh: Tensor, causal: bool) -> Tensor:
    """Attention as matrix products: on a CPU in bf16, the fused kernel's backward pass takes 2 to 8 times as long."""
    score_BHTT = (q_BHTh * q_BHTh.shape[-1] ** -0.5) @ k_BHTh.transpose(-2, -1)
    if causal:
        positions = score_BHTT.shape[-1]
        later = torch.ones(positions, positions, dtype=torch.bool, device=score_BHTT.device).triu(1)
        score_BHTT = score_BHTT.masked_fill(later, float("-inf"))
    return score_BHTT.softmax(dim=-1).to(v_BHTh.dtype) @ v_BHTh


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

    def forward(self, x_BTW: Tensor, causal: bool) -> Tensor:
        x_BTW = x_BTW + self.attn(self.ln_1(x_BTW), causal)
        return x_BTW + self.mlp(self.ln_2(x_BTW))


class Transformer(nn.Module):
    """A stack of residual attention blocks.

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

    def forward(self, x_BTW: Tensor) -> Tensor:
        for block in self.resblocks:
            x_BTW = recomputed(block, x_BTW, self.causal) if self.checkpoint_activations else block(x_BTW, self.causal)
        return x_BTW
