"""One batch that lies in parts with several workers: who holds which rows, and the talk between them.

Shapes: B rows of this worker, M rows of the worker with the most, W workers, G rows of all workers, D embedding.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.13 renamed these; it warns of the old names, and torch before it lacks the new ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class GlobalBatch:
    """The pairs of one batch. Workers may hold different numbers of them, or none.

    Parameters
    ----------
    image_BD, text_BD : this worker's embeddings, row i of one belongs to row i of the other
    workers : process group that shares the batch; None: this process is alone

    Attributes
    ----------
    first : int, the place of this worker's first pair in the global batch
    total : int, G
    count : int, W

    Raises
    ------
    ValueError : the two have different shapes or types, or not float32 or float64; there is no pair on any worker
    """

    def __init__(self, image_BD: Tensor, text_BD: Tensor, workers: dist.ProcessGroup | None):
        if image_BD.shape != text_BD.shape or image_BD.ndim != 2:
            shapes = f"{tuple(image_BD.shape)}, {tuple(text_BD.shape)}"
            raise ValueError(f"image and text embeddings differ in shape or are no matrices: {shapes}")
        if image_BD.dtype != text_BD.dtype or image_BD.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"embeddings must both be float32 or float64, not {image_BD.dtype} and {text_BD.dtype}")
        self.count = 1 if workers is None else dist.get_world_size(workers)
        self.workers = workers if self.count > 1 else None
        rank = dist.get_rank(self.workers) if self.workers else 0
        self.sizes = self._exchange(len(image_BD), image_BD.device)
        self.first, self.total = sum(self.sizes[:rank]), sum(self.sizes)
        self.own = slice(self.first, self.first + len(image_BD))
        if not self.total:
            raise ValueError("the batch has no pairs")

    def _exchange(self, size: int, device: torch.device) -> list[int]:
        if self.workers is None:
            return [size]
        sizes_W = torch.empty(self.count, dtype=torch.int64, device=device)
        _all_gather(sizes_W, torch.tensor([size], device=device), group=self.workers)
        return sizes_W.tolist()

    def gather(self, x_BD: Tensor) -> Tensor:
        """Every worker's rows, in the workers' order (G, D)."""
        if self.workers is None:
            return x_BD
        most = max(self.sizes)
        # Backends want equal parts: shorter ones are filled up, and the filling is cut out again.
        x_MD = x_BD if len(x_BD) == most else torch.cat([x_BD, x_BD.new_zeros(most - len(x_BD), x_BD.shape[1])])
        x_GD = x_BD.new_empty(self.count * most, x_BD.shape[1])
        _all_gather(x_GD, x_MD.contiguous(), group=self.workers)
        if min(self.sizes) == most:
            return x_GD
        return torch.cat([part[:size] for part, size in zip(x_GD.split(most), self.sizes, strict=True)])

    def sum_of_own(self, x_GD: Tensor) -> Tensor:
        """This worker's rows (B, D) of the workers' sum; `x_GD` is spent."""
        if self.workers is None:
            return x_GD
        most, own = max(self.sizes), self.own
        if min(self.sizes) < most:
            padded = x_GD.new_zeros(self.count, most, x_GD.shape[1])
            for part, rows in zip(padded, x_GD.split(self.sizes), strict=True):
                part[: len(rows)] = rows
            x_GD = padded.flatten(0, 1)
        x_MD = x_GD.new_empty(most, x_GD.shape[1])
        _reduce_scatter(x_MD, x_GD, group=self.workers)
        return x_MD[: own.stop - own.start]

    def sum_(self, x: Tensor) -> Tensor:
        """The workers' sum, in place."""
        if self.workers is not None:
            dist.all_reduce(x, group=self.workers)
        return x

    def max_(self, x: Tensor) -> Tensor:
        """The workers' maximum, in place."""
        if self.workers is not None:
            dist.all_reduce(x, op=dist.ReduceOp.MAX, group=self.workers)
        return x
