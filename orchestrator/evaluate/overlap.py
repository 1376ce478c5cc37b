"""What pictures that training has seen are worth to an evaluation.

Source: Radford et al. 2021, section 5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy

from orchestrator.statistics.intervals import Interval, clopper_pearson

LEVEL = 0.995


class Overlap(NamedTuple):
    """Accuracy with and without pictures that training has seen.

    Parameters
    ----------
    share : of the pictures that overlap
    all, overlap, clean : accuracies; NaN where there is no such picture
    gain : all - clean
    interval : of the overlap's accuracy, 99.5%
    greater, different : p-values of the binomial test of overlap's accuracy against clean's: one-sided, two-sided
    """

    share: float
    all: float
    overlap: float
    clean: float
    gain: float
    interval: Interval
    greater: float
    different: float


def overlap(correct_N: np.ndarray, overlap_N: np.ndarray) -> Overlap:
    """Compare.

    Parameters
    ----------
    correct_N : bool, the model is right
    overlap_N : bool, training has a near-duplicate

    Raises
    ------
    ValueError : shapes differ, or no picture is clean
    """
    correct_N, overlap_N = np.asarray(correct_N, bool), np.asarray(overlap_N, bool)
    if correct_N.shape != overlap_N.shape or overlap_N.all():
        raise ValueError(
            f"{correct_N.shape} answers, {overlap_N.sum()} of {overlap_N.shape} overlap: one clean at least"
        )
    seen, clean = correct_N[overlap_N], float(correct_N[~overlap_N].mean())
    everything = float(correct_N.mean())
    if not len(seen):
        return Overlap(0.0, everything, float("nan"), clean, 0.0, (0.0, 1.0), 1.0, 1.0)
    hits, count = int(seen.sum()), len(seen)
    greater, different = (
        float(scipy.stats.binomtest(hits, count, clean, alternative=side).pvalue) for side in ("greater", "two-sided")
    )
    interval = clopper_pearson(hits, count, LEVEL)
    share = float(overlap_N.mean())
    return Overlap(share, everything, hits / count, clean, everything - clean, interval, greater, different)
