"""Figures of an evaluation, in the manner of the paper's, with the user's numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.special import logit

from orchestrator.evaluate.analyses import ensemble_score
from orchestrator.evaluate.shift import as_pair
from orchestrator.report import drawing
from orchestrator.report.drawing import PALETTE, QUIET, drawable
from orchestrator.statistics.power_law import PowerLaw

Sets = Mapping[str, Mapping[str, Any]]


def wordings(sets: Sets) -> Figure | None:
    """Zero-shot scores of each set by how its classes are worded, and the probe's where there is one."""
    shown = {name: result for name, result in sets.items() if "zero_shot" in result or "probe" in result}
    if not shown:
        return None
    figure, axes = drawing.new("Zero-shot and linear probe", "", "the set's metric (%)")
    scores = {
        name: {key: one["score"] for key, one in result.get("zero_shot", {}).get("wordings", {}).items()}
        | ({"linear probe": result["probe"]["score"]} if "probe" in result else {})
        for name, result in shown.items()
    }
    kinds = list(dict.fromkeys(kind for one in scores.values() for kind in one))
    for place, kind in enumerate(kinds):
        at = [(row, one[kind]) for row, one in enumerate(scores.values()) if kind in one]
        x_D = np.array([row for row, _ in at]) + (place - (len(kinds) - 1) / 2) * 0.8 / len(kinds)
        y_D = np.array([score["value"] for _, score in at])
        ends_2D = np.array([score["interval"] for _, score in at], float).T
        reach_2D = np.abs(np.nan_to_num(ends_2D - y_D))
        axes.bar(x_D, 100 * y_D, 0.8 / len(kinds), color=PALETTE[place], label=kind)
        axes.errorbar(x_D, 100 * y_D, yerr=100 * reach_2D, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    axes.set_xticks(range(len(scores)), [drawable(name, 24) for name in scores], rotation=30, ha="right", fontsize=8)
    axes.set_ylim(0, 100)
    return drawing.finish(figure, axes)


def few_shot(name: str, result: Mapping[str, Any]) -> Figure | None:
    """A set's few-shot curve beside the zero-shot line and the probe of all examples."""
    if "few_shot" not in result:
        return None
    found = result["few_shot"]
    figure, axes = drawing.new(f"Few-shot probes of {name}", "labelled examples a class", "the set's metric (%)")
    y_S = np.array([one["value"] for one in found["curve"]])
    ends_S2 = np.array(
        [[y if end is None else end for end in one["interval"]] for y, one in zip(y_S, found["curve"], strict=True)]
    )
    axes.plot(
        found["shots"], 100 * y_S, label="linear probe, mean over draws and its 95% interval", **drawing.style_of(0)
    )
    axes.fill_between(found["shots"], *(100 * ends_S2.T), color=PALETTE[0], alpha=0.2, linewidth=0)
    if "zero_shot" in result:
        axes.axhline(100 * ensemble_score(result), color=PALETTE[1], linestyle="--", label="zero-shot, prompt ensemble")
    axes.axhline(
        100 * result["probe"]["score"]["value"], color=QUIET, linestyle=":", label="linear probe, all examples"
    )
    axes.set_xscale("log", base=2)
    axes.set_xticks(found["shots"], [str(shot) for shot in found["shots"]])
    axes.minorticks_off()
    return drawing.finish(figure, axes)


def headroom(sets: Sets) -> Figure | None:
    """Zero-shot against full supervision on the same features, one mark a set."""
    shown = {name: result for name, result in sets.items() if "probe" in result and "zero_shot" in result}
    if len(shown) < 2:
        return None
    figure, axes = drawing.new("Zero-shot against full supervision", "linear probe (%)", "zero-shot, ensemble (%)")
    for name, result in shown.items():
        x, y = 100 * result["probe"]["score"]["value"], 100 * ensemble_score(result)
        axes.plot(x, y, "o", color=PALETTE[0])
        axes.annotate(drawable(name, 24), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.plot([0, 100], [0, 100], color=QUIET, linestyle="--", label="equal")
    return drawing.finish(figure, axes)


def difficulty(name: str, classes: Sequence[Mapping[str, Any]]) -> Figure | None:
    """What people and a model get right of each class, one mark a class."""
    if not classes:
        return None
    figure, axes = drawing.new(f"Difficulty of {name}, class by class", "people (%)", "model (%)")
    x, y = (100 * np.array([row[who] for row in classes]) for who in ("people", "model"))
    axes.plot(x, y, "o", color=PALETTE[0], alpha=0.6)
    axes.plot([0, 100], [0, 100], color=QUIET, linestyle="--", label="equal")
    return drawing.finish(figure, axes)


def robustness(
    models: Mapping[str, Mapping[str, Mapping[str, Any]]],
    line: tuple[float, float] | None,
    papers: Mapping[str, Sequence[tuple[float, float]]],
) -> Figure | None:
    """Accuracy under shift against accuracy without it, on logit axes.

    Parameters
    ----------
    models : of each model its pairs, {pair: {standard, shifted}}
    line : slope and intercept of a line through all marks in logits; None: not drawn
    papers : marks of the paper's classifiers, accuracies without the shift and under it
    """
    points = {
        model: [tuple(count.inner_accuracy for count in as_pair(one)) for one in pairs.values()]
        for model, pairs in models.items()
        if pairs
    }
    if not points:
        return None
    figure, axes = drawing.new(
        "Robustness to natural distribution shift", "accuracy without the shift (%)", "under the shift (%)"
    )

    for place, (model, pairs) in enumerate(points.items()):
        x, y = np.array(pairs).T
        axes.plot(logit(x), logit(y), linestyle="none", label=drawable(model, 32), **drawing.style_of(place))
    for place, (who, marks) in enumerate(papers.items(), len(points)):
        x, y = logit(np.array(marks)).T
        marker = drawing.style_of(place)["marker"]
        label = f"the paper's {who}"
        axes.plot(x, y, linestyle="none", label=label, color=QUIET, marker=marker, markerfacecolor="white")
    every = logit(np.array([point for pairs in [*points.values(), *papers.values()] for point in pairs]))
    ends = np.array([every.min() - 0.3, every.max() + 0.3])
    axes.plot(ends, ends, color=QUIET, linestyle="--", label="as well as without it")
    if line is not None:
        axes.plot(ends, line[0] * ends + line[1], color="black", linewidth=0.8, label="line through all models")
    ticks = [
        share
        for share in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
        if ends[0] <= logit(share) <= ends[1]
    ]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(logit(ticks), [f"{100 * share:g}" for share in ticks])
    return drawing.finish(figure, axes)


def scaling(compute: Mapping[str, float], error: Mapping[str, float], law: PowerLaw) -> Figure | None:
    """Mean error against the image tower's compute, both logarithmic, one mark a model."""
    figure, axes = drawing.new("Error against compute", "image tower, FLOPs a picture", "mean error, 1 - score (%)")
    for place, model in enumerate(compute):
        axes.plot(
            compute[model], 100 * error[model], linestyle="none", label=drawable(model, 32), **drawing.style_of(place)
        )
    if not law.reason:
        x = np.geomspace(min(compute.values()), max(compute.values()), 50)
        value, low, high = law.predict(x)
        axes.plot(x, 100 * value, color=QUIET, label="power law and its 95% interval")
        axes.fill_between(x, 100 * low, 100 * high, color=QUIET, alpha=0.2, linewidth=0)
    drawing.scale(axes.xaxis, list(compute.values()), logarithmic=True)
    drawing.scale(axes.yaxis, [100 * one for one in error.values()], logarithmic=True)
    return drawing.finish(figure, axes)
