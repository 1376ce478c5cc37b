"""Attention within a sequence, from every position and from a single one.

Shapes: B batch, T tokens, W channels, H heads, h channels of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        """What each position (B, T, W) reads from all, or with `causal` from those up to it."""
        qkv = F.linear(x_BTW, self.in_proj_weight, self.in_proj_bias)
        q_BHTh, k_BHTh, v_BHTh = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        if q_BHTh.device.type == "cpu" and q_BHTh.dtype == torch.bfloat16 and q_BHTh.requires_grad:
            out_BHTh = _plain_attention(q_BHTh, k_BHTh, v_BHTh, causal)
        else:
            out_BHTh = F.scaled_dot_product_attention(q_BHTh, k_BHTh, v_BHTh, is_causal=causal)
        return self.out_proj(out_BHTh.transpose(1, 2).flatten(2))

    def at(self, x_BTW: Tensor, place_B: Tensor, causal: bool) -> Tensor:
        """`forward` at one position of each sequence, (B, W)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        query_BW = F.linear(pick(x_BTW, place_B), weights[0], biases[0])
        unseen_BT = torch.arange(x_BTW.shape[1], device=x_BTW.device) > place_B[:, None] if causal else None
        return self.out_proj(
            attend_from_one(query_BW, x_BTW, self.heads, (weights[1], biases[1]), (weights[2], biases[2]), unseen_BT)
        )


def pick(x_BTW: Tensor, place_B: Tensor) -> Tensor:
    """One position of each sequence, (B, W)."""
    return x_BTW[torch.arange(x_BTW.shape[0], device=x_BTW.device), place_B]


def attend_from_one(
    query_BW: Tensor,
    x_BTW: Tensor,
    heads: int,
    key: tuple[Tensor, Tensor],
    value: tuple[Tensor, Tensor],
    unseen_BT: Tensor | None = None,
) -> Tensor:
    """Multi-head attention with a single query to each sequence, (B, W), before the output projection.

    Keys and values are not made for every position: a key's product with the query is the position's product with what
    the key projection makes of the query, and the values' mean is the projection of the positions' mean. That is exact,
    and takes 1/T of the multiplications.

    Parameters
    ----------
    query_BW : the queries, projected
    x_BTW : what keys and values are projections of
    heads : H, divides W
    key, value : weight (W, W) and bias (W) of the two projections
    unseen_BT : bool, true where the query may not look; None: it sees all
    """
    q_BHh = query_BW.unflatten(-1, (heads, -1))
    q_BHh = q_BHh * q_BHh.shape[-1] ** -0.5
    (key_HhW, key_bias_Hh), (value_HhW, _) = (
        (weight.unflatten(0, (heads, -1)), bias.unflatten(0, (heads, -1))) for weight, bias in (key, value)
    )
    score_BHT = torch.einsum("bhd,hdw->bhw", q_BHh, key_HhW) @ x_BTW.transpose(1, 2)
    # The same for every position, so that softmax ignores it; here for the parameter's (zero) gradient.
    score_BHT = score_BHT + (q_BHh * key_bias_Hh).sum(-1, keepdim=True)
    if unseen_BT is not None:
        score_BHT = score_BHT.masked_fill(unseen_BT[:, None], float("-inf"))
    pooled_BHW = score_BHT.softmax(dim=-1).to(x_BTW.dtype) @ x_BTW
    return torch.einsum("bhw,hdw->bhd", pooled_BHW, value_HhW).flatten(1) + value[1]


def _plain_attention(q_BHTh: Tensor, k_BHTh: Tensor, v_BHTh: Tensor, causal: bool) -> Tensor:
    """Attention as matrix products: on a CPU in bf16, the fused kernel's backward pass takes 2 to 8 times as long."""
    score_BHTT = (q_BHTh * q_BHTh.shape[-1] ** -0.5) @ k_BHTh.transpose(-2, -1)
    if causal:
        positions = score_BHTT.shape[-1]
        later = torch.ones(positions, positions, dtype=torch.bool, device=score_BHTT.device).triu(1)
        score_BHTT = score_BHTT.masked_fill(later, float("-inf"))
    return score_BHTT.softmax(dim=-1).to(v_BHTh.dtype) @ v_BHTh
