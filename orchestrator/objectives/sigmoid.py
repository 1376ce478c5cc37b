"""The sigmoid objective: each picture and each text, a pair or not?

Shapes: B pairs of this worker, G pairs of all workers, D embedding, R and C rows and columns of a tile.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from orchestrator.objectives.attach import attach_gradients, gradients_wanted
from orchestrator.objectives.gather import GlobalBatch
from orchestrator.objectives.tiles import Tiles, inner_product


def sigmoid_loss(
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    workers: dist.ProcessGroup | None = None,
    tile: int | None = None,
) -> Tensor:
    """SigLIP's loss over the global batch, in memory that grows with the batch and not with its square.

    -1/G of the sum over all pictures and texts of log sigmoid(z (scale x·y + bias)), where z is 1 for a pair and -1
    else. Each worker computes its own pictures against all texts, a tile at a time, and the gradients with it: the
    backward pass only hands them out.

    Parameters
    ----------
    image_BD, text_BD : tensors (B, D), float32 or float64, unit length, row i of one belongs to row i of the other. B
        may differ between workers and be 0 on some
    logit_scale : scalar tensor, the inverse temperature (not its logarithm)
    logit_bias : scalar tensor, added to each logit; -10 at first in the source, as nearly all pairs are wrong ones
    workers : process group that shares the batch; None: this process is alone
    tile : rows and columns of a tile, which takes some 4 tile² numbers of memory; None: what suits the device

    Returns
    -------
    scalar tensor: the mean over the G pictures of their sums over the G texts, the same on every worker. Its
    gradients, averaged over the workers as DistributedDataParallel does, are those of one process on the concatenated
    batch. It can be differentiated once

    Raises
    ------
    ValueError : the two have different shapes or types, or neither float32 nor float64; no worker has a pair

    Source: Zhai et al. 2023, Sigmoid Loss for Language Image Pre-Training, algorithm 1.
    """
    batch = GlobalBatch(image_BD, text_BD, workers)
    inputs = (image_BD, text_BD, logit_scale, logit_bias)
    wanted = gradients_wanted(*inputs)
    # Autocast would round the similarities to bf16.
    with torch.no_grad(), torch.autocast(image_BD.device.type, enabled=False):
        scale, bias = logit_scale.to(image_BD.dtype), logit_bias.to(image_BD.dtype)
        text_GD = batch.gather(text_BD)
        # Sums of each row, as one sum over the matrix would lose digits.
        loss_B, bias_grad_B = (image_BD.new_zeros(len(image_BD)) for _ in range(2))
        image_grad_BD, text_grad_GD = (torch.zeros_like(x) if wanted else x for x in (image_BD, text_GD))
        tiles = Tiles(image_BD, text_GD, batch.first, scale, tile, bias)
        for part in tiles:
            # -log sigmoid(-x) is softplus(x); -log sigmoid(x) is softplus(x) - x.
            loss_B[part.rows] += F.softplus(part.logits_RC, threshold=40).sum(1)
            loss_B[part.matched()] -= part.matches()
            if wanted:
                grad_RC = part.logits_RC.sigmoid_()
                part.matches().sub_(1)
                bias_grad_B[part.rows] += grad_RC.sum(1)
                image_grad_BD[part.rows].addmm_(grad_RC, text_GD[part.columns])
                text_grad_GD[part.columns].addmm_(grad_RC.T, part.image_RD)
        loss = batch.sum_(loss_B.sum() / batch.total)
        if not wanted:
            return loss
        # Each worker's gradients are `count` times its share of the whole: the average over workers undoes that.
        factor = batch.count / batch.total
        scale_grad = factor * inner_product(image_grad_BD, image_BD, tiles.tile)
        bias_grad = factor * bias_grad_B.sum()
        image_grad_BD *= factor * scale
        text_grad_BD = batch.sum_of_own(text_grad_GD.mul_(factor))
    return attach_gradients(loss, inputs, (image_grad_BD, text_grad_BD, scale_grad, bias_grad))
