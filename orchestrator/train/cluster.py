"""Which Ray cluster a job runs on."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import ray

from orchestrator.config import Config


def connect(config: Config) -> str:
    """Join the cluster that the job was submitted to or RAY_ADDRESS names; with none, start Ray on this machine.

    A local Ray is given at least the logical CPUs that the trainers and one reading task reserve together, so that
    neither waits for the other for ever.

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
    needed = config.train.num_workers * config.train.cpus_per_worker + config.data.cpus_per_reader
    cpus = max(os.cpu_count() or 1, math.ceil(needed))
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    return f"on this machine ({os.cpu_count()} cores)"
