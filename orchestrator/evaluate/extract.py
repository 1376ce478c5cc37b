"""Features of evaluation sets, computed on all devices by Ray Data.

One stream of blocks for all sets: reading tasks decode, a pool of actors embeds and stores. What comes back to the
driver is counts, so that memory grows neither with the pictures nor with the sets.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from orchestrator import storage
from orchestrator.config import PlacementConfig
from orchestrator.data.images import ImageError
from orchestrator.data.pipeline import BLOCK_BYTES
from orchestrator.data.shards import RawSample
from orchestrator.evaluate.datasets import EvaluationSet, EvaluationSetError
from orchestrator.evaluate.features import FeatureFolder, Part, part_table
from orchestrator.train.cluster import CPU_ENVIRONMENT, total

# Rows of a part, at most.
PART_SAMPLES = 1024
# CPUs that a reading task and an actor reserve where there is no GPU, and an actor's threads. Both want the same cores,
# and the model decides which of them has more to do: C CPUs have room for C tasks and for C / 2 actors of two threads,
# so that either may use every core; the system shares them out, and a task that is far ahead waits.
READER_CPUS, ACTOR_CPUS, ACTOR_THREADS = 0.75, 0.5, 2
# Sets named in a line of progress.
UNDER_WAY_SHOWN = 3
Columns = dict[str, np.ndarray]
# (device, batch_size) -> an Embedder or ImageEncoder.
Load = Callable[[str, int], Any]


class Transform(Protocol):
    """What happens to a picture before a model sees it: an encoded one -> uint8 (3, R, R)."""

    @property
    def image_size(self) -> int: ...

    def evaluate(self, data: bytes) -> np.ndarray: ...


@dataclass
class Split:
    """One split of one set that is to be embedded.

    Parameters
    ----------
    dataset : the split
    folder : where its features go
    done : parts that are there already
    """

    dataset: EvaluationSet
    folder: FeatureFolder
    done: list[Part] = field(default_factory=list)


class ReadShard:
    """Turns shards into blocks of decoded pictures; plain, without Ray.

    A block's columns: split, shard, index (B,), image uint8 (B, 3, R, R), and about (B,), JSON: what else is known of
    a sample. A block of one row whose index is -1 says how a shard ended: its samples, or what is wrong with it.

    Parameters
    ----------
    splits : all that are read
    transform : the model's
    """

    def __init__(self, splits: Sequence[Split], transform: Transform):
        self._splits, self._transform = splits, transform
        side = transform.image_size
        self._most = min(PART_SAMPLES, max(1, BLOCK_BYTES // (3 * side**2)))

    def read(self, split: int, shard: int) -> Iterator[Columns]:
        """The shard's samples but those that are done, in blocks of neighbours, then its end."""
        dataset, uri = self._splits[split].dataset, self._splits[split].dataset.shards[shard]
        done = {
            index
            for part in self._splits[split].done
            if part.shard == shard
            for index in range(part.first, part.first + part.samples)
        }
        held: list[tuple[RawSample, np.ndarray]] = []
        samples = 0
        try:
            for sample in dataset.read(uri):
                samples += 1
                if held and (sample.index in done or len(held) == self._most):
                    yield self._block(split, shard, held)
                    held = []
                if sample.index not in done:
                    try:
                        held.append((sample, self._transform.evaluate(sample.image)))
                    except ImageError as error:
                        raise dataset.error(uri, sample.index, sample.key, str(error)) from None
            if held:
                yield self._block(split, shard, held)
        except (EvaluationSetError, storage.StorageError) as error:
            yield self._end(split, shard, {"error": str(error)})
        else:
            yield self._end(split, shard, {"samples": samples})

    def _block(self, split: int, shard: int, held: list[tuple[RawSample, np.ndarray]]) -> Columns:
        about = [
            json.dumps({"key": sample.key, "label": _plain(sample.label), "texts": sample.texts}) for sample, _ in held
        ]
        index = np.array([sample.index for sample, _ in held])
        return self._columns(split, shard, index, np.stack([image for _, image in held]), about)

    def _end(self, split: int, shard: int, about: dict[str, Any]) -> Columns:
        side = self._transform.image_size
        return self._columns(split, shard, np.array([-1]), np.zeros((1, 3, side, side), np.uint8), [json.dumps(about)])

    def _columns(self, split: int, shard: int, index: np.ndarray, image: np.ndarray, about: list[str]) -> Columns:
        rows = len(index)
        return {
            "split": np.full(rows, split), "shard": np.full(rows, shard), "index": index, "image": image,
            "about": np.array(about, dtype=object),
        }  # fmt: skip


