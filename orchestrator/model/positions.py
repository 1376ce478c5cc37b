"""Position embeddings of an image tower at another resolution.

Shapes: P positions, the first one before a square grid of the others, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

# Those of the Vision Transformer and of the ResNet's attention pool; each has one position before its square grid.
IMAGE_POSITIONS = ("visual.positional_embedding", "visual.attnpool.positional_embedding")


def resize_image_positions(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate an image tower's position embeddings (bicubic) where the grid of positions has another size.

    Parameters
    ----------
    tensors : weights, under this project's names
    wanted : weights of the model that they are for

    Returns
    -------
    the weights, with position embeddings of the wanted length; all others are the same tensors

    Source: Dosovitskiy et al. 2020, section 3.2.
    """
    fitted = dict(tensors)
    for name in IMAGE_POSITIONS:
        if name in fitted and name in wanted and len(fitted[name]) != len(wanted[name]):
            fitted[name] = _resize(fitted[name], math.isqrt(len(wanted[name]) - 1))
    return fitted


def positions_for(count: int, embedding_PC: Tensor) -> Tensor:
    """An image tower's position embeddings for pictures of the whole side, or of half of it.

    Parameters
    ----------
    count : positions that the pictures have, the first one included
    embedding_PC : learned for the whole side

    Returns
    -------
    (count, C): the embeddings themselves, or the mean of each square of four
    """
    if count == len(embedding_PC):
        return embedding_PC
    first_1C, grid_PC = embedding_PC[:1], embedding_PC[1:]
    side = math.isqrt(len(grid_PC))
    half_1Css = F.avg_pool2d(grid_PC.T.unflatten(1, (side, side))[None], 2)
    return torch.cat([first_1C, half_1Css[0].flatten(1).T])


def _resize(embedding_PC: Tensor, side: int) -> Tensor:
    first_1C, grid_PC = embedding_PC[:1], embedding_PC[1:]
    old = math.isqrt(len(grid_PC))
    grid_1Css = grid_PC.T.unflatten(1, (old, old))[None]
    # Where the grid shrinks, antialiasing keeps all positions heard; where it grows, this is transformers' way.
    resized_1Css = F.interpolate(
        grid_1Css.float(), (side, side), mode="bicubic", align_corners=False, antialias=side < old
    )
    return torch.cat([first_1C, resized_1Css[0].flatten(1).T.to(first_1C.dtype)])
