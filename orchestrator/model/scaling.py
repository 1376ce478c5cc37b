"""Models of another compute: width, depth and resolution grown together from a base model.

Compute grows with the square of width, with depth, and with the square of resolution. A multiplier C split in shares
(a, b, c) therefore widens by C^(a/2), deepens by C^b and sharpens by C^(c/2). The paper splits equally.

Source: Radford et al. 2021, section 2.4; Tan & Le 2019 (EfficientNet).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.config import ModelConfig
from orchestrator.model.clip import CLIP

EQUAL_SPLIT = (1 / 3, 1 / 3, 1 / 3)
# A ResNet pools 32 times its width in heads of 64, 128 or 256 channels: steps of 8 keep them whole.
RESNET_WIDTH_STEP = 8
RESNET_SHRINKS = 32


@dataclasses.dataclass(frozen=True)
class Flops:
    """Floating point operations of a forward pass of one pair, a multiplication and an addition counted as two."""

    image: int
    text: int

    @property
    def training(self) -> int:
        """Of a forward and a backward pass, which does twice the work."""
        return 3 * self.total

    @property
    def total(self) -> int:
        """Of both towers."""
        return self.image + self.text


def count_flops(config: ModelConfig) -> Flops:
    """Counted by torch on the meta device, which needs neither memory nor time."""
    vocabulary = config.vocab_size or 1  # A look-up costs no operations.
    with torch.device("meta"), torch.no_grad():
        model = CLIP(dataclasses.replace(config, vocab_size=vocabulary)).eval()
        with FlopCounterMode(display=False) as image:
            model.visual(torch.empty(1, 3, config.image_size, config.image_size))
        with FlopCounterMode(display=False) as text:
            end_B = torch.empty(1, dtype=torch.long)
            model.transformer(torch.empty(1, config.text.context_length, config.text.width), end_B)
            torch.empty(1, config.text.width) @ model.text_projection
    return Flops(image.get_total_flops(), text.get_total_flops())


@dataclasses.dataclass(frozen=True)
class Scaled:
    """A scaled model.

    Parameters
    ----------
    config : the model
    asked, reached : compute of the image tower as a multiple of the base model's
    """

    config: ModelConfig
    asked: float
    reached: float


def scale(base: ModelConfig, compute: float, split: tuple[float, float, float] = EQUAL_SPLIT) -> Scaled:
    """The model of a multiple of a base model's compute.

    Parameters
    ----------
    base : the model to start from
    compute : multiple of its image tower's operations, above 0
    split : shares of width, depth and resolution, each at least 0, together 1

    Returns
    -------
    the nearest concrete model: width and resolution are the exact ones rounded down or up to what the tower can have,
    whichever together come nearest to compute, width and resolution asked for. The text tower is widened in proportion
    to the image tower and never deepened; the joint embedding keeps its size

    Raises
    ------
    ValueError : a split that does not add up to 1, or compute that is not above 0
    """
    if compute <= 0:
        raise ValueError(f"compute={compute}: a multiple of the base model's, above 0")
    if min(split) < 0 or not math.isclose(sum(split), 1, abs_tol=1e-6):
        raise ValueError(f"split={split}: shares of width, depth and resolution, at least 0, that add up to 1")
    by_width, by_depth, by_resolution = split
    wider, deeper, sharper = compute ** (by_width / 2), compute**by_depth, compute ** (by_resolution / 2)
    operations = count_flops(base).image
    counted = [(count_flops(config).image / operations, config) for config in _candidates(base, wider, deeper, sharper)]

    def distance(candidate: tuple[float, ModelConfig]) -> float:
        """From what was asked for: in compute, in width and in resolution alike."""
        reached, config = candidate
        width, side = config.vision.width / base.vision.width, config.image_size / base.image_size
        return abs(math.log(reached / compute)) + abs(math.log(width / wider)) + abs(math.log(side / sharper))

    reached, config = min(counted, key=distance)
    return Scaled(config, compute, reached)


def _candidates(base: ModelConfig, wider: float, deeper: float, sharper: float) -> Iterator[ModelConfig]:
    """Heads keep the base model's width; there are more or fewer of them."""
    vision, text = base.vision, base.text
    layers = [max(1, round(blocks * deeper)) for blocks in vision.layers]
    text_head = text.width // text.heads
    text_heads = max(1, round(text.heads * wider))
    new_text = dataclasses.replace(text, width=text_heads * text_head, heads=text_heads)
    if vision.kind == "vit":
        width_step, side_step = vision.width // vision.heads, vision.patch_size
    else:
        width_step, side_step = RESNET_WIDTH_STEP, RESNET_SHRINKS
    for width, side in itertools.product(
        _around(vision.width * wider, width_step), _around(base.image_size * sharper, side_step)
    ):
        heads = max(1, vision.heads * width // vision.width)
        tower = dataclasses.replace(vision, layers=layers, width=width, heads=heads)
        yield dataclasses.replace(base, image_size=side, vision=tower, text=new_text)


def _around(exact: float, step: int) -> list[int]:
    """The multiples of a step below and above; a value that is one already stays alone."""
    below = max(1, math.floor(exact / step + 1e-6)) * step
    return [below] if math.isclose(below, exact, rel_tol=1e-6) else [below, below + step]
