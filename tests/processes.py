"""Run a function in several processes that form a process group, and get what each returns.

They are forked from a server that has loaded torch once and has done nothing else, so each begins as a new interpreter
would, without the seconds that loading takes; but all hash alike.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# The second is what a first optimiser or DistributedDataParallel loads.
PRELOADED = ["torch", "torch._dynamo"]


def run(processes: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(rank, *arguments)` in each process; results in the order of ranks. They must be picklable.

    Tensors in results are copied, so that they outlive the process that made them.
    """
    # Listening from here on: a port that was merely seen to be free can be taken before it is used.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    queue = context.SimpleQueue()
    spawned = mp.start_processes(
        _work,
        (processes, store.port, queue, function, arguments),
        nprocs=processes,
        join=False,
        start_method="forkserver",
    )
    found: list[tuple[int, Any]] = []
    while len(found) < processes:
        if queue.empty():
            spawned.join(timeout=0.1)  # raises what a process raised
        else:
            found.append(queue.get())
    while not spawned.join():
        pass
    return [_tensors(result) for _, result in sorted(found, key=lambda pair: pair[0])]


def _work(rank: int, processes: int, port: int, queue: Any, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    try:
        queue.put((rank, _arrays(function(rank, *arguments))))
        # A process that leaves while another still talks to it, or with its own talk alive in a reference cycle of
        # DistributedDataParallel, is aborted by gloo's threads.
        dist.barrier()
        gc.collect()
    finally:
        dist.destroy_process_group()


def _arrays(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return ("tensor", result.detach().numpy())
    return [_arrays(part) for part in result] if isinstance(result, list | tuple) else result


def _tensors(result: Any) -> Any:
    if isinstance(result, tuple) and result[:1] == ("tensor",):
        return torch.from_numpy(result[1])
    return [_tensors(part) for part in result] if isinstance(result, list) else result
