"""Which trial comes next: every setting once, then more seeds where the answer is closer than the noise."""

from __future__ import annotations

import math
import pickle
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ray.tune.search import Searcher


class SettingsThenSeeds(Searcher):
    """Proposes {setting, name, seed}.

    When all settings were tried, the next trial is another seed of the one that has the fewest among each group's best
    `contenders` and its reference: their order is what the study is about, and noise may have made it.

    Parameters
    ----------
    settings : to try
    trials : in all, at least one a setting
    seed : of the first trial of each setting; others count up from it
    groups : for each setting, the group within which it is compared; the first setting of a group is the reference that
        a winner is held against. None: one group
    contenders : settings of a group that get more seeds, besides the reference

    Raises
    ------
    ValueError : fewer trials than settings, or no setting
    """

    def __init__(
        self,
        settings: Sequence[Mapping[str, Any]],
        trials: int,
        seed: int = 0,
        groups: Sequence[Hashable] | None = None,
        contenders: int = 2,
    ):
        super().__init__(metric="loss", mode="min")
        if not settings:
            raise ValueError("a study needs at least one setting")
        if trials < len(settings):
            raise ValueError(f"{trials} trials are fewer than the {len(settings)} settings; raise them")
        self._settings = [dict(setting) for setting in settings]
        self._trials, self._seed, self._contenders = trials, seed, contenders
        self._groups = list(groups) if groups is not None else [None] * len(settings)
        self._place: dict[str, int] = {}  # of the setting that a trial has, by Tune's name for the trial
        self._seeds = [0] * len(settings)
        self._scores: list[list[float]] = [[] for _ in settings]
        self._ended: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if len(self._place) >= self._trials:
            return Searcher.FINISHED
        if len(self._place) < len(self._settings):
            place = len(self._place)
        elif any(not seeds for seeds in self._scores) and len(self._ended) < len(self._place):
            return None  # The contenders are known once every setting has ended once.
        else:
            place = self._next_place()
        self._place[trial_id] = place
        seed = self._seed + self._seeds[place]
        self._seeds[place] += 1
        return {"setting": self._settings[place], "name": f"{place:03d}-{seed}", "seed": seed}

    def _next_place(self) -> int:
        contenders: list[int] = []
        for group in dict.fromkeys(self._groups):
            places = [place for place, one in enumerate(self._groups) if one == group]
            best = sorted(places, key=self._rank)[: self._contenders]
            contenders += [*best, *(place for place in places[:1] if place not in best)]
        return min(contenders, key=lambda place: self._seeds[place])

    def _rank(self, place: int) -> float:
        """The best first; what failed, last."""
        scores = [score for score in self._scores[place] if not math.isnan(score)]
        return -fmean(scores) if scores else math.inf

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._ended.add(trial_id)
        score = math.nan
        if result and not error and result.get("finished"):
            accuracy, loss = result.get("accuracy", math.nan), result.get("loss", math.nan)
            score = -loss if math.isnan(accuracy) else accuracy
        self._scores[self._place[trial_id]].append(score)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps({key: vars(self)[key] for key in _KEPT}))

    def restore(self, checkpoint_path: str) -> None:
        vars(self).update(pickle.loads(Path(checkpoint_path).read_bytes()))


_KEPT = ("_settings", "_groups", "_trials", "_seed", "_contenders", "_place", "_seeds", "_scores", "_ended")
