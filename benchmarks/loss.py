"""Memory and time of the contrastive loss, forward and backward, beside the full matrix and the gathered-local scheme.

    python benchmarks/loss.py                                  # what suits this device: some 7 minutes on two cores
    python benchmarks/loss.py --batches 1024 2048 --repeats 1  # a quick look
    python benchmarks/loss.py --batches 131072 --seconds 3600  # a long run in full
    python benchmarks/loss.py --fill 0.9                       # the peers may take nearly all memory

Sides, all on float32 features of 512 numbers:
  naive     one similarity matrix, cross-entropy over its rows and over its columns
  gathered  each worker's rows against all features, both ways: two matrix products and two matrices (open_clip's
            `local_loss` with `gather_with_grad`). On one process these are two full matrices
  tiled     orchestrator.objectives.info_nce
With two workers (gloo, half of the threads each) the figures are those of the slower, or larger, worker.

Every measurement has a process of its own, and the sides take turns. Memory is the largest resident size of the process
(on a GPU: allocated by torch) during the pass, less what it held with the features loaded; so it counts gradients.
A row is left out where the side's matrices would not fit in `--fill` of the free memory, or where the pass would take
longer than `--seconds`, by the time of the batch before. "tiled" then still shows its memory, by a pass that stops
after two rows of tiles but allocates and writes everything else: its time means nothing and is not given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import queue as queues
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn import functional as F

from orchestrator.objectives import info_nce
from orchestrator.objectives.tiles import Tiles

FEATURES = 512
# Matrices of B x B that live at once, logits, log-softmaxes and gradients: a little above what is measured.
MATRICES = {"naive": 4.5, "gathered": 4.5}
CPU_BATCHES = (4096, 8192, 16384, 32768, 65536, 131072, 262144)
GPU_BATCHES = (*CPU_BATCHES, 524288, 1048576)
TWO_WORKERS = 8192  # pairs of both together
ROWS_OF_TILES = 2


class _Gather(torch.autograd.Function):
    """Every worker's rows; a row's gradient is the sum of what all workers ask of it."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor) -> Tensor:
        parts = [torch.empty_like(x_BD) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x_BD)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad_GD: Tensor) -> Tensor:
        dist.all_reduce(grad_GD)
        return grad_GD.chunk(dist.get_world_size())[dist.get_rank()]


