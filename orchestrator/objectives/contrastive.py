"""The contrastive objective: which caption belongs to which picture.

Shapes: B pairs of this worker, G pairs of all workers, D embedding, R and C rows and columns of a tile.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.objectives.attach import attach_gradients, gradients_wanted
from orchestrator.objectives.gather import GlobalBatch
from orchestrator.objectives.tiles import Tiles, inner_product


def info_nce(
    image_BD: Tensor,
    text_BD: Tensor,
    logit_scale: Tensor,
    workers: dist.ProcessGroup | None = None,
    tile: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE over the global batch, in memory that grows with the batch and not with its square.

    Each worker computes its own rows of the similarity matrix, pictures against all texts, a tile at a time: once to
    sum the exponentials of rows and columns, and once more for the gradients, which are made in the forward pass.
    All talk between workers happens there, too. At its peak a worker holds the texts of all workers and the gradients
    of these, and two tiles.

    Parameters
    ----------
    image_BD, text_BD : tensors (B, D), float32 or float64, unit length, row i of one belongs to row i of the other. B
        may differ between workers and be 0 on some
    logit_scale : scalar tensor, the inverse temperature (not its logarithm)
    workers : process group that shares the batch; None: this process is alone
    tile : rows and columns of a tile; None: what suits the device. A larger one has longer matrix products and takes
        2 tile² numbers of memory; a matrix that fits in one tile is computed once rather than twice

    Returns
    -------
    scalar tensor: the mean over the G pictures and G texts, the same on every worker. Its gradients, averaged over
    the workers as DistributedDataParallel does, are those of one process on the concatenated batch. It can be
    differentiated once

    Raises
    ------
    ValueError : the two have different shapes or types, or neither float32 nor float64; no worker has a pair

    Source: Radford et al. 2021, figure 3; sums of exponentials over tiles as in Dao et al. 2022 (FlashAttention).
    """
    batch = GlobalBatch(image_BD, text_BD, workers)
    inputs = (image_BD, text_BD, logit_scale)
    wanted = gradients_wanted(*inputs)
    # Autocast would round the similarities to bf16.
    with torch.no_grad(), torch.autocast(image_BD.device.type, enabled=False):
        scale = logit_scale.to(image_BD.dtype)
        text_GD = batch.gather(text_BD)
        tiles = Tiles(image_BD, text_GD, batch.first, scale, tile)
        rows, columns, loss = _forward(tiles, batch)
        if not wanted:
            return loss
        image_grad_BD, text_grad_GD = _backward(tiles, rows, columns)
        # Each worker's gradients are `count` times its share of the whole: the average over workers undoes that.
        factor = batch.count / (2 * batch.total)
        scale_grad = factor * inner_product(image_grad_BD, image_BD, tiles.tile)
        image_grad_BD *= factor * scale
        text_grad_BD = batch.sum_of_own(text_grad_GD.mul_(factor))
    return attach_gradients(loss, inputs, (image_grad_BD, text_grad_BD, scale_grad))


class _LogSumExp:
    """The logarithms of sums of exponentials that arrive in parts, held as the largest exponent and the rest."""

    def __init__(self, size: int, like: Tensor):
        self.largest = like.new_full((size,), -torch.inf)
        self.total = like.new_zeros(size)

    def add(self, exponents_RC: Tensor, dim: int, at: slice, scratch_RC: Tensor) -> None:
        """Take in a tile, summed over `dim`, for the entries `at`."""
        before = self.largest[at]
        largest = torch.maximum(before, exponents_RC.amax(dim))
        torch.sub(exponents_RC, largest.unsqueeze(dim), out=scratch_RC).exp_()
        self.total[at] = self.total[at] * (before - largest).exp_() + scratch_RC.sum(dim)
        self.largest[at] = largest

    def combine(self, batch: GlobalBatch) -> None:
        """Take in the other workers' sums for the same entries."""
        largest = batch.max_(self.largest.clone())
        self.total = batch.sum_(self.total * (self.largest - largest).exp_())
        self.largest = largest

    def value(self) -> Tensor:
        return self.largest + self.total.log()


def _forward(tiles: Tiles, batch: GlobalBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The logarithm of the softmax's denominator for this worker's rows (B) and all columns (G), and the loss."""
    rows = _LogSumExp(len(tiles.image_BD), tiles.image_BD)
    columns = _LogSumExp(batch.total, tiles.image_BD)
    match_B = torch.empty_like(rows.total)
    for tile in tiles:
        match_B[tile.matched()] = tile.matches()
        scratch_RC = tiles.scratch(tile.logits_RC)
        rows.add(tile.logits_RC, 1, tile.rows, scratch_RC)
        columns.add(tile.logits_RC, 0, tile.columns, scratch_RC)
    columns.combine(batch)
    # The largest exponent meets the match's before the rest comes in, as both may be large and the difference small.
    loss_B = (rows.largest - match_B) + rows.total.log()
    loss_B += (columns.largest[batch.own] - match_B) + columns.total[batch.own].log()
    return rows.value(), columns.value(), batch.sum_(loss_B.sum() / (2 * batch.total))


def _backward(tiles: Tiles, rows_B: Tensor, columns_G: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the sum of both cross-entropies: of `scale * image_BD` (B, D), and this worker's part of that of the
    texts (G, D)."""
    image_grad_BD = torch.zeros_like(tiles.image_BD)
    text_grad_GD = torch.zeros_like(tiles.text_GD)
    for tile in tiles:
        softmax_RC = tiles.scratch(tile.logits_RC)
        torch.sub(tile.logits_RC, rows_B[tile.rows, None], out=softmax_RC).exp_()
        grad_RC = tile.logits_RC.sub_(columns_G[tile.columns]).exp_().add_(softmax_RC)
        tile.matches().sub_(2)
        image_grad_BD[tile.rows].addmm_(grad_RC, tiles.text_GD[tile.columns])
        text_grad_GD[tile.columns].addmm_(grad_RC.T, tile.image_RD)
    return image_grad_BD, text_grad_GD
