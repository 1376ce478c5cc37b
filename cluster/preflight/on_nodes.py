"""The checks, done on each node of a running cluster: a process of its own there for each, and a limit of time."""

from __future__ import annotations

import contextlib
import time
import uuid
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.preflight import node, reduce, room, storage
from cluster.preflight.line import Line
from orchestrator import storage as uris
from orchestrator.config import Config

CLOCK_EXCHANGES = 5
LATE_CURE = "Look at the node and its Ray logs (raylet.out), replace it; --timeout_s allows more"


@ray.remote(num_cpus=0, max_restarts=0)
class Probe:
    """On one node: each method is a plain function of this folder."""

    def clock(self) -> float:
        return time.time()

    def facts(self) -> node.Facts:
        return node.observe(ray._private.worker.global_worker.node.get_session_dir_path())  # type: ignore[union-attr]

    def storage(self, config: Config, mark: str, expected: bytes, where: str) -> list[Line]:
        return [
            storage.check_writable(config.run.storage_path, where),
            storage.check_same(mark, expected, where),
            storage.check_shards(config, where),
        ]

    def prepare(self) -> int:
        return reduce.prepare()

    def reduce(self, *arguments: Any) -> float:
        return reduce.measure(*arguments)


class Late(RuntimeError):
    """A node has not answered in time."""


def check_nodes(config: Config, timeout_s: float) -> list[Line]:
    """All lines of the cluster that this process has joined.

    Parameters
    ----------
    config : of the run
    timeout_s : for each answer of each node
    """
    nodes = sorted((one for one in ray.nodes() if one["Alive"]), key=lambda one: one["NodeID"])
    names = {one["NodeID"]: f"{one['NodeManagerAddress']} ({one['NodeID'][:8]})" for one in nodes}
    kinds = {one["NodeID"]: kind_of(one) for one in nodes}
    lines = [room.judge(list(kinds.values()), config, f"{len(nodes)} nodes", "Add nodes")]
    probes = {identity: start(identity) for identity in names}
    try:
        facts = answers({identity: probe.facts.remote() for identity, probe in probes.items()}, timeout_s)
        lines += [missing(names[identity], error) for identity, error in facts.items() if isinstance(error, Exception)]
        there = {one["NodeID"]: one for one in nodes if not isinstance(facts[one["NodeID"]], Exception)}
        expected = node.observe("/").versions
        for identity, one in there.items():
            where, store = names[identity], one["Resources"].get("object_store_memory", 0)
            lines.append(node.judge_versions(facts[identity], expected, where))
            lines.append(node.judge_shm(facts[identity], store, where))
            lines.append(node.judge_disk(facts[identity], store, where))
            lines.append(clock(probes[identity], where, timeout_s))
        lines += check_storage(config, {identity: probes[identity] for identity in there}, names, timeout_s)
        gpu = room.asks_gpu(list(kinds.values()), config)
        able = [identity for identity in there if room.places(kinds[identity], config, gpu)]
        lines += check_reduce(
            {identity: there[identity]["NodeManagerAddress"] for identity in able}, names, gpu, timeout_s
        )
    finally:
        end(probes)
    return lines


def kind_of(one: dict[str, Any]) -> room.Kind:
    """A node as Ray describes it, by what it has room for."""
    resources = one["Resources"]
    return room.Kind(1, resources.get("CPU", 0), resources.get("GPU", 0), labels=one["Labels"])


def start(identity: str, **options: Any) -> Any:
    """A probe on that node and no other."""
    return Probe.options(  # type: ignore[attr-defined]
        scheduling_strategy=NodeAffinitySchedulingStrategy(identity, soft=False), **options
    ).remote()


def end(probes: dict[str, Any]) -> None:
    for probe in probes.values():
        with contextlib.suppress(Exception):
            ray.kill(probe)


def answers(asked: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """What each node has answered, or the exception in place of it; `Late` where the time was over."""
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s) if asked else ([], [])
    found: dict[str, Any] = {}
    for identity, reference in asked.items():
        try:
            if reference not in ready:
                raise Late(f"no answer within {timeout_s:g} s")
            found[identity] = ray.get(reference, timeout=timeout_s)
        except Exception as error:
            found[identity] = error
    return found


def missing(where: str, error: Exception, check: str = "answers") -> Line:
    """The line of a node that does not do its part."""
    text = " ".join(str(error).split())
    if "ModuleNotFoundError" in text:
        return Line("fail", check, where, text[-300:], "Install this project on the node (its image)")
    return Line("fail", check, where, text[-300:] or type(error).__name__, LATE_CURE)


def clock(probe: Any, where: str, timeout_s: float) -> Line:
    """Ask a node for the time, several times."""
    exchanges = []
    try:
        for _ in range(CLOCK_EXCHANGES):
            asked = time.time()
            answered = ray.get(probe.clock.remote(), timeout=timeout_s)
            exchanges.append((asked, answered, time.time()))
    except Exception as error:
        return missing(where, error, "clock")
    return node.judge_clock(exchanges, where)


def check_storage(config: Config, probes: dict[str, Any], names: dict[str, str], timeout_s: float) -> list[Line]:
    """Storage as each node sees it, and whether it is what the driver sees."""
    mark, expected = uris.join(config.run.storage_path, f"preflight-{uuid.uuid4().hex}"), uuid.uuid4().hex.encode()
    lines = []
    try:
        uris.write_bytes(mark, expected)
    except Exception as error:
        lines.append(Line("fail", "storage", "driver", " ".join(str(error).split()), storage.CURE))
    asked = {
        identity: probe.storage.remote(config, mark, expected, names[identity]) for identity, probe in probes.items()
    }
    for identity, found in answers(asked, timeout_s).items():
        lines += [missing(names[identity], found, "storage")] if isinstance(found, Exception) else found
    with contextlib.suppress(Exception):
        uris.delete_file(mark)
    return lines


def check_reduce(addresses: dict[str, str], names: dict[str, str], gpu: bool, timeout_s: float) -> list[Line]:
    """An all-reduce between the nodes that can hold a trainer, one process a node.

    Parameters
    ----------
    addresses : of the nodes, by id
    """
    if len(addresses) < 2:
        return [
            Line("ok", "allreduce", f"{len(addresses)} nodes", "nothing to reduce between nodes that hold trainers")
        ]
    probes = {identity: start(identity, num_gpus=1 if gpu else 0) for identity in addresses}
    try:
        ports = answers({identity: probe.prepare.remote() for identity, probe in probes.items()}, timeout_s)
        found = {identity: port for identity, port in ports.items() if isinstance(port, Exception)}
        if not found:
            master = next(iter(addresses))
            asked = {
                identity: probe.reduce.remote(
                    rank, len(probes), addresses[identity], addresses[master], ports[master], timeout_s / 2, gpu
                )
                for rank, (identity, probe) in enumerate(probes.items())
            }
            found = answers(asked, timeout_s)
    finally:
        end(probes)
    cure = (
        "Open all ports between the nodes (security group, network policy); where a node has several interfaces "
        "set GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME on it"
    )
    lines = [
        Line("fail", "allreduce", names[identity], " ".join(str(error).split())[-300:], cure)
        for identity, error in found.items()
        if isinstance(error, Exception)
    ]
    seconds: list[Any] = list(found.values())
    return lines or [reduce.judge(seconds, gpu)]
