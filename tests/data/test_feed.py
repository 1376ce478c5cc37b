"""Blocks of any size become batches of the asked size, and nothing is lost."""

import itertools

import numpy as np
import pytest

from orchestrator.data.batch import SAMPLE, count, empty, join, take
from orchestrator.data.feed import Feed


def blocks(sizes):
    start = 0
    for size in sizes:
        yield {
            "image": np.full((size, 3, 2, 2), start % 251, np.uint8),
            "tokens": np.full((size, 4), start, np.int32),
            "sample": np.arange(start, start + size),
        }
        start += size


def feed_of(sizes, asked, prefetch=2, allocate=None):
    return Feed(blocks(sizes), itertools.cycle(asked), empty(2, 4), prefetch, allocate)


def test_whole_batches_lie_in_memory_that_was_given():
    given = []

    def allocate(shape, dtype):
        given.append(np.empty(shape, dtype))
        return given[-1]

    feed = feed_of([4, 1, 3], [4], allocate=allocate)
    for _ in range(2):
        batch, full = feed.next()
        assert full
        for column in batch.values():
            assert any(column is memory for memory in given)


@pytest.mark.parametrize("asked", [[1], [4], [3, 2], [100]])
@pytest.mark.parametrize("sizes", [[], [5], [1, 1, 9, 0, 2], [40, 3]])
@pytest.mark.parametrize("allocate", [None, np.empty])
def test_all_samples_in_order(sizes, asked, allocate):
    feed, found = feed_of(sizes, asked, allocate=allocate), []
    for size in itertools.cycle(asked):
        batch, full = feed.next()
        found.append(batch)
        assert count([batch]) == size if full else count([batch]) < size
        if not full:
            break
    whole = join([empty(2, 4), *blocks(sizes)])
    for name, column in join(found).items():
        np.testing.assert_array_equal(column, whole[name])
    assert count([feed.next()[0]]) == 0 and not feed.next()[1]
    assert count([feed.drain()]) == 0


def test_drain_gives_the_rest():
    feed = feed_of([7, 7, 7], [4])
    feed.next()
    assert feed.drain()[SAMPLE].tolist() == list(range(4, 21))


def test_an_error_in_the_stream_reaches_the_reader():
    def broken():
        yield from blocks([3])
        raise RuntimeError("no more")

    feed = Feed(broken(), itertools.repeat(2), empty(2, 4), 1)
    assert feed.next()[1]
    with pytest.raises(RuntimeError, match="no more"):
        feed.next()


def test_take_and_join_are_inverse():
    (block,) = blocks([6])
    for name, column in join([take(block, 0, 2), take(block, 2, 6)]).items():
        np.testing.assert_array_equal(column, block[name])
