"""Images a second from JPEG shards to training-ready batches, beside a PyTorch DataLoader and beside decoding alone.

    python benchmarks/ingest.py                     # 20,000 photographs
    python benchmarks/ingest.py --samples 2000 --repeats 1

Rows: this pipeline with exact and with fast decode; `torch DataLoader + webdataset + Pillow`, which makes the same
pictures to the bit in Pillow's own calls; the same DataLoader with this project's transform, to compare the machinery
alone; and the upper bound, plain processes that make pictures from memory and do nothing else. All give uint8
(B, 3, 224, 224); all but the bound give tokens. Every row of a repeat runs after the other, each in a process of
its own; figures are medians over repeats.

Images a second are those of the middle half of the stream, from a quarter of the samples to three quarters. A clock
that starts at the first batch would count what was decoded before it arrived (a whole reading task's blocks, here), and
one that stops at the last batch what drains from buffers: on 2,000 samples that gave 2.8 times the decode bound. The
delay of the first batch, and the speed with everything included, are columns of their own.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

ROWS = {
    "ours_exact": "this pipeline, exact decode",
    "ours_fast": "this pipeline, fast decode",
    "dataloader": "torch DataLoader + webdataset + Pillow",
    "dataloader_our_transform": "torch DataLoader + webdataset, our exact transform",
    "bound_exact": "decode alone, exact",
    "bound_fast": "decode alone, fast",
}
BATCH, IMAGE_SIZE, CROP_SCALE, CONTEXT = 256, 224, 0.9, 77
S3_KEY = "benchmark"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def _config(shards: list[str], decode: Any) -> Any:
    from orchestrator.config import Config

    config = Config()
    config.data.train = shards
    config.data.jpeg_decode = decode
    config.model.image_size, config.model.text.context_length = IMAGE_SIZE, CONTEXT
    config.train.epochs = 1
    return config


def _transform(decode: Any) -> Any:
    from orchestrator.data.images import ImageTransform

    return ImageTransform(image_size=IMAGE_SIZE, crop_scale=CROP_SCALE, jpeg_decode=decode)


def _ours(shards: list[str], decode: str, cores: int) -> Iterator[int]:
    """Batches' sizes, as a trainer takes them: through streaming_split."""
    import ray

    from orchestrator.data.manifest import Manifest, inspect_shard
    from orchestrator.data.pipeline import make_dataset
    from orchestrator.data.rejects import RejectActor, RejectLedger
    from orchestrator.model.tokenizer import Tokenizer

    config = _config(shards, decode)
    # Made once for each run of training, not for each epoch: outside the clock.
    manifest = Manifest([inspect_shard(shard, config.data) for shard in shards])
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    rejects = RejectActor.remote(RejectLedger(manifest, 0.0), "ingest")  # type: ignore[attr-defined]
    yield 0
    dataset = make_dataset(manifest, config, Tokenizer.clip(), rejects)
    dataset.context.enable_progress_bars = False
    (split,) = dataset.streaming_split(1)
    for batch in split.iter_batches(batch_size=BATCH, batch_format="numpy", prefetch_batches=2):
        yield len(batch["sample"])


class _Prepare:
    """The DataLoader's map function: the picture by `transform`, the caption by our tokenizer."""

    def __init__(self, transform: Any) -> None:
        import numpy as np

        from orchestrator.model.tokenizer import Tokenizer

        self._transform, self._tokenizer = transform, Tokenizer.clip()
        self._rng = np.random.default_rng()

    def __call__(self, sample: tuple[bytes, bytes]) -> tuple[Any, Any]:
        image, text = sample
        return self._transform(image, self._rng), self._tokenizer([text.decode()], CONTEXT)[0]


