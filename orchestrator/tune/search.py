"""Which trial comes next: what a search proposes, then more seeds where the answer is closer than the noise."""

from __future__ import annotations

import hashlib
import itertools
import math
import pickle
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from orchestrator.tune.comparison import setting_key
from orchestrator.tune.space import Point, Space, contains, draws
from orchestrator.tune.trial import score_of

Setting = dict[str, Any]
# Random points among which one is sought that was not tried.
DRAWS = 200


class SettingsThenSeeds(Searcher):
    """Proposes {setting, name, seed}.

    When all settings were tried, the next trial is another seed of the one that has the fewest among each group's best
    `contenders` and its reference: their order is what the study is about, and noise may have made it. A setting whose
    first run was to the last bit that of a better one or of an earlier one (a bound that was never met) gets none.

    Parameters
    ----------
    settings : to try
    trials : in all, at least one a setting
    seed : of the first trial of each setting; others count up from it
    group : the group within which a setting is compared; the first setting of a group is the reference that a winner is
        held against. None: one group
    contenders : settings of a group that get more seeds, besides the reference

    Raises
    ------
    ValueError : fewer trials than settings, or no setting
    """

    kept: tuple[str, ...] = ("_settings", "_place", "_seeds", "_outcomes", "_ended")

    def __init__(
        self,
        settings: Sequence[Mapping[str, Any]],
        trials: int,
        seed: int = 0,
        group: Callable[[Setting], Hashable] = lambda setting: None,
        contenders: int = 2,
    ):
        super().__init__(metric="loss", mode="min")
        if not settings:
            raise ValueError("a study needs at least one setting")
        if trials < len(settings):
            raise ValueError(f"{trials} trials are fewer than the {len(settings)} settings; raise them")
        self._trials, self._seed, self._group, self._contenders = trials, seed, group, contenders
        self._own = len(settings)  # trials that are not further seeds
        self._settings = [dict(setting) for setting in settings]
        self._place: dict[str, int] = {}  # of the setting that a trial has, by Tune's name for the trial
        self._seeds = [0] * len(settings)
        self._outcomes: list[list[tuple[float, float]]] = [[] for _ in settings]  # (score, loss) of each seed
        self._ended: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if len(self._place) >= self._trials:
            return Searcher.FINISHED
        if len(self._place) < self._own:
            place = self._propose(trial_id)
        elif any(not seeds for seeds in self._outcomes) and len(self._ended) < len(self._place):
            return None  # The contenders are known once every setting has ended once.
        else:
            place = self._next_place()
        self._place[trial_id] = place
        seed = self._seed + self._seeds[place]
        self._seeds[place] += 1
        return {"setting": self._settings[place], "name": f"{self._name(place)}-{seed}", "seed": seed}

    def _propose(self, trial_id: str) -> int:
        """The place of a setting that a trial is the first of."""
        return len(self._place)

    def _name(self, place: int) -> str:
        return f"{place:03d}"

    def _next_place(self) -> int:
        groups: dict[Hashable, list[int]] = {}
        for place, setting in enumerate(self._settings):
            groups.setdefault(self._group(setting), []).append(place)
        ranked: list[tuple[int, int]] = []
        for places in groups.values():
            best: list[int] = []
            for place in sorted(places, key=self._rank):
                if len(best) < self._contenders and not any(self._same(place, other) for other in best):
                    best.append(place)
            best += [place for place in places[:1] if place not in best]
            ranked += enumerate(best)
        # The best of every group come before any second.
        return min((place for _, place in sorted(ranked)), key=lambda place: self._seeds[place])

    def _same(self, place: int, other: int) -> bool:
        one, two = (self._outcomes[at][:1] for at in (place, other))
        return one == two and not any(math.isnan(score) for score, _ in one)

    def _rank(self, place: int) -> float:
        """The best first; what failed, last."""
        scores = [score for score, _ in self._outcomes[place] if not math.isnan(score)]
        return -fmean(scores) if scores else math.inf

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._ended.add(trial_id)
        known = {} if error or not result else result
        self._outcomes[self._place[trial_id]].append((score_of(known), known.get("loss", math.nan)))

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps({key: vars(self)[key] for key in self.kept}))

    def restore(self, checkpoint_path: str) -> None:
        vars(self).update(pickle.loads(Path(checkpoint_path).read_bytes()))


