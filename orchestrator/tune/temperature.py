"""How the temperature should be set: where it starts, whether it is learned, and how far it may go."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from ray import tune

from orchestrator.config import Config, ConfigError, ModelConfig
from orchestrator.tune import plots
from orchestrator.tune.comparison import by_setting, margin, mean, score, spread, twin_sentences, without_twins
from orchestrator.tune.recipe import recipe
from orchestrator.tune.report import Answer
from orchestrator.tune.space import Point, Space, between
from orchestrator.tune.trial import Trial

INITIAL, LEARNED, CLAMP, BIAS = (
    "model.init_temperature", "optim.learn_temperature", "model.max_logit_scale", "model.init_logit_bias",
)  # fmt: skip
# The paper's clamp of 100 is one of them; a bound that training never meets is the other.
CLAMPS = (100.0, 1000.0)
HOTTEST, COLDEST = 0.5, 0.01
LEAST_BIAS = -15.0


class Temperature:
    """The study of one base model.

    Parameters
    ----------
    base : configuration
    trials : in all

    Raises
    ------
    ConfigError : too few trials for a comparison
    """

    title = "How should the temperature be set?"

    def __init__(self, base: Config, trials: int):
        self._base, self._settings = base, settings(base.model, trials)

    def settings(self) -> list[dict[str, Any]]:
        return self._settings

    def space(self) -> Space:
        model = self._base.model
        coldest = max(COLDEST, 1 / model.max_logit_scale)
        space = {
            INITIAL: between(coldest, HOTTEST),
            LEARNED: tune.choice([True, False]),
            CLAMP: tune.choice(sorted({model.max_logit_scale, *(clamp for clamp in CLAMPS if clamp * coldest >= 1)})),
        }
        if model.objective == "sigmoid":
            space[BIAS] = between(LEAST_BIAS, 0.0)
        return space

    def references(self) -> list[Point]:
        model = self._base.model
        bias = {BIAS: model.init_logit_bias} if model.objective == "sigmoid" else {}
        return [setting | bias for setting in self._settings[:2]]

    def setting(self, point: Point) -> dict[str, Any]:
        return dict(point)

    def group(self, setting: Mapping[str, Any]) -> Hashable:
        # The study holds the best that is learned against the best that is fixed: both get seeds.
        return setting[LEARNED]

    def answer(self, trials: Sequence[Trial]) -> Answer:
        return answer(trials, self._base)

    def figures(self, trials: Sequence[Trial]) -> Mapping[str, Figure | None]:
        return {
            "Accuracy against the temperature at the start": plots.accuracy_against(trials, INITIAL),
            "The logit scale on its way": plots.paths(trials, "logit_scale"),
            "Loss on its way": plots.paths(trials, "loss"),
        }


def settings(model: ModelConfig, trials: int) -> list[dict[str, Any]]:
    """Settings to try; the first is the model's own, learned.

    Parameters
    ----------
    model : of the base configuration; its objective says whether the bias is tried too
    trials : of the study: about half of them go to settings, the rest to more seeds

    Raises
    ------
    ConfigError : too few trials for a comparison
    """
    if trials < 4:
        raise ConfigError(f"--trials {trials}: a comparison needs at least 4")
    own = model.init_temperature
    default = {INITIAL: own, LEARNED: True, CLAMP: model.max_logit_scale}
    coldest = max(COLDEST, 1 / model.max_logit_scale)
    # Bisected from the middle outwards, on a log scale: the first few already span it.
    places = [0.0, 1.0, 0.5, 0.25, 0.75, 0.125, 0.875, 0.375, 0.625]
    others = [coldest * (HOTTEST / coldest) ** place for place in places]
    starts = [own, *(start for start in others if abs(math.log(start / own)) > 0.2)]
    found = [default, {**default, LEARNED: False}]
    for start, learned in itertools.product(starts[1:], (True, False)):
        found.append({**default, INITIAL: float(f"{start:.2g}"), LEARNED: learned})
    extra = [{**default, CLAMP: clamp} for clamp in CLAMPS if clamp != model.max_logit_scale and 1 / own <= clamp]
    if model.objective == "sigmoid":
        extra += [{**default, BIAS: bias} for bias in (0.0, -5.0, LEAST_BIAS) if bias != model.init_logit_bias]
    number = max(2, math.ceil(trials / 2))
    kept = found[: max(2, number - len(extra))] + extra
    return kept[:number]


def answer(trials: Sequence[Trial], base: Config) -> Answer:
    """What the trials so far say: the best setting, its margin over the default, and whether learning beats fixing.

    Parameters
    ----------
    trials : in any state
    base : the configuration that the winner's recipe changes
    """
    done = [trial for trial in trials if trial.state == "done" and not math.isnan(score(trial))]
    every = list(by_setting(done).values())
    if not every:
        return Answer("Temperature", ["No trial has ended yet: there is nothing to say."], None, {})
    groups, twins = without_twins(every)
    order = sorted(groups, key=mean, reverse=True)
    best, default = order[0], next((group for group in groups if _is_default(group[0], base.model)), None)
    sentences = [f"Best: {_words(best[0])}, {spread(best)}."]
    if best is default:
        sentences.append("That is the default; nothing that was tried is better.")
    elif default is None:
        sentences.append("The default has not ended: there is nothing to hold it against.")
    else:
        sentences.append(f"Over the default ({_words(default[0])}, {spread(default)}): {margin(best, default)}.")
    for learned, name in ((True, "learned"), (False, "fixed")):
        of_kind = [group for group in order if group[0].setting.get(LEARNED) is learned]
        if of_kind:
            sentences.append(f"Best {name}: {_words(of_kind[0][0])}, {spread(of_kind[0])}.")
    kinds = {kind: [g for g in order if g[0].setting.get(LEARNED) is kind] for kind in (True, False)}
    if kinds[True] and kinds[False]:
        sentences.append(f"Learning the temperature against fixing it: {margin(kinds[True][0], kinds[False][0])}.")
    sentences += twin_sentences(twins, _words)
    failed = sum(trial.state == "failed" for trial in trials)
    if failed:
        sentences.append(f"{failed} of {len(trials)} trials failed; the table says why.")
    won = recipe(base, best[0].setting, "temperature")
    rows = [_row(group) for group in sorted(every, key=mean, reverse=True)]
    return Answer("Temperature", sentences, won, {"Settings": rows})


def _is_default(trial: Trial, model: ModelConfig) -> bool:
    own = {
        INITIAL: model.init_temperature, LEARNED: True, CLAMP: model.max_logit_scale, BIAS: model.init_logit_bias,
    }  # fmt: skip
    return trial.setting.items() <= own.items()


def _words(trial: Trial) -> str:
    setting = trial.setting
    words = f"temperature {'learned from' if setting.get(LEARNED) else 'fixed at'} {setting[INITIAL]:g}"
    words += f", logit scale at most {setting[CLAMP]:g}"
    return words + (f", bias from {setting[BIAS]:g}" if BIAS in setting else "")


def _row(group: Sequence[Trial]) -> dict[str, Any]:
    scales = [trial.path[-1][2] for trial in group if trial.path]
    return {
        "setting": _words(group[0]),
        "seeds": len(group),
        "accuracy": fmean(trial.accuracy for trial in group),
        "loss": fmean(trial.loss for trial in group),
        "logit scale at the end": fmean(scales) if scales else math.nan,
    }
