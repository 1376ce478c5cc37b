"""The all-reduce that training shares gradients by, between nodes: whether it works, and how fast."""

from __future__ import annotations

import datetime
import os
import socket
import time

from cluster.preflight.line import Line
from orchestrator.train.network import interface_of

BYTES = 64 << 20
ROUNDS = 3
SLOW_BYTES_PER_S = 100e6


def prepare() -> int:
    """Import torch, which takes its time, and find a port that nothing listens at."""
    import torch.distributed  # noqa: F401

    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def measure(rank: int, ranks: int, address: str, master: str, port: int, timeout_s: float, gpu: bool = False) -> float:
    """Take part in the all-reduce of a float32 tensor of 64 MiB: once to warm up, then three times.

    Parameters
    ----------
    rank, ranks : this process's number, and how many there are
    address : this node's, through whose interface the others are reached
    master, port : where rank 0 listens
    timeout_s : for the others to come, and for each all-reduce
    gpu : NCCL on a GPU instead of gloo on CPUs

    Returns
    -------
    seconds of the fastest

    Raises
    ------
    RuntimeError : the others cannot be reached, or the sum is wrong
    """
    import torch
    import torch.distributed as dist

    name = "NCCL_SOCKET_IFNAME" if gpu else "GLOO_SOCKET_IFNAME"
    os.environ.setdefault(name, interface_of(address))
    limit = datetime.timedelta(seconds=timeout_s)
    store = dist.TCPStore(master, port, ranks, rank == 0, limit)
    dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=ranks, timeout=limit)
    try:
        best = float("inf")
        for attempt in range(1 + ROUNDS):
            tensor = torch.ones(BYTES // 4, device="cuda" if gpu else "cpu")
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(tensor)
            if tensor[-1].item() != ranks or tensor[0].item() != ranks:  # It waits for the GPU, too.
                raise RuntimeError("the sum over the nodes is wrong")
            best = min(best, time.perf_counter() - start) if attempt else best
        return best
    finally:
        dist.destroy_process_group()


def judge(seconds: list[float], gpu: bool) -> Line:
    """What the slowest node's time means.

    Parameters
    ----------
    seconds : of each node
    """
    ranks, slowest = len(seconds), max(seconds)
    # What each node must send and receive at least, over the time: nccl-tests' bus bandwidth.
    rate = 2 * (ranks - 1) / ranks * BYTES / slowest
    how = f"bus bandwidth, {BYTES >> 20} MiB of float32, best of {ROUNDS}, slowest node"
    seen = f"{'NCCL' if gpu else 'gloo'} at {rate / 1e6:.0f} MB/s ({how})"
    if rate < SLOW_BYTES_PER_S:
        cure = "Put the nodes into one zone (a cluster placement group), on a faster network"
        return Line("warn", "allreduce", f"{ranks} nodes", seen, cure)
    return Line("ok", "allreduce", f"{ranks} nodes", seen)
