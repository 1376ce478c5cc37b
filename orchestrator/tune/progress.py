"""What a study shows while it runs: a table in a terminal, a line for each trial that moves in a log."""

from __future__ import annotations

import math
import time
from typing import Any

from ray import tune
from rich.console import Console
from rich.live import Live
from rich.table import Table

from orchestrator.report.wording import cell
from orchestrator.tune import notices

# Seconds from one look at what trials have to say to the next.
LISTEN_EVERY_S = 2.0


class StudyDisplay(tune.Callback):
    """Shows what becomes of trials.

    Parameters
    ----------
    trials : in all
    interval_s : seconds between two lines of one trial, in a log
    console : to show it on; None: standard output
    """

    def __init__(self, trials: int, interval_s: float = 30.0, console: Console | None = None):
        self._trials, self._interval_s = trials, interval_s
        self._console = console or Console()
        self._shown: dict[str, float] = {}
        self._newest: dict[str, dict[str, Any]] = {}
        self._live: Live | None = None
        self._listened_at = 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Tune keeps it with its records; a terminal cannot be kept.
        return {"_trials": self._trials, "_interval_s": self._interval_s}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_trials"], state["_interval_s"])  # type: ignore[misc]

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        now, name = time.monotonic(), result["config"]["name"]
        self._newest[name] = result
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=2)
                self._live.start()
            self._live.update(self.table())
        elif result.get("finished") or now - self._shown.get(name, -math.inf) >= self._interval_s:
            self._shown[name] = now
            print(f"[{self.ended}/{self._trials}] {line(result)}", flush=True)

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        now = time.monotonic()
        if now - self._listened_at >= LISTEN_EVERY_S:
            self._listened_at = now
            for line in notices.take():
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self._console.print(f"{trial.config['name']}: failed; {trial.error_file}", markup=False, soft_wrap=True)

    def on_experiment_end(self, trials: list, **info: Any) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    @property
    def ended(self) -> int:
        """Trials that were seen to end."""
        return sum(bool(result.get("finished")) for result in self._newest.values())

    def table(self) -> Table:
        """A row for each trial that has reported."""
        table = Table(title=f"{self.ended} of {self._trials} trials have ended", title_justify="left")
        for column in ("trial", "setting", "seed", "step", "loss", "accuracy", "FLOPs", "seconds", "ETA"):
            table.add_column(column, justify="left" if column in ("trial", "setting") else "right")
        for name, result in sorted(self._newest.items()):
            table.add_row(name, *_cells(result))
        return table


def line(result: dict[str, Any]) -> str:
    """A trial in a log: its setting, where it is, and what it has cost."""
    setting, seed, step, loss, accuracy, flops, seconds, eta = _cells(result)
    start = f"{result['config']['name']}: {setting} seed={seed}"
    if result.get("error"):
        return f"{start}  stopped: {result['error']}"
    parts = [start, f"step {step}", f"loss {loss}"]
    parts += [f"accuracy {accuracy}"] if accuracy else []
    parts += [f"{flops} FLOPs", f"{seconds} s"]
    parts += [f"ETA {eta}"] if eta else []
    return "  ".join(parts)


def _cells(result: dict[str, Any]) -> list[str]:
    config = result["config"]
    setting = " ".join(f"{option.rpartition('.')[2]}={cell(value)}" for option, value in config["setting"].items())
    if result.get("error"):
        return [setting, str(config["seed"]), "", "stopped", "", "", "", ""]
    accuracy = "" if math.isnan(result["accuracy"]) else f"{result['accuracy']:.1%}"
    eta = int(result["eta_s"])
    left = "" if result["finished"] else f"{eta // 3600}:{eta % 3600 // 60:02d}:{eta % 60:02d}"
    numbers = [f"{result['loss']:.3f}", accuracy, f"{result['flops']:.2e}", f"{result['seconds']:.0f}", left]
    return [setting, str(config["seed"]), str(result["step"]), *numbers]
