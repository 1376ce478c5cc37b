"""Pictures of half the side in the first part of a run: four steps of the image tower for the price of one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from orchestrator.config import Config
from orchestrator.model.scaling import Flops, count_flops


@dataclass(frozen=True)
class Resolutions:
    """Which steps see pictures of half the side, and what a step costs.

    Parameters
    ----------
    half_steps : the first optimiser steps of the run, which do
    half, whole : floating point operations of a forward pass of one pair, of theirs and of the steps after them

    Source: Howard et al. 2018 (DAWNBench's progressive resizing); Li et al. 2023 (CLIPA).
    """

    half_steps: int
    half: Flops
    whole: Flops

    @classmethod
    def of(cls, config: Config, total_steps: int) -> Resolutions:
        """Those of a run of so many steps."""
        model, steps = config.model, round(config.train.half_resolution * total_steps)
        whole = count_flops(model)
        half = count_flops(dataclasses.replace(model, image_size=model.image_size // 2)) if steps else whole
        return cls(steps, half, whole)

    def halved(self, step: int) -> bool:
        """Whether step `step` (0-based) sees pictures of half the side."""
        return step < self.half_steps

    def flops(self, step: int) -> Flops:
        """Of a forward pass of one pair, at this step."""
        return self.half if self.halved(step) else self.whole

    def training(self, start: int, stop: int) -> int:
        """Floating point operations of one pair a step, forward and backward, over the steps from `start` to `stop`."""
        halves = max(0, min(stop, self.half_steps) - start)
        return halves * self.half.training + (stop - start - halves) * self.whole.training
