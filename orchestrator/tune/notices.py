"""What trials have to say to whoever watches a study: each runs in a process whose output nobody sees."""

from __future__ import annotations

import contextlib

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NAME = "notices of trials"


@ray.remote(num_cpus=0)
class _Notices:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def tell(self, line: str) -> None:
        self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines


@contextlib.contextmanager
def gathered():
    """While this lasts, `tell` and `take` of this job's processes meet. It lives where this process does."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = _Notices.options(name=NAME, scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        ray.kill(actor)


def tell(line: str) -> None:
    """Leave a line for `take`; it never fails, since no trial should for want of a listener."""
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        ray.get_actor(NAME).tell.remote(line)


def take() -> list[str]:
    """What was told since the last time."""
    try:
        return ray.get(ray.get_actor(NAME).take.remote(), timeout=5)
    except (ValueError, ray.exceptions.RayError):
        return []
