"""How many training processes there is room for, on the nodes that they may run on.

Ray 2.60's own elastic runs count all nodes' resources, whatever the labels: a run would ask for more processes than its
nodes hold, and never start.
"""

from __future__ import annotations

from typing import Any

import ray._private.state
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from orchestrator.train.cluster import nodes_of


class OnTheirNodes(ElasticScalingPolicy):
    """Ray's policy, but for the count; it goes by the label selector of the scaling configuration."""

    _running = 0

    def make_decision_for_non_running_worker_group(self) -> Any:
        self._running = 0
        return super().make_decision_for_non_running_worker_group()

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        self._running = worker_group_state.num_workers
        return super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        selector: Any = self.scaling_config.label_selector
        free = ray._private.state.available_resources_per_node()
        theirs = [node["NodeID"] for node in nodes_of(selector)]
        more = super()._count_possible_workers({node: free[node] for node in theirs if node in free})
        return min(self._running + more, self.scaling_config.max_workers)
