"""From pixels as they travel to what the image tower reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalize_pixels(image_B3RR: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise pictures on the device they lie on.

    Parameters
    ----------
    image_B3RR : uint8 tensor (B, 3, R, R)
    mean, std : of each colour, on the scale 0 to 1

    Returns
    -------
    float32 tensor (B, 3, R, R), channels last in memory, which convolutions prefer
    """
    image = image_B3RR.to(torch.float32, memory_format=torch.channels_last)
    shape = (1, 3, 1, 1)
    scale = torch.tensor([255 * s for s in std], device=image.device).view(shape)
    shift = torch.tensor([m / s for m, s in zip(mean, std, strict=True)], device=image.device).view(shape)
    return image / scale - shift
