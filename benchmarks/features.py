"""Pictures a second from an evaluation set's shards to stored features, beside a plain DataLoader loop.

    python benchmarks/features.py                          # a small ResNet, 2,000 photographs
    python benchmarks/features.py --model vit-b-32 --samples 500

Both sides read the same tars of photographs of 0.3 to 0.5 megapixels, make the same pictures by this project's
transform and run the same tower, of random weights, in batches of 256. The loop has a worker a core that decodes; it
embeds in the main process and keeps what it makes in memory. This side embeds in actors of Ray's and writes Parquet.
`steady` counts from the first answer to the last, `whole` from the start of the processes to the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable
from typing import Any

from photos import SAMPLES_A_SHARD, photo_shards

BATCH = 256
GOAL = 1.0


def write_set(root: str, shards: list[str]) -> None:
    """The photographs as an evaluation set of one class each in turn."""
    from orchestrator import storage
    from orchestrator.config import DataConfig
    from orchestrator.data.shard_writers import ShardWriter
    from orchestrator.data.shards import RawSample, read_shard

    # Shards of 100: the reading tasks of a small set share the cores.
    samples = [s for shard in shards for s in read_shard(shard, DataConfig()) if isinstance(s, RawSample)]
    count = -(-len(samples) // 100)
    for shard in range(count):
        with ShardWriter(storage.join(root, "test", f"{shard}.tar")) as writer:
            for number, sample in enumerate(samples[100 * shard : 100 * shard + 100]):
                writer.write(f"s{100 * shard + number:07d}", {"jpg": sample.image, "cls": str(number % 2).encode()})
    for name, text in (("test/nshards.txt", str(count)), ("classnames.txt", "a\nb")):
        storage.write_bytes(storage.join(root, name), text.encode())
    storage.write_bytes(storage.join(root, "zeroshot_classification_templates.txt"), b"{c}")


def write_model(uri: str, recipe: str) -> None:
    import torch

    from orchestrator import cli
    from orchestrator.data.images import ImageTransform
    from orchestrator.inference import save_model
    from orchestrator.model.clip import CLIP
    from orchestrator.model.tokenizer import Tokenizer

    config = cli.parse(["--config", recipe], "").model
    tokenizer = Tokenizer.clip(config.text.context_length)
    config.vocab_size = tokenizer.vocab_size
    torch.manual_seed(0)
    save_model(uri, CLIP(config).eval(), tokenizer, ImageTransform(config.image_size), "")


def ours(model: str, root: str, store: str, tick: Callable[[int], None]) -> None:
    import ray

    from orchestrator.evaluate.datasets import open_evaluation_set
    from orchestrator.evaluate.extract import Split, extract
    from orchestrator.evaluate.features import feature_folder
    from orchestrator.inference import Embedder

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    embedder = Embedder(model)
    dataset = open_evaluation_set("photos", root, "test", [])
    split = Split(dataset, feature_folder(store, embedder.fingerprint, dataset, "test"))
    problems: list[str] = []
    extract(model, embedder.transform, [split], BATCH, lambda _, error: problems.append(error), tick)
    ray.shutdown()
    assert problems == [""], problems


class _Prepare:
    def __init__(self, transform: Any):
        self._transform = transform

    def __call__(self, sample: tuple[bytes]) -> tuple[Any]:
        return (self._transform.evaluate(sample[0]),)


def loop(model: str, root: str, tick: Callable[[int], None]) -> None:
    import numpy as np
    import torch
    import webdataset as wds

    from orchestrator.inference import Embedder

    embedder = Embedder(model, "cuda" if torch.cuda.is_available() else "cpu", BATCH)
    shards = sorted(os.path.join(root, "test", name) for name in os.listdir(f"{root}/test") if name.endswith(".tar"))
    dataset = (
        wds.WebDataset(shards, shardshuffle=False).to_tuple("jpg").map(_Prepare(embedder.transform)).batched(BATCH)
    )
    kept, pictures = [], 0
    workers = os.cpu_count() or 1
    for (image,) in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=2):
        kept.append(embedder.embed_images_with_features(np.asarray(image)))
        pictures += len(image)
        tick(pictures)


def measured(side: Callable[[Callable[[int], None]], None]) -> dict[str, float]:
    ticks: list[tuple[float, int]] = []
    begin = time.perf_counter()
    side(lambda pictures: ticks.append((time.perf_counter(), pictures)))
    end = time.perf_counter()
    (first, had), (last, have) = ticks[0], ticks[-1]
    return {
        "steady": (have - had) / (last - first) if have > had else float("nan"),
        "whole": have / (end - begin),
        "first_s": first - begin,
        "pictures": have,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help=f"rounded up to whole {SAMPLES_A_SHARD}s")
    parser.add_argument("--model", default="demo", help="a recipe")
    arguments = parser.parse_args()
    import torch

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    os.environ.pop("RAY_ADDRESS", None)
    shards = photo_shards(arguments.samples, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as work:
        root, model = f"{work}/set", f"{work}/model"
        write_set(root, shards)
        write_model(model, arguments.model)
        rows = [
            {"side": "plain DataLoader loop", **measured(lambda tick: loop(model, root, tick))},
            {"side": "this evaluation", **measured(lambda tick: ours(model, root, f"{work}/features", tick))},
        ]
    where = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {os.cpu_count()} cores"
    )
    print(f"{where}; {arguments.model}, {rows[0]['pictures']:,} photographs\n")
    print("| side | images/s, steady | images/s, whole | first answer s |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['side']} | {row['steady']:.0f} | {row['whole']:.0f} | {row['first_s']:.1f} |")
    ratio = float(rows[1]["steady"]) / float(rows[0]["steady"])  # type: ignore[arg-type]
    goals = {"extraction_vs_dataloader": {"value": round(ratio, 2), "goal": GOAL, "met": ratio >= GOAL}}
    machine = {"device": where, "torch": torch.__version__}
    print("\n" + json.dumps({"benchmark": "features", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