class EmbedBlocks:
    """Embeds blocks and stores them; an actor of Ray's for each device.

    Parameters
    ----------
    load : makes the model, of (device, batch_size)
    folders : of each split
    device : torch device
    batch_size : pictures in one forward pass
    threads : of torch; 0: as many as it has
    """

    def __init__(self, load: Load, folders: list[FeatureFolder], device: str, batch_size: int, threads: int = 0):
        if threads:
            import torch  # Not by the reading tasks, which begin two seconds sooner without.

            torch.set_num_threads(threads)
        self._embedder, self._folders = load(device, batch_size), folders

    def __call__(self, block: Columns) -> Columns:
        """Ray Data joins small blocks; each run of neighbours in one becomes a part."""
        same = (np.diff(block["split"]) == 0) & (np.diff(block["shard"]) == 0) & (np.diff(block["index"]) == 1)
        # The end of a shard has the index -1: nothing follows it as its neighbour.
        ends = np.flatnonzero(~(same & (block["index"][:-1] >= 0))) + 1
        bounds = [0, *ends.tolist(), len(block["index"])]
        answers = [
            self._embed({name: column[start:stop] for name, column in block.items()})
            for start, stop in itertools.pairwise(bounds)
        ]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in _ANSWER}

    def _embed(self, block: Columns) -> Columns:
        split, shard, first = (int(block[name][0]) for name in ("split", "shard", "index"))
        about = [json.loads(text) for text in block["about"]]
        if first < 0:
            return _answer(split, shard, first, 0, about[0])
        embedding_ND, feature_NF = self._embedder.embed_images_with_features(block["image"])
        texts = [one["texts"] for one in about]
        captions = [text for one in texts for text in one]
        # Only retrieval has captions, and an image encoder no words for them.
        caption_TD = self._embedder.embed_texts(captions) if captions else embedding_ND[:0]
        table = part_table(
            [one["key"] for one in about], [one["label"] for one in about], texts,
            embedding_ND.numpy(), feature_NF.numpy(), caption_TD.numpy(),
        )  # fmt: skip
        self._folders[split].write(Part(shard, first, len(about)), table)
        return _answer(split, shard, first, len(about), {})


class Progress(NamedTuple):
    """How far an extraction is.

    Parameters
    ----------
    pictures : embedded by this job so far
    left : still to come, as the shards that have ended let expect; None: none has
    sets : of each set under way and not done its shards that have ended, and all
    """

    pictures: int
    left: int | None
    sets: dict[str, tuple[int, int]]

    def line(self, seconds: float) -> str:
        """For the reader of a job's output, after so many seconds."""
        rate = self.pictures / seconds
        text = f"{self.pictures:,} pictures embedded, {rate:,.0f} a second"
        if self.left is not None:
            text += f", about {timedelta(seconds=round(self.left / rate))} left"
        under_way = [f"{name} {ended} of {shards} shards" for name, (ended, shards) in self.sets.items()]
        return "; ".join([text, *under_way[:UNDER_WAY_SHOWN], *(["..."] if under_way[UNDER_WAY_SHOWN:] else [])])


def extract(
    load: Load,
    transform: Transform,
    splits: Sequence[Split],
    batch_size: int,
    on_end: Callable[[Split, str], None],
    on_progress: Callable[[Progress], None] = lambda progress: None,
    placement: PlacementConfig | None = None,
) -> None:
    """Compute and store what is missing.

    Parameters
    ----------
    load : makes the model, of (device, batch_size), on any node
    transform : the model's
    splits : what to embed; parts that lie in a folder already are kept
    batch_size : pictures in one forward pass
    on_end : told of each split as it ends, and what is wrong with it; empty: it is complete
    on_progress : told how far it is, now and then
    placement : reading on nodes of `data`, embedding on nodes of `train`; None: on any
    """
    _quieten()
    for split in splits:
        split.done = split.folder.parts()
    tallies = [_Tally(split) for split in splits]
    pictures = 0
    for number, shard, first, count, about in _answers(
        load, transform, splits, batch_size, placement or PlacementConfig()
    ):
        tally = tallies[number]
        if first >= 0:
            tally.parts.append(Part(shard, first, count))
            pictures += count
            on_progress(_progress(pictures, tallies))
        else:
            tally.end(about)
        if not tally.told and (tally.error or tally.whole):
            tally.told = True
            if not tally.error:
                tally.split.folder.finish(tally.parts)
            on_end(tally.split, tally.error)


