"""Which values of options that the user names are best."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from orchestrator.config import Config, ConfigError
from orchestrator.tune import plots
from orchestrator.tune.comparison import (
    by_setting,
    front_sentence,
    margin,
    mean,
    operations,
    pareto_front,
    score,
    setting_key,
    spread,
    twin_sentences,
    without_twins,
)
from orchestrator.tune.recipe import own, recipe
from orchestrator.tune.report import Answer
from orchestrator.tune.space import Point, Space
from orchestrator.tune.trial import Trial
from orchestrator.tune.vary import parse_space
from orchestrator.tune.wording import label, short_names


class Options:
    """The study of one base configuration.

    Parameters
    ----------
    base : configuration; its own values are always tried first
    trials : in all
    varied : `option=a..b` or `option=a,b,c`, as in vary.parse_space

    Raises
    ------
    ConfigError : nothing that can be varied so, or too few trials for a comparison
    """

    def __init__(self, base: Config, trials: int, varied: Sequence[str]):
        self._base, self._space = base, parse_space(varied)
        if trials < 2:
            raise ConfigError(f"--trials {trials}: at least 2, for the base configuration's own setting and another")
        self._own = {option: own(base, option) for option in self._space}
        self.title = f"Which {' and '.join(short_names(list(self._space)).values())} should be chosen?"

    def settings(self) -> list[dict[str, Any]]:
        raise ConfigError("--search settings: a study of options has none of its own; choose grid, random or optuna")

    def space(self) -> Space:
        return self._space

    def references(self) -> list[Point]:
        return [self._own]

    def setting(self, point: Point) -> dict[str, Any]:
        return dict(point)

    def group(self, setting: Mapping[str, Any]) -> Hashable:
        return None

    def answer(self, trials: Sequence[Trial]) -> Answer:
        done = [trial for trial in trials if trial.state == "done" and not math.isnan(score(trial))]
        every = by_setting(done)
        if not every:
            return Answer("Options", ["No trial has ended yet: there is nothing to say."], None, {})
        groups, twins = without_twins(list(every.values()))
        order = sorted(groups, key=mean, reverse=True)
        best, base = order[0], every.get(setting_key(self._own))
        sentences = [f"Best: {label(best[0])}, {spread(best)}."]
        if base is best:
            sentences.append("That is the base configuration's own setting; nothing that was tried is better.")
        elif base:
            own_words = f"the base configuration's own setting ({label(base[0])}, {spread(base)})"
            sentences.append(f"Over {own_words}: {margin(best, base)}.")
        else:
            sentences.append("The base configuration's own setting has not ended: there is nothing to hold it against.")
        sentences.append(front_sentence(order, label))
        sentences += twin_sentences(twins, label)
        sentences.append("recipe.yaml is the best setting's run, for jobs/pretrain.py --config.")
        failed = sum(trial.state == "failed" for trial in trials)
        if failed:
            sentences.append(f"{failed} of {len(trials)} trials failed; the table says why.")
        front = pareto_front(order)
        rows = [self._row(group, group in front) for group in sorted(every.values(), key=mean, reverse=True)]
        return Answer("Options", sentences, recipe(self._base, best[0].setting, "options"), {"Settings": rows})

    def _row(self, group: Sequence[Trial], on_front: bool) -> dict[str, Any]:
        names = short_names(list(self._space))
        return {
            **{name: group[0].setting[option] for option, name in names.items()},
            "seeds": len(group),
            "FLOPs": operations(group),
            "loss": fmean(trial.loss for trial in group),
            "accuracy": fmean(trial.accuracy for trial in group),
            "on the Pareto front": "yes" if on_front else "",
        }

    def figures(self, trials: Sequence[Trial]) -> Mapping[str, Figure | None]:
        names = short_names(list(self._space))
        return {
            "All settings": plots.parallel_coordinates(trials, list(self._space)),
            **{f"Accuracy against {name}": plots.accuracy_against(trials, option) for option, name in names.items()},
            "Accuracy against compute": plots.accuracy_against_compute(trials),
        }
