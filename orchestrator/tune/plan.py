"""How a study goes about its question: which search proposes its settings, and that they can be run."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

from ray.tune.search import Searcher

from orchestrator.config import ConfigError
from orchestrator.tune.comparison import setting_key
from orchestrator.tune.population import Population
from orchestrator.tune.question import Question
from orchestrator.tune.search import OptunaThenSeeds, Setting, SettingsThenSeeds, searched
from orchestrator.tune.space import corners, draws, grid
from orchestrator.tune.study import Study

SEARCHES = ("settings", "grid", "random", "optuna", "population")
# Points that stand for those that a search has yet to find.
EXAMPLES = 64


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study that is about to begin.

    Parameters
    ----------
    question : that it asks
    search : proposes its trials
    examples : settings that it proposes, or such as it may propose
    trials : that it proposes in all
    """

    question: Question
    search: Searcher
    examples: list[Setting]
    trials: int


def make_plan(study: Study, question: Question, method: str, trials: int, rounds: int = 1) -> Plan:
    """Choose the search.

    Parameters
    ----------
    study : whose configuration the settings change
    question : what to find
    method : settings (the question's own), a search of its space (grid, random, or optuna), or population (of its own
        settings, which change on their way)
    trials : of the study; a third of them are further seeds, or what the question's own settings or the grid leave.
        Of a population: its members
    rounds : of a population, each of which makes a trial of every member

    Raises
    ------
    ConfigError : fewer trials than the grid has settings, or a setting that cannot be run
    """
    seed = study.base.run.seed
    search: Searcher
    if method == "population":
        examples = [*question.settings(), *corners(question.space())]
        search = Population(question.settings(), question.space(), rounds, seed)
    elif method == "optuna":
        search = OptunaThenSeeds(
            question.space(), question.setting, question.references(), trials, seed, question.group
        )
        points = [*question.references(), *corners(question.space())]
        points += itertools.islice(draws(question.space(), seed), EXAMPLES)
        examples = _distinct(map(question.setting, points))
    else:
        examples = question.settings() if method == "settings" else _proposed(question, method, trials, seed)
        if trials < len(examples):
            raise ConfigError(
                f"--trials {trials}: the grid has {len(examples)} settings, the reference among them; raise it to "
                "that, or choose --search random or optuna"
            )
        search = SettingsThenSeeds(examples, trials, seed, question.group)
    for place, setting in enumerate(examples):
        study.config(setting, f"{place:03d}", seed)
    return Plan(question, search, examples, trials * rounds)


def _proposed(question: Question, method: str, trials: int, seed: int) -> list[Setting]:
    space, references, enough = question.space(), question.references(), searched(trials)
    if method == "grid":
        return _distinct(map(question.setting, [*references, *grid(space, enough - len(references))]))
    # A space of choices alone may have fewer settings than there are trials.
    some = itertools.islice(draws(space, seed), 100 * enough)
    return _distinct(map(question.setting, itertools.chain(references, some)), max(enough, len(references)))


def _distinct(settings: Iterable[Setting], most: int | None = None) -> list[Setting]:
    """In the order in which they are first met."""
    found: dict[str, Setting] = {}
    for setting in settings:
        found.setdefault(setting_key(setting), setting)
        if len(found) == most:
            break
    return list(found.values())
