"""What a study has to know of its question."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from matplotlib.figure import Figure

from orchestrator.tune.report import Answer
from orchestrator.tune.space import Point, Space
from orchestrator.tune.trial import Trial


class Question(Protocol):
    """Which trials to make, and what they say."""

    title: str

    def settings(self) -> list[dict[str, Any]]:
        """The question's own choice of settings: option of the configuration -> value.

        Raises
        ------
        ConfigError : it has none
        """

    def space(self) -> Space:
        """What a search may propose in their place."""

    def references(self) -> list[Point]:
        """Points that a search tries first, the reference of each group."""

    def setting(self, point: Point) -> dict[str, Any]:
        """The setting that a point stands for."""

    def group(self, setting: Mapping[str, Any]) -> Hashable:
        """The group within which a setting is compared; the first setting of a group is its reference."""

    def answer(self, trials: Sequence[Trial]) -> Answer:
        """What the trials so far say."""

    def figures(self, trials: Sequence[Trial]) -> Mapping[str, Figure | None]:
        """Pictures of them, by title."""
