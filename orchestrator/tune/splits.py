"""Models of equal compute that spend it differently: on width, on depth or on resolution of the image tower.

Compute grows with the square of width, with depth, and with the square of the image's side. A split is the proportion
of the three, each as a multiple of the base model's: for shares (a, b, c) that add up to 1

    width^2 : depth : side^2 = SPREAD^a : SPREAD^b : SPREAD^c

The budget sets the common factor, so one below the base model's own is split like one above it, and equal shares are
the paper's equal split at every budget. At SPREAD times the base's compute, shares are those of `scale`: all growth
goes where they say (nearly: the text tower follows width alone).

Source: Radford et al. 2021, section 2.4, and Tan & Le 2019 (the law, the equal split); Kaplan et al. 2020 (shapes
compared at one size); Hoffmann et al. 2022 (models compared at one number of operations). SPREAD is this project's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from orchestrator.config import Config, ModelConfig, TextConfig, VisionConfig
from orchestrator.model.scaling import EQUAL_SPLIT, RESNET_SHRINKS, count_flops

Share = tuple[float, float, float]

SPREAD = 4.0
SHARES: tuple[Share, ...] = (EQUAL_SPLIT, (1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5))
# Beyond the extremes of SHARES, for towers that come in coarse steps only.
REACH = 2.5
# The text tower's width may be off the image tower's proportion by this share, where its steps allow as much.
LAG = 0.15


@dataclasses.dataclass(frozen=True)
class Split:
    """A model that spends a budget in one way.

    Parameters
    ----------
    name : balanced, or what has more than a third of the shares: wider, deeper-sharper, ...
    config : the model
    flops : floating point operations of a forward pass of one pair, image and text
    width, depth, resolution : multiples of the base model's channels, blocks and pixels a side of the image tower
    """

    name: str
    config: ModelConfig
    flops: int
    width: float
    depth: float
    resolution: float


def equal_compute(
    base: ModelConfig, compute: float, shares: Sequence[Share] = SHARES, tolerance: float = 0.03
) -> list[Split]:
    """The models of one budget, one for each way to split it.

    Parameters
    ----------
    base : the model to start from
    compute : the budget, as a multiple of the base model's operations of a pair, image and text. A training step takes
        about three forward passes of either model, so it is the multiple of training's operations too
    shares : of width, depth and resolution; each at least 0, together 1
    tolerance : largest difference between the operations of two of the models, and of each from the budget, as a share
        of the budget

    Returns
    -------
    for each of the shares, in their order, the legal model nearest to its proportion whose counted operations are
    within tolerance. What has more than a third is larger than in the balanced model, what has less is not. The text
    tower is widened in proportion to the image tower and keeps its depth; the joint embedding keeps its size. Shares
    without such a model are left out, and those with the model of shares before them

    Raises
    ------
    ValueError : a base that is no valid model; shares, compute or a tolerance that cannot be; fewer than two models
        within tolerance
    """
    if len(shares) < 2 or any(min(share) < 0 or not math.isclose(sum(share), 1, abs_tol=1e-6) for share in shares):
        raise ValueError(f"shares={shares}: two or more of width, depth and resolution, at least 0, that add up to 1")
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance={tolerance}: a share of the budget, above 0 and below 1")
    _validate(base)
    operations, smallest = _count(base), _count(_smallest(base))
    if not smallest / operations <= compute < math.inf:
        raise ValueError(
            f"compute={compute}: the smallest model has {smallest / operations:.3g} of the base's; take more than that"
        )
    budget, admitted = compute * operations, tolerance
    candidates = list(_candidates(base, compute, budget))
    found = _choose(base, candidates, budget, shares, tolerance)
    while len(found) < 2 and admitted < 1:
        admitted = math.ceil(admitted * 1250) / 1000
        found = _choose(base, candidates, budget, shares, admitted)
    if admitted > tolerance:
        nearest = ", ".join(f"{split.name} at {split.flops / budget:.3f} of the budget" for split in found)
        cure = (
            f"the nearest are {nearest}: tolerance={admitted} admits them"
            if len(found) > 1
            else "take more compute or other shares"
        )
        raise ValueError(f"compute={compute}: fewer than two models within tolerance={tolerance}; {cure}")
    return found


class Models:
    """The models of one budget, for shares of any kind.

    Parameters
    ----------
    base, compute, tolerance : as of equal_compute
    """

    def __init__(self, base: ModelConfig, compute: float, tolerance: float = 0.03):
        self._base, self._compute, self._tolerance = base, compute, tolerance
        self._budget = compute * _count(base)
        near = _candidates(base, compute, self._budget)
        self._near = [split for split in near if abs(split.flops / self._budget - 1) <= tolerance]
        self._counted: dict[int, int] = {}  # operations, by the place of a candidate

    def nearest(self, share: Share) -> Split:
        """The model nearest to a proportion whose counted operations are within tolerance; its name is its sizes.

        Raises
        ------
        ValueError : there is none
        """
        for place in sorted(range(len(self._near)), key=lambda place: _distance(self._base, self._near[place], share)):
            split = self._near[place]
            if place not in self._counted:
                self._counted[place] = _count(split.config)
            if abs(self._counted[place] / self._budget - 1) <= self._tolerance:
                return dataclasses.replace(split, name=sizes(split.config), flops=self._counted[place])
        raise ValueError(f"compute={self._compute}: no model within tolerance={self._tolerance}")


def split_of(base: ModelConfig, config: ModelConfig) -> Split:
    """What a model makes of the base model's compute; its name is its sizes."""
    vision, own = config.vision, base.vision
    width, depth = vision.width / own.width, sum(vision.layers) / sum(own.layers)
    return Split(sizes(config), config, _count(config), width, depth, config.image_size / base.image_size)


