"""Which Ray cluster a job runs on."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import ray

from orchestrator.config import Config

# Logical CPUs of the process that starts a trial of a study and then waits for it.
TRIAL_CPUS = 0.01


def connect(config: Config, study: bool = False) -> str:
    """Join the cluster that the job was submitted to or RAY_ADDRESS names; with none, start Ray on this machine.

    A local Ray is given at least the logical CPUs that the trainers and one reading task reserve together, so that
    neither waits for the other for ever.

    Parameters
    ----------
    config : of the run, or what the runs of a study have in common
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
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)
    return f"on this machine ({os.cpu_count()} cores)"


def explain_waiting(config: Config, workers: int) -> str:
    """What the cluster lacks for training to move, with what it needs and what there is; empty where it lacks nothing.

    Parameters
    ----------
    config : of the run
    workers : training processes that have started; 0: they wait for a place
    """
    train, total = config.train, ray.cluster_resources()
    use_gpu = uses_gpu(config)
    if not workers:
        fewest, _ = train.worker_range
        needs = f"{fewest} trainers need {fewest * train.cpus_per_worker:g} CPUs (train.cpus_per_worker)"
        needs += f" and {fewest} GPUs" if use_gpu else ""
        return (
            f"waiting for a place for the trainers: {needs}; the cluster has {total.get('CPU', 0):g} CPUs and "
            f"{total.get('GPU', 0):g} GPUs, of which {_free('CPU'):g} and {_free('GPU'):g} are free. Add nodes, end "
            "other work, or lower train.num_workers"
        )
    reader = config.data.cpus_per_reader
    free = max((node.get("CPU", 0.0) for node in _free_by_node()), default=0.0)
    others = total.get("CPU", 0) - _free("CPU") - workers * train.cpus_per_worker
    if free >= reader or others >= reader:  # A reading task can start, or one runs.
        return ""
    return (
        f"waiting for data: a reading task needs {reader:g} CPUs on one node (data.cpus_per_reader) and no node has "
        f"more than {free:g} free; {workers} trainers hold {workers * train.cpus_per_worker:g} of the cluster's "
        f"{total.get('CPU', 0):g} CPUs. Add a node, or lower train.cpus_per_worker, train.num_workers or "
        "data.cpus_per_reader"
    )


def uses_gpu(config: Config) -> bool:
    """Whether training processes get a GPU each."""
    return config.train.device == "gpu" or (config.train.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)


def _free_by_node() -> list[dict[str, float]]:
    return list(ray._private.state.available_resources_per_node().values())


def _free(resource: str) -> float:
    return sum(node.get(resource, 0.0) for node in _free_by_node())
