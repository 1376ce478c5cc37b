"""The ledger against plain sets of triples."""

import numpy as np
import pytest

from orchestrator.data.batch import pack_sample
from orchestrator.data.ledger import Ledger, SampleRepeated

SIZES = [5, 0, 7, 1, 300_000]


def packed(triples):
    return np.array([pack_sample(*triple) for triple in triples], dtype=np.int64)


def random_triples(seed, count):
    rng = np.random.default_rng(seed)
    shards = rng.choice([0, 2, 3, 4], count)
    return list({(int(rng.integers(3)), int(shard), int(rng.integers(SIZES[shard]))) for shard in shards})


def test_holds_what_was_added_and_nothing_else():
    triples = random_triples(0, 400)
    ledger = Ledger(SIZES)
    for start in range(0, len(triples), 50):
        ledger.add(packed(triples[start : start + 50]))
    again = Ledger.from_bytes(ledger.to_bytes(), SIZES)
    for epoch in range(4):
        for shard in (0, 2, 3):
            for index in range(SIZES[shard]):
                assert ledger.holds(epoch, shard, index) == again.holds(epoch, shard, index)
                assert again.holds(epoch, shard, index) == ((epoch, shard, index) in triples)
    assert again.samples == len(triples)
    assert again.epochs == [0, 1, 2]


def test_a_sample_twice_in_an_epoch_is_an_error_that_names_it():
    ledger = Ledger(SIZES)
    ledger.add(packed([(0, 2, 3), (1, 2, 4)]))
    ledger.add(packed([(1, 2, 3)]))
    with pytest.raises(SampleRepeated, match=r"epoch 0 .* sample 3 of shard 2"):
        ledger.add(packed([(0, 2, 2), (0, 2, 3)]))
    with pytest.raises(SampleRepeated, match="epoch 2"):
        ledger.add(packed([(2, 0, 1), (2, 0, 1)]))
    other = Ledger(SIZES)
    other.add(packed([(1, 2, 4)]))
    with pytest.raises(SampleRepeated, match=r"epoch 1 .* sample 4 of shard 2"):
        ledger.merge(other)


def test_merged_ledgers_hold_what_both_hold():
    triples = random_triples(1, 300)
    whole, parts = Ledger(SIZES), [Ledger(SIZES) for _ in range(3)]
    whole.add(packed(triples))
    for number, part in enumerate(parts):
        part.add(packed(triples[number::3]))
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].samples == whole.samples
    assert all(parts[0].holds(*triple) for triple in triples)


def test_a_ledger_of_another_manifest_is_refused():
    with pytest.raises(ValueError, match="another manifest"):
        Ledger.from_bytes(Ledger(SIZES).to_bytes(), SIZES[:-1])


def test_its_size_does_not_grow_with_the_dataset():
    """A hundred million samples: nine shards in ten finished, a few half read in random order."""
    sizes = [10_000] * 10_000
    ledger = Ledger(sizes)
    rng = np.random.default_rng(0)
    places = np.arange(90_000_000, dtype=np.int64)
    for shard in range(0, 9000, 1000):
        block = places[shard * 10_000 : (shard + 1000) * 10_000]
        ledger.add(block // 10_000 << 24 | block % 10_000)
    for shard in range(9000, 9008):
        ledger.add(shard << 24 | rng.permutation(10_000)[:5000])
    assert ledger.samples == 90_040_000
    assert len(ledger.to_bytes()) < 100_000
