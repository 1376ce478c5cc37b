"""The ledger: which samples each epoch has trained on, so that a continued run trains on the others and on no other.

It is part of every checkpoint. A sample is a bit of an epoch's roaring bitmap, at its place in the manifest, and runs
of bits take a few bytes: what is kept grows with the shards that are half read, not with the dataset.

Source: Lemire et al. 2018, Roaring Bitmaps: Implementation of an Optimized Software Library.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
from pyroaring import BitMap

from orchestrator.data.batch import unpack_sample

# A bitmap's numbers have 32 bits.
MAX_SAMPLES = 1 << 32


class SampleRepeated(RuntimeError):
    """An epoch was given a sample that it has trained on already."""


class Ledger:
    """What each epoch has trained on.

    Parameters
    ----------
    sizes : samples of each shard, good and bad, in the manifest's order

    Raises
    ------
    ValueError : more than 4,294,967,296 samples
    """

    def __init__(self, sizes: Sequence[int]):
        self._starts = np.array([0, *itertools.accumulate(sizes)], dtype=np.int64)
        if self.size > MAX_SAMPLES:
            raise ValueError(f"a manifest of {self.size:,} samples: a ledger holds {MAX_SAMPLES:,}; split the data")
        self._epochs: dict[int, BitMap] = {}

    @property
    def size(self) -> int:
        """Samples of an epoch, good and bad."""
        return int(self._starts[-1])

    @property
    def samples(self) -> int:
        """How many samples were trained on, over all epochs."""
        return sum(len(places) for places in self._epochs.values())

    @property
    def epochs(self) -> list[int]:
        """Those of which something was trained on, in order."""
        return sorted(self._epochs)

    def add(self, sample_B: np.ndarray) -> None:
        """Record the samples of a batch.

        Parameters
        ----------
        sample_B : packed identities, as `orchestrator.data.batch` has them

        Raises
        ------
        SampleRepeated : an epoch has one of them already; the message names it
        """
        epoch_B, shard_B, index_B = unpack_sample(sample_B)
        place_B = self._starts[shard_B] + index_B
        for epoch in np.unique(epoch_B).tolist():
            self._add(epoch, BitMap(place_B[epoch_B == epoch].astype(np.uint32)), int((epoch_B == epoch).sum()))

    def merge(self, other: Ledger) -> None:
        """Record what another ledger of the same manifest holds.

        Raises
        ------
        SampleRepeated : both have the same sample of the same epoch
        """
        for epoch, places in other._epochs.items():
            self._add(epoch, places, len(places))

    def _add(self, epoch: int, places: BitMap, count: int) -> None:
        before = self._epochs.setdefault(epoch, BitMap())
        repeated = before & places
        if repeated or len(places) != count:
            shard, index = self._locate(repeated[0] if repeated else places[0])
            raise SampleRepeated(
                f"epoch {epoch} has {max(len(repeated), count - len(places))} samples twice, such as sample {index} of "
                f"shard {shard} of the manifest; this is an error of the program, and training on would hide it"
            )
        before |= places

    def _locate(self, place: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._starts, place, side="right")) - 1
        return shard, place - int(self._starts[shard])

    def holds(self, epoch: int, shard: int, index: int) -> bool:
        """Whether the epoch has trained on the sample."""
        return epoch in self._epochs and int(self._starts[shard]) + index in self._epochs[epoch]

    def unfinished(self, epoch: int, rejected: BitMap) -> list[int]:
        """Shards of which something is left for the epoch, `rejected` places of the manifest apart."""
        done = self._epochs.get(epoch, BitMap()) | rejected
        bounds = itertools.pairwise(self._starts.tolist())
        return [
            shard for shard, (start, stop) in enumerate(bounds) if done.range_cardinality(start, stop) < stop - start
        ]

    def missing(self, epoch: int, rejected: BitMap) -> int:
        """How many samples the epoch has not trained on, `rejected` places of the manifest apart."""
        return self.size - len(self._epochs.get(epoch, BitMap()) | rejected)

    def place(self, shard: int, index: int) -> int:
        """A sample's place in the manifest."""
        return int(self._starts[shard]) + index

    def to_bytes(self) -> bytes:
        """A line of JSON that says how long each epoch's bitmap is, then the bitmaps in Roaring's portable format."""
        parts = []
        for places in self._epochs.values():
            places.run_optimize()
            parts.append(places.serialize())
        lengths = {epoch: len(part) for epoch, part in zip(self._epochs, parts, strict=True)}
        header = {"format": 1, "manifest": self._shape(), "epochs": lengths}
        return json.dumps(header).encode() + b"\n" + b"".join(parts)

    @classmethod
    def from_bytes(cls, data: bytes, sizes: Sequence[int]) -> Ledger:
        """Read what `to_bytes` made.

        Raises
        ------
        ValueError : it belongs to another manifest
        """
        header, _, body = data.partition(b"\n")
        fields = json.loads(header)
        ledger = cls(sizes)
        if fields["manifest"] != ledger._shape():
            raise ValueError(f"a ledger of another manifest: {fields['manifest']}, not {ledger._shape()}")
        for epoch, length in fields["epochs"].items():
            ledger._epochs[int(epoch)] = BitMap.deserialize(body[:length])
            body = body[length:]
        return ledger

    def _shape(self) -> dict[str, int]:
        return {"shards": len(self._starts) - 1, "samples": self.size}
