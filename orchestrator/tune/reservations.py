"""What stopped trials still hold is given back.

Ray keeps a placement group for as long as either its creator or its creator's job lives. That of a trial's trainers was
made by a controller which dies with the trial, while the job, the study's, goes on. Ray Train has a cleaner of its own,
but that asks the dashboard, which a cluster need not have; this asks Ray's own tables.
"""

from __future__ import annotations

import time
from typing import Any

import ray
import ray._private.state
from ray import tune
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group


def free_reservations() -> list[str]:
    """Remove this job's placement groups whose creators, actors, are dead. Ray must be initialised.

    Returns
    -------
    their ids, hexadecimal
    """
    job = ray.get_runtime_context().get_job_id()
    # ray.util.placement_group_table leaves out who made them.
    accessor = ray._private.state.state._connect_and_get_accessor()
    groups = map(PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    left = [
        group.placement_group_id
        for group in groups
        # What is without such an actor, as a driver's is, is the job's own.
        if group.creator_job_id.hex() == job
        and group.creator_actor_dead
        and any(byte != 0xFF for byte in group.creator_actor_id)
        and not group.is_detached
        and group.state != PlacementGroupTableData.REMOVED
    ]
    for identity in left:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(identity)))
    return [identity.hex() for identity in left]


class FreeReservations(tune.Callback):
    """Does so while a study goes on.

    Parameters
    ----------
    interval_s : seconds from one look to the next
    """

    def __init__(self, interval_s: float = 1.0):
        self._interval_s, self._looked_at = interval_s, 0.0

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        now = time.monotonic()
        if now - self._looked_at >= self._interval_s:
            self._looked_at = now
            free_reservations()