def _pillow(data: bytes, rng: Any) -> Any:
    """What `ImageTransform.train` makes of a JPEG, as one writes it with Pillow."""
    import io
    import math

    import numpy as np
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = round(math.sqrt(rng.uniform(CROP_SCALE, 1)) * min(image.size))
    left, top = int(rng.integers(image.width - side + 1)), int(rng.integers(image.height - side + 1))
    square = image.crop((left, top, left + side, top + side)).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _dataloader(shards: list[str], cores: int, transform: Any) -> Iterator[int]:
    import torch
    import webdataset as wds

    if shards[0].startswith("s3://"):
        # webdataset's way to S3 is a pipe; curl on a public object is the cheapest one that there is.
        endpoint = os.environ["AWS_ENDPOINT_URL"]
        shards = [f"pipe:curl -s {endpoint}/{shard.removeprefix('s3://')}" for shard in shards]
    dataset = (
        wds.WebDataset(shards, shardshuffle=len(shards), nodesplitter=wds.split_by_node)
        .shuffle(1000)
        .to_tuple("jpg", "txt")
        .map(_Prepare(transform))
        .batched(BATCH)
    )
    yield 0
    for image, _tokens in torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=cores, prefetch_factor=2):
        yield len(image)


def _decode_all(pictures: list[bytes], passes: int, decode: str, start: Any, done: Any) -> None:
    import numpy as np

    # glibc would give the decoder's memory back to the kernel after each picture: 10% of the time, which no pipeline
    # whose processes hold more than one picture pays.
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 29), libc.mallopt(M_MMAP_THRESHOLD, 1 << 28)
    transform, rng = _transform(decode), np.random.default_rng(0)
    transform.train(pictures[0], rng)
    done.put(None)
    start.wait()
    for picture in pictures * passes:
        transform.train(picture, rng)
    done.put(len(pictures) * passes)