def shares_of(split: Split) -> Share:
    """The shares of width, depth and resolution that a model's proportion is that of; some may be below 0."""
    logs = (2 * math.log(split.width), math.log(split.depth), 2 * math.log(split.resolution))
    width, depth, resolution = (1 / 3 + (log - sum(logs) / 3) / math.log(SPREAD) for log in logs)
    return width, depth, resolution


def sizes(config: ModelConfig) -> str:
    """Of the image tower, in words."""
    layers = "-".join(map(str, config.vision.layers))
    return f"width {config.vision.width}, layers {layers}, {config.image_size} pixels"


def _choose(
    base: ModelConfig, candidates: list[Split], budget: float, shares: Sequence[Share], tolerance: float
) -> list[Split]:
    """The most models that one range of operations about the budget holds; of equals, the range that lies around it."""
    ranges = [(1 + tolerance * (shift - 0.5), 1 + tolerance * (shift + 0.5)) for shift in (0, -0.25, 0.25, -0.5, 0.5)]
    chosen = []
    for low, high in ranges:
        near = [split for split in candidates if low <= split.flops / budget <= high]
        chosen.append((low, high, _nearest(base, near, shares)))
    low, high, found = max(chosen, key=lambda choice: len(choice[2]))
    counted = [dataclasses.replace(split, flops=_count(split.config)) for split in found]
    return [split for split in counted if low <= split.flops / budget <= high]


def _nearest(base: ModelConfig, candidates: list[Split], shares: Sequence[Share]) -> list[Split]:
    """Of the candidates the nearest to each of the shares, named."""
    balanced = min(candidates, key=lambda split: _distance(base, split, EQUAL_SPLIT), default=None)
    found: list[Split] = []
    names: list[str] = []
    for share in shares:
        fitting = [split for split in candidates if balanced and _is_what_it_says(split, share, balanced)]
        split = min(fitting, key=lambda split: _distance(base, split, share), default=None)
        if split is not None and all(split.config != other.config for other in found):
            name = _name(share)
            same = names.count(name)
            names.append(name)
            found.append(dataclasses.replace(split, name=f"{name}-{same + 1}" if same else name))
    return found


def _favours(share: Share) -> list[int]:
    """Of each axis 1, 0 or -1: it has more than a third, a third, or less."""
    return [0 if math.isclose(part, 1 / 3, abs_tol=1e-6) else 1 if part > 1 / 3 else -1 for part in share]


def _name(share: Share) -> str:
    words = zip(("wider", "deeper", "sharper"), _favours(share), strict=True)
    return "-".join(word for word, favour in words if favour > 0) or "balanced"


def _is_what_it_says(split: Split, share: Share, balanced: Split) -> bool:
    """The nearest model need not be, where the tower's steps are coarse."""
    mine = (split.width, split.depth, split.resolution)
    theirs = (balanced.width, balanced.depth, balanced.resolution)
    return all(
        favour == 0 or (a > b if favour > 0 else a <= b)
        for favour, a, b in zip(_favours(share), mine, theirs, strict=True)
    )


def _distance(base: ModelConfig, split: Split, share: Share) -> float:
    """From the wanted proportion, in logarithms of compute, and from the base's head width and proportion of text."""
    reached = (2 * math.log(split.width), math.log(split.depth), 2 * math.log(split.resolution))
    off = [axis - part * math.log(SPREAD) for axis, part in zip(reached, share, strict=True)]
    vision, text = split.config.vision, split.config.text
    head = vision.width / vision.heads * base.vision.heads / base.vision.width
    lag = text.width / base.text.width / split.width
    return sum(abs(axis - sum(off) / 3) for axis in off) + abs(math.log(head)) + abs(math.log(lag))


