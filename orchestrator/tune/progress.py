"""What a study shows while it runs: a line for each trial that starts, moves or ends."""

from __future__ import annotations

import math
import time
from typing import Any

from ray import tune


class Table(tune.Callback):
    """Prints what becomes of trials.

    Parameters
    ----------
    trials : in all
    interval_s : seconds between two lines of one trial
    """

    def __init__(self, trials: int, interval_s: float = 30.0):
        self._trials, self._interval_s = trials, interval_s
        self._shown: dict[str, float] = {}
        self._ended = 0

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        now = time.monotonic()
        name = result["config"]["name"]
        if result.get("finished"):
            self._ended += 1
        elif now - self._shown.get(name, -math.inf) < self._interval_s:
            return
        self._shown[name] = now
        print(f"[{self._ended}/{self._trials}] {describe(result)}", flush=True)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        print(f"[{self._ended}/{self._trials}] {trial.config['name']}: failed; {trial.error_file}", flush=True)


def describe(result: dict[str, Any]) -> str:
    """One line about a trial: its setting, where it is, and what it has cost."""
    config = result["config"]
    setting = " ".join(f"{option.rpartition('.')[2]}={value}" for option, value in config["setting"].items())
    parts = [f"{config['name']}: {setting} seed={config['seed']}"]
    if result.get("error"):
        return f"{parts[0]}  stopped: {result['error']}"
    parts.append(f"step {result['step']}  loss {result['loss']:.3f}")
    if not math.isnan(result["accuracy"]):
        parts.append(f"accuracy {result['accuracy']:.1%}")
    parts.append(f"{result['flops']:.2e} FLOPs  {result['seconds']:.0f} s")
    if not result["finished"]:
        eta = int(result["eta_s"])
        parts.append(f"ETA {eta // 3600}:{eta % 3600 // 60:02d}:{eta % 60:02d}")
    return "  ".join(parts)
