"""Error against compute over several models: whether more compute buys less error, and how surely.

Source: Radford et al. 2021, section 3.1.3, figure 9: the compute is that of the image tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from orchestrator.statistics.power_law import PowerLaw, fit_power_law


class ScalingLaw(NamedTuple):
    """Power laws of error against compute.

    Parameters
    ----------
    mean : of the mean error over all sets
    panels : of each set
    """

    mean: PowerLaw
    panels: dict[str, PowerLaw]


def scaling_law(compute: Mapping[str, float], error: Mapping[str, Mapping[str, float]]) -> ScalingLaw:
    """Fit.

    Parameters
    ----------
    compute : operations of each model's image tower on one picture, by model
    error : 1 - score, by set and model

    Raises
    ------
    ValueError : no set, a set that is not measured on all models, or an error that is not above 0
    """
    models = list(compute)
    if not error:
        raise ValueError("a scaling law of no set: measure the models on one at least")
    for name, by_model in error.items():
        if missing := [model for model in models if model not in by_model]:
            raise ValueError(f"set {name}: not measured for {missing[0]}; a law needs all models on the same sets")
        if wrong := [model for model in models if not by_model[model] > 0]:
            raise ValueError(f"set {name}: error {by_model[wrong[0]]} of {wrong[0]}; its logarithm needs more than 0")
    x_M = np.array([compute[model] for model in models])

    def fit(by_model: Sequence[float] | np.ndarray) -> PowerLaw:
        return fit_power_law(x_M, by_model)

    error_DM = np.array([[by_model[model] for model in models] for by_model in error.values()])
    return ScalingLaw(fit(error_DM.mean(axis=0)), {name: fit(row) for name, row in zip(error, error_DM, strict=True)})
