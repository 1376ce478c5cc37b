"""Which pictures of evaluation sets training has seen: shards of training against all sets, in one pass on Ray.

<cache>/overlap/<sets and method>/<shard's content>.parquet      near-duplicates of one shard, written when it is read
<out>/overlap/<set>.parquet                                      near-duplicates of one set, over all shards

Only pixels are compared (`duplicates`), so that models share a cache and a shard is searched once. A task holds one
shard's matches; the sets' pictures, 7 KB each, lie once in the driver and once in the memory of each node.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from orchestrator import storage
from orchestrator.config import DataConfig
from orchestrator.data.images import ImageError
from orchestrator.data.manifest import Manifest, identity
from orchestrator.data.shards import RawSample, Reject, read_shard
from orchestrator.evaluate.datasets import EvaluationSet
from orchestrator.evaluate.duplicates import METHOD, Bank, find, make_bank, thumbnail
from orchestrator.train.cluster import total

# Pictures of training that are compared at once.
AT_ONCE = 64
# Of evaluation: the set, its sample's place and key; of training: the shard, the place in it and the key.
PAIRS = pa.schema(
    [
        ("set", pa.string()), ("sample", pa.int64()), ("sample_key", pa.string()),
        ("shard", pa.string()), ("index", pa.int64()), ("key", pa.string()), ("correlation", pa.float32()),
    ]
)  # fmt: skip
Row = dict[str, np.ndarray]


class Tally(NamedTuple):
    """What was searched: pictures of training compared, samples that cannot be used, near-duplicates found."""

    pictures: int = 0
    rejected: int = 0
    pairs: int = 0


class Progress(NamedTuple):
    """How far a search is: pictures compared by this job, shards that are done, and all."""

    pictures: int
    done: int
    shards: int

    def line(self, seconds: float) -> str:
        """For the reader of a job's output, after so many seconds."""
        rate = self.pictures / seconds
        return f"overlap: {self.pictures:,} pictures, {rate:,.0f} a second; {self.done:,} of {self.shards:,} shards"


def training_shards(patterns: Sequence[str]) -> list[str]:
    """URIs of shards that patterns, or the manifests (.json) of runs, name; each once.

    Raises
    ------
    StorageError : a pattern that matches nothing, or a manifest that is missing
    ValueError : a file that is no manifest
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if not pattern.endswith(".json"):
            found.update(dict.fromkeys(storage.expand(pattern)))
            continue
        try:
            manifest = Manifest.from_json(storage.read_bytes(pattern).decode())
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{pattern}: not the manifest of a run; name its manifest.json, or shards") from None
        found.update(dict.fromkeys(shard.uri for shard in manifest.shards))
    return list(found)


@dataclass(frozen=True)
class Pictures:
    """The pictures of evaluation, in the order of the bank's.

    Parameters
    ----------
    key_M : of each set by name, its samples' keys
    """

    key_M: dict[str, list[str]]

    def row(self, place: int) -> dict[str, Any]:
        """The set, place and key of one of the bank's pictures."""
        for name, keys in self.key_M.items():
            if place < len(keys):
                return {"set": name, "sample": place, "sample_key": keys[place]}
            place -= len(keys)
        raise IndexError(place)


def search_shard(pictures: Pictures, bank: Bank, shard: str, part: str, image_column: str = "image") -> Tally:
    """Read a shard of training and keep what is found; plain, without Ray.

    Parameters
    ----------
    pictures, bank : of evaluation
    shard : URI
    part : URI of what is found
    image_column : of Parquet, the column of encoded pictures

    Raises
    ------
    StorageError
    """
    rows: list[dict[str, Any]] = []
    compared = rejected = 0
    samples = read_shard(shard, DataConfig(image_column=image_column), captions=False)
    while held := list(itertools.islice(samples, AT_ONCE)):
        good = list(_readable(held))
        compared, rejected = compared + len(good), rejected + len(held) - len(good)
        for match in find(bank, np.stack([one for _, one in good])) if good else []:
            sample, _ = good[match.training]
            row = {"shard": shard, "index": sample.index, "key": sample.key, "correlation": match.correlation}
            rows.append(pictures.row(match.evaluation) | row)
    tally = Tally(compared, rejected, len(rows))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, PAIRS.with_metadata({"tally": json.dumps(tally)})), sink)
    storage.write_bytes(part, sink.getvalue())
    return tally


def _readable(samples: Sequence[RawSample | Reject]) -> Iterator[tuple[RawSample, np.ndarray]]:
    for sample in samples:
        # What training cannot read it has not seen.
        with contextlib.suppress(ImageError):
            if isinstance(sample, RawSample):
                yield sample, thumbnail(sample.image)


