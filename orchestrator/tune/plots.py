"""Figures of a study, drawn from its trials.

Only trials that are done or stopped, with finite values, are drawn; where there are none a figure is None. A stopped
trial's mark is hollow and its line dashed. Groups differ in colour and in marker: the palette is that of Okabe & Ito
(2008), which the colour-blind can tell apart, and nobody needs colour alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean, stdev
from typing import Any, Literal, Protocol

import numpy as np
from matplotlib import colormaps, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.tune.trial import Trial
from orchestrator.tune.wording import cell, differing, label, number, plain, short_names

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
QUIET = "#6b7280"
DPI = 160
# More groups than a legend can name are drawn as one.
MOST_GROUPS = 14
# Budgets whose operations differ by less are one budget: a whole number of steps never meets it exactly.
SAME_BUDGET = 1.25
# An axis over positive values that span this factor is logarithmic.
LOG_FROM = 8.0
UNITS = {
    "image_size": "pixels a side",
    "patch_size": "pixels a side",
    "width": "channels",
    "embed_dim": "channels",
    "layers": "blocks",
    "warmup_steps": "steps",
    "vocab_size": "entries",
}
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
    figure, axes = _new("Loss against training compute", COMPUTE, LOSS)
    compute = [trial.flops for trial in shown]
    if fit is not None:
        x = np.geomspace(min(compute), max(compute), 100)
        y, low, high = fit.predict(x)
        if np.isfinite(y).any():
            axes.fill_between(x, low, high, color=QUIET, alpha=0.2, linewidth=0, label="interval of the fit")
            axes.plot(x, y, color=QUIET, label="fit")
    for place, (name, group) in enumerate(_groups(shown, differing(shown), label).items()):
        _marks(axes, group, [trial.flops for trial in group], [trial.loss for trial in group], place, name)
    _scale(axes.xaxis, compute, logarithmic=True)
    _scale(axes.yaxis, [trial.loss for trial in shown], logarithmic=True)
    return _finish(figure, axes, shown)


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
    figure, axes = _new(f"Zero-shot accuracy against {_name(option)}", _with_unit(option), ACCURACY)
    place_of = _option_axis(axes, [trial.setting[option] for trial in shown])
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
                label=_text(name or ("mean ± standard deviation over seeds" if any(spread) else "")),
                **_style(place),
            )
        pairs = [(x, y) for x, values in points for y in values]
        axes.plot(*zip(*pairs, strict=True), ".", color=_style(place)["color"], alpha=0.5)
    return _finish(figure, axes)


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
    figure, axes = _new(f"{title} during training", "optimiser step", y_label)
    for place, (name, group) in enumerate(_groups(shown, differing(shown)).items()):
        for row, trial in enumerate(group):
            axes.plot(
                *zip(*lines[id(trial)], strict=True),
                linestyle="-" if trial.state == "done" else "--",
                linewidth=1.2,
                markersize=4,
                markevery=0.15,
                label=_text(name) if row == 0 else "",
                **_style(place),
            )
    if what == "logit_scale":
        _scale(axes.yaxis, [y for trial in shown for _, y in lines[id(trial)]])
    return _finish(figure, axes)


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
    figure, axes = _new(f"Loss against {_name(option)} at equal compute", _with_unit(option), LOSS)
    place_of = _option_axis(axes, [trial.setting[option] for trial in shown])
    for place, group in enumerate(_budgets(shown)):
        at: dict[float, list[float]] = defaultdict(list)
        for trial in group:
            at[place_of(trial.setting[option])].append(trial.loss)
        points = [(x, fmean(losses)) for x, losses in sorted(at.items())]
        budget = geometric_mean([trial.flops for trial in group])
        axes.plot(*zip(*points, strict=True), label=f"{number(budget, 2)} FLOPs", **_style(place))
        x, y = min(points, key=lambda point: point[1])
        axes.plot(x, y, "o", markersize=12, markerfacecolor="none", markeredgecolor=_style(place)["color"])
    return _finish(figure, axes)


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
    columns = [_upright([trial.setting[option] for trial in shown]) for option in options]
    heights, ticks = _upright([trial.loss for trial in shown])
    columns.append(([1 - height for height in heights], [(1 - height, text) for height, text in ticks]))
    names.append(f"{LOSS},\nlowest on top")
    measured = [trial for trial in shown if math.isfinite(trial.accuracy)]
    if measured:
        heights, ticks = _upright([100 * trial.accuracy for trial in measured])
        by_trial = {id(trial): height for trial, height in zip(measured, heights, strict=True)}
        columns.append(([by_trial.get(id(trial), math.nan) for trial in shown], ticks))
        names.append(ACCURACY.replace(" accuracy", "\naccuracy"))
    figure, axes = _new(f"Settings and results of {len(shown)} trials", "", "")
    axes.grid(False)
    axes.set(xlim=(-0.15, len(columns) - 0.55), ylim=(-0.06, 1.06), yticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks(range(len(columns)), [_text(name, 60) for name in names], fontsize=8)
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
                "label": _text(f"best: {trial.name}"),
            }
        axes.plot(line, **style)
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color=QUIET, linewidth=0.8)
        for height, text in ticks:
            axes.text(place + 0.03, height, _text(text, 24), fontsize=7, va="center", zorder=4, bbox=_PAPER)
    return _finish(figure, axes)


_PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}


def _measured(trials: Sequence[Trial], *values: str) -> list[Trial]:
    """Trials that have come to an end, with finite values of these names."""
    ended = [trial for trial in trials if trial.state in ("done", "stopped")]
    return [trial for trial in ended if all(math.isfinite(getattr(trial, value)) for value in values)]


def _groups(
    trials: Sequence[Trial], options: Sequence[str], group_of: Callable[[Trial], str] | None = None
) -> dict[str, list[Trial]]:
    """Trials by group, in the order of their options' values; one nameless group where there are too many."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in sorted(trials, key=lambda trial: [_rank(trial.setting.get(option)) for option in options]):
        groups[group_of(trial) if group_of else label(trial, options)].append(trial)
    return dict(groups) if len(groups) <= MOST_GROUPS else {"": list(trials)}


