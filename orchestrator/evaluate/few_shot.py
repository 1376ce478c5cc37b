"""Probes of a few examples a class, and what zero-shot is worth in examples.

Shapes: N samples, S shots (1, 2, 4 ...), R repeats (seeds), D sets.

Source: Radford et al. 2021, section 3.1.5, figures 6 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy
import torch

from orchestrator.evaluate.linear_probe import LinearProbe, Probes
from orchestrator.evaluate.regularisation import search_strength
from orchestrator.statistics.intervals import LEVEL, Interval, quantiles

SHOTS = (1, 2, 4, 8, 16)
SEEDS = (0, 1, 2, 3, 4)
Labelled = tuple[np.ndarray, np.ndarray]


def draw_shots(label_N: np.ndarray, shots: int, seed: int) -> np.ndarray:
    """Places of `shots` random examples of each class; of one seed, fewer shots are a part of more.

    Parameters
    ----------
    label_N : whole numbers; the labels that occur are the classes
    shots : examples a class
    seed : of the draw

    Raises
    ------
    ValueError : a class has fewer examples
    """
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    places = []
    for label in np.unique(label_N):
        own = order_N[label_N[order_N] == label]
        if len(own) < shots:
            raise ValueError(f"class {label} has {len(own)} training examples, fewer than {shots} shots: ask for fewer")
        places.append(own[:shots])
    return np.sort(np.concatenate(places))


class FewShot(NamedTuple):
    """Scores of probes of few examples.

    Parameters
    ----------
    shots_S : examples a class, rising
    score_RS : of each seed
    """

    shots_S: list[int]
    score_RS: np.ndarray


def few_shot(
    training: Labelled,
    validation: Labelled,
    score: Callable[[LinearProbe], float],
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = SEEDS,
    device: str | torch.device = "cpu",
) -> FewShot:
    """Fit probes of a few examples a class.

    The strength of regularisation is chosen on the validation data, as for the probe of all examples; these are more
    than the few that the probe is fitted on, in the paper as here.

    Parameters
    ----------
    training, validation : features (N, D) and labels (N,)
    score : of a probe on test data
    shots : examples a class; those that some class has not are left out
    seeds : of the draws; each is a repeat
    device : torch device

    Raises
    ------
    ValueError : no number of shots is left
    """
    features_ND, label_N = training
    fewest = int(np.unique(label_N, return_counts=True)[1].min())
    possible = [one for one in shots if one <= fewest]
    if not possible:
        raise ValueError(f"the smallest class has {fewest} training examples, fewer than {min(shots)} shots")
    score_RS = np.empty((len(seeds), len(possible)))
    for repeat, seed in enumerate(seeds):
        for place, one in enumerate(possible):
            drawn = draw_shots(label_N, one, seed)
            probes = Probes(features_ND[drawn], label_N[drawn], device=device)
            score_RS[repeat, place] = score(search_strength(probes, lambda probe: probe.accuracy(*validation)).probe)
    return FewShot(possible, score_RS)


def mean_and_interval(score_R: Sequence[float]) -> tuple[float, Interval]:
    """The mean over seeds and Student's 95% interval of it; NaN ends for a single seed."""
    mean = float(np.mean(score_R))
    if len(score_R) < 2:
        return mean, (math.nan, math.nan)
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(score_R) - 1) * scipy.stats.sem(score_R))
    return mean, (mean - reach, mean + reach)


class Examples(NamedTuple):
    """Labelled examples a class that equal zero-shot.

    Parameters
    ----------
    value : examples; a bound where censored
    censored : "", "fewer than" (already the least examples do better) or "more than" (all of them do not reach it)
    interval : 95%; 0 and infinity where resamples are censored
    """

    value: float
    censored: str = ""
    interval: Interval = (math.nan, math.nan)

    def __str__(self) -> str:
        return f"{self.censored} {self.value:.3g}".strip()


def examples_to_match(
    shots_S: Sequence[float], score_RS: np.ndarray, zero_shot: float, resamples: int = 1000
) -> Examples:
    """Interpolate the probe's score linearly in the logarithm of the examples a class.

    Parameters
    ----------
    shots_S : examples a class, rising; the last may be the mean of the whole training set
    score_RS : the probe's score by seed
    zero_shot : the score to equal
    resamples : of the seeds, for the interval

    Returns
    -------
    the fewest examples at which the mean curve reaches zero-shot
    """
    log_S, score_RS = np.log(shots_S), np.asarray(score_RS, float)
    if score_RS.ndim != 2 or score_RS.shape[1] != len(log_S) or (np.diff(log_S) <= 0).any():
        raise ValueError(f"shots {list(shots_S)}, scores {score_RS.shape}: rising shots, scores (seeds, shots)")

    def match(score_S: np.ndarray) -> float:
        reached = np.flatnonzero(score_S >= zero_shot)
        if not reached.size:
            return math.inf
        if (after := int(reached[0])) == 0:
            return float(shots_S[0]) if score_S[0] == zero_shot else 0.0
        low, high = score_S[after - 1], score_S[after]
        share = (zero_shot - low) / (high - low)
        return float(np.exp(log_S[after - 1] + share * (log_S[after] - log_S[after - 1])))

    rng = np.random.default_rng(0)
    repeats = len(score_RS)
    draws = [match(score_RS[rng.integers(repeats, size=repeats)].mean(axis=0)) for _ in range(resamples)]
    # Not interpolated: halfway to infinity is no number of examples.
    ends = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="closest_observation").tolist()
    interval = (ends[0], ends[1]) if repeats > 1 else (math.nan, math.nan)
    value = match(score_RS.mean(axis=0))
    if value == 0:
        return Examples(float(shots_S[0]), "fewer than", interval)
    if value == math.inf:
        return Examples(float(shots_S[-1]), "more than", interval)
    return Examples(value, "", interval)


class Headroom(NamedTuple):
    """Zero-shot against full supervision over sets: Pearson's r, the slope of the line, and 95% intervals."""

    correlation: float
    correlation_interval: Interval
    slope: float
    intercept: float
    slope_interval: Interval


def headroom(supervised_D: Sequence[float], zero_shot_D: Sequence[float], resamples: int = 2000) -> Headroom:
    """How far zero-shot follows what the same features can do.

    Raises
    ------
    ValueError : fewer than 4 sets
    """
    x_D, y_D = np.asarray(supervised_D, float), np.asarray(zero_shot_D, float)
    if x_D.shape != y_D.shape or len(x_D) < 4:
        raise ValueError(
            f"{len(x_D)} and {len(y_D)} sets: a correlation with an interval needs at least 4, the same ones"
        )
    line = scipy.stats.linregress(x_D, y_D)
    fisher = scipy.stats.pearsonr(x_D, y_D).confidence_interval(LEVEL)
    rng, slopes = np.random.default_rng(0), []
    for _ in range(resamples):
        drawn = rng.integers(len(x_D), size=len(x_D))
        if np.ptp(x_D[drawn]) > 0:
            slopes.append(np.polyfit(x_D[drawn], y_D[drawn], 1)[0])
    return Headroom(line.rvalue, (fisher.low, fisher.high), line.slope, line.intercept, quantiles(np.array(slopes)))
