"""What a stopped trial had reserved is free again, in a cluster without a dashboard."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group
from ray_cluster import wait_until

from orchestrator.tune.reservations import FreeReservations, free_reservations

# Another study in the same cluster, whose own affair its stopped trial is.
OTHER = """
import sys, ray
from test_reservations import stopped_trial
ray.init(address=sys.argv[1], log_to_driver=False)
trial, reservation = stopped_trial()
print(reservation, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def small_ray():
    context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield context.address_info["address"]
    ray.shutdown()


@ray.remote(num_cpus=0)
class Controller:
    """Of a trial's trainers; reserves their place."""

    def reserve(self) -> str:
        group = placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return group.id.hex()


@ray.remote(num_cpus=0)
class Trial:
    """The process that Tune starts and stops."""

    def begin(self) -> str:
        self._controller = Controller.remote()
        return ray.get(self._controller.reserve.remote())


def stopped_trial():
    trial = Trial.remote()
    reservation = ray.get(trial.begin.remote())
    ray.kill(trial)
    return trial, reservation


def states() -> dict[str, str]:
    return {name: group["state"] for name, group in ray.util.placement_group_table().items()}


def test_what_a_stopped_trial_reserved_is_free_and_nothing_else(small_ray):
    others = subprocess.Popen(
        [sys.executable, "-c", OTHER, small_ray],
        cwd=Path(__file__).parent, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert others.stdin and others.stdout
    try:
        running = Trial.remote()
        of_running = ray.get(running.begin.remote())
        own = placement_group([{"CPU": 1}])  # as Tune makes one for a trial
        ray.get(own.ready())
        of_other = others.stdout.readline().strip()
        _, of_stopped = stopped_trial()
        assert len({of_running, of_other, of_stopped, own.id.hex()}) == 4
        look = FreeReservations(interval_s=0)

        def looked() -> bool:
            look.on_step_end(0, [])
            return states()[of_stopped] == "REMOVED"

        wait_until(looked, "the removal")
        assert free_reservations() == []
        assert [states()[one] for one in (of_running, own.id.hex(), of_other)] == ["CREATED"] * 3
        wait_until(lambda: ray.available_resources().get("CPU", 0) == 1, "the return of its CPU")
    finally:
        others.kill()
        others.wait()
