"""Settings against each other: means over seeds, and whether a difference is more than noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import scipy

from orchestrator.tune.trial import Trial


def score(trial: Trial) -> float:
    """What is to be large: accuracy, or where none was measured the negative loss."""
    return -trial.loss if math.isnan(trial.accuracy) else trial.accuracy


def margin(one: Sequence[Trial], other: Sequence[Trial]) -> str:
    """The difference of two settings' means in words, with its 95% interval over seeds (Welch) where there are any."""
    a, b = [score(trial) for trial in one], [score(trial) for trial in other]
    difference = fmean(a) - fmean(b)
    if len(a) < 2 or len(b) < 2:
        return f"{difference:+.4f}, of a single seed each at the least: no interval, so it may be noise"
    test = scipy.stats.ttest_ind(a, b, equal_var=False)
    low, high = test.confidence_interval(0.95) if stdev(a) or stdev(b) else (difference, difference)
    verdict = "beyond the noise" if low > 0 or high < 0 else "within the noise"
    return f"{difference:+.4f} (95% interval {low:+.4f} to {high:+.4f}, {len(a)} and {len(b)} seeds): {verdict}"


def mean(group: Sequence[Trial]) -> float:
    """Of the scores of one setting's trials."""
    return fmean(map(score, group))


def spread(group: Sequence[Trial]) -> str:
    """Mean and standard deviation over seeds, in words."""
    what = "loss" if any(math.isnan(trial.accuracy) for trial in group) else "accuracy"
    scores = [abs(score(trial)) for trial in group]
    deviation = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
    return f"{what} {fmean(scores):.4f}{deviation} ({len(scores)} seed{'s' if len(scores) > 1 else ''})"


def operations(group: Sequence[Trial]) -> float:
    """Of training one setting, mean over its seeds."""
    return fmean(trial.flops for trial in group)


def pareto_front(groups: Sequence[Sequence[Trial]]) -> list[Sequence[Trial]]:
    """The settings than which no other is both as good and as cheap in operations, the cheapest first."""
    front: list[Sequence[Trial]] = []
    for group in sorted(groups, key=lambda group: (operations(group), -mean(group))):
        if not front or mean(group) > mean(front[-1]):
            front.append(group)
    return front


def front_sentence(groups: Sequence[Sequence[Trial]], words: Callable[[Trial], str]) -> str:
    """The Pareto front in words.

    Parameters
    ----------
    groups : of ended trials, one a setting, at least one
    words : for the setting of a trial
    """
    front = pareto_front(groups)
    what = "loss" if any(math.isnan(trial.accuracy) for trial in front[0]) else "accuracy"
    named = "; ".join(f"{words(group[0])} ({operations(group):.3g} FLOPs, {spread(group)})" for group in front)
    return f"Pareto front, {what} against operations, {len(front)} of {len(groups)} settings: {named}."


def setting_key(setting: Mapping[str, Any]) -> str:
    """The same for equal settings."""
    return json.dumps(setting, sort_keys=True)


def by_setting(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
    """Trials of each setting, in the order in which they were proposed."""
    groups: dict[str, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.name):
        groups.setdefault(setting_key(trial.setting), []).append(trial)
    return groups


def without_twins(
    groups: Sequence[list[Trial]],
) -> tuple[list[list[Trial]], list[tuple[list[Trial], list[Trial]]]]:
    """Leave out settings whose runs are an earlier setting's to the last bit: what they differ in had no effect.

    Parameters
    ----------
    groups : of ended trials, one a setting

    Returns
    -------
    the others, and what was left out, each with the setting that it equals
    """
    kept: list[list[Trial]] = []
    twins: list[tuple[list[Trial], list[Trial]]] = []
    for group in groups:
        runs = _runs(group)
        twin = next((other for other in kept if all(_runs(other).get(seed) == run for seed, run in runs.items())), None)
        if twin is None:
            kept.append(group)
        else:
            twins.append((group, twin))
    return kept, twins


def _runs(group: Sequence[Trial]) -> dict[int, tuple[float, float]]:
    """What came of each seed."""
    return {trial.seed: (score(trial), trial.loss) for trial in group}


def twin_sentences(
    twins: Sequence[tuple[Sequence[Trial], Sequence[Trial]]], words: Callable[[Trial], str]
) -> list[str]:
    """What `without_twins` left out, in words for the settings of trials."""
    return [
        f"The same runs, to the last bit: {words(twin[0])}, and {words(group[0])}. What they differ in had no effect."
        for twin, group in twins
    ]