def _budgets(trials: Sequence[Trial]) -> list[list[Trial]]:
    budgets: list[list[Trial]] = []
    for trial in sorted(trials, key=lambda trial: trial.flops):
        if not budgets or trial.flops > SAME_BUDGET * budgets[-1][0].flops:
            budgets.append([])
        budgets[-1].append(trial)
    return budgets


def _is_number(value: Any) -> bool:
    value = plain(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _rank(value: Any) -> tuple[int, float, str]:
    """What values of any kinds are sorted by: numbers by size, before all else by its text."""
    return (0, float(value), "") if _is_number(value) else (1, 0.0, cell(value))


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) >= LOG_FROM * min(values)


def _option_axis(axes: Axes, values: Sequence[Any]) -> Callable[[Any], float]:
    """Make the x axis one of these values; returns what tells a value's place on it."""
    if all(map(_is_number, values)):
        _scale(axes.xaxis, values)
        return float
    ordered = list(dict.fromkeys(cell(value) for value in sorted(values, key=_rank)))
    axes.set_xticks(range(len(ordered)), [_text(text, 20) for text in ordered])
    return lambda value: float(ordered.index(cell(value)))


def _upright(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights in [0, 1] of the values, and (height, text) of ticks that do not overlap."""
    if all(map(_is_number, values)):
        sizes = [math.log(value) if _is_wide(values) else float(value) for value in values]
    else:
        order = list(dict.fromkeys(cell(value) for value in sorted(values, key=_rank)))
        sizes = [float(order.index(cell(value))) for value in values]
    low, span = min(sizes), max(sizes) - min(sizes)
    heights = [(size - low) / span if span else 0.5 for size in sizes]
    texts = {
        height: number(value, 3) if _is_number(value) else cell(value)
        for height, value in zip(heights, values, strict=True)
    }
    ticks: list[tuple[float, str]] = []
    for height in sorted(texts, key=lambda height: (height not in (0.0, 1.0), height)):
        if all(abs(height - other) > 0.08 for other, _ in ticks):
            ticks.append((height, texts[height]))
    return heights, ticks


def _new(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    # The object interface: pyplot keeps a global state that threads and servers trip over.
    figure = Figure(figsize=(7.2, 4.3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(_text(title, 90), fontsize=11, fontweight="bold", loc="left")
    axes.set_xlabel(_text(x_label, 90))
    axes.set_ylabel(_text(y_label, 90))
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _scale(axis: Axis, values: Sequence[float], logarithmic: bool = False) -> None:
    """Make an axis logarithmic where asked or where the values are wide, with plain numbers at its ticks."""
    if logarithmic or _is_wide(values):
        set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale  # type: ignore[attr-defined]
        set_scale("log")
        span = max(values) / min(values)
        # Powers of ten alone leave a narrow axis without a single number.
        between = (1.0, 2.0, 5.0) if span < 1000 else (1.0,)
        axis.set_major_locator(ticker.AutoLocator() if span < LOG_FROM else ticker.LogLocator(subs=between))
        axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value)))


def _style(place: int) -> dict[str, Any]:
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}


def _marks(axes: Axes, trials: Sequence[Trial], x: Sequence[float], y: Sequence[float], place: int, name: str) -> None:
    style = _style(place)
    for point in range(len(trials)):
        face = style["color"] if trials[point].state == "done" else "white"
        axes.plot(x[point], y[point], linestyle="none", markerfacecolor=face, **style)
    axes.plot([], [], linestyle="none", label=_text(name), **style)


def _finish(figure: Figure, axes: Axes, marked: Sequence[Trial] = ()) -> Figure:
    """Add the legend below, with an entry for hollow marks where one of the marked trials has one."""
    handles, labels = axes.get_legend_handles_labels()
    if any(trial.state == "stopped" for trial in marked):
        handles.append(Line2D([], [], linestyle="none", marker="o", color=QUIET, markerfacecolor="white"))
        labels.append("stopped early")
    if labels:
        columns = max(1, min(4, len(labels), 115 // (max(map(len, labels)) + 6)))
        # A long legend makes the figure taller, not the axes smaller.
        figure.set_figheight(figure.get_figheight() + 0.18 * math.ceil(len(labels) / columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    # Laid out anew at each drawing, the same figure would not give the same bytes twice.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def _name(option: str) -> str:
    return option.rsplit(".", 1)[-1].replace("_", " ")


def _with_unit(option: str) -> str:
    unit = UNITS.get(option.rsplit(".", 1)[-1])
    return f"{option} ({unit})" if unit else option


def _text(text: str, limit: int = 48) -> str:
    """Text as matplotlib shall draw it: no formulas between dollars, no label hidden by its first underscore."""
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")
