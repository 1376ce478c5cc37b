"""Position embeddings of an image tower at another resolution."""

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


def _resize(embedding_PC: Tensor, side: int) -> Tensor:
    first_1C, grid_PC = embedding_PC[:1], embedding_PC[1:]
    old = math.isqrt(len(grid_PC))
    grid_1Css = grid_PC.T.unflatten(1, (old, old))[None]
    # Where the grid shrinks, antialiasing keeps all positions heard; where it grows, this is transformers' way.
    resized_1Css = F.interpolate(
        grid_1Css.float(), (side, side), mode="bicubic", align_corners=False, antialias=side < old
    )
    return torch.cat([first_1C, resized_1Css[0].flatten(1).T.to(first_1C.dtype)])
