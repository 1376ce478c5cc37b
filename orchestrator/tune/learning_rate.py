"""Which learning rate at which time: the study whose trials are rounds of a population."""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from ray.tune.search.sample import Categorical

from orchestrator.config import Config, ConfigError
from orchestrator.report import drawing
from orchestrator.report.wording import number
from orchestrator.tune import plots
from orchestrator.tune.comparison import score
from orchestrator.tune.population import FEWEST
from orchestrator.tune.recipe import recipe
from orchestrator.tune.report import Answer
from orchestrator.tune.space import Point, Space, values
from orchestrator.tune.trial import Trial
from orchestrator.tune.vary import parse_space

LR = "optim.lr"
VARY = f"--vary {LR}=1e-4..1e-2"


class LearningRate:
    """The study of one base configuration.

    Parameters
    ----------
    base : configuration; the first member keeps its own learning rate to the end
    members : of the population
    rounds : parts that training is cut into, after each of which the worst take over the best
    varied : `optim.lr=a..b`, the range that all learning rates stay in but the base's own

    Raises
    ------
    ConfigError : too few members or rounds, or something else that is varied
    """

    title = "Which learning rate should training have, and when?"

    def __init__(self, base: Config, members: int, rounds: int, varied: Sequence[str]):
        if members < FEWEST:
            raise ConfigError(f"--trials {members}: a population needs at least {FEWEST} members")
        if rounds < 2:
            raise ConfigError(f"--rounds {rounds}: at least 2, between which the worst take over the best")
        self._base, self._space = base, parse_space(varied)
        for option, domain in self._space.items():
            if option != LR or isinstance(domain, Categorical):
                raise ConfigError(
                    f"--search population: {option} as --vary gives it cannot change while a run goes on; vary a range "
                    f"of the learning rate alone, as in {VARY}"
                )
        spread = values(self._space[LR], members - 1)
        self._settings = [{LR: rate} for rate in (base.optim.lr, *map(float, spread))]

    def settings(self) -> list[dict[str, Any]]:
        """Of the members at the start, the base's own first."""
        return self._settings

    def space(self) -> Space:
        return self._space

    def references(self) -> list[Point]:
        return self._settings[:1]

    def setting(self, point: Point) -> dict[str, Any]:
        return dict(point)

    def group(self, setting: Mapping[str, Any]) -> Hashable:
        return None

    def answer(self, trials: Sequence[Trial]) -> Answer:
        done = [trial for trial in trials if trial.state == "done" and not math.isnan(score(trial))]
        if not done:
            return Answer("Learning rate", ["No round has ended yet: there is nothing to say."], None, {})
        longest = max(trial.step for trial in done)
        done.sort(key=lambda trial: trial.name)  # Of equals the first member is the best, whichever ended first.
        ended = [_line(trial, trials) for trial in done if trial.step == longest]
        best = max(ended, key=lambda line: score(line[-1]))
        sentences = [
            f"Best: {best[-1].name}, {_result(best[-1])} after {longest} steps, with the learning rate's peak at "
            f"{_schedule(best)}.",
            self._against_the_base(best, ended),
            f"Takeovers: {sum(map(_is_takeover, trials))}; in each one of the worst went on from the newest checkpoint "
            "of one of the best, with a learning rate a fifth above or below.",
            "Members share one seed: how much of a difference is noise, only further runs can tell. A round is judged "
            "before its learning rate has decayed, which favours low ones.",
        ]
        failed = sum(trial.state == "failed" for trial in trials)
        if failed:
            sentences.append(f"{failed} of {len(trials)} rounds of members failed; the table says why.")
        rows = {"The winner's learning rate": _rows(best), "Takeovers": _takeover_rows(trials)}
        tables = {title: found for title, found in rows.items() if found}
        return Answer("Learning rate", sentences, self._recipe(best), tables)

    def _against_the_base(self, best: Sequence[Trial], ended: Sequence[Sequence[Trial]]) -> str:
        for line in ended:
            if all(_member(trial) == 0 for trial in line):
                if line is best:
                    return "That is the base configuration's own learning rate, kept to the end; none did better."
                difference = score(best[-1]) - score(line[-1])
                return f"Over the base's own, {LR}={number(self._base.optim.lr)} to the end: {difference:+.4f}."
        return "The base configuration's own learning rate has not come as far: there is nothing to hold it against."

    def _recipe(self, best: Sequence[Trial]) -> str:
        note = (
            f"# The winner's {LR} changed on its way: {_schedule(best)}.\n"
            f"# A recipe has one, and this is the last: a run of it is not the winner's. The winner's model is\n"
            f"# {best[-1].run}/final in the study's folder.\n"
        )
        return note + recipe(self._base, best[-1].setting, "population")

    def figures(self, trials: Sequence[Trial]) -> Mapping[str, Figure | None]:
        return {"The learning rates of all members": _picture(trials), "Loss on its way": plots.paths(trials, "loss")}


