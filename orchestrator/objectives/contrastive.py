"""The contrastive objective: which caption belongs to which picture.

Shapes: B pairs of this worker, G pairs of all workers, D embedding.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


class _Gather(torch.autograd.Function):
    """Concatenate every worker's rows; the gradient of a row is the sum of what all workers ask of it."""

    @staticmethod
    def forward(ctx, x_BD: Tensor, workers: dist.ProcessGroup) -> Tensor:
        ctx.workers = workers
        parts = [torch.empty_like(x_BD) for _ in range(dist.get_world_size(workers))]
        dist.all_gather(parts, x_BD.contiguous(), group=workers)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad_GD: Tensor) -> tuple[Tensor, None]:
        grad_GD = grad_GD.contiguous()
        dist.all_reduce(grad_GD, group=ctx.workers)
        return grad_GD.chunk(dist.get_world_size(ctx.workers))[dist.get_rank(ctx.workers)], None


class _Mean(torch.autograd.Function):
    """The workers' mean, whose gradient treats each worker's term as its own share of one loss."""

    @staticmethod
    def forward(ctx, x: Tensor, workers: dist.ProcessGroup) -> Tensor:
        x = x.clone()
        dist.all_reduce(x, group=workers)
        return x / dist.get_world_size(workers)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def info_nce(
    image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor, workers: dist.ProcessGroup | None = None
) -> Tensor:
    """Symmetric InfoNCE over the global batch; each worker computes only its own rows of the similarity matrix.

    Parameters
    ----------
    image_BD, text_BD : tensors (B, D), unit length, row i of one belongs to row i of the other
    logit_scale : scalar tensor, the inverse temperature (not its logarithm)
    workers : process group that shares the batch; None: this process is alone

    Returns
    -------
    scalar tensor: the mean over the G pictures and G texts, the same on every worker. Its gradients, averaged over
    the workers as DistributedDataParallel does, are those of one process on the concatenated batch

    Raises
    ------
    ValueError : the two have different shapes, or B differs between workers

    Source: Radford et al. 2021, figure 3.
    """
    if image_BD.shape != text_BD.shape:
        raise ValueError(f"image and text embeddings differ in shape: {tuple(image_BD.shape)}, {tuple(text_BD.shape)}")
    size = len(image_BD)
    alone = workers is None or dist.get_world_size(workers) == 1
    if alone:
        all_image_GD, all_text_GD, first = image_BD, text_BD, 0
    else:
        assert workers is not None
        _check_equal_batches(size, image_BD.device, workers)
        all_image_GD, all_text_GD = _Gather.apply(image_BD, workers), _Gather.apply(text_BD, workers)
        first = dist.get_rank(workers) * size
    target_B = torch.arange(first, first + size, device=image_BD.device)
    loss = (
        F.cross_entropy(logit_scale * image_BD @ all_text_GD.T, target_B)
        + F.cross_entropy(logit_scale * text_BD @ all_image_GD.T, target_B)
    ) / 2
    return loss if alone else _Mean.apply(loss, workers)


def _check_equal_batches(size: int, device: torch.device, workers: dist.ProcessGroup) -> None:
    sizes = torch.tensor([size, -size], device=device)
    dist.all_reduce(sizes, op=dist.ReduceOp.MAX, group=workers)
    largest, smallest = int(sizes[0]), -int(sizes[1])
    if largest != smallest:
        raise ValueError(f"local batches differ between workers: from {smallest} to {largest} pairs; make them equal")
