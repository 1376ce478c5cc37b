"""Pictures a second of feature extraction by Ray Data, beside a plain PyTorch loop over a DataLoader.

    python benchmarks/features.py
    python benchmarks/features.py --samples 6000 --repeats 2    # about a quarter of an hour on two cores

Both sides read the same tar shards of photographs, make the same pixels with this project's transform, and run the same
model (random weights) in batches of the same size. This side is `jobs/evaluate.py`'s own extraction, which stores what
it finds as Parquet as it goes; the other is what people write: a DataLoader with a worker for each core, a loop, and
the features kept in memory. Models: a small tower, where reading and decoding are the work, and ViT-B-32's, where the
model is.

Each measurement is a process of its own; the sides alternate, and so does who begins. The small tower takes all
pictures, ViT-B-32's the first quarter. Ray is started and one shard taken before the clock is started; the time of the
rest holds the start of the workers of either side, which does not grow with the pictures: with few it is most of it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

GOAL = 1.0
BATCH = 64
SHARDS = 32
# Of the shards a model takes one in so many.
ONE_IN = {"small": 1, "vit-b-32": 4}
SIDES = {"ours": "this project, on Ray Data", "dataloader": "DataLoader and a loop"}
MODELS = {"small": "small tower (4 layers of 128, 64 px)", "vit-b-32": "ViT-B-32's tower (12 layers of 768, 224 px)"}


def _save(folder: str, name: str) -> None:
    """A model of random weights."""
    import torch

    from orchestrator.config import ModelConfig, TextConfig, VisionConfig
    from orchestrator.data.images import ImageTransform
    from orchestrator.inference import save_model
    from orchestrator.model.clip import CLIP
    from orchestrator.model.tokenizer import Tokenizer

    vision = VisionConfig("vit", [4], 128, 8, 2) if name == "small" else VisionConfig("vit", [12], 768, 32, 12)
    side = 64 if name == "small" else 224
    tokenizer = Tokenizer.train(["a photo of a cat"] * 4, 512 + 8)
    config = ModelConfig(
        embed_dim=128, image_size=side, vision=vision, text=TextConfig(1, 64, 1, 16), vocab_size=tokenizer.vocab_size
    )
    torch.manual_seed(0)
    save_model(folder, CLIP(config), tokenizer, ImageTransform(side), "random weights\n")


def _write_set(folder: Path, photographs: list[str]) -> list[str]:
    """The photographs as a classification set's shards: the captions left out, one class."""
    from orchestrator.data.shard_writers import ShardWriter

    shards = [str(folder / f"{number}.tar") for number in range(SHARDS)]
    with contextlib.ExitStack() as stack:
        writers = itertools.cycle([stack.enter_context(ShardWriter(shard)) for shard in shards])
        for photograph in photographs:
            with tarfile.open(photograph) as source:
                for member in source:
                    if member.name.endswith(".jpg"):
                        image = source.extractfile(member)
                        assert image is not None
                        next(writers).write(member.name.removesuffix(".jpg"), {"jpg": image.read(), "cls": b"0"})
    return shards


def _ours(model: str, cores: int, features: str) -> Callable[[list[str]], int]:
    """What turns shards into features and returns how many."""
    import ray

    from orchestrator.evaluate.datasets import EvaluationSet
    from orchestrator.evaluate.extract import Progress, Split, extract
    from orchestrator.evaluate.features import FeatureFolder
    from orchestrator.inference import Embedder

    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    def run(shards: list[str]) -> int:
        dataset = EvaluationSet("photographs", ["photograph"], ["{c}"], shards)
        folder = FeatureFolder(f"{features}/{len(shards)}", dataset.name)
        count = 0

        def on_end(_: Split, error: str) -> None:
            if error:
                raise RuntimeError(error)

        def on_progress(progress: Progress) -> None:
            nonlocal count
            count = progress.pictures

        load = partial(Embedder, model)
        extract(load, load().transform, [Split(dataset, folder)], BATCH, on_end, on_progress)
        return count

    return run