def _progress(pictures: int, tallies: Sequence[_Tally]) -> Progress:
    ended = sum(tally.ended for tally in tallies)
    in_ended = sum(tally.samples for tally in tallies)
    left = 0.0
    sets: dict[str, tuple[int, int]] = {}
    for tally in tallies:
        if tally.told:
            continue
        shards, have = len(tally.split.dataset.shards), sum(part.samples for part in tally.parts)
        # A set's own shards, of which writers make the same size, or else the other sets'.
        mean = tally.samples / tally.ended if tally.ended else in_ended / ended if ended else 0.0
        left += max(0.0, mean * shards - have)
        if have:
            so_far, of = sets.get(tally.split.dataset.name, (0, 0))
            sets[tally.split.dataset.name] = so_far + tally.ended, of + shards
    return Progress(pictures, round(left) if ended else None, sets)


def _quieten() -> None:
    """Leave Ray Data's warnings on the console, of its other lines none: the job tells of its own progress."""

    def worth_saying(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING and "Progress bars disabled" not in record.getMessage()

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.level < logging.WARNING:
            handler.setLevel(logging.WARNING)
            handler.addFilter(worth_saying)


class _Tally:
    """What is known of a split so far."""

    def __init__(self, split: Split):
        self.split, self.parts = split, list(split.done)
        self.error, self.told = "", False
        self.ended = self.samples = 0

    def end(self, about: dict[str, Any]) -> None:
        """A shard has ended."""
        self.ended += 1
        self.samples += about.get("samples", 0)
        self.error = self.error or about.get("error", "")
        if not self.error and self.ended == len(self.split.dataset.shards) and not self.samples:
            self.error = f"evaluation set {self.split.dataset.name}: its shards hold no samples"

    @property
    def whole(self) -> bool:
        """A shard's end may overtake its last blocks."""
        shards = len(self.split.dataset.shards)
        return self.ended == shards and sum(part.samples for part in self.parts) == self.samples


def _answers(
    load: Load, transform: Transform, splits: Sequence[Split], batch_size: int, placement: PlacementConfig
) -> Iterator[tuple[int, int, int, int, dict[str, Any]]]:
    rows = [
        {"split": number, "shard": shard}
        for number, split in enumerate(splits)
        for shard in range(len(split.dataset.shards))
    ]
    if not rows:
        return
    gpus, cpus = int(total("GPU", placement.train)), total("CPU", placement.train) or 1
    share = min(1.0, cpus / 2)  # On one CPU there has to be room for a task and an actor, too.
    read_cpus = share if gpus else READER_CPUS * share
    reader = ray.put(ReadShard(splits, transform))

    def read(row: Columns) -> Iterator[Columns]:
        plain: ReadShard = ray.get(reader)
        for split, shard in zip(row["split"].tolist(), row["shard"].tolist(), strict=True):
            yield from plain.read(split, shard)

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        read, batch_size=None, num_cpus=read_cpus, zero_copy_batch=True, label_selector=placement.data or None
    )
    # Ray Data joins steps that reserve the same: the actors would then decode, and nobody beside them.
    device: dict[str, Any] = {"num_gpus": 1}
    if not gpus:
        device = {"num_cpus": ACTOR_CPUS * share, "runtime_env": {"env_vars": CPU_ENVIRONMENT}}
    dataset = dataset.map_batches(
        EmbedBlocks,
        fn_constructor_args=(
            load, [split.folder for split in splits], "cuda" if gpus else "cpu", batch_size,
            0 if gpus else ACTOR_THREADS,
        ),
        batch_size=None,
        zero_copy_batch=True,
        compute=ActorPoolStrategy(min_size=1, max_size=max(1, gpus or int(cpus // 2))),
        label_selector=placement.train or None,
        **device,
    )  # fmt: skip
    # A block is passed on as the reader made it, rather than joined with others to Ray's 128 MB.
    dataset.context.target_max_block_size = BLOCK_BYTES * 3 // 4
    dataset.context.enable_progress_bars = False
    # It would advise, every half minute, to reserve memory for each actor: an option that this job does not have.
    dataset.context.issue_detectors_config.high_memory_detector_config.detection_time_interval_s = -1
    # With prefetching, an answer is held back until the next is there, which a shard that does not come may delay.
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        for split, shard, first, count, about in zip(*(batch[name] for name in _ANSWER), strict=True):
            yield int(split), int(shard), int(first), int(count), json.loads(about)


_ANSWER = ("split", "shard", "first", "count", "about")


def _answer(split: int, shard: int, first: int, count: int, about: dict[str, Any]) -> Columns:
    values = (split, shard, first, count, json.dumps(about))
    return {name: np.array([value]) for name, value in zip(_ANSWER, values, strict=True)}


def _plain(label: int | np.ndarray | None) -> int | list[int] | None:
    return [int(one) for one in label] if isinstance(label, np.ndarray) else label
