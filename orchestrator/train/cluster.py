"""Which Ray cluster a job runs on."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import ray

from orchestrator.config import Config
from orchestrator.placement import admits

# Logical CPUs of the process that starts a trial of a study and then waits for it.
TRIAL_CPUS = 0.01

# What Ray says where a node's processes did not come in half a minute, or its agent in 15 s. Neither can be set, and it
# is too little where cores are busy or a machine has stalled; another try finds files in memory.
TOO_SLOW = "timed out during startup"
STARTS = 4

# Of processes that compute on CPUs.
CPU_ENVIRONMENT = {
    # torch's threads share the cores with reading tasks: one that spins while it waits for another that was displaced
    # takes the core that the other needs.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A step frees what the next one allocates again; glibc would give it back to the kernel in between.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


def connect(config: Config, study: bool = False) -> str:
    """Join the cluster that the job was submitted to or RAY_ADDRESS names; with none, start Ray on this machine.

    A local Ray is given at least the logical CPUs that the trainers and one reading task reserve together, so that
    neither waits for the other for ever; it is one node, on which everything runs.

    Parameters
    ----------
    config : of the run, or what the runs of a study have in common; its placement is cleared where Ray is started
    study : runs are trials of a study: a local Ray then has room for the process of a trial, too

    Returns
    -------
    one line that says which
    """
    # Ray's notices about usage statistics and about its next release would bury the job's messages.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # What the workers print stays in Ray's own log files; their errors reach the driver as exceptions.
    quiet: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
    if ray.is_initialized():
        return "on the Ray that this process has already joined"
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
        return f"on the Ray cluster at {ray.get_runtime_context().gcs_address}"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # It listens on this machine alone.
    needed = config.train.worker_range[0] * config.train.cpus_per_worker + config.data.cpus_per_reader
    needed += TRIAL_CPUS if study else 0
    cpus = max(os.cpu_count() or 1, math.ceil(needed))
    _start_ray(num_cpus=cpus, include_dashboard=False, **quiet)
    config.placement.data, config.placement.train = {}, {}
    return f"on this machine ({os.cpu_count()} cores)"


def _start_ray(**options: Any) -> None:
    """A local Ray; again where it was too slow for its own patience."""
    for left in reversed(range(STARTS)):
        try:
            ray.init(address="local", **options)
            return
        except Exception as error:
            if not left or TOO_SLOW not in str(error):
                raise


def nodes_of(selector: Mapping[str, str]) -> list[dict[str, Any]]:
    """The nodes that are alive and that a selector of labels admits, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"] and admits(selector, node["Labels"])]


def total(resource: str, selector: Mapping[str, str]) -> float:
    """What those nodes have of a resource (CPU, GPU), free or not."""
    return sum(node["Resources"].get(resource, 0.0) for node in nodes_of(selector))


def uses_gpu(config: Config) -> bool:
    """Whether training processes get a GPU each."""
    device = config.train.device
    return device == "gpu" or (device == "auto" and total("GPU", config.placement.train) > 0)
