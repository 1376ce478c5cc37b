"""A batch larger than the memory for activations, exactly: gradient caching.

A contrastive loss does not add up over parts of the batch as others do, so its gradients cannot be accumulated part by
part. But it depends on the model through the embeddings alone, and those are small: embed all parts without keeping
activations, differentiate the loss with respect to the embeddings, then embed each part again and pass its
embeddings' gradients on to the model.

Shapes: B pairs of this worker, b pairs of a chunk, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from orchestrator.model.recompute import statistics_kept


def cached_backward(
    embed: Callable[[Any], tuple[Tensor, ...]],
    chunks: Sequence[Any],
    loss: Callable[..., Tensor],
    accumulating: Callable[[], AbstractContextManager[Any]] = nullcontext,
    modules: nn.Module | None = None,
) -> Tensor:
    """Forward and backward pass of a batch in chunks, as if it were whole, with the activations of one chunk.

    Gradients are added to the parameters' `.grad`. Random numbers (dropout) are the same both times that a chunk is
    embedded, and the stream of random numbers goes on as if each had been embedded once. Batch norm normalises each
    chunk by itself.

    Parameters
    ----------
    embed : a chunk -> image embeddings (b, D), text embeddings (b, D) and any number of scalar tensors that the loss
        needs and that are the same for every chunk, as the logit scale
    chunks : of this worker, at least one. With a single one this is the plain forward and backward pass. Workers may
        have different numbers of chunks, if each has several
    loss : image embeddings (B, D), text embeddings (B, D) and the scalars -> scalar tensor; collective calls between
        workers belong into its forward pass
    accumulating : makes a context in which gradients stay with this worker, as DistributedDataParallel's `no_sync`:
        all chunks but the last are in it, so that workers talk about gradients once
    modules : the model, whose batch-norm statistics are to count each chunk once; None: it has no batch norm

    Returns
    -------
    scalar tensor: the loss, detached

    Raises
    ------
    ValueError : no chunk

    Source: Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup (GradCache);
    Pham et al. 2021, Combined Scaling for Zero-shot Transfer Learning (BASIC), section 4.
    """
    if not chunks:
        raise ValueError("there are no chunks to embed")
    if len(chunks) == 1:
        value = loss(*embed(chunks[0]))
        value.backward()
        return value.detach()

    states, images, texts = [], [], []
    scalars: tuple[Tensor, ...] = ()
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state())
            image_bD, text_bD, *rest = embed(chunk)
            images.append(image_bD)
            texts.append(text_bD)
            scalars = tuple(rest)
    after = _random_state()

    whole = [x.detach().requires_grad_() for x in (torch.cat(images), torch.cat(texts), *scalars)]
    value = loss(*whole)
    # Zeros where the loss does not depend on an input: DistributedDataParallel waits for every parameter.
    image_grad_BD, text_grad_BD, *scalar_grads = torch.autograd.grad(
        value, whole, allow_unused=True, materialize_grads=True
    )
    image_grads = image_grad_BD.split([len(image_bD) for image_bD in images])
    text_grads = text_grad_BD.split([len(text_bD) for text_bD in texts])
    del images, texts, whole

    # An autocast around this call, in some versions of torch, remembers weights that it rounded under no_grad, through
    # which no gradient would go back.
    torch.clear_autocast_cache()
    with nullcontext() if modules is None else statistics_kept(modules):
        for number, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            last = number == len(chunks) - 1
            with nullcontext() if last else accumulating():
                _set_random_state(state)
                # The scalars' gradients are of the whole batch: they are handed on once.
                taken = None if last else 2
                outputs = embed(chunk)[:taken]
                grads = (image_grads[number], text_grads[number], *scalar_grads)[:taken]
                learned = [(x, grad) for x, grad in zip(outputs, grads, strict=True) if x.requires_grad]
                torch.autograd.backward([x for x, _ in learned], [grad for _, grad in learned])
    _set_random_state(after)
    return value.detach()


def _random_state() -> tuple[Tensor, Tensor | None]:
    """Of the CPU and of the current accelerator, if one is in use."""
    device = _accelerator()
    return torch.get_rng_state(), None if device is None else device.get_rng_state()


def _set_random_state(state: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(state[0])
    device = _accelerator()
    if device is not None and state[1] is not None:
        device.set_rng_state(state[1])


def _accelerator() -> Any:
    return torch.get_device_module() if torch.accelerator.is_available() else None