def _candidates(base: ModelConfig, compute: float, budget: float) -> Iterator[Split]:
    """For every width and side the two depths about the budget; `flops` is an estimate."""
    vision, stages, blocks = base.vision, len(base.vision.layers), sum(base.vision.layers)
    grown, step = compute ** (1 / 6), _side_step(base)
    for tower, text in _widths(base, grown * REACH):
        for side in range(step, int(base.image_size * grown * REACH) + 1, step):
            config = dataclasses.replace(base, image_size=side, vision=tower, text=text)
            shallowest = _estimate(config, stages)
            exact = stages + (budget - shallowest) / (_estimate(config, stages + 1) - shallowest)
            if shallowest > 2 * budget or exact > blocks * (grown * REACH) ** 2:
                continue
            for depth in {max(stages, math.floor(exact)), max(stages, math.ceil(exact))}:
                deep = dataclasses.replace(tower, layers=_spread(vision.layers, depth))
                sizes = (tower.width / vision.width, depth / blocks, side / base.image_size)
                yield Split("", dataclasses.replace(config, vision=deep), _estimate(config, depth), *sizes)


def _widths(base: ModelConfig, most: float) -> Iterator[tuple[VisionConfig, TextConfig]]:
    """Every legal width up to a multiple of the base's, the smallest first, with text towers about in proportion."""
    vision, text = base.vision, base.text
    if vision.kind == "vit":
        heads_of = _whole_heads(vision.width, vision.heads, most)
    else:
        wanted = vision.heads / vision.width
        heads_of = {width: _divisor(32 * width, wanted * width) for width in range(2, int(vision.width * most) + 1, 2)}
    text_heads_of = _whole_heads(text.width, text.heads, most + 1)
    for width, heads in heads_of.items():
        in_step = text.width * width / vision.width
        nearest = sorted(text_heads_of, key=lambda text_width: abs(text_width - in_step))[:3]
        for text_width in [one for one in nearest if abs(one / in_step - 1) <= LAG] or nearest[:1]:
            yield (
                dataclasses.replace(vision, width=width, heads=heads, layers=[1] * len(vision.layers)),
                dataclasses.replace(text, width=text_width, heads=text_heads_of[text_width]),
            )


def _whole_heads(width: int, heads: int, most: float) -> dict[int, int]:
    """Width -> heads: of a width as near to the base's as can be, at most about a quarter off."""
    head = width // heads
    step = max(1, head // 8)
    sizes = sorted(range(max(1, head - 2 * step), head + 2 * step + 1, step), key=lambda size: abs(size - head))
    found: dict[int, int] = {}
    for size in sizes:
        for count in range(1, int(width * most / size) + 1):
            found.setdefault(count * size, count)
    return dict(sorted(found.items()))


def _divisor(channels: int, wanted: float) -> int:
    divisors = (count for count in range(1, channels + 1) if channels % count == 0)
    return min(divisors, key=lambda count: abs(math.log(count / wanted)))


def _spread(base: list[int], depth: int) -> list[int]:
    """Blocks over the stages in the base's proportion; of equals the third first, then the second (He et al. 2016)."""
    layers = [1] * len(base)
    while sum(layers) < depth:
        stage = max(range(len(base)), key=lambda stage: (base[stage] / (layers[stage] + 0.5), stage == 2, stage == 1))
        layers[stage] += 1
    return layers


def _side_step(base: ModelConfig) -> int:
    return base.vision.patch_size if base.vision.kind == "vit" else RESNET_SHRINKS


def _smallest(base: ModelConfig) -> ModelConfig:
    vision, text = next(_widths(base, 1))
    return dataclasses.replace(base, image_size=_side_step(base), vision=vision, text=text)


def _estimate(config: ModelConfig, depth: int) -> int:
    """The operations of a pair, at once: to count every candidate would take minutes."""
    vision, text, width = config.vision, config.text, config.vision.width
    if vision.kind == "vit":
        patches = (config.image_size // vision.patch_size) ** 2
        image = 3 * vision.patch_size**2 * width * patches + _transformer(width, vision.heads, depth, patches + 1)
        features = width
    else:
        # A block costs 17 width^2 at each position, in any stage: where channels double, positions are a quarter. The
        # rest is the stem, what the first blocks of the stages cost more, and the pool.
        positions, features = (config.image_size // 4) ** 2, RESNET_SHRINKS * width
        image = positions * width * (54 + (145 + 17 * depth) * width)
        image += features * (3 * features + 2 * vision.heads * (positions // 64 + 1))
    words = _transformer(text.width, text.heads, text.layers, text.context_length)
    return 2 * (image + words + (features + text.width) * config.embed_dim)


def _transformer(width: int, heads: int, layers: int, tokens: int) -> int:
    """The last block computes one position, which attends to all."""
    return (layers - 1) * tokens * width * (12 * width + 2 * tokens) + width * (12 * width + 2 * heads * tokens)


def _count(config: ModelConfig) -> int:
    return count_flops(config).total


def _validate(model: ModelConfig) -> None:
    config = Config(model=model)
    config.data.train = ["any"]
    config.validate()
