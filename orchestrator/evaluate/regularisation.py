"""The strength of a linear probe's regularisation, chosen on validation data.

Source: Radford et al. 2021, section A.3: 96 steps between 1e-6 and 1e6, searched by halving.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from orchestrator.evaluate.linear_probe import ITERATIONS, TOLERANCE, LinearProbe, Probes
from orchestrator.evaluate.multilabel_probe import MultiLabelProbes

# Eight steps a decade; the coarse grid takes every sixteenth.
STEPS = 96
GRID = tuple(10 ** (step / 8 - 6) for step in range(STEPS + 1))
COARSE = 16


@dataclass(frozen=True)
class Search:
    """What was chosen.

    Parameters
    ----------
    strength : C; of equals the smallest, which regularises most
    scores : of every C that was tried, on validation data
    probe : the fit with the chosen C
    """

    strength: float
    scores: dict[float, float]
    probe: LinearProbe


def search_strength(
    training: Probes | MultiLabelProbes,
    score: Callable[[LinearProbe], float],
    iterations: int = ITERATIONS,
    tolerance: float = TOLERANCE,
) -> Search:
    """Seven strengths, then twice closer around the best until they are one step apart: 15 fits at most.

    Parameters
    ----------
    training : the training set
    score : of a probe on validation data, higher is better
    iterations, tolerance : of each fit
    """
    probes: dict[int, LinearProbe] = {}
    scores: dict[int, float] = {}

    def try_all(places: list[int], start: LinearProbe | None) -> int:
        new = [place for place in places if 0 <= place <= STEPS and place not in probes]
        fits = training.fit([GRID[place] for place in new], start, iterations, tolerance) if new else []
        for place, probe in zip(new, fits, strict=True):
            probes[place], scores[place] = probe, score(probe)
        bad = [GRID[place] for place in new if np.isnan(scores[place])]
        if bad:
            raise ValueError(
                f"the validation score at C = {bad[0]:g} is NaN: has the validation set every class it needs?"
            )
        return max(sorted(scores), key=scores.__getitem__)

    best = try_all(list(range(0, STEPS + 1, COARSE)), None)
    step = COARSE // 2
    while step:
        best = try_all([best - step, best + step], probes[best])
        step //= 2
    return Search(GRID[best], {GRID[place]: scores[place] for place in sorted(scores)}, probes[best])
