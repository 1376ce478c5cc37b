"""Activation checkpointing: a block's activations are made again in the backward pass instead of being kept.

Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, *inputs: Any) -> Tensor:
    """`block(*inputs)`, keeping nothing but the inputs where gradients will be wanted.

    Values, gradients and batch-norm statistics are those of the plain call.
    """
    if not torch.is_grad_enabled():
        return block(*inputs)
    return checkpoint(
        block,
        *inputs,
        use_reentrant=False,
        preserve_rng_state=False,  # There is no dropout.
        context_fn=lambda: (nullcontext(), statistics_kept(block)),
    )


@contextmanager
def statistics_kept(block: nn.Module) -> Iterator[None]:
    """While it lasts, batch norm leaves its running statistics alone: the first pass has counted this batch."""
    layers = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.momentum, layer.num_batches_tracked) for layer in layers]
    try:
        for layer in layers:
            layer.momentum, layer.num_batches_tracked = 0.0, None
        yield
    finally:
        for layer, (momentum, batches) in zip(layers, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, batches
