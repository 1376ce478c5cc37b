"""A node will be taken away: what the workers do while it is still there."""

from __future__ import annotations

import time

import ray.train


class PreemptionNotice:
    """Asks Ray now and then whether a node of this run is about to be taken away.

    Asking is a meeting of all workers, so it is not done at each step, and all must do it at the same one.
    """

    EVERY_S = 3.0

    def __init__(self) -> None:
        self._asked_at = time.monotonic()
        self._known: set[str] = set()

    def due(self) -> bool:
        """Whether it is time to ask, by this worker's clock."""
        return time.monotonic() - self._asked_at >= self.EVERY_S

    def ask(self) -> str:
        """What is about to happen, in words; empty where nothing is, or nothing new. The same on all workers."""
        self._asked_at = time.monotonic()
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) - self._known if info else set()
        self._known |= nodes
        if not nodes:
            return ""
        left_s = max(0.0, info.deadline_ms / 1000 - time.time()) if info.deadline_ms else None
        when = "soon" if left_s is None else f"in {left_s:.0f} s"
        return (
            f"{len(nodes)} node(s) will be taken away {when}, with workers {info.preempted_ranks}: a checkpoint first"
        )
