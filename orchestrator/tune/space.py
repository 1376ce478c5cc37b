"""What a search may propose: a domain for each coordinate, laid out as a grid or drawn at random.

Domains are Ray Tune's (`tune.loguniform`, `tune.choice` ...), and points of them come from Tune's own generator.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ray import tune
from ray.tune.search.sample import Categorical, Domain, Float, Integer, LogUniform
from ray.tune.search.variant_generator import generate_variants

Space = Mapping[str, Domain]
Point = dict[str, Any]

# A range that spans this factor is searched by its logarithm.
LOG_FROM = 10.0
# Two numbers of a range do not tell where between them the best one lies.
FEWEST = 3
# Combinations of choices and ends of ranges, at most.
MOST_CORNERS = 1000


def between(low: float, high: float) -> Domain:
    """All numbers from low to high, both included; whole ones where both ends are whole numbers (int).

    By their logarithm where both ends are positive and the range spans a factor of 10, else evenly.
    """
    log = low > 0 and high >= LOG_FROM * low
    if isinstance(low, int) and isinstance(high, int):
        return (tune.lograndint if log else tune.randint)(low, high + 1)
    return (tune.loguniform if log else tune.uniform)(float(low), float(high))


def contains(space: Space, point: Point) -> bool:
    """Whether a search of the space could propose the point."""
    return all(_holds(domain, point[name]) for name, domain in space.items())


def clipped(space: Space, point: Point) -> Point:
    """The point with each number that lies beyond its range at that end of it."""
    ends = {name: _ends(domain) for name, domain in space.items()}
    return {name: min(max(value, ends[name][0]), ends[name][1]) for name, value in point.items()}


def values(domain: Domain, count: int) -> list[Any]:
    """Every choice; of a range that many numbers, its ends included, in even steps, of the logarithm where it has one.

    Whole numbers that would be the same are one.
    """
    if isinstance(domain, Categorical):
        return list(domain.categories)
    low, high = _ends(domain)
    steps = np.geomspace if isinstance(domain.get_sampler(), LogUniform) else np.linspace
    inner = [float(f"{value:.4g}") for value in steps(low, high, count)[1:-1]]  # type: ignore[operator]
    whole = isinstance(domain, Integer)
    return list(dict.fromkeys([low, *(round(value) if whole else value for value in inner), high]))


def grid(space: Space, most: int) -> list[Point]:
    """Every combination of choices and of numbers in even steps.

    Parameters
    ----------
    space : of at least one coordinate
    most : points that are enough: the ranges' steps are as small as it allows. Each range has 3 numbers at the least,
        so that there may be more points
    """

    def points(count: int) -> int:
        return math.prod(len(values(domain, count)) for domain in space.values())

    count = FEWEST
    while points(count) < points(count + 1) <= most:
        count += 1
    return _combinations(space, count)


def corners(space: Space) -> list[Point]:
    """Combinations of choices and of ends of ranges: all of them, or the first thousand."""
    return _combinations(space, 2, MOST_CORNERS)


def draws(space: Space, seed: int) -> Iterator[Point]:
    """Random points without end, the same for the same seed."""
    random = np.random.default_rng(seed)
    while True:
        yield from _variants(dict(space), random)


def _combinations(space: Space, count: int, most: int | None = None) -> list[Point]:
    numbers = {name: tune.grid_search(values(domain, count)) for name, domain in space.items()}
    return list(itertools.islice(_variants(numbers), most))


def _variants(config: dict[str, Any], random: Any = None) -> Iterator[Point]:
    for _, spec in generate_variants({"config": config}, random_state=random):
        yield spec["config"]


def _ends(domain: Domain) -> tuple[Any, Any]:
    assert isinstance(domain, Float | Integer)
    return domain.lower, domain.upper - isinstance(domain, Integer)


def _holds(domain: Domain, value: Any) -> bool:
    if isinstance(domain, Categorical):
        return value in domain.categories
    low, high = _ends(domain)
    return low <= value <= high