def _line(trial: Trial, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that it goes on from, the first round's first, and itself."""
    by_name = {one.name: one for one in trials}
    line = [trial]
    while line[0].parent in by_name:
        line.insert(0, by_name[line[0].parent])
    return line


def _member(trial: Trial) -> int:
    return int(trial.name.partition("-")[0])


def _is_takeover(trial: Trial) -> bool:
    return bool(trial.parent) and _member(trial) != int(trial.parent.partition("-")[0])


def _result(trial: Trial) -> str:
    return f"loss {trial.loss:.4f}" if math.isnan(trial.accuracy) else f"accuracy {trial.accuracy:.4f}"


def _schedule(line: Sequence[Trial]) -> str:
    parts = itertools.groupby(line, key=lambda trial: trial.setting[LR])
    return ", ".join(f"{number(rate)} to step {list(part)[-1].step:,}" for rate, part in parts)


def _rows(line: Sequence[Trial]) -> list[dict[str, Any]]:
    starts = [0, *(trial.step for trial in line)]
    return [
        {
            "trial": trial.name, "from step": start, "to step": trial.step, "peak learning rate": trial.setting[LR],
            "loss": trial.loss, "accuracy": trial.accuracy,
        }
        for start, trial in zip(starts, line, strict=False)
    ]  # fmt: skip


def _takeover_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    by_name = {trial.name: trial for trial in trials}
    return [
        {
            "trial": trial.name, "took over": trial.parent, "at step": by_name[trial.parent].step,
            "its learning rate": by_name[trial.parent].setting[LR], "then": trial.setting[LR],
        }
        for trial in sorted(trials, key=lambda trial: trial.name.split("-")[1::-1])
        if _is_takeover(trial) and trial.parent in by_name
    ]  # fmt: skip


def _picture(trials: Sequence[Trial]) -> Figure | None:
    """Peak learning rates against the step, a line a member, ringed where it took over another's checkpoint."""
    by_name = {trial.name: trial for trial in trials}
    shown = [trial for trial in trials if trial.step and (not trial.parent or trial.parent in by_name)]
    if not shown:
        return None
    figure, axes = drawing.new("The learning rates of all members", "optimiser step", f"{LR}, at its peak")
    for place in sorted({_member(trial) for trial in shown}):
        own = sorted((trial for trial in shown if _member(trial) == place), key=lambda trial: trial.step)
        edges = [(by_name[t.parent].step if t.parent else 0, t.step) for t in own]
        steps = [step for pair in edges for step in pair]
        axes.plot(
            steps, [t.setting[LR] for t in own for _ in range(2)], markevery=2, label=f"member {place}",
            **drawing.style_of(place),
        )  # fmt: skip
        taken = [(start, t.setting[LR]) for (start, _), t in zip(edges, own, strict=True) if _is_takeover(t)]
        if taken:
            axes.plot(*zip(*taken, strict=True), "o", markersize=12, markerfacecolor="none", color=drawing.QUIET)
    drawing.scale(axes.yaxis, [trial.setting[LR] for trial in shown])
    return drawing.finish(figure, axes)
