"""How many trials a cluster holds side by side, whether it holds one at all, and how a study grows with it."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.tune.search import ConcurrencyLimiter, Searcher

from orchestrator.config import Config, ConfigError
from orchestrator.placement import admits
from orchestrator.train.cluster import TRIAL_CPUS, nodes_of, uses_gpu

# 0.1 CPUs ten times over are one CPU.
ROUNDING = 1e-6
# Seconds from one look at the cluster to the next.
LOOK_EVERY_S = 2.0


@dataclass
class Node:
    """What a node has, or has left.

    Parameters
    ----------
    cpus, gpus : logical CPUs and GPUs
    labels : Ray's, of the node
    """

    cpus: float
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)


def nodes() -> list[Node]:
    """Those that are alive. Ray must be initialised."""
    return [
        Node(one["Resources"].get("CPU", 0.0), one["Resources"].get("GPU", 0.0), one["Labels"]) for one in nodes_of({})
    ]


def room_for(config: Config, there: Sequence[Node], gpu: bool, most: int) -> int:
    """Trials that nodes hold side by side.

    Each takes its fewest training processes, one reading task and the process that waits for them. Ray Data shares what
    the training processes leave evenly among the trials, and a reading task starts in a whole share only: trials that
    leave too little for reading would wait for each other for ever.

    Parameters
    ----------
    config : of a trial
    there : the nodes, with all that they have
    gpu : training processes take a GPU, or a part of one
    most : where counting ends
    """
    left = _left(config, there, gpu)
    return next((trials for trials in range(most) if not _take(config, left, gpu)), most)


def require_room(configs: Iterable[Config]) -> None:
    """Whether the cluster has, or may get, room for one trial of each configuration. Ray must be initialised.

    Raises
    ------
    ConfigError : it has none and no autoscaler that could add to it
    """
    if is_autoscaler_v2(fetch_from_server=True):
        return
    there = nodes()
    for config in configs:
        train, gpu = config.train, uses_gpu(config)
        if not room_for(config, there, gpu, 1):
            workers, _ = train.worker_range
            seen = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in there[:8])
            raise ConfigError(
                f"train.num_workers={train.num_workers}: a trial has no place on this cluster. It needs {workers} x "
                f"{train.cpus_per_worker:g} CPUs (train.cpus_per_worker)"
                + (f" and {train.gpus_per_worker:g} GPUs (train.gpus_per_worker)" if gpu else "")
                + f", {config.data.cpus_per_reader:g} CPUs for reading (data.cpus_per_reader) and {TRIAL_CPUS:g} for "
                f"itself, each on one node, of placement's if it names any; the nodes have {seen}"
                + (", ..." if there[8:] else "")
                + ". Lower one of these, or add nodes"
            )


class RoomLimiter(ConcurrencyLimiter):
    """Lets as many trials run side by side as the cluster holds at the moment.

    Where nodes are added on demand, as many again may wait for a place, since nothing else asks for nodes; not so if
    they could start on what is there and take the place of other trials' reading.

    Parameters
    ----------
    searcher : proposes the trials
    config : of the trial that needs most
    trials : of the study
    """

    def __init__(self, searcher: Searcher, config: Config, trials: int):
        super().__init__(searcher, max_concurrent=1)
        self._config, self._trials, self._looked_at = config, trials, 0.0

    def suggest(self, trial_id: str) -> dict | None:
        if time.monotonic() - self._looked_at >= LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            grows = is_autoscaler_v2(fetch_from_server=True)
            self.max_concurrent = at_once(self._config, nodes(), uses_gpu(self._config), self._trials, grows)
        return super().suggest(trial_id)

    def set_state(self, state: dict) -> None:
        super().set_state(state)
        self._looked_at = 0.0  # Another process's clock.


def at_once(config: Config, there: Sequence[Node], gpu: bool, trials: int, grows: bool) -> int:
    """Trials that may run or wait for a place, at least one.

    Parameters
    ----------
    config, there, gpu : as of room_for
    trials : in all
    grows : nodes are added when something waits for a place
    """
    room = room_for(config, there, gpu, trials)
    if not grows or not 0 < room < trials:
        return max(1, room)
    left = _left(config, there, gpu)
    for _ in range(room):
        _take(config, left, gpu)
    if _take(config, left, gpu, reading=False):
        return room
    # Nodes like those that train now: they must bring the reading's room along, or it must be there.
    grown = [*there, *(node for node in there if admits(config.placement.train, node.labels))]
    return min(trials, 2 * room) if room_for(config, grown, gpu, 2 * room) == 2 * room else room


def _left(config: Config, there: Sequence[Node], gpu: bool) -> list[Node]:
    """Copies, whose GPUs are counted in places for training processes: no process has parts of two."""
    left = [copy.copy(node) for node in there]
    for node in left:
        node.gpus = int(node.gpus) * int(1 / config.train.gpus_per_worker + ROUNDING) if gpu else 0
    return left


def _take(config: Config, left: list[Node], gpu: bool, reading: bool = True) -> bool:
    """Whether a trial has a place; what it takes is gone from the nodes then."""
    workers, _ = config.train.worker_range
    asked = [(config.train.cpus_per_worker, int(gpu), config.placement.train)] * workers
    if reading:
        asked += [(cpus, 0, config.placement.data) for cpus in (config.data.cpus_per_reader, TRIAL_CPUS)]
    taken: list[tuple[Node, float, int]] = []
    for cpus, gpus, selector in asked:
        fitting = [
            node
            for node in left
            if node.cpus + ROUNDING >= cpus and node.gpus >= gpus and admits(selector, node.labels)
        ]
        if not fitting:
            for node, held, slots in taken:
                node.cpus, node.gpus = node.cpus + held, node.gpus + slots
            return False
        # The fullest, and what only reads where nothing trains.
        node = min(fitting, key=lambda node: (node.gpus, node.cpus))
        node.cpus, node.gpus = node.cpus - cpus, node.gpus - gpus
        taken.append((node, cpus, gpus))
    return True
