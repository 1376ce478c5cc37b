"""How a compute budget should be split over width, depth and resolution, and what the next budget would bring."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from ray import tune

from orchestrator.cli import to_yaml
from orchestrator.config import Config, ConfigError, ModelConfig
from orchestrator.model.scaling import count_flops
from orchestrator.statistics.power_law import PowerLaw, extrapolate, fit_power_law
from orchestrator.tune import plots
from orchestrator.tune.comparison import (
    by_setting,
    front_sentence,
    margin,
    mean,
    pareto_front,
    score,
    setting_key,
    spread,
)
from orchestrator.tune.recipe import configured
from orchestrator.tune.report import Answer
from orchestrator.tune.space import Point, Space
from orchestrator.tune.splits import Models, Split, equal_compute, shares_of, split_of
from orchestrator.tune.trial import Trial

# The budget that a recipe is written for, as a multiple of the largest one.
NEXT = 2.0
# The coordinates of a search: the budget, and two numbers from 0 to 1 that stand for the shares of width and of depth.
BUDGET, WIDTH, DEPTH = "budget", "width", "depth"
# What they are at equal shares.
EQUALLY = {WIDTH: 5 / 9, DEPTH: 1 / 2}
BALANCED = "balanced"


class Scaling:
    """The study of one base model.

    Parameters
    ----------
    base : configuration
    trials : in all; about half of them go to settings, the rest to more seeds of each budget's best
    budgets : multiples of the base model's operations of a pair
    equal : samples (every trial trains on as many) or compute (the larger the model, the fewer)

    Raises
    ------
    ConfigError : a budget that no model has, or too few trials
    """

    title = "How should a compute budget be split over width, depth and resolution?"

    def __init__(self, base: Config, trials: int, budgets: Sequence[float], equal: str = "samples"):
        self._base, self._budgets, self._equal = base, sorted(set(budgets)), equal
        if not self._budgets:
            raise ConfigError("--compute: name at least one budget, such as 1,2,4")
        each = max(2, trials // (2 * len(self._budgets)))
        if trials < 2 * len(self._budgets):
            raise ConfigError(
                f"--trials {trials}: at least 2 for each of the {len(self._budgets)} budgets of --compute"
            )
        try:
            found = {budget: equal_compute(base.model, budget) for budget in self._budgets}
        except ValueError as error:
            raise ConfigError(f"--compute: {error}") from None
        self._splits = [(budget, split) for budget, splits in found.items() for split in splits[:each]]
        self._names = {setting_key(self._setting(*place)): place[1].name for place in self._splits}
        self._operations = count_flops(base.model).total
        self._models: dict[float, Models] = {}
        self._known: dict[str, tuple[float, Split]] = {}

    def settings(self) -> list[dict[str, Any]]:
        return [self._setting(budget, split) for budget, split in self._splits]

    def space(self) -> Space:
        return {BUDGET: tune.choice(self._budgets), WIDTH: tune.uniform(0.0, 1.0), DEPTH: tune.uniform(0.0, 1.0)}

    def references(self) -> list[Point]:
        return [{BUDGET: budget, **EQUALLY} for budget in self._budgets]

    def setting(self, point: Point) -> dict[str, Any]:
        budget = point[BUDGET]
        if all(point[key] == value for key, value in EQUALLY.items()):
            return next(self._setting(*place) for place in self._splits if place[0] == budget)
        if budget not in self._models:
            self._models[budget] = Models(self._base.model, budget)
        # Shares drawn so are spread evenly over all that add up to 1.
        width = 1 - math.sqrt(1 - point[WIDTH])
        depth = (1 - width) * point[DEPTH]
        return self._setting(budget, self._models[budget].nearest((width, depth, 1 - width - depth)))

    def group(self, setting: Mapping[str, Any]) -> Hashable:
        return self._split_of(setting)[0]

    def _split_of(self, setting: Mapping[str, Any]) -> tuple[float, Split]:
        key = setting_key(setting)
        if key not in self._known:
            split = split_of(self._base.model, configured(self._base, setting).model)
            budget = min(self._budgets, key=lambda budget: abs(math.log(split.flops / self._operations / budget)))
            self._known[key] = budget, dataclasses.replace(split, name=self._names.get(key, split.name))
        return self._known[key]

    def _setting(self, budget: float, split: Split) -> dict[str, Any]:
        vision, text = split.config.vision, split.config.text
        setting: dict[str, Any] = {
            "model.image_size": split.config.image_size,
            "model.vision.layers": list(vision.layers),
            "model.vision.width": vision.width,
            "model.vision.heads": vision.heads,
            "model.text.width": text.width,
            "model.text.heads": text.heads,
        }
        if self._equal == "compute":
            train, share = self._base.train, self._budgets[0] / budget
            if train.max_steps:
                setting["train.max_steps"] = max(1, round(train.max_steps * share))
            else:
                setting["train.epochs"] = max(1, round(train.epochs * share))
        return setting

    def answer(self, trials: Sequence[Trial]) -> Answer:
        groups = self._grouped(trials)
        if not groups:
            return Answer("Scaling", ["No trial has ended yet: there is nothing to say."], None, {})
        sentences, bests = [], {}
        for budget in self._budgets:
            of_budget = [(split, group) for (one, split), group in groups if one == budget]
            if not of_budget:
                continue
            split, group = bests[budget] = max(of_budget, key=lambda pair: mean(pair[1]))
            others = [pair for pair in of_budget if pair[1] is not group]
            sentences.append(f"Budget {budget:g}: {split.name} is best, {spread(group)}{_over(group, others)}.")
        every = [group for _, group in groups]
        sentences.append(front_sentence(every, lambda trial: self._words(trial.setting)))
        best_trials = [trial for _, group in bests.values() for trial in group]
        for what, values in _measures(best_trials).items():
            law = fit_power_law([trial.flops for trial in best_trials], values)
            sentences.append(f"Best of each budget: {law.sentence(what)}")
            if len(bests) > 1 and not law.reason:
                sentences.append(extrapolate([trial.flops for trial in best_trials], values).sentence(what))
        failed = sum(trial.state == "failed" for trial in trials)
        if failed:
            sentences.append(f"{failed} of {len(trials)} trials failed; the table says why.")
        largest = max(bests)
        model, reached = self._next(bests[largest][0], NEXT * largest)
        sentences.append(
            f"For {NEXT * largest:g} times the base model's compute: {reached}; recipe.yaml is that run, for "
            "jobs/pretrain.py --config."
        )
        front = pareto_front(every)
        rows = [self._row(budget, split, group, group in front) for (budget, split), group in groups]
        return Answer("Scaling", sentences, self._recipe(model, NEXT * largest), {"Models": rows})

    def _grouped(self, trials: Sequence[Trial]) -> list[tuple[tuple[float, Split], list[Trial]]]:
        """Trials that have ended, by budget and split, the smallest budget first."""
        done = [trial for trial in trials if trial.state == "done" and not math.isnan(score(trial))]
        groups = [(self._split_of(group[0].setting), group) for group in by_setting(done).values()]
        return sorted(groups, key=lambda pair: pair[0][0])

    def _words(self, setting: Mapping[str, Any]) -> str:
        budget, split = self._split_of(setting)
        return f"budget {budget:g} {split.name}"

    def _next(self, best: Split, budget: float) -> tuple[ModelConfig, str]:
        """The model of a larger budget, with the proportions of the best one."""
        split = Models(self._base.model, budget).nearest(shares_of(best))
        return split.config, f"{split.name} (in proportion as {best.name})"

    def _recipe(self, model: ModelConfig, budget: float) -> str:
        run = dataclasses.replace(self._base.run, name=f"{self._base.run.name}-x{budget:g}")
        return to_yaml(dataclasses.replace(self._base, model=model, run=run))

    def _row(self, budget: float, split: Split, group: Sequence[Trial], on_front: bool) -> dict[str, Any]:
        vision = split.config.vision
        return {
            "budget": budget,
            "split": split.name,
            "width": vision.width,
            "layers": "-".join(map(str, vision.layers)),
            "pixels": split.config.image_size,
            "operations of a pair": float(split.flops),
            "seeds": len(group),
            "loss": fmean(trial.loss for trial in group),
            "accuracy": fmean(trial.accuracy for trial in group),
            "on the Pareto front": "yes" if on_front else "",
        }

    def figures(self, trials: Sequence[Trial]) -> Mapping[str, Figure | None]:
        groups = self._grouped(trials)
        names = {trial.name: split.name for (_, split), group in groups for trial in group}
        done = [trial for _, group in groups for trial in group]
        bests = self._best_trials(groups)
        law = fit_power_law([trial.flops for trial in bests], [trial.loss for trial in bests]) if bests else None
        return {
            "Loss against compute": plots.loss_against_compute(
                done, fit=_drawn(law), label=lambda trial: names[trial.name]
            ),
            "Loss against width at equal compute": plots.iso_flop(done, "model.vision.width"),
            "Loss against resolution at equal compute": plots.iso_flop(done, "model.image_size"),
            "Accuracy against compute": plots.accuracy_against_compute(done),
            "All settings": plots.parallel_coordinates(done, ["model.vision.width", "model.image_size"]),
        }

    def _best_trials(self, groups: Sequence[tuple[tuple[float, Split], list[Trial]]]) -> list[Trial]:
        found = []
        for budget in self._budgets:
            of_budget = [group for (one, _), group in groups if one == budget]
            if of_budget:
                found += max(of_budget, key=lambda group: mean(list(group)))
        return found


def _drawn(law: PowerLaw | None) -> PowerLaw | None:
    return law if law is not None and not law.reason else None


def _over(best: Sequence[Trial], others: Sequence[tuple[Split, list[Trial]]]) -> str:
    """By how much the best split leads, over the balanced one or, where that is the best, over the next."""
    if not others:
        return ""
    split, group = max(others, key=lambda pair: (pair[0].name == BALANCED, mean(pair[1])))
    return f"; over {split.name}: {margin(best, group)}"


def _measures(trials: Sequence[Trial]) -> dict[str, list[float]]:
    found = {"loss": [trial.loss for trial in trials]}
    errors = [1 - trial.accuracy for trial in trials]
    if all(error > 0 for error in errors):  # NaN where accuracy was not measured
        found["zero-shot error"] = errors
    return {what: values for what, values in found.items() if values and all(value > 0 for value in values)}
