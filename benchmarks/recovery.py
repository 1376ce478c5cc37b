"""How long a killed worker stops a run, how many steps it repeats, and what checkpoints cost while nothing fails.

    python benchmarks/recovery.py
    python benchmarks/recovery.py --kills 5 --steps 400

A run of the demo's model on made pictures, two training processes on this machine, a checkpoint every 50 steps. Each
kill is a SIGKILL of one training process; the clock stops when the next step is recorded. `checkpoint_stall` is the
share of training time that steps waited for checkpoints, from the run's own metrics, over its undisturbed part.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from PIL import Image

from orchestrator import cli
from orchestrator.config import Config
from orchestrator.data.shard_writers import ShardWriter
from orchestrator.train.cluster import connect
from orchestrator.train.progress import ProgressDisplay
from orchestrator.train.trainer import pretrain

CHECKPOINT_EVERY = 50
WORDS = ["amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ledge"]


def _config(root: Path, steps: int) -> Config:
    """The demo's model on random pictures with random captions: nothing to learn, as much to do."""
    rng = np.random.default_rng(0)
    for shard in range(8):
        with ShardWriter(str(root / "train" / f"{shard}.tar")) as writer:
            for number in range(256):
                out = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (72, 72, 3), dtype=np.uint8)).save(out, "JPEG")
                caption = " ".join(rng.choice(WORDS, 5))
                writer.write(f"{number:06d}", {"jpg": out.getvalue(), "txt": caption.encode()})
    config = cli.parse(["--config", "demo"], __doc__ or "")
    config.run.name, config.run.storage_path = "recovery", str(root / "runs")
    config.data.train, config.data.caption = [str(root / "train" / "*.tar")], "txt"
    config.data.interleave, config.data.shuffle_buffer, config.tokenizer.vocab_size = 2, 500, 530
    config.train.epochs, config.train.max_steps, config.train.max_failures = 1000, steps, 100
    config.train.global_batch, config.train.checkpoint_every, config.train.log_every = 64, CHECKPOINT_EVERY, 1
    config.validate()
    return config


def _trainers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


class _Watch(ProgressDisplay):
    """Hands the run's board to the benchmark."""

    board: Any = None

    def __enter__(self) -> _Watch:
        _Watch.board = self._board
        return super().__enter__()  # type: ignore[return-value]


def _step() -> int:
    """The newest step of the workers that run now; 0 before their first."""
    if _Watch.board is None:
        return 0
    return ray.get(_Watch.board.read.remote())[0].get("step", 0)


def _wait_for(step: int) -> int:
    while (now := _step()) < step:
        time.sleep(0.02)
    return now


def _kill_and_wait(rng: np.random.Generator) -> dict[str, float]:
    before = _step()
    rng.choice(_trainers()).kill()
    start = time.perf_counter()
    while _step() >= before:  # until the board hears that the workers start anew
        time.sleep(0.02)
    _wait_for(1)
    seconds, restored = time.perf_counter() - start, ray.get(_Watch.board.start.remote())
    return {"seconds": seconds, "repeated": before - restored}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="undisturbed steps before the first kill")
    arguments = parser.parse_args()
    load, rng = os.getloadavg()[0], np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        config = _config(Path(scratch), arguments.steps + 2 * CHECKPOINT_EVERY * (arguments.kills + 1))
        print(connect(config), file=sys.stderr)
        run = threading.Thread(target=pretrain, args=(config, _Watch), daemon=True)
        run.start()
        _wait_for(arguments.steps)
        rows = []
        for kill in range(arguments.kills):
            _wait_for(arguments.steps + 2 * CHECKPOINT_EVERY * kill + int(rng.integers(CHECKPOINT_EVERY)))
            rows.append(_kill_and_wait(rng))
            print(f"  kill {kill + 1}: {rows[-1]}", file=sys.stderr, flush=True)
        run.join()
        lines = [json.loads(line) for line in (Path(scratch) / "runs/recovery/metrics.jsonl").read_text().splitlines()]
    calm = [line for line in lines if 10 < line["step"] <= arguments.steps]
    seconds = [1 / line["samples_per_s"] for line in calm]
    stall = sum(line["checkpoint_stall"] * s for line, s in zip(calm, seconds, strict=True)) / sum(seconds)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}, load average {load:.1f}\n")
    print("| kill | seconds to the next step | steps repeated |\n|---|---|---|")
    for number, row in enumerate(rows, 1):
        print(f"| {number} | {row['seconds']:.1f} | {row['repeated']} |")
    print(f"\ncheckpoint stall over {len(calm)} steps, a checkpoint every {CHECKPOINT_EVERY}: {stall:.2%}\n")
    goals = {}
    median = statistics.median(row["seconds"] for row in rows)
    for name, value, goal in (("seconds_to_next_step", median, 20.0), ("checkpoint_stall", stall, 0.01)):
        goals[name] = {"value": round(value, 4), "goal": goal, "met": value <= goal}
    machine = {"cpu": platform.machine(), "cores": os.cpu_count(), "load": round(load, 2)}
    print(json.dumps({"benchmark": "recovery", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
