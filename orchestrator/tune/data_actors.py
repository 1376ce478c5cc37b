"""Ray Data's two actors of a cluster are made where the study is, not where its first trial happens to be.

Whoever uses Ray Data first makes them, on his own node, and they outlive his job. In a trial, that is a node which the
trial has asked for: it would never be idle again, so that no autoscaler removes it.
"""

from __future__ import annotations

from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.data._internal.stats import get_or_create_stats_actor


def make_data_actors() -> None:
    """Make them on this process' node, unless the cluster has them. Ray must be initialised."""
    get_or_create_stats_actor()
    get_or_create_autoscaling_coordinator()
