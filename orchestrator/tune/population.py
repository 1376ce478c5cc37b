"""Population-based training: members that differ in their learning rate, the worst of which go on as the best do.

Training is cut into rounds, and each member's part of a round is a trial with a run folder of its own that begins with
a copy of a checkpoint: its own of the round before or, of a member that was among the worst, that of one of the best.
So a takeover is nothing but another parent, no two processes write into one folder, members need not train side by
side, and what is done is never made again.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from orchestrator.config import ConfigError
from orchestrator.tune.comparison import setting_key
from orchestrator.tune.space import Space, clipped
from orchestrator.tune.trial import score_of

# Of the population: so many of the worst are replaced by as many of the best.
SHARE = 0.25
FACTORS = (0.8, 1.2)
# Members with which one of the worst takes over one of the best and the reference is neither.
FEWEST = 3

Spec = dict[str, Any]


def takeovers(scores: Sequence[float], rng: random.Random) -> dict[int, int]:
    """Which member goes on as which other.

    Parameters
    ----------
    scores : of a round, by member; large is good, NaN: failed. The first member is the reference: it goes on as it is
        for as long as it does not fail
    rng : chooses among the best

    Returns
    -------
    {one of the worst: one of the best}; all that failed are among the worst. Empty where nobody is left to go on from

    Source: truncation selection, Jaderberg et al. 2017, Population Based Training of Neural Networks, section 4.1.
    """
    ranked = sorted((place for place, score in enumerate(scores) if not math.isnan(score)), key=lambda p: -scores[p])
    failed = [place for place, score in enumerate(scores) if math.isnan(score)]
    if not ranked:
        return {}
    count = max(1, math.floor(SHARE * len(scores)))
    best = ranked[:count]
    worst = [place for place in reversed(ranked) if place and place not in best][: max(0, count - len(failed))]
    return {place: rng.choice(best) for place in sorted([*failed, *worst])}


def perturbed(setting: Mapping[str, Any], space: Space, rng: random.Random) -> dict[str, Any]:
    """A setting with each number of the space a fifth larger or smaller, kept within its range.

    At the end of its range a number goes the way that is left: a copy that is not changed would be trained twice.

    Source: Jaderberg et al. 2017, section 4.1 (explore: perturb).
    """
    moved = {}
    for name, domain in space.items():
        tried = [float(f"{setting[name] * factor:.4g}") for factor in FACTORS]
        allowed = [clipped({name: domain}, {name: value})[name] for value in tried]
        moved[name] = rng.choice([value for value in allowed if value != setting[name]])
    return {**setting, **moved}


def round_end(total_steps: int, number: int, rounds: int) -> int:
    """The optimiser step after which a round, counted from 0, ends."""
    return total_steps * (number + 1) // rounds


def check_rounds(rounds: int, total_steps: int) -> None:
    """Raise ConfigError where a round would be without a step."""
    if rounds > total_steps:
        raise ConfigError(
            f"--rounds {rounds}: more than the {total_steps} optimiser steps of a run; lower it or train for longer"
        )


class Population(Searcher):
    """Proposes {setting, name, seed, parent, round, rounds}: every member's part of a round, then those of the next.

    All members have one seed: they begin with the same weights, see the same data and differ in their settings alone.
    The same scores give the same proposals, so that a study that was cut off finds the folders that it has made.

    Parameters
    ----------
    settings : of the members at the start, the reference first
    space : of what is perturbed
    rounds : parts of training, at least 1
    seed : of all members, and of the choices between them

    Raises
    ------
    ValueError : fewer than 3 members, or no round
    """

    kept = ("_planned", "_number", "_scores")

    def __init__(self, settings: Sequence[Mapping[str, Any]], space: Space, rounds: int, seed: int = 0):
        super().__init__(metric="loss", mode="min")
        if len(settings) < FEWEST or rounds < 1:
            raise ValueError(f"{len(settings)} members in {rounds} rounds: at least {FEWEST} in 1")
        self._space, self._rounds, self._seed, self._members = space, rounds, seed, len(settings)
        self._planned = [self._spec(0, place, setting, "") for place, setting in enumerate(settings)]
        self._number: dict[str, int] = {}  # of a proposal, by Tune's name for the trial
        # A trial that is made again after the next round was planned changes its own round's scores only.
        self._scores: list[dict[int, float]] = [{} for _ in range(rounds)]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        number = len(self._number)
        if number == self._members * self._rounds:
            return Searcher.FINISHED
        if number == len(self._planned):
            ended = self._scores[number // self._members - 1]
            if len(ended) < self._members:
                return None
            following = self._plan(number // self._members, [ended[place] for place in range(self._members)])
            if not following:
                return Searcher.FINISHED
            self._planned += following
        self._number[trial_id] = number
        return self._planned[number]

    def _plan(self, round_: int, scores: Sequence[float]) -> list[Spec]:
        before = self._planned[-self._members :]
        rng = random.Random(f"{self._seed}/{round_}")
        if all(math.isnan(score) for score in scores):
            return []
        taken = takeovers(scores, rng)
        specs = []
        for place in range(self._members):
            donor = before[taken.get(place, place)]
            setting = perturbed(donor["setting"], self._space, rng) if place in taken else donor["setting"]
            specs.append(self._spec(round_, place, setting, donor["name"]))
        return specs

    def _spec(self, round_: int, place: int, setting: Mapping[str, Any], parent: str) -> Spec:
        # A study that was cut off may have forgotten its last seconds, and scores that were made again may differ: a
        # trial must not go on in the folder of one that had another setting or another parent.
        line = hashlib.sha256(f"{parent} {setting_key(setting)}".encode()).hexdigest()[:6]
        return {
            "setting": dict(setting), "name": f"{place:03d}-round{round_ + 1}-{line}", "seed": self._seed,
            "parent": parent, "round": round_, "rounds": self._rounds,
        }  # fmt: skip

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        round_, place = divmod(self._number[trial_id], self._members)
        self._scores[round_][place] = score_of({} if error or not result else result)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps({key: vars(self)[key] for key in self.kept}))

    def restore(self, checkpoint_path: str) -> None:
        vars(self).update(pickle.loads(Path(checkpoint_path).read_bytes()))
