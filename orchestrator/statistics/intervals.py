"""95% intervals of what is measured on a sample of pictures.

Sources: Clopper & Pearson 1934; Efron & Tibshirani 1993 (percentile bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import betaincinv

LEVEL = 0.95
Interval = tuple[float, float]


def clopper_pearson(hits: float, count: int, level: float = LEVEL) -> Interval:
    """The exact interval of a share.

    Parameters
    ----------
    hits : successes; a part of one where a tie was shared out
    count : trials
    level : coverage

    Returns
    -------
    (low, high) in [0, 1]

    Raises
    ------
    ValueError : no trials, or hits outside 0 to count
    """
    if count < 1 or not 0 <= hits <= count:
        raise ValueError(f"{hits} hits in {count} trials: at least one trial, and hits from 0 to their number")
    tail = (1 - level) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return low, high


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, resamples: int = 1000, seed: int = 0, level: float = LEVEL
) -> Interval:
    """The percentile interval of any statistic of independent samples; memory is that of one resample.

    Parameters
    ----------
    statistic : places of the samples drawn, (count,), -> a number; NaN: undefined for this draw, which is left out
    count : samples
    resamples, seed : draws, and what they are drawn from
    level : coverage

    Returns
    -------
    (low, high)

    Raises
    ------
    ValueError : no samples, or the statistic is undefined for every draw
    """
    if count < 1:
        raise ValueError("a bootstrap of no samples: give at least one")
    rng = np.random.default_rng(seed)
    found_S = np.array([statistic(rng.integers(count, size=count)) for _ in range(resamples)])
    return quantiles(found_S[~np.isnan(found_S)], level)


def quantiles(found_S: np.ndarray, level: float = LEVEL) -> Interval:
    """The middle of what resamples gave; a ValueError where there are none."""
    if not len(found_S):
        raise ValueError("no resample has a value: too few samples for an interval")
    low, high = np.quantile(found_S, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high
