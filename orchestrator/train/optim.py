"""The optimiser and its schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from orchestrator.config import OptimConfig
from orchestrator.train.low_precision import StochasticAdamW


def make_optimizer(
    model: nn.Module, config: OptimConfig, low_precision: bool = False, seed: int = 0
) -> torch.optim.Optimizer:
    """AdamW with decoupled weight decay on matrices and kernels only.

    Gains, biases, the class embedding and the logit scale have fewer than two dimensions and are not decayed.

    Parameters
    ----------
    model : whose parameters
    config : Adam's constants
    low_precision : moments in bf16, and bf16 weights rounded stochastically
    seed : of that rounding

    Source: Loshchilov & Hutter 2017; Radford et al. 2021, section 2.5.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if low_precision:
        return StochasticAdamW(groups, config.lr, betas, config.eps, seed=seed)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=config.eps, fused=True)


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of optimiser step `step` (0-based): linear warm-up to the peak, then a cosine to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
