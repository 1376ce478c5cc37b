"""The similarity matrix, a tile at a time, so that it never exists as a whole.

Shapes: B pictures of this worker, G texts of all workers, D embedding, R and C rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def tile_size(device: torch.device) -> int:
    """Rows and columns of a tile that suit a device.

    On a CPU two tiles of float32 are 32 MB, which its last cache holds. A GPU's processors all have work only from far
    larger matrix products on, above all those of the gradients, which have no more columns than an embedding; there two
    tiles are 512 MB.
    """
    return 8192 if device.type == "cuda" else 2048


@dataclass
class Tile:
    """A part of the matrix."""

    rows: slice  # of this worker's pictures
    columns: slice  # of all texts
    image_RD: Tensor  # the pictures' embeddings times the logit scale
    logits_RC: Tensor
    offset: int  # where the tile's diagonal of true pairs lies, as torch.diagonal counts

    def matches(self) -> Tensor:
        """The logits of the true pairs in this tile: a view, empty where there are none."""
        rows, columns = self.logits_RC.shape
        return self.logits_RC.diagonal(self.offset) if -rows < self.offset < columns else self.logits_RC[:0, 0]

    def matched(self) -> slice:
        """The rows, of this worker's pictures, that `matches` belongs to."""
        start = self.rows.start + max(0, -self.offset)
        return slice(start, start + len(self.matches()))


class Tiles:
    """Iterate over the tiles of `scale * image_BD @ text_GD.T + bias`, row by row of tiles, as often as needed.

    The tiles share one buffer: each is good, and may be overwritten, until the next. A matrix that is a single tile is
    computed only once: a second iteration yields it as the first one left it.

    Parameters
    ----------
    image_BD, text_GD : embeddings
    first : the column that belongs to row 0
    scale, bias : scalar tensors; no bias: None
    tile : rows and columns of a tile; None: what suits the device
    """

    def __init__(
        self, image_BD: Tensor, text_GD: Tensor, first: int, scale: Tensor, tile: int | None, bias: Tensor | None = None
    ):
        tile = tile_size(image_BD.device) if tile is None else tile
        if tile < 1:
            raise ValueError(f"tile is {tile}; it must be at least 1")
        self.image_BD, self.text_GD, self.scale, self.bias = image_BD, text_GD, scale, bias
        self.first, self.tile = first, tile
        self._buffer = self._new_buffer()
        self._scratch = self._new_buffer()
        self._only: Tile | None = None

    def _new_buffer(self) -> Tensor:
        return self.image_BD.new_empty(min(self.tile, len(self.image_BD)) * min(self.tile, len(self.text_GD)))

    def scratch(self, like: Tensor) -> Tensor:
        """A second buffer, in the shape of a tile's logits."""
        return self._scratch[: like.numel()].view(like.shape)

    def __iter__(self) -> Iterator[Tile]:
        if self._only is not None:
            yield self._only
            return
        for top in range(0, len(self.image_BD), self.tile):
            rows = slice(top, min(top + self.tile, len(self.image_BD)))
            image_RD = self.image_BD[rows] * self.scale
            for left in range(0, len(self.text_GD), self.tile):
                columns = slice(left, min(left + self.tile, len(self.text_GD)))
                text_CD = self.text_GD[columns]
                shape = len(image_RD), len(text_CD)
                logits_RC = self._buffer[: shape[0] * shape[1]].view(shape)
                torch.mm(image_RD, text_CD.T, out=logits_RC)
                if self.bias is not None:
                    logits_RC += self.bias
                tile = Tile(rows, columns, image_RD, logits_RC, self.first + top - left)
                if shape == (len(self.image_BD), len(self.text_GD)):
                    self._only = tile
                yield tile


def inner_product(a_BD: Tensor, b_BD: Tensor, step: int) -> Tensor:
    """The sum of the products of two matrices' entries, some rows at a time: without a third matrix of their size."""
    parts = zip(a_BD.split(step), b_BD.split(step), strict=True)
    return torch.stack([a_BD.new_zeros(()), *((a_RD * b_RD).sum() for a_RD, b_RD in parts)]).sum()
