"""What a cluster lacks for a run to move: said before it starts, and while it waits."""

from __future__ import annotations

from collections.abc import Mapping

import ray
import ray._private.state
from ray.autoscaler.v2.utils import is_autoscaler_v2

from orchestrator.config import Config, ConfigError
from orchestrator.placement import admits
from orchestrator.train.cluster import nodes_of, total, uses_gpu


def require_nodes(option: str, selector: Mapping[str, str]) -> None:
    """Whether the cluster has, or may get, nodes of a selector.

    Parameters
    ----------
    option : that the selector is the value of
    selector : label -> expression; empty: any node, and Ray is not asked

    Raises
    ------
    ConfigError : no node that is alive has such labels, and there is no autoscaler that could start one
    """
    missing = selector and _missing(option, selector)
    if missing and not is_autoscaler_v2(fetch_from_server=True):
        raise ConfigError(missing)


def require_placement(config: Config) -> None:
    """Whether the cluster has, or may get, nodes for each kind of work, and it can be told what trainers run on.

    Raises
    ------
    ConfigError : it has none and may get none; or train.device is auto, and the nodes that would say are still to come
    """
    selector = config.placement.train
    require_nodes("placement.data", config.placement.data)
    require_nodes("placement.train", selector)
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
    missing = _missing("placement.train", selector)
    if missing:
        return f"waiting for a place for the trainers: {missing}"
    fewest, _ = train.worker_range
    needs = f"{fewest} trainers need {fewest * train.cpus_per_worker:g} CPUs (train.cpus_per_worker)"
    needs += f" and {fewest * train.gpus_per_worker:g} GPUs" if uses_gpu(config) else ""
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
    missing = _missing("placement.data", selector)
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


def _missing(option: str, selector: Mapping[str, str]) -> str:
    """That no node is there of a selector, with the labels that there are and the cure; empty where one is."""
    if nodes_of(selector):
        return ""
    there = {(label, value) for node in nodes_of({}) for label, value in node["Labels"].items() if label in selector}
    seen = ", ".join(f"{label}={value}" for label, value in sorted(there))
    return (
        f"{option}={dict(selector)}: no node that is alive has such labels; there is {seen or 'none of them'}. Start "
        f"one that has (ray start --labels, or `labels` of an autoscaled node type), or set {option} to {{}}: anywhere"
    )


def _free(selector: Mapping[str, str]) -> list[dict[str, float]]:
    """What is free on each node of a selector."""
    ids = {node["NodeID"] for node in nodes_of(selector)}
    return [free for node, free in ray._private.state.available_resources_per_node().items() if node in ids]
