"""The one place where a batch's shape is defined.

A batch is a dict of numpy arrays, B samples of this worker:

    image    uint8 (B, 3, R, R)    preprocessed, not yet normalised
    tokens   int32 (B, T)          zero-padded after [EOS]
    sample   int64 (B,)            which sample of which epoch, packed
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

IMAGE, TOKENS, SAMPLE = "image", "tokens", "sample"
Columns = dict[str, np.ndarray]
Allocate = Callable[[tuple[int, ...], np.dtype], np.ndarray]

# 15 bits of epoch, 24 of shard, 24 of index fill a positive int64.
_SHARD_BITS = _INDEX_BITS = 24
MAX_EPOCHS = 1 << 15
MAX_SHARDS = 1 << _SHARD_BITS
MAX_SAMPLES_A_SHARD = 1 << _INDEX_BITS


def pack_sample(epoch: int, shard: int, index: int) -> int:
    """One number for a sample of an epoch.

    Parameters
    ----------
    epoch : pass over the data, from 0
    shard : place in the manifest
    index : place in the shard, good and bad samples counted alike
    """
    if not (0 <= epoch < MAX_EPOCHS and 0 <= shard < MAX_SHARDS and 0 <= index < MAX_SAMPLES_A_SHARD):
        raise ValueError(f"epoch {epoch}, shard {shard}, index {index}: beyond what a sample's identity can hold")
    return epoch << (_SHARD_BITS + _INDEX_BITS) | shard << _INDEX_BITS | index


def unpack_sample(sample_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs, shards and indices of packed samples, each int64 (B,)."""
    return (
        sample_B >> (_SHARD_BITS + _INDEX_BITS),
        sample_B >> _INDEX_BITS & (MAX_SHARDS - 1),
        sample_B & (MAX_SAMPLES_A_SHARD - 1),
    )


def empty(image_size: int, context_length: int) -> Columns:
    """A batch of no sample."""
    return {
        IMAGE: np.empty((0, 3, image_size, image_size), np.uint8),
        TOKENS: np.empty((0, context_length), np.int32),
        SAMPLE: np.empty(0, np.int64),
    }


def count(parts: list[Columns]) -> int:
    """Samples of several batches."""
    return sum(len(part[SAMPLE]) for part in parts)


def take(columns: Columns, start: int, stop: int) -> Columns:
    """A batch's samples from `start` to `stop`."""
    return {name: column[start:stop] for name, column in columns.items()}


def join(parts: list[Columns], allocate: Allocate | None = None) -> Columns:
    """Several batches as one.

    Parameters
    ----------
    parts : at least one
    allocate : gives memory for an array of a shape and dtype, such as a GPU reads faster. None: ordinary memory, and a
        single part is returned as it is
    """
    if allocate is None:
        return parts[0] if len(parts) == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    rows = count(parts)
    return {
        name: np.concatenate([part[name] for part in parts], out=allocate((rows, *like.shape[1:]), like.dtype))
        for name, like in parts[0].items()
    }


def positions(columns: Columns) -> int:
    """Text positions up to the last [EOS], the highest id: what the text tower computes."""
    return int(columns[TOKENS].argmax(axis=1).max()) + 1