def _dataloader(model: str, cores: int, features: str) -> Callable[[list[str]], int]:
    """The same, as people write it."""
    import torch

    from orchestrator.inference import Embedder

    embedder = Embedder(model, batch_size=BATCH)

    class Pictures(torch.utils.data.IterableDataset):
        def __init__(self, shards: list[str]):
            self.shards = shards

        def __iter__(self) -> Iterator[Any]:
            worker: Any = torch.utils.data.get_worker_info()
            for shard in self.shards[worker.id :: worker.num_workers]:
                with tarfile.open(shard) as source:
                    for member in source:
                        if member.name.endswith(".jpg"):
                            image = source.extractfile(member)
                            assert image is not None
                            yield embedder.transform.evaluate(image.read())

    def run(shards: list[str]) -> int:
        loader = torch.utils.data.DataLoader(Pictures(shards), batch_size=BATCH, num_workers=cores)
        found = [embedder.embed_images_with_features(batch.numpy()) for batch in loader]
        return sum(len(feature_NF) for _, feature_NF in found)

    return run


def _measure(side: str, model: str, shards: list[str], cores: int, features: str) -> dict[str, float]:
    run = {"ours": _ours, "dataloader": _dataloader}[side](model, cores, features)
    run(shards[:1])
    begin = time.perf_counter()
    count = run(shards)
    seconds = time.perf_counter() - begin
    return {"images_per_s": count / seconds, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6000, help="photographs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    if arguments.side:
        side, model, features = arguments.side
        print(json.dumps(_measure(side, model, sys.stdin.read().split(), arguments.cores, features)))
        return

    from photos import photo_shards

    with tempfile.TemporaryDirectory() as scratch:
        shards = _write_set(Path(scratch), photo_shards(arguments.samples, arguments.cores))
        runs: dict[tuple[str, str], list[dict[str, float]]] = {(name, side): [] for name in MODELS for side in SIDES}
        for name in MODELS:
            _save(f"{scratch}/{name}", name)
            for repeat in range(arguments.repeats):
                for side in list(SIDES) if repeat % 2 == 0 else reversed(SIDES):
                    command = [sys.executable, __file__, "--cores", str(arguments.cores), "--side", side]
                    done = subprocess.run(
                        [*command, f"{scratch}/{name}", f"{scratch}/features-{name}-{repeat}"],
                        input=" ".join(shards[: SHARDS // ONE_IN[name]]), stdout=subprocess.PIPE, text=True, check=True,
                    )  # fmt: skip
                    runs[name, side].append(json.loads(done.stdout.splitlines()[-1]))
                    print(f"{name}, {side}: {runs[name, side][-1]['images_per_s']:.0f} images/s", flush=True)
    rows: list[dict[str, Any]] = [
        {"model": name, "side": side} | {key: statistics.median(run[key] for run in found) for key in found[0]}
        for (name, side), found in runs.items()
    ]
    print(f"\n{platform.machine()}, {arguments.cores} cores, {time.strftime('%Y-%m-%d')}")
    print(f"{arguments.samples:,} photographs, {arguments.repeats} repeats, medians\n")
    print("| model | side | images/s | s |\n|---|---|---|---|")
    for row in rows:
        print(f"| {MODELS[row['model']]} | {SIDES[row['side']]} | {row['images_per_s']:.0f} | {row['seconds']:.1f} |")
    # The lesser of the two models' ratios, each the median of the repeats' own.
    ratio = min(
        statistics.median(
            ours["images_per_s"] / theirs["images_per_s"]
            for ours, theirs in zip(runs[name, "ours"], runs[name, "dataloader"], strict=True)
        )
        for name in MODELS
    )
    goals = {"features_vs_dataloader": {"value": round(ratio, 2), "goal": GOAL, "met": ratio >= GOAL}}
    machine = {"machine": platform.machine(), "cores": arguments.cores}
    print("\n" + json.dumps({"benchmark": "features", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
