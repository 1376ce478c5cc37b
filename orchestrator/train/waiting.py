"""What a cluster lacks for a run to move: said before it starts, and while it waits."""

from __future__ import annotations

import ray
import ray._private.state
from ray.autoscaler.v2.utils import is_autoscaler_v2

from orchestrator.config import Config, ConfigError, PlacementConfig
from orchestrator.placement import admits
from orchestrator.train.cluster import nodes_of, total, uses_gpu


def require_nodes(placement: PlacementConfig) -> None:
    """Whether the cluster has, or may get, nodes for each kind of work.

    Raises
    ------
    ConfigError : no node that is alive has the labels of a selector, and there is no autoscaler that could start one
    """
    for kind in ("data", "train"):
        missing = _missing(placement, kind)
        if missing and not is_autoscaler_v2(fetch_from_server=True):
            raise ConfigError(missing)


def require_device(config: Config) -> None:
    """Whether it can be told what trainers run on.

    Raises
    ------
    ConfigError : train.device is auto, and the nodes that would say are still to be started
    """
    selector = config.placement.train
    if config.train.device == "auto" and not nodes_of(selector):
        raise ConfigError(
            f"train.device='auto': no node of placement.train={selector} is there yet, to see whether it has GPUs; "
            "take gpu or cpu"
        )


def explain_waiting(config: Config, workers: int) -> str:
    """What the cluster lacks for training to move, with what it needs and what there is; empty where it lacks nothing.

    Parameters
    ----------
    config : of the run
    workers : training processes that have started; 0: they wait for a place
    """
    if workers:
        return explain_reading(config, workers)
    train, selector = config.train, config.placement.train
    missing = _missing(config.placement, "train")
    if missing:
        return f"waiting for a place for the trainers: {missing}"
    fewest, _ = train.worker_range
    needs = f"{fewest} trainers need {fewest * train.cpus_per_worker:g} CPUs (train.cpus_per_worker)"
    needs += f" and {fewest} GPUs" if uses_gpu(config) else ""
    where = f"nodes of placement.train={selector} have" if selector else "the cluster has"
    free = _free(selector)
    cpus, gpus = (sum(node.get(resource, 0.0) for node in free) for resource in ("CPU", "GPU"))
    return (
        f"waiting for a place for the trainers: {needs}; {where} {total('CPU', selector):g} CPUs and "
        f"{total('GPU', selector):g} GPUs, of which {cpus:g} and {gpus:g} are free. Add nodes, end other work, or "
        "lower train.num_workers"
    )


def explain_reading(config: Config, workers: int = 0) -> str:
    """What the cluster lacks for a reading task to start; empty where one can, or runs.

    Parameters
    ----------
    config : of the run
    workers : training processes that have started
    """
    selector, reader, held = config.placement.data, config.data.cpus_per_reader, workers * config.train.cpus_per_worker
    missing = _missing(config.placement, "data")
    if missing:
        return f"waiting for data: {missing}"
    free = [node.get("CPU", 0.0) for node in _free(selector)]
    shared = any(admits(config.placement.train, node["Labels"]) for node in nodes_of(selector))
    others = total("CPU", selector) - sum(free) - (held if shared else 0)
    if max(free, default=0) >= reader or others >= reader:
        return ""
    where = f"node of placement.data={selector}" if selector else "node"
    return (
        f"waiting for data: a reading task needs {reader:g} CPUs on one node (data.cpus_per_reader) and no {where} has "
        f"more than {max(free, default=0):g} free; {workers} trainers hold {held:g} of the cluster's "
        f"{total('CPU', {}):g} CPUs. Add a node, or lower train.cpus_per_worker, train.num_workers or "
        "data.cpus_per_reader"
    )


def _missing(placement: PlacementConfig, kind: str) -> str:
    """That no node is there of a kind, with the labels that there are and the cure; empty where one is."""
    selector: dict[str, str] = getattr(placement, kind)
    if nodes_of(selector):
        return ""
    there = {(label, value) for node in nodes_of({}) for label, value in node["Labels"].items()}
    seen = ", ".join(f"{label}={value}" for label, value in sorted(there) if label in selector)
    return (
        f"placement.{kind}={selector}: no node that is alive has such labels; there is {seen or 'none of them'}. Start "
        f"one that has (ray start --labels, or `labels` of an autoscaled node type), or run anywhere: "
        f"--placement.{kind} '{{}}'"
    )


def _free(selector: dict[str, str]) -> list[dict[str, float]]:
    """What is free on each node of a selector."""
    ids = {node["NodeID"] for node in nodes_of(selector)}
    return [free for node, free in ray._private.state.available_resources_per_node().items() if node in ids]
