"""Figures of a study, drawn from its trials.

Only trials that are done or stopped, with finite values, are drawn; where there are none a figure is None.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean, stdev
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from orchestrator.report import drawing
from orchestrator.report.drawing import PALETTE, QUIET, drawable
from orchestrator.report.wording import number, plain
from orchestrator.tune.comparison import by_setting, mean, operations, pareto_front
from orchestrator.tune.trial import Trial
from orchestrator.tune.wording import differing, label, option_name, short_names, with_unit

# More groups than a legend can name are drawn as one.
MOST_GROUPS = 14
# Budgets whose operations differ by less are one budget: a whole number of steps never meets it exactly.
SAME_BUDGET = 1.25
COMPUTE = "training compute (FLOPs)"
LOSS = "training loss (nats)"
ACCURACY = "zero-shot top-1 accuracy (%)"


class Fit(Protocol):
    """A fitted curve."""

    def predict(self, x: Any) -> tuple[Any, Any, Any]:
        """The curve at x, and the lower and the upper edge of its interval there."""


def loss_against_compute(
    trials: Sequence[Trial], fit: Fit | None = None, label: Callable[[Trial], str] | None = None
) -> Figure | None:
    """Loss against training compute, both logarithmic, one mark a trial.

    Parameters
    ----------
    trials : of a study
    fit : drawn as a line and a band over the measured compute
    label : the group that a trial is coloured by; None: the options that differ

    Returns
    -------
    the figure; None: nothing to draw
    """
    shown = [trial for trial in _measured(trials, "flops", "loss") if trial.flops > 0 and trial.loss > 0]
    if not shown:
        return None
    figure, axes = drawing.new("Loss against training compute", COMPUTE, LOSS)
    compute = [trial.flops for trial in shown]
    if fit is not None:
        x = np.geomspace(min(compute), max(compute), 100)
        y, low, high = fit.predict(x)
        if np.isfinite(y).any():
            axes.fill_between(x, low, high, color=QUIET, alpha=0.2, linewidth=0, label="interval of the fit")
            axes.plot(x, y, color=QUIET, label="fit")
    for place, (name, group) in enumerate(_groups(shown, differing(shown), label).items()):
        filled = [trial.state == "done" for trial in group]
        drawing.marks(axes, filled, [trial.flops for trial in group], [trial.loss for trial in group], place, name)
    drawing.scale(axes.xaxis, compute, logarithmic=True)
    drawing.scale(axes.yaxis, [trial.loss for trial in shown], logarithmic=True)
    return drawing.finish(figure, axes, "stopped early" if any(trial.state == "stopped" for trial in shown) else "")


def accuracy_against(trials: Sequence[Trial], option: str) -> Figure | None:
    """Zero-shot accuracy against an option: each trial, and the mean and standard deviation over seeds.

    Parameters
    ----------
    trials : of a study
    option : of the setting; its axis is logarithmic where positive values span a factor of 8, and one of names where
        they are no numbers. Where other options differ too, each of their combinations is a series

    Returns
    -------
    the figure; None: nothing to draw
    """
    shown = [trial for trial in _measured(trials, "accuracy") if plain(trial.setting.get(option)) is not None]
    if not shown:
        return None
    others = [other for other in differing(shown) if other != option]
    groups = _groups(shown, others)
    figure, axes = drawing.new(f"Zero-shot accuracy against {option_name(option)}", with_unit(option), ACCURACY)
    place_of = drawing.option_axis(axes, [trial.setting[option] for trial in shown])
    for place, (name, group) in enumerate(groups.items()):
        at: dict[float, list[float]] = defaultdict(list)
        for trial in group:
            at[place_of(trial.setting[option])].append(100 * trial.accuracy)
        points = sorted(at.items())
        # A mean over trials that differ in more than the seed would hide what they differ in.
        if name or not others:
            spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in points]
            axes.errorbar(
                [x for x, _ in points],
                [fmean(values) for _, values in points],
                yerr=spread if any(spread) else None,
                capsize=4,
                label=drawable(name or ("mean ± standard deviation over seeds" if any(spread) else "")),
                **drawing.style_of(place),
            )
        pairs = [(x, y) for x, values in points for y in values]
        axes.plot(*zip(*pairs, strict=True), ".", color=drawing.style_of(place)["color"], alpha=0.5)
    return drawing.finish(figure, axes)


def accuracy_against_compute(trials: Sequence[Trial]) -> Figure | None:
    """Zero-shot accuracy against training compute, one mark a setting (its mean over seeds), with the Pareto front.

    Parameters
    ----------
    trials : of a study; stopped ones are left out: they have not spent their budget

    Returns
    -------
    the figure; None: nothing to draw
    """
    shown = [trial for trial in _measured(trials, "flops", "accuracy") if trial.state == "done" and trial.flops > 0]
    if not shown:
        return None
    groups = list(by_setting(shown).values())
    front = pareto_front(groups)
    points = [(operations(group), 100 * mean(group)) for group in front]
    figure, axes = drawing.new("Zero-shot accuracy against training compute", COMPUTE, ACCURACY)
    axes.plot(
        [operations(group) for group in groups], [100 * mean(group) for group in groups], "o", color=QUIET,
        label="settings, mean over seeds",
    )  # fmt: skip
    # Between two settings of the front nothing better than the cheaper one is known.
    axes.plot(*zip(*points, strict=True), drawstyle="steps-post", label="Pareto front", **drawing.style_of(0))
    for (x, y), group in zip(points, front, strict=True):
        axes.annotate(drawable(group[0].name, 24), (x, y), (3, 4), textcoords="offset points", fontsize=7)
    drawing.scale(axes.xaxis, [x for x, _ in points] + [trial.flops for trial in shown], logarithmic=True)
    return drawing.finish(figure, axes)


def paths(trials: Sequence[Trial], what: Literal["logit_scale", "loss"] = "logit_scale") -> Figure | None:
    """The logit scale or the loss on the way, one line a trial.

    Parameters
    ----------
    trials : of a study; trials of one setting share a colour
    what : logit_scale (logarithmic) or loss

    Returns
    -------
    the figure; None: nothing to draw
    """
    column = {"loss": 1, "logit_scale": 2}[what]
    lines = {
        id(trial): [(point[0], point[column]) for point in trial.path if math.isfinite(point[column])]
        for trial in trials
    }
    shown = [trial for trial in _measured(trials) if lines[id(trial)]]
    if not shown:
        return None
    title, y_label = ("Loss", LOSS) if what == "loss" else ("Logit scale", "logit scale (1 / temperature)")
    figure, axes = drawing.new(f"{title} during training", "optimiser step", y_label)
    for place, (name, group) in enumerate(_groups(shown, differing(shown)).items()):
        for row, trial in enumerate(group):
            axes.plot(
                *zip(*lines[id(trial)], strict=True),
                linestyle="-" if trial.state == "done" else "--",
                linewidth=1.2,
                markersize=4,
                markevery=0.15,
                label=drawable(name) if row == 0 else "",
                **drawing.style_of(place),
            )
    if what == "logit_scale":
        drawing.scale(axes.yaxis, [y for trial in shown for _, y in lines[id(trial)]])
    return drawing.finish(figure, axes)


def iso_flop(trials: Sequence[Trial], option: str) -> Figure | None:
    """Loss against a property of the model at equal compute, one curve a budget, its lowest point ringed.

    Parameters
    ----------
    trials : of a study; stopped ones are left out: they have not spent their budget
    option : the property, such as `model.vision.width`

    Returns
    -------
    the figure; None: nothing to draw

    Source: Hoffmann et al. 2022 (Chinchilla), section 3.2.
    """
    shown = [trial for trial in _measured(trials, "flops", "loss") if trial.state == "done" and trial.flops > 0]
    shown = [trial for trial in shown if plain(trial.setting.get(option)) is not None]
    if not shown:
        return None
    figure, axes = drawing.new(f"Loss against {option_name(option)} at equal compute", with_unit(option), LOSS)
    place_of = drawing.option_axis(axes, [trial.setting[option] for trial in shown])
    for place, group in enumerate(_budgets(shown)):
        at: dict[float, list[float]] = defaultdict(list)
        for trial in group:
            at[place_of(trial.setting[option])].append(trial.loss)
        points = [(x, fmean(losses)) for x, losses in sorted(at.items())]
        budget = geometric_mean([trial.flops for trial in group])
        axes.plot(*zip(*points, strict=True), label=f"{number(budget, 2)} FLOPs", **drawing.style_of(place))
        x, y = min(points, key=lambda point: point[1])
        axes.plot(x, y, "o", markersize=12, markerfacecolor="none", markeredgecolor=drawing.style_of(place)["color"])
    return drawing.finish(figure, axes)


def parallel_coordinates(trials: Sequence[Trial], options: Sequence[str]) -> Figure | None:
    """Options, loss and accuracy as upright axes, one line a trial through its values; better is higher.

    Parameters
    ----------
    trials : of a study; those that lack one of the options are left out
    options : axes from the left

    Returns
    -------
    the figure; None: nothing to draw
    """
    shown = [
        trial for trial in _measured(trials, "loss") if all(plain(trial.setting.get(o)) is not None for o in options)
    ]
    if not shown or not options:
        return None
    names = list(short_names(options).values())
    columns = [drawing.upright([trial.setting[option] for trial in shown]) for option in options]
    heights, ticks = drawing.upright([trial.loss for trial in shown])
    columns.append(([1 - height for height in heights], [(1 - height, text) for height, text in ticks]))
    names.append(f"{LOSS},\nlowest on top")
    measured = [trial for trial in shown if math.isfinite(trial.accuracy)]
    if measured:
        heights, ticks = drawing.upright([100 * trial.accuracy for trial in measured])
        by_trial = {id(trial): height for trial, height in zip(measured, heights, strict=True)}
        columns.append(([by_trial.get(id(trial), math.nan) for trial in shown], ticks))
        names.append(ACCURACY.replace(" accuracy", "\naccuracy"))
    figure, axes = drawing.new(f"Settings and results of {len(shown)} trials", "", "")
    axes.grid(False)
    axes.set(xlim=(-0.15, len(columns) - 0.55), ylim=(-0.06, 1.06), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(columns)), [drawable(name, 60) for name in names], fontsize=8)
    result = columns[-1][0]
    best = max(range(len(shown)), key=lambda row: -1.0 if math.isnan(result[row]) else result[row])
    for row, trial in enumerate(shown):
        line = [heights[row] for heights, _ in columns]
        color = QUIET if math.isnan(result[row]) else colormaps["cividis"](0.9 * result[row])
        style: dict[str, Any] = {"color": color, "linewidth": 1.2, "linestyle": "-" if trial.state == "done" else "--"}
        if row == best:
            style |= {
                "color": PALETTE[1],
                "linewidth": 2.5,
                "marker": "o",
                "zorder": 3,
                "label": drawable(f"best: {trial.name}"),
            }
        axes.plot(line, **style)
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color=QUIET, linewidth=0.8)
        for height, text in ticks:
            axes.text(place + 0.03, height, drawable(text, 24), fontsize=7, va="center", zorder=4, bbox=drawing.PAPER)
    return drawing.finish(figure, axes)


def _measured(trials: Sequence[Trial], *values: str) -> list[Trial]:
    """Trials that have come to an end, with finite values of these names."""
    ended = [trial for trial in trials if trial.state in ("done", "stopped")]
    return [trial for trial in ended if all(math.isfinite(getattr(trial, value)) for value in values)]


def _groups(
    trials: Sequence[Trial], options: Sequence[str], group_of: Callable[[Trial], str] | None = None
) -> dict[str, list[Trial]]:
    """Trials by group, in the order of their options' values; one nameless group where there are too many."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: [drawing.rank(trial.setting.get(option)) for option in options]):
        groups[group_of(trial) if group_of else label(trial, options)].append(trial)
    return dict(groups) if len(groups) <= MOST_GROUPS else {"": list(trials)}


def _budgets(trials: Sequence[Trial]) -> list[list[Trial]]:
    budgets: list[list[Trial]] = []
    for trial in sorted(trials, key=lambda trial: trial.flops):
        if not budgets or trial.flops > SAME_BUDGET * budgets[-1][0].flops:
            budgets.append([])
        budgets[-1].append(trial)
    return budgets