def _bound(shards: list[str], decode: str, cores: int) -> float:
    """Images a second of plain processes with the pictures in memory already: 4,000 of them, again and again."""
    import multiprocessing

    from orchestrator.config import DataConfig
    from orchestrator.data.shards import RawSample, read_shard

    pictures = [s.image for shard in shards[:8] for s in read_shard(shard, DataConfig()) if isinstance(s, RawSample)]
    passes = max(1, len(shards) // 8)
    context = multiprocessing.get_context("fork")
    start, done = context.Event(), context.Queue()
    workers = [
        context.Process(target=_decode_all, args=(pictures[rank::cores], passes, decode, start, done))
        for rank in range(cores)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        done.get()
    begin = time.perf_counter()
    start.set()
    images = sum(done.get() for _ in workers)
    elapsed = time.perf_counter() - begin
    for worker in workers:
        worker.join()
    return images / elapsed


def _measure(row: str, shards: list[str], cores: int) -> dict[str, float]:
    if row.startswith("bound"):
        return {"images_per_s": _bound(shards, row.split("_")[1], cores), "first_batch_s": 0.0, "peak_mb": 0.0}
    if row.startswith("dataloader"):
        batches = _dataloader(shards, cores, _pillow if row == "dataloader" else _transform("exact").train)
    else:
        batches = _ours(shards, row.split("_")[1], cores)
    next(batches)
    memory = _MemoryMeter()
    begin = time.perf_counter()
    samples, arrivals = 0, []
    for size in batches:
        samples += size
        arrivals.append((time.perf_counter(), samples))
    early = next(arrival for arrival in arrivals if arrival[1] >= samples / 4)
    late = next(arrival for arrival in arrivals if arrival[1] >= samples * 3 / 4)
    return {
        "images_per_s": (late[1] - early[1]) / (late[0] - early[0]),
        "whole_images_per_s": samples / (arrivals[-1][0] - begin),
        "first_batch_s": arrivals[0][0] - begin,
        "peak_mb": memory.stop(),
        "samples": samples,
    }


class _MemoryMeter:
    """Peak memory of this process and all below it, in MB: their own pages, and shared memory counted once.

    Shared memory (Ray's object store, the DataLoader's tensors) is what /dev/shm grew by. Proportional set sizes would
    say the same, but reading them walks every page table: 4% of the benchmark's processor time.
    """

    def __init__(self) -> None:
        self._peak, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        import psutil

        me, before = psutil.Process(), psutil.disk_usage("/dev/shm").used
        while not self._ended.wait(0.5):
            total = psutil.disk_usage("/dev/shm").used - before
            for process in [me, *me.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                except psutil.Error:
                    continue
                total += memory.rss - memory.shared
            self._peak = max(self._peak, total / 1e6)

    def stop(self) -> float:
        self._ended.set()
        self._thread.join()
        return self._peak


def _run(row: str, shards: list[str], cores: int) -> dict[str, float]:
    """Measure a row in a process of its own."""
    command = [sys.executable, __file__, "--row", row, "--cores", str(cores)]
    done = subprocess.run(command, input="\n".join(shards), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{row} failed:\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"  {row:12s} {json.dumps({k: round(v, 1) for k, v in result.items()})}", file=sys.stderr, flush=True)
    return result


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def _upload(shards: list[str]) -> tuple[subprocess.Popen, list[str]]:
    """A local S3 server with the shards in it."""
    import socket

    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID=S3_KEY,
        AWS_SECRET_ACCESS_KEY=S3_KEY,
        AWS_DEFAULT_REGION="us-east-1",
    )
    client = boto3.client("s3")
    for _ in range(100):
        try:
            client.create_bucket(Bucket="photos", ACL="public-read")
            break
        except Exception:
            time.sleep(0.2)
    for shard in shards:
        client.upload_file(shard, "photos", os.path.basename(shard), ExtraArgs={"ACL": "public-read"})
    return server, [f"s3://photos/{os.path.basename(shard)}" for shard in shards]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--s3-samples", type=int, default=4000, help="samples read through S3; 0: none")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    if arguments.row:
        print(json.dumps(_measure(arguments.row, sys.stdin.read().split(), arguments.cores)))
        return

    from photos import photo_shards

    cores = arguments.cores
    shards = photo_shards(arguments.samples, cores)
    load = os.getloadavg()[0]
    runs: dict[str, list[dict[str, float]]] = {row: [] for row in ROWS}
    for repeat in range(arguments.repeats):
        for row in list(ROWS) if repeat % 2 == 0 else reversed(ROWS):
            runs[row].append(_run(row, shards, cores))
    rows = {row: _medians(measured) for row, measured in runs.items()}
    quarter = _run("ours_exact", shards[: max(1, len(shards) // 4)], cores)
    through_s3: dict[str, dict[str, float]] = {}
    if arguments.s3_samples:
        server, uris = _upload(photo_shards(arguments.s3_samples, cores))
        try:
            for row in ("ours_exact", "dataloader"):
                through_s3[row] = _run(row, uris, cores)
        finally:
            server.kill()

    print(f"\n{platform.machine()}, {cores} cores, {time.strftime('%Y-%m-%d')}, load average {load:.1f} at the start")
    print(f"{arguments.samples:,} photographs, {arguments.repeats} repeats, medians\n")
    print("| | images/s | first batch s | images/s with first batch | peak MB |\n|---|---|---|---|---|")
    for name, table in (("local", rows), ("S3", through_s3)):
        for row, r in table.items():
            whole = f"{r['whole_images_per_s']:.0f}" if "whole_images_per_s" in r else ""
            print(
                f"| {name}: {ROWS[row]} | {r['images_per_s']:.0f} | {r['first_batch_s']:.1f} | {whole} "
                f"| {r['peak_mb'] or 0:.0f} |"
            )
    print(
        f"| local: {ROWS['ours_exact']}, a quarter of the data | {quarter['images_per_s']:.0f} "
        f"| {quarter['first_batch_s']:.1f} | {quarter['whole_images_per_s']:.0f} | {quarter['peak_mb']:.0f} |\n"
    )

    speed = {row: measured["images_per_s"] for row, measured in rows.items()}
    goals = {}
    for name, value, goal in (
        ("same_decode_vs_dataloader", speed["ours_exact"] / speed["dataloader"], 1.0),
        ("fast_decode_vs_dataloader", speed["ours_fast"] / speed["dataloader"], 1.5),
        ("vs_decode_bound", speed["ours_exact"] / speed["bound_exact"], 0.85),
    ):
        goals[name] = {"value": round(value, 3), "goal": goal, "met": value >= goal}
    machine = {"cpu": platform.machine(), "cores": cores, "load": round(load, 2), "python": platform.python_version()}
    everything = {**rows, **{f"s3_{row}": r for row, r in through_s3.items()}, "ours_exact_quarter": quarter}
    print(json.dumps({"benchmark": "ingest", "machine": machine, "rows": everything, "goals": goals}))


if __name__ == "__main__":
    main()