def search(
    datasets: Sequence[EvaluationSet],
    shards: Sequence[str],
    cache: str,
    say: Callable[[Progress], None],
    image_column: str = "image",
    where: dict[str, str] | None = None,
) -> list[str]:
    """Search the shards that have not been searched before, on the Ray that this process has joined.

    Parameters
    ----------
    datasets : the sets
    shards : URIs of training
    cache : URI of a folder, which runs and models may share
    say : told how far it is, now and then
    image_column : of Parquet, the column of encoded pictures
    where : labels of the nodes that read and compare; None: any

    Returns
    -------
    URIs of what was found, one a shard

    Raises
    ------
    StorageError : shards that cannot be read; what was found in others is kept
    """
    content = json.dumps([METHOD, [(one.name, one.content) for one in datasets]])
    folder = storage.join(cache, "overlap", hashlib.sha256(content.encode()).hexdigest()[:16])

    def part(shard: str) -> str:
        name = hashlib.sha256(json.dumps([shard, identity(shard)]).encode()).hexdigest()[:24]
        return storage.join(folder, f"{name}.parquet")

    with ThreadPoolExecutor(16) as threads:
        parts = dict(zip(shards, threads.map(part, shards), strict=True))
    there = set(storage.list_dir(folder)) if storage.exists(folder) else set()
    waiting = {shard: uri for shard, uri in parts.items() if uri not in there}
    compared, done = 0, len(shards) - len(waiting)
    for more in _stream(*_bank(datasets, where or {}), waiting, image_column, where or {}) if waiting else []:
        compared, done = compared + more, done + 1
        say(Progress(compared, done, len(shards)))
    return list(parts.values())


def _bank(datasets: Sequence[EvaluationSet], where: dict[str, str]) -> tuple[Pictures, Bank]:
    @ray.remote(num_cpus=_cpus(where), scheduling_strategy="SPREAD", label_selector=where)
    def read(dataset: EvaluationSet, uri: str) -> list[tuple[str, np.ndarray]]:
        return [(sample.key, thumbnail(sample.image)) for sample in dataset.read(uri)]

    tasks = {one.name: [read.remote(one, uri) for uri in one.shards] for one in datasets}
    found = {name: [sample for part in ray.get(own) for sample in part] for name, own in tasks.items()}
    keys = {name: [key for key, _ in samples] for name, samples in found.items()}
    return Pictures(keys), make_bank(np.stack([one for samples in found.values() for _, one in samples]))


def _stream(
    pictures: Pictures, bank: Bank, parts: Mapping[str, str], image_column: str, where: dict[str, str]
) -> Iterator[int]:
    """Pictures compared of each shard, as it is done."""
    # The tasks of a node see it in the same memory.
    kept = ray.put((pictures, bank))

    def read(row: Row) -> Iterator[Row]:
        shared = ray.get(kept)
        for shard, part in zip(row["shard"].tolist(), row["part"].tolist(), strict=True):
            try:
                compared, why = search_shard(*shared, shard, part, image_column).pictures, ""
            except storage.StorageError as error:
                compared, why = 0, str(error)
            yield {"compared": np.array([compared]), "error": np.array([why])}

    rows = [{"shard": shard, "part": part} for shard, part in parts.items()]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        read, batch_size=None, num_cpus=_cpus(where), label_selector=where or None
    )
    dataset.context.enable_progress_bars = False
    errors = []
    # With prefetching, a part that is done would be told only when the next is.
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for compared, error in zip(batch["compared"], batch["error"], strict=True):
            if error:
                errors.append(str(error))
            else:
                yield int(compared)
    if errors:
        raise storage.StorageError("; ".join(errors[:3]) + (f"; {len(errors) - 3} more" if errors[3:] else ""))


def _cpus(where: dict[str, str]) -> float:
    """What a task reserves: a CPU, or all that the nodes have of it."""
    return min(1, total("CPU", where) or 1)


def gather(parts: Sequence[str], uris: Mapping[str, str]) -> tuple[Tally, dict[str, set[int]]]:
    """Write each set's near-duplicates, streamed from what was found in each shard.

    Parameters
    ----------
    parts : of `search`
    uris : of each set by name, where its near-duplicates go

    Returns
    -------
    what was searched in all, and of each set the places of the samples that training has seen
    """
    seen: dict[str, set[int]] = {name: set() for name in uris}
    total = Tally()
    with contextlib.ExitStack() as stack:
        writers = {
            name: stack.enter_context(pq.ParquetWriter(stack.enter_context(storage.open_output(uri)), PAIRS))
            for name, uri in uris.items()
        }
        for part in parts:
            table = pq.read_table(io.BytesIO(storage.read_bytes(part)))
            tally = json.loads(table.schema.metadata[b"tally"])
            total = Tally(*(a + b for a, b in zip(total, tally, strict=True)))
            for name in table["set"].unique().to_pylist():
                own = table.filter(pc.equal(table["set"], name)).cast(PAIRS)
                seen[name].update(own["sample"].to_pylist())
                writers[name].write_table(own)
    return total, seen
