"""Whether nodes have room for what a recipe asks: its trainers, and one reading task beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from cluster.preflight.line import Line
from orchestrator.config import Config
from orchestrator.placement import admits

# 0.1 CPUs ten times over are one CPU.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Kind:
    """Nodes that are alike.

    Parameters
    ----------
    count : how many there are, or may be
    cpus, gpus : of one node
    head : the head's own node, which no limit of workers counts
    labels : of one node
    """

    count: int
    cpus: float
    gpus: float
    head: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)


def trainers_beside_a_reader(kinds: list[Kind], config: Config, limit: int | None = None) -> int:
    """Most training processes that have a place while one reading task has one, too; -1: not even the task has.

    Parameters
    ----------
    kinds : the nodes
    config : of the run
    limit : nodes at most besides the head, of all kinds together; None: as many as there are
    """
    gpu = asks_gpu(kinds, config)
    best = -1
    for host in kinds:
        rest = host.cpus - config.data.cpus_per_reader
        free = sum(kind.count for kind in kinds) if limit is None else limit
        free -= not host.head
        if not host.count or rest < -ROUNDING or free < 0 or not admits(config.placement.data, host.labels):
            continue
        total = places(replace(host, cpus=rest), config, gpu)
        for kind in sorted(kinds, key=lambda kind: places(kind, config, gpu), reverse=True):
            count = kind.count - (kind is host)
            taken = count if kind.head else min(count, free)
            total += places(kind, config, gpu) * taken
            free -= 0 if kind.head else taken
        best = max(best, total)
    return best


def asks_gpu(kinds: list[Kind], config: Config) -> bool:
    """Whether each training process takes a GPU."""
    device = config.train.device
    there = [kind for kind in kinds if kind.count and admits(config.placement.train, kind.labels)]
    return device == "gpu" or (device == "auto" and any(kind.gpus for kind in there))


def judge(kinds: list[Kind], config: Config, where: str, cure: str, limit: int | None = None) -> Line:
    """Hold what there is against what the recipe asks.

    Parameters
    ----------
    kinds, config, limit : as above
    where : name of the file or cluster
    cure : how to get more
    """
    fewest, most = config.train.worker_range
    found = trainers_beside_a_reader(kinds, config, limit)
    gpu = f" and {config.train.gpus_per_worker:g} GPUs" if asks_gpu(kinds, config) else ""
    reading, training = (
        f" on nodes of {selector}" if selector else "" for selector in (config.placement.data, config.placement.train)
    )
    asked = (
        f"{config.train.num_workers} trainers of {config.train.cpus_per_worker:g} CPUs{gpu}{training} and a reading "
        f"task of {config.data.cpus_per_reader:g} CPUs{reading} asked"
    )
    if reading or training:
        cure = f"{cure}, look at the nodes' labels"
    lower = "or lower train.num_workers, train.cpus_per_worker or data.cpus_per_reader"
    if found < 0:
        return Line("fail", "resources", where, f"{asked}; no node has room for the reading task", f"{cure}, {lower}")
    seen = f"{asked}; beside the task there is room for {found}"
    if found < fewest:
        return Line("fail", "resources", where, seen, f"{cure}, {lower}")
    if found < most:
        return Line("warn", "resources", where, seen, f"The run cannot grow to {most}: {cure}")
    return Line("ok", "resources", where, seen)


def places(kind: Kind, config: Config, gpu: bool) -> int:
    """Training processes that one node has a place for."""
    if not admits(config.placement.train, kind.labels):
        return 0
    by_cpu = int((kind.cpus + ROUNDING) / config.train.cpus_per_worker)
    return min(by_cpu, int(kind.gpus) * int(1 / config.train.gpus_per_worker + ROUNDING)) if gpu else by_cpu
