"""A loss whose gradients are known already: made in the forward pass, while its intermediate results were at hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Attach(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # The gradients are constants to autograd: a second derivative would silently lack this loss's part.
        if torch.is_grad_enabled():
            raise RuntimeError("this loss can be differentiated once: call backward or grad without create_graph")
        gradients = zip(ctx.needs_input_grad[2:], ctx.saved_tensors, strict=True)
        return None, None, *(gradient * grad if needed else None for needed, gradient in gradients)


def attach_gradients(loss: Tensor, inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> Tensor:
    """`loss` as a function of `inputs` with these `gradients`, once differentiable.

    Parameters
    ----------
    loss : scalar tensor without gradient
    inputs : tensors that it depends on
    gradients : of the loss with respect to each input; shaped and rounded as the input if they are not yet

    Returns
    -------
    scalar tensor: the loss, with a backward pass, which raises RuntimeError under `create_graph`
    """
    fitting = [gradient.to(x.dtype).reshape(x.shape) for x, gradient in zip(inputs, gradients, strict=True)]
    return _Attach.apply(loss, fitting, *inputs)


def gradients_wanted(*inputs: Tensor) -> bool:
    """Whether a backward pass may come."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
