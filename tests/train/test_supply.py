"""Workers with streams of unequal length use every sample once, in steps that they all make."""

import itertools

import numpy as np
import processes
import pytest
import torch.distributed as dist

from orchestrator.data.batch import SAMPLE, empty
from orchestrator.train.supply import Supply, last_batches, share


@pytest.mark.parametrize(("global_batch", "world_size"), [(12, 3), (13, 3), (256, 7), (2, 1), (9, 4)])
def test_shares_make_the_global_batch_and_are_fair(global_batch, world_size):
    table = [[share(step, global_batch, rank, world_size) for rank in range(world_size)] for step in range(world_size)]
    assert all(sum(row) == global_batch and max(row) - min(row) <= 1 for row in table)
    assert len({sum(column) for column in zip(*table, strict=True)}) == 1


@pytest.mark.parametrize("left", [0, 1, 9, 10, 11, 19, 20, 25, 39])
def test_last_batches_use_up_what_is_left(left):
    sizes = last_batches(left, 10)
    assert sum(sizes) == left
    assert all(size <= 10 for size in sizes)
    assert left < 10 or min(sizes) >= 5


def batches_of(rank, lengths, global_batch, whole):
    world_size, start = len(lengths), 0 if whole else sum(lengths[:rank])
    blocks = [
        {"image": np.zeros((1, 3, 2, 2), np.uint8), "tokens": np.full((1, 4), sample, np.int32),
         "sample": np.array([sample])}
        for sample in range(start, start + (sum(lengths) if whole else lengths[rank]))
    ]  # fmt: skip
    group = dist.group.WORLD if world_size > 1 else None
    supply = Supply(blocks, empty(2, 4), global_batch, 0, rank, world_size, group, whole, 2)
    batches = []
    while (batch := supply.next()) is not None:
        assert (batch["tokens"][:, 0] == batch[SAMPLE]).all()
        batches.append(batch[SAMPLE].tolist())
    assert supply.next() is None
    return batches, supply.left_out


def run(lengths, global_batch, whole=False):
    results = processes.run(len(lengths), batches_of, lengths, global_batch, whole)
    return [batches for batches, _ in results], results[0][1]


@pytest.mark.parametrize(
    ("lengths", "global_batch"),
    [([23], 5), ([21], 5), ([30, 30], 8), ([33, 32], 8), ([40, 3], 8), ([0, 17, 22], 12), ([2, 3, 1], 6), ([9, 4], 12)],
)
def test_every_sample_once(lengths, global_batch):
    workers, left_out = run(lengths, global_batch)
    assert left_out == 0
    assert len({len(batches) for batches in workers}) == 1
    used = list(itertools.chain.from_iterable(itertools.chain.from_iterable(workers)))
    assert sorted(used) == list(range(sum(lengths)))
    sizes = [sum(len(part) for part in step) for step in zip(*workers, strict=True)]
    assert max(sizes) <= global_batch and min(sizes) >= global_batch / 2
    assert all(len(part) >= 2 for batches in workers for part in batches)


def test_too_few_samples_for_the_workers_are_left_out_and_counted():
    workers, left_out = run([1, 0, 4], 6)
    assert workers == [[], [], []]
    assert left_out == 5


def test_whole_streams_are_cut_alike_whatever_the_number_of_workers():
    alone, _ = run([23], 6, whole=True)
    together, _ = run([11, 12], 6, whole=True)
    steps = [sorted(itertools.chain.from_iterable(parts)) for parts in zip(*together, strict=True)]
    assert steps == [sorted(batch) for batch in alone[0]]
    assert sorted(itertools.chain.from_iterable(steps)) == list(range(23))
