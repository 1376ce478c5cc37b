"""Shards -> batches, on Ray Data.

One streaming dataset serves the whole run: its rows are reading units (some shards of one epoch), in the order of the
epochs, so that no epoch waits for the one before to drain. A reading task turns a unit into decoded, tokenized samples.
What a sample becomes (crop, caption) is drawn from a generator of its own, so it does not depend on who reads it when.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from pyroaring import BitMap
from ray.data._internal.execution.execution_callback import ExecutionCallback

from orchestrator import storage
from orchestrator.config import Config, DataConfig
from orchestrator.data.batch import IMAGE, SAMPLE, TOKENS, pack_sample
from orchestrator.data.images import ImageError, ImageTransform
from orchestrator.data.ledger import Ledger
from orchestrator.data.manifest import Manifest, verify
from orchestrator.data.rejects import RejectLimitExceeded
from orchestrator.data.shards import RawSample, Reject, read_shard

if TYPE_CHECKING:
    import ray.data

    from orchestrator.model.tokenizer import Tokenizer

# Reading tasks of a run, at most: beyond that a task reads several units. Ray Data describes each task before the first
# one starts, which takes a millisecond a task, at every start of the workers.
MAX_TASKS = 2000
# Decoded bytes of a block. Large enough that moving a block costs little beside decoding it.
BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Unit:
    """What is read together.

    Parameters
    ----------
    epoch : pass over the data, from 0
    shards : places in the manifest
    """

    epoch: int
    shards: tuple[int, ...]


def plan(manifest: Manifest, epochs: int, seed: int, interleave: int, trained: Ledger, rejected: BitMap) -> list[Unit]:
    """The reading units of a run.

    Units are cut before finished shards are left out: what is left of a unit keeps its order when a run continues.

    Parameters
    ----------
    manifest : the shards
    epochs : passes
    seed : of the shard orders; each epoch has its own
    interleave : shards of a unit
    trained : what each epoch has trained on before
    rejected : places in the manifest of samples known to be bad

    Returns
    -------
    units in reading order, without those of which nothing is left
    """
    units = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(manifest.shards)).tolist()
        unfinished = set(trained.unfinished(epoch, rejected))
        for start in range(0, len(order), interleave):
            shards = tuple(order[start : start + interleave])
            if not unfinished.isdisjoint(shards):
                units.append(Unit(epoch, shards))
    return units


@dataclass(frozen=True)
class Reader:
    """Turns units into columns; it travels to every reading task.

    Parameters
    ----------
    manifest : the shards
    config : of the data
    transform : of the pictures
    tokenizer : of the captions
    context_length : T
    seed : of the run
    trained : samples that are left out
    patience_s : seconds for which storage that cannot be reached is tried again
    """

    manifest: Manifest
    config: DataConfig
    transform: ImageTransform
    tokenizer: Tokenizer
    context_length: int
    seed: int
    trained: Ledger
    patience_s: float = 0.0

    def read_unit(self, unit: Unit, on_rejects: Callable[[Sequence[Reject]], None]) -> Iterator[dict[str, np.ndarray]]:
        """The unit's samples as columns of `orchestrator.data.batch`, some MB at a time.

        Parameters
        ----------
        unit : what to read
        on_rejects : told of the bad samples, once at the end of the unit

        Raises
        ------
        ShardChanged, StorageError
        """
        rejects: list[Reject] = []
        block = _Block(self)
        for shard, sample in self._encoded(unit, rejects):
            rng = np.random.default_rng([self.seed, unit.epoch, shard, sample.index])
            try:
                self.transform.train(sample.image, rng, block.next_image)
            except ImageError as error:
                uri = self.manifest.shards[shard].uri
                rejects.append(Reject(uri, sample.index, sample.key, error.reason, error.detail))
                continue
            text = sample.texts[int(rng.integers(len(sample.texts)))]
            block.add(text, pack_sample(unit.epoch, shard, sample.index))
            if block.full:
                yield block.columns()
                block = _Block(self)
        if block.identities:
            yield block.columns()
        if rejects:
            on_rejects(rejects)

    def _encoded(self, unit: Unit, rejects: list[Reject]) -> Iterator[tuple[int, RawSample]]:
        """The unit's good samples in shuffled order, those trained on before left out.

        They are left out at the end, so that the others keep their order. Shuffling encoded samples moves a tenth of
        the bytes that shuffling decoded ones would.
        """
        for shard, sample in self._shuffled(unit, rejects):
            if not self.trained.holds(unit.epoch, shard, sample.index):
                yield shard, sample

    def _shuffled(self, unit: Unit, rejects: list[Reject]) -> Iterator[tuple[int, RawSample]]:
        rng = np.random.default_rng([self.seed, unit.epoch, *unit.shards])
        buffer: list[tuple[int, RawSample]] = []
        for item in self._interleaved(unit, rng, rejects):
            if len(buffer) < self.config.shuffle_buffer:
                buffer.append(item)
                continue
            place = int(rng.integers(len(buffer)))
            item, buffer[place] = buffer[place], item
            yield item
        rng.shuffle(buffer)  # type: ignore[arg-type]
        yield from buffer

    def _interleaved(
        self, unit: Unit, rng: np.random.Generator, rejects: list[Reject]
    ) -> Iterator[tuple[int, RawSample]]:
        """Samples of the unit's shards, drawn from them at random."""
        streams: list[tuple[int, Iterator[RawSample | Reject]]] = []
        for shard in unit.shards:
            stored = self.manifest.shards[shard]
            storage.patiently(partial(verify, stored), self.patience_s)
            streams.append((shard, read_shard(stored.uri, self.config, patience_s=self.patience_s)))
        while streams:
            choice = int(rng.integers(len(streams)))
            shard, stream = streams[choice]
            sample = next(stream, None)
            if sample is None:
                del streams[choice]
            elif isinstance(sample, Reject):
                rejects.append(sample)
            else:
                yield shard, sample


