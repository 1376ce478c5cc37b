"""How figures are drawn: their colours, axes, marks and legends.

Groups differ in colour and in marker: the palette is that of
Okabe & Ito (2008), which the colour-blind can tell apart, and nobody needs colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.report.wording import cell, number, plain

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
QUIET = "#6b7280"
DPI = 160
# An axis over positive values that span this factor is logarithmic.
LOG_FROM = 8.0
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}


def is_number(value: Any) -> bool:
    value = plain(value)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def rank(value: Any) -> tuple[int, float, str]:
    """What values of any kinds are sorted by: numbers by size, before all else by its text."""
    return (0, float(value), "") if is_number(value) else (1, 0.0, cell(value))


def is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) >= LOG_FROM * min(values)


def option_axis(axes: Axes, values: Sequence[Any]) -> Callable[[Any], float]:
    """Make the x axis one of these values; returns what tells a value's place on it."""
    if all(map(is_number, values)):
        scale(axes.xaxis, values)
        return float
    ordered = list(dict.fromkeys(cell(value) for value in sorted(values, key=rank)))
    axes.set_xticks(range(len(ordered)), [drawable(text, 20) for text in ordered])
    return lambda value: float(ordered.index(cell(value)))


def upright(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Heights in [0, 1] of the values, and (height, text) of ticks that do not overlap."""
    if all(map(is_number, values)):
        sizes = [math.log(value) if is_wide(values) else float(value) for value in values]
    else:
        order = list(dict.fromkeys(cell(value) for value in sorted(values, key=rank)))
        sizes = [float(order.index(cell(value))) for value in values]
    low, span = min(sizes), max(sizes) - min(sizes)
    heights = [(size - low) / span if span else 0.5 for size in sizes]
    texts = {
        height: number(value, 3) if is_number(value) else cell(value)
        for height, value in zip(heights, values, strict=True)
    }
    ticks: list[tuple[float, str]] = []
    for height in sorted(texts, key=lambda height: (height not in (0.0, 1.0), height)):
        if all(abs(height - other) > 0.08 for other, _ in ticks):
            ticks.append((height, texts[height]))
    return heights, ticks


def new(title: str, x_label: str, y_label: str) -> tuple[Figure, Axes]:
    # The object interface: pyplot keeps a global state that threads and servers trip over.
    figure = Figure(figsize=(7.2, 4.3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_title(drawable(title, 90), fontsize=11, fontweight="bold", loc="left")
    axes.set_xlabel(drawable(x_label, 90))
    axes.set_ylabel(drawable(y_label, 90))
    axes.grid(color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def scale(axis: Axis, values: Sequence[float], logarithmic: bool = False) -> None:
    """Make an axis logarithmic where asked or where the values are wide, with plain numbers at its ticks."""
    if logarithmic or is_wide(values):
        set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale  # type: ignore[attr-defined]
        set_scale("log")
        span = max(values) / min(values)
        # Powers of ten alone leave a narrow axis without a single number.
        between = (1.0, 2.0, 5.0) if span < 1000 else (1.0,)
        # Round numbers are closest to each other at an axis' end: more of them would touch there.
        few = ticker.MaxNLocator(5, steps=[1, 2, 2.5, 5, 10])
        axis.set_major_locator(few if span < LOG_FROM else ticker.LogLocator(subs=between))
        axis.set_minor_formatter(ticker.NullFormatter())
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: number(value)))


def style_of(place: int) -> dict[str, Any]:
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}


def marks(axes: Axes, filled: Sequence[bool], x: Sequence[float], y: Sequence[float], place: int, name: str) -> None:
    """Points of one group; those that are not filled are hollow."""
    style = style_of(place)
    for point, full in enumerate(filled):
        face = style["color"] if full else "white"
        axes.plot(x[point], y[point], linestyle="none", markerfacecolor=face, **style)
    axes.plot([], [], linestyle="none", label=drawable(name), **style)


def finish(figure: Figure, axes: Axes, hollow: str = "") -> Figure:
    """Add the legend below, with an entry for what hollow marks mean, if that is given."""
    handles, labels = axes.get_legend_handles_labels()
    if hollow:
        handles.append(Line2D([], [], linestyle="none", marker="o", color=QUIET, markerfacecolor="white"))
        labels.append(hollow)
    if labels:
        columns = max(1, min(4, len(labels), 115 // (max(map(len, labels)) + 6)))
        # A long legend makes the figure taller, not the axes smaller.
        figure.set_figheight(figure.get_figheight() + 0.18 * math.ceil(len(labels) / columns))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    # Laid out anew at each drawing, the same figure would not give the same bytes twice.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def drawable(text: str, limit: int = 48) -> str:
    """Text as matplotlib shall draw it: no formulas between dollars, no label hidden by its first underscore."""
    text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")
