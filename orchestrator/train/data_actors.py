"""Ray Data's two actors of a cluster, made early and where the job is.

Whoever uses Ray Data first makes them, on his own node, and they outlive his job. For a run that is Ray Train, which
waits for each of them when it could already start the training processes; here they start beside what the run does
first. For a study it would be a trial, on a node that the trial has asked for: the node would never be idle again, so
that no autoscaler removes it.
"""

from __future__ import annotations

from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.data._internal.stats import get_or_create_stats_actor


def make_data_actors() -> None:
    """Make them on this process' node, unless the cluster has them. Ray must be initialised."""
    get_or_create_stats_actor()
    get_or_create_autoscaling_coordinator()