class _Block:
    """Samples on their way into columns; a picture is written where it will travel from."""

    def __init__(self, reader: Reader):
        self._reader = reader
        side = reader.transform.image_size
        self._images = np.empty((max(1, BLOCK_BYTES // (3 * side**2)), 3, side, side), dtype=np.uint8)
        self._texts: list[str] = []
        self.identities: list[int] = []

    @property
    def full(self) -> bool:
        return len(self.identities) == len(self._images)

    @property
    def next_image(self) -> np.ndarray:
        """Where the next sample's pixels go, (3, R, R)."""
        return self._images[len(self.identities)]

    def add(self, text: str, identity: int) -> None:
        """The next sample's pixels are in place: keep them."""
        self._texts.append(text)
        self.identities.append(identity)

    def columns(self) -> dict[str, np.ndarray]:
        return {
            IMAGE: self._images[: len(self.identities)],
            TOKENS: self._reader.tokenizer(self._texts, self._reader.context_length),
            SAMPLE: np.array(self.identities, dtype=np.int64),
        }


class ReadUnits:
    """What a reading task runs over its row, the number of its part of the units."""

    def __init__(self, reader: Any, parts: Any, rejects: Any):
        self._reader_ref, self._parts_ref, self._rejects = reader, parts, rejects

    def __call__(self, rows: dict[str, np.ndarray]) -> Iterable[dict[str, np.ndarray]]:
        import ray

        reader, parts = ray.get([self._reader_ref, self._parts_ref])
        for number in rows["part"].tolist():
            for unit in parts[number]:
                yield from reader.read_unit(unit, self._report)

    def _report(self, rejects: Sequence[Reject]) -> None:
        import ray

        why_stop = ray.get(self._rejects.add.remote(rejects))
        if why_stop:
            raise RejectLimitExceeded(why_stop)


def image_transform(config: Config) -> ImageTransform:
    """The image preprocessing that a configuration asks for."""
    return ImageTransform(
        image_size=config.model.image_size,
        crop_scale=config.data.crop_scale,
        jpeg_decode=config.data.jpeg_decode,
        max_pixels=config.data.max_pixels,
    )


def make_dataset(
    manifest: Manifest,
    config: Config,
    tokenizer: Tokenizer,
    rejects: Any,
    trained: Ledger | None = None,
    rejected: BitMap | None = None,
) -> ray.data.Dataset:
    """The whole run's samples, all epochs in sequence, as a streaming dataset.

    Parameters
    ----------
    manifest : the shards
    config : of the run
    tokenizer : of the captions
    rejects : actor handle of a RejectActor
    trained : what each epoch has trained on before; None: nothing
    rejected : places in the manifest of samples known to be bad; None: none

    Returns
    -------
    dataset with the columns of `orchestrator.data.batch`
    """
    import ray

    trained = manifest.ledger() if trained is None else trained
    rejected = BitMap() if rejected is None else rejected
    units = plan(manifest, config.train.epochs, config.run.seed, config.data.interleave, trained, rejected)
    reader = Reader(
        manifest,
        config.data,
        image_transform(config),
        tokenizer,
        config.model.text.context_length,
        config.run.seed,
        trained,
        config.run.storage_patience_s,
    )
    # Shared through the object store: a task's own description stays small.
    bounds = np.linspace(0, len(units), min(len(units), MAX_TASKS) + 1).astype(int)
    parts = [units[start:stop] for start, stop in itertools.pairwise(bounds)]
    read = ReadUnits(ray.put(reader), ray.put(parts), rejects)
    # Rows that are there already: tasks that made them would take a whole CPU each before the first reader starts.
    rows = [{"part": number} for number in range(len(parts))]
    dataset = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map_batches(
        read.__call__, batch_size=None, num_cpus=config.data.cpus_per_reader, zero_copy_batch=True
    )
    # A block is passed on as the reader made it, rather than joined with others to Ray's 128 MB.
    dataset.context.target_max_block_size = BLOCK_BYTES * 3 // 4
    dataset.context.custom_execution_callback_classes = [PacedScheduling]
    return dataset


class PacedScheduling(ExecutionCallback):
    """Ray Data's scheduling loop at 10 steps a second at most.

    While readers wait for the trainer, the loop finds their finished blocks ready, may not take them, and looks again
    at once: two thirds of a core, taken from training on a small machine. A step takes all that is ready, so pausing
    between steps costs no throughput.
    """

    INTERVAL_S = 0.1

    def __init__(self) -> None:
        self._next_step = 0.0

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(max(0.0, self._next_step - time.monotonic()))
        self._next_step = time.monotonic() + self.INTERVAL_S