class OptunaThenSeeds(SettingsThenSeeds):
    """Points by Optuna's tree-structured Parzen estimator, for a high score at a low cost, then more seeds.

    A third of the trials are seeds; of the points, a third are random, for the estimator to start from. Where it
    proposes a point again, a random one that was not tried takes its place; if there is none, it is another seed.

    Parameters
    ----------
    space : that points are of
    setting : of a point
    references : points that are tried first
    trials, seed, group, contenders : as of SettingsThenSeeds

    Raises
    ------
    ValueError : fewer trials than references

    Source: Bergstra et al. 2011; for several objectives Ozaki et al. 2020.
    """

    kept = (*SettingsThenSeeds.kept, "_optuna", "_asked")

    def __init__(
        self,
        space: Space,
        setting: Callable[[Point], Setting],
        references: Sequence[Point],
        trials: int,
        seed: int = 0,
        group: Callable[[Setting], Hashable] = lambda setting: None,
        contenders: int = 2,
    ):
        # Those outside the space come first, and Optuna is not told of them.
        ordered = sorted(references, key=lambda point: contains(space, point))
        inside = [point for point in ordered if contains(space, point)]
        super().__init__([setting(point) for point in ordered], trials, seed, group, contenders)
        self._own, self._outside = max(len(ordered), searched(trials)), len(ordered) - len(inside)
        self._setting, self._space = setting, space
        self._asked: dict[str, str] = {}  # trials that Optuna waits to hear of, with its name for each
        random = len(inside) + max(2, min(10, (self._own - len(ordered)) // 3))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            # Optuna could not keep a choice of lists in a database; it is kept with the study.
            warnings.filterwarnings("ignore", "Choices for a categorical distribution")
            self._optuna = OptunaSearch(
                OptunaSearch.convert_search_space(dict(space)),
                metric=["score", "flops"],
                mode=["max", "min"],
                points_to_evaluate=inside,
                sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=random, multivariate=True),
            )

    def _propose(self, trial_id: str) -> int:
        number = len(self._place)
        if number < self._outside:
            return number
        places = {setting_key(known): place for place, known in enumerate(self._settings)}
        setting = self._ask(trial_id)
        known = places.get(setting_key(setting))
        if known is not None and self._seeds[known]:  # Of few choices, one comes again while others were never tried.
            random = itertools.islice(draws(self._space, self._seed + number), DRAWS)
            other = next((point for point in random if setting_key(self._setting(point)) not in places), None)
            if other is not None:
                self._optuna.on_trial_complete(self._asked[trial_id], error=True)  # It does not count.
                self._optuna._ot_study.enqueue_trial(other)  # type: ignore[attr-defined]
                setting = self._ask(trial_id)
        place = places.get(setting_key(setting), len(places))
        if place == len(places):
            self._settings.append(setting)
            self._seeds.append(0)
            self._outcomes.append([])
        return place

    def _ask(self, trial_id: str) -> Setting:
        self._asked[trial_id] = f"{trial_id} again" if trial_id in self._asked else trial_id
        return self._setting(self._optuna.suggest(self._asked[trial_id]) or {})

    def _name(self, place: int) -> str:
        # A study that was cut off may have forgotten a trial of its last seconds, and another point may take its place:
        # it must not go on in that trial's folder.
        return f"{place:03d}-{hashlib.sha256(setting_key(self._settings[place]).encode()).hexdigest()[:6]}"

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        super().on_trial_complete(trial_id, result, error)
        asked = self._asked.pop(trial_id, None)
        if asked is None:
            return
        score, _ = self._outcomes[self._place[trial_id]][-1]
        # Without a result it counts as pruned, which is worse than any; with an error it does not count.
        told = None if math.isnan(score) or not result else {"score": score, "flops": result["flops"]}
        self._optuna.on_trial_complete(asked, told, error)


def searched(trials: int) -> int:
    """How many of a study's trials a search proposes; the rest are more seeds."""
    return math.ceil(2 * trials / 3)
