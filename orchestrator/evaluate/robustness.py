"""Accuracy under a natural shift of distribution, against what accuracy without it foretells.

Shapes: M models of the baseline, S shifts, B resamples.

Source: Taori et al. 2020, sections 2 and 3; Radford et al. 2021, section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

from orchestrator.statistics.intervals import Interval, quantiles


class Count(NamedTuple):
    """Right answers of so many."""

    hits: int
    samples: int

    @property
    def accuracy(self) -> float:
        return self.hits / self.samples

    @property
    def inner_accuracy(self) -> float:
        """With half an answer more on either side, so that its logit is finite."""
        return (self.hits + 0.5) / (self.samples + 1)


class Estimate(NamedTuple):
    """A difference of accuracies and its 95% bootstrap interval."""

    value: float
    interval: Interval


class Pair(NamedTuple):
    """One model's counts without the shift (on the shift's classes) and under it."""

    standard: Count
    shifted: Count


def baseline(standard_M: np.ndarray, shifted_M: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of the straight line through logit-transformed accuracies in (0, 1)."""
    if len(standard_M) < 2 or np.ptp(standard_M) == 0:
        raise ValueError(f"{len(standard_M)} baseline models: a line needs two of different accuracy")
    slope, intercept = np.polyfit(logit(standard_M), logit(shifted_M), 1)
    return float(slope), float(intercept)


def effective_robustness(
    models: Sequence[Sequence[Pair]], one: Sequence[Pair], resamples: int = 1000, seed: int = 0
) -> Estimate:
    """Accuracy above the baseline's line, a mean over shifts.

    Parameters
    ----------
    models : baseline models, each with a pair of counts a shift
    one : the model in question, the same shifts
    resamples, seed : models of the baseline and answers of each model are drawn anew

    Raises
    ------
    ValueError : no shift, models with other numbers of shifts, fewer than two baseline models
    """
    if not one or any(len(model) != len(one) for model in models):
        raise ValueError(
            f"{len(one)} shifts: every baseline model needs a pair of counts for each, and there must be one"
        )
    rng = np.random.default_rng(seed)
    hits_MS2, count_MS2 = _arrays(models)
    own_S2, own_count_S2 = (part[0] for part in _arrays([one]))

    def measure(hits_MS2: np.ndarray, count_MS2: np.ndarray, own_S2: np.ndarray) -> float:
        # Half an answer more on either side keeps logits of 0 and 1 finite.
        share_MS2 = (hits_MS2 + 0.5) / (count_MS2 + 1)
        above = []
        for shift, (_, shifted) in enumerate(own_S2 / own_count_S2):
            slope, intercept = baseline(*share_MS2[:, shift].T)
            at = (own_S2[shift, 0] + 0.5) / (own_count_S2[shift, 0] + 1)
            above.append(shifted - expit(slope * logit(at) + intercept))
        return float(np.mean(above))

    draws = []
    for _ in range(resamples):
        drawn = rng.integers(len(models), size=len(models))
        if len(np.unique(drawn)) > 1:
            answers_MS2 = rng.binomial(count_MS2, hits_MS2 / count_MS2)[drawn]
            try:
                draws.append(measure(answers_MS2, count_MS2[drawn], rng.binomial(own_count_S2, own_S2 / own_count_S2)))
            except ValueError:  # the models drawn are all equally good: no line
                continue
    return Estimate(measure(hits_MS2, count_MS2, own_S2), quantiles(np.array(draws)))


def relative_robustness(before: Count, after: Count, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Accuracy under shift gained by an intervention: after - before."""
    rng = np.random.default_rng(seed)
    drawn = [rng.binomial(one.samples, one.accuracy, size=resamples) / one.samples for one in (after, before)]
    return Estimate(after.accuracy - before.accuracy, quantiles(drawn[0] - drawn[1]))


def shift_table(classifiers: Mapping[str, Mapping[str, Count]]) -> dict[str, dict[str, float]]:
    """Accuracy in percent, one decimal, of each classifier on each set, from counts.

    Raises
    ------
    ValueError : classifiers measured on different sets, or a count that is none
    """
    sets = {tuple(counts) for counts in classifiers.values()}
    if len(sets) > 1:
        raise ValueError(f"classifiers were measured on different sets: {' / '.join(', '.join(one) for one in sets)}")
    for name, counts in classifiers.items():
        for where, count in counts.items():
            if count.samples < 1 or not 0 <= count.hits <= count.samples:
                raise ValueError(f"{name} on {where}: {count.hits} right of {count.samples}")
    return {
        name: {where: round(100 * count.accuracy, 1) for where, count in counts.items()}
        for name, counts in classifiers.items()
    }


def _arrays(models: Sequence[Sequence[Pair]]) -> tuple[np.ndarray, np.ndarray]:
    counts_MS22 = np.array(models)
    return counts_MS22[..., 0], counts_MS22[..., 1]