def naive(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    logits_BB = scale * image_BD @ text_BD.T
    target_B = torch.arange(len(image_BD), device=image_BD.device)
    return (F.cross_entropy(logits_BB, target_B) + F.cross_entropy(logits_BB.T, target_B)) / 2


def gathered(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    all_image_GD, all_text_GD, first = image_BD, text_BD, 0
    if dist.is_initialized():
        all_image_GD, all_text_GD = _Gather.apply(image_BD), _Gather.apply(text_BD)
        first = dist.get_rank() * len(image_BD)
    image_logits_BG = scale * image_BD @ all_text_GD.T
    text_logits_BG = scale * text_BD @ all_image_GD.T
    target_B = torch.arange(first, first + len(image_BD), device=image_BD.device)
    return (F.cross_entropy(image_logits_BG, target_B) + F.cross_entropy(text_logits_BG, target_B)) / 2


def tiled(image_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    return info_nce(image_BD, text_BD, scale, dist.group.WORLD if dist.is_initialized() else None)


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"naive": naive, "gathered": gathered, "tiled": tiled}


def _memory(device: torch.device, field: str) -> int:
    """Bytes: now ("VmRSS"), or the most since the last reset ("VmHWM")."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated() if field == "VmRSS" else torch.cuda.max_memory_allocated()
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def _features(pairs: int, device: torch.device) -> Tensor:
    x_BD = F.normalize(torch.randn(pairs, FEATURES, device=device), dim=-1)
    return x_BD.requires_grad_()


def _step(side: str, image_BD: Tensor, text_BD: Tensor) -> None:
    SIDES[side](image_BD, text_BD, torch.tensor(100.0, device=image_BD.device, requires_grad=True)).backward()


def _pass(rank: int, side: str, batch: int, kind: str, workers: int, port: int, cut: bool, results: Any) -> None:
    """One forward and backward pass in this process: seconds and bytes."""
    device = torch.device(kind)
    if workers > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=workers)
    if cut:
        _stop_early()
    torch.manual_seed(rank)
    small = [_features(512, device) for _ in range(2)]
    _step(side, *small)  # warms up
    image_BD, text_BD = (_features(batch // workers, device) for _ in range(2))
    if workers > 1:
        dist.barrier()
    _reset_peak(device)
    before, begin = _memory(device, "VmRSS"), time.perf_counter()
    _step(side, image_BD, text_BD)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - begin
    results.put((seconds, _memory(device, "VmHWM") - before))
    if workers > 1:
        dist.barrier()
        dist.destroy_process_group()


def _stop_early() -> None:
    """From here on only some rows of tiles are computed."""
    every = Tiles.__iter__
    Tiles.__iter__ = lambda self: itertools.takewhile(  # type: ignore[method-assign]
        lambda part: part.rows.start < ROWS_OF_TILES * self.tile, every(self)
    )


def measure(side: str, batch: int, kind: str, workers: int = 1, cut: bool = False) -> tuple[float, int]:
    """Seconds and bytes of one pass, of the worker with the most."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("spawn").Queue()
    mp.spawn(_pass, (side, batch, kind, workers, port, cut, results), nprocs=workers)
    try:
        found = [results.get(timeout=10) for _ in range(workers)]
    except queues.Empty:
        raise RuntimeError(f"{side}, {batch} pairs: no result") from None
    return max(seconds for seconds, _ in found), max(size for _, size in found)


def _free_bytes(kind: str) -> int:
    if kind == "cuda":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def _why_not(side: str, batch: int, kind: str, at_most: float, fill: float, rows: list[dict[str, Any]]) -> str:
    """The reason to leave a measurement out, or nothing."""
    needed, free = MATRICES.get(side, 0) * 4 * batch**2 + 6 * 4 * FEATURES * batch, _free_bytes(kind)
    if needed > fill * free:
        return f"would take some {needed / 1e9:.0f} of {free / 1e9:.0f} GB"
    before = [row for row in rows if row["side"] == side and row["workers"] == 1 and row["seconds"]]
    expected = before[-1]["seconds"] * (batch / before[-1]["batch"]) ** 2 if before else 0.0
    return f"would take some {expected:.0f} s" if expected > at_most else ""


def _row(side: str, batch: int, workers: int, found: list[tuple[float, int]], cut: bool = False) -> dict[str, Any]:
    row = {
        "side": side,
        "batch": batch,
        "workers": workers,
        "seconds": None if cut else statistics.median(seconds for seconds, _ in found),
        "bytes": int(statistics.median(size for _, size in found)),
        "repeats": len(found),
        "cut": cut,
    }
    print(f"  {json.dumps(row)}", file=sys.stderr, flush=True)
    return row


def run(
    batches: list[int], kind: str, repeats: int, at_most: float, fill: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """All rows, and what was left out and why."""
    rows: list[dict[str, Any]] = []
    left_out = []
    for batch in batches:
        why = {side: _why_not(side, batch, kind, at_most, fill, rows) for side in SIDES}
        taken = [side for side in SIDES if not why[side]]
        # A long pass needs no repeats to be told from noise.
        times = repeats if batch <= 16384 or kind == "cuda" else 1
        found: dict[str, list[tuple[float, int]]] = {side: [] for side in taken}
        for repeat in range(times):
            for side in taken if repeat % 2 else reversed(taken):
                found[side].append(measure(side, batch, kind))
        rows += [_row(side, batch, 1, found[side]) for side in taken]
        left_out += [f"{side}, {batch:,}: {reason}" for side, reason in why.items() if reason]
        if why["tiled"] or batch == 65536:  # there, beside the pass in full: the two should agree
            rows.append(_row("tiled", batch, 1, [measure("tiled", batch, kind, cut=True)], cut=True))
        if batch == TWO_WORKERS and kind == "cpu":
            both: dict[str, list[tuple[float, int]]] = {"gathered": [], "tiled": []}
            for _ in range(repeats):
                for side, measured in both.items():
                    measured.append(measure(side, batch, kind, workers=2))
            rows += [_row(side, batch, 2, measured) for side, measured in both.items()]
    return rows, left_out


def goals_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """What is to be reached, of what was measured."""
    full = {(row["side"], row["batch"]): row for row in rows if row["workers"] == 1 and not row["cut"]}
    size = {row["batch"]: row["bytes"] for row in rows if row["side"] == "tiled" and row["workers"] == 1 and row["cut"]}
    size |= {batch: row["bytes"] for (side, batch), row in full.items() if side == "tiled"}
    found: dict[str, tuple[float, float]] = {}
    shared = [batch for side, batch in full if side == "naive" and ("tiled", batch) in full]
    if shared:
        largest = max(shared)
        found["time_vs_naive"] = full["tiled", largest]["seconds"] / full["naive", largest]["seconds"], 1.3
    if 65536 in size:
        theirs = full.get(("gathered", 65536), {}).get("bytes", 2 * 4 * 65536**2)
        found["memory_vs_gathered_at_65536"] = size[65536] / theirs, 0.1
    for half in (32768, 131072):
        if half in size and 2 * half in size:
            found[f"memory_growth_{half}_to_{2 * half}"] = size[2 * half] / size[half], 2.2
    return {
        name: {"value": round(value, 4), "goal": goal, "met": value <= goal} for name, (value, goal) in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", help="pairs (default: 4,096 to 262,144; on a GPU 1,048,576)")
    parser.add_argument("--repeats", type=int, default=3, help="of batches up to 16,384 on a CPU, of all on a GPU")
    parser.add_argument("--seconds", type=float, default=180, help="leave out what would take longer than this")
    parser.add_argument("--fill", type=float, default=0.75, help="share of the free memory that a side may take")
    arguments = parser.parse_args()

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    batches = sorted(arguments.batches or (GPU_BATCHES if kind == "cuda" else CPU_BATCHES))
    rows, left_out = run(batches, kind, arguments.repeats, arguments.seconds, arguments.fill)

    hardware = torch.cuda.get_device_name() if kind == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"\n{hardware}, float32, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print(
        "| batch | workers | side | s | MB | times naive's s | times two matrices' MB |\n|---|---|---|---|---|---|---|"
    )
    base = {row["batch"]: row["seconds"] for row in rows if row["side"] == "naive"}
    for row in rows:
        naive_seconds = base.get(row["batch"]) if row["workers"] == 1 else None
        seconds = "stopped early" if row["cut"] else f"{row['seconds']:.2f}"
        ratio = f"{row['seconds'] / naive_seconds:.2f}" if naive_seconds and not row["cut"] else ""
        matrices = 2 * 4 * row["batch"] ** 2 / row["workers"]
        print(
            f"| {row['batch']:,} | {row['workers']} | {row['side']} | {seconds} | {row['bytes'] / 1e6:,.0f} | {ratio} "
            f"| {row['bytes'] / matrices:.3f} |"
        )
    print("\nleft out: " + ("; ".join(left_out) or "nothing") + "\n")
    machine = {"device": hardware, "dtype": "float32", "torch": torch.__version__}
    goals = goals_of(rows)
    result = {"benchmark": "loss", "machine": machine, "rows": rows, "left_out": left_out, "goals": goals}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
