"""What is known of one trial of a study: a row of its table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Trial:
    """One pretraining run of a study.

    Parameters
    ----------
    name : of its run folder
    setting : option of the configuration -> the value that this trial gives it, as {"model.init_temperature": 0.07}
    seed : of weights, order, crops and captions
    state : done (to its end), stopped (early, by the scheduler), failed, or running (what is known so far)
    step : optimiser steps, those of its parents too
    samples : image-text pairs that it trained on itself
    flops : floating point operations of its training, forward and backward
    loss : mean over the last tenth of its steps; NaN: none yet
    accuracy : zero-shot top-1, mean over the evaluation sets, in [0, 1]; NaN: not measured
    seconds : since it started, over all its attempts
    path : (step, loss, logit scale) on the way
    run : URI of its folder
    error : why it failed
    parent : name of the trial whose newest checkpoint it began with; empty: it began anew
    """

    name: str
    setting: dict[str, Any]
    seed: int = 0
    state: Literal["done", "stopped", "failed", "running"] = "running"
    step: int = 0
    samples: int = 0
    flops: float = 0.0
    loss: float = math.nan
    accuracy: float = math.nan
    seconds: float = 0.0
    path: list[tuple[int, float, float]] = field(default_factory=list)
    run: str = ""
    error: str = ""
    parent: str = ""


def score_of(result: Mapping[str, Any]) -> float:
    """How good a trial's last report is, more being better: accuracy, else minus the loss; NaN: it has not finished."""
    if not result.get("finished"):
        return math.nan
    accuracy = result.get("accuracy", math.nan)
    return -result.get("loss", math.nan) if math.isnan(accuracy) else accuracy
