"""What a study has to know of its question."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

from matplotlib.figure import Figure

from orchestrator.tune.report import Answer
from orchestrator.tune.trial import Trial


class Question(Protocol):
    """Which trials to make, and what they say."""

    title: str

    def settings(self) -> list[dict[str, Any]]:
        """Settings to try: option of the configuration -> value."""

    def groups(self) -> list[Hashable]:
        """For each setting, the group within which settings are compared; the first of a group is its reference."""

    def answer(self, trials: Sequence[Trial]) -> Answer:
        """What the trials so far say."""

    def figures(self, trials: Sequence[Trial]) -> Mapping[str, Figure | None]:
        """Pictures of them, by title."""
