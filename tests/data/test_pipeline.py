"""From shards to batches: every sample once an epoch, whatever lies among them."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import ray
from PIL import Image
from pyroaring import BitMap
from shapes import pairs

from orchestrator.config import Config, DataConfig, TextConfig
from orchestrator.data.batch import pack_sample, unpack_sample
from orchestrator.data.images import ImageTransform
from orchestrator.data.manifest import Manifest, ShardChanged, inspect_shard
from orchestrator.data.pipeline import Reader, Unit, make_dataset, plan
from orchestrator.data.rejects import RejectActor, RejectLedger
from orchestrator.data.shard_writers import ShardWriter
from orchestrator.model.tokenizer import Tokenizer

CONTEXT = 12


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train((caption for _, caption, _ in pairs(50, 0)), 530)


@pytest.fixture(scope="module")
def local_ray():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def write_shards(folder, sizes, extra=()):
    """Shards of good samples; `extra` are (key, members) added in the middle of the first."""
    uris = []
    for number, size in enumerate(sizes):
        uri = str(folder / f"{number}.tar")
        with ShardWriter(uri) as writer:
            for index, (image, caption, _) in enumerate(pairs(size, seed=number)):
                if number == 0 and index == size // 2:
                    for key, members in extra:
                        writer.write(key, members)
                writer.write(f"s{index:05d}", {"jpg": image, "txt": caption.encode()})
        uris.append(uri)
    return Manifest([inspect_shard(uri, DataConfig()) for uri in uris])


def config_of(**data):
    config = Config()
    config.data = DataConfig(interleave=2, shuffle_buffer=20, cpus_per_reader=0.5, max_pixels=100_000, **data)
    config.model.image_size = 32
    config.model.text = TextConfig(context_length=CONTEXT)
    config.train.epochs = 3
    return config


def reader_of(manifest, tokenizer, **data):
    config = config_of(**data)
    transform = ImageTransform(image_size=32, crop_scale=0.5, jpeg_decode="exact", max_pixels=100_000)
    return Reader(manifest, config.data, transform, tokenizer, CONTEXT, seed=0, trained=manifest.ledger())


def plan_of(manifest, epochs, seed, interleave):
    return plan(manifest, epochs, seed, interleave, manifest.ledger(), BitMap())


def test_identities_are_packed_and_unpacked():
    triples = [(0, 0, 0), (31, 99_999, 12_345), (2**15 - 1, 2**24 - 1, 2**24 - 1)]
    packed = np.array([pack_sample(*triple) for triple in triples], dtype=np.int64)
    assert list(zip(*(part.tolist() for part in unpack_sample(packed)), strict=True)) == triples
    with pytest.raises(ValueError, match="beyond"):
        pack_sample(0, 2**24, 0)


def test_plan_visits_every_shard_once_an_epoch_in_an_order_of_its_own(tmp_path):
    manifest = write_shards(tmp_path, [3] * 7)
    units = plan_of(manifest, epochs=3, seed=5, interleave=2)
    orders = []
    for epoch in range(3):
        order = [shard for unit in units if unit.epoch == epoch for shard in unit.shards]
        assert sorted(order) == list(range(7))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]
    assert plan_of(manifest, 3, 5, 2) == units
    assert plan_of(manifest, 3, 6, 2) != units


def test_plan_leaves_out_what_was_trained_on_and_what_is_bad(tmp_path):
    manifest = write_shards(tmp_path, [4, 5, 6])
    units = plan_of(manifest, 2, 0, 1)
    trained, rejected = manifest.ledger(), BitMap()
    first, second = units[0].shards[0], units[1].shards[0]
    size = manifest.shards[first].samples
    trained.add(np.array([pack_sample(0, first, index) for index in range(size - 1)]))
    trained.add(np.array([pack_sample(0, second, 1)]))
    assert plan(manifest, 2, 0, 1, trained, rejected) == units
    rejected.add(trained.place(first, size - 1))
    assert plan(manifest, 2, 0, 1, trained, rejected) == units[1:]
    # A unit of two shards stays while one of them is unfinished, and keeps its order.
    pairs_of_shards = plan_of(manifest, 1, 0, 2)
    assert plan(manifest, 1, 0, 2, trained, rejected)[0] == pairs_of_shards[0]


def read(reader, unit):
    rejects = []
    columns = list(reader.read_unit(unit, rejects.extend))
    merged = {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}
    return merged, rejects


def test_a_sample_does_not_depend_on_its_neighbours(tmp_path, tokenizer):
    manifest = write_shards(tmp_path, [30, 30])
    reader = reader_of(manifest, tokenizer)
    together, _ = read(reader, Unit(1, (0, 1)))
    alone, _ = read(reader, Unit(1, (1,)))
    rows = {sample: row for row, sample in enumerate(together["sample"].tolist())}
    for row, sample in enumerate(alone["sample"].tolist()):
        np.testing.assert_array_equal(alone["image"][row], together["image"][rows[sample]])
        np.testing.assert_array_equal(alone["tokens"][row], together["tokens"][rows[sample]])
    other_epoch, _ = read(reader, Unit(2, (1,)))
    assert not np.array_equal(np.sort(other_epoch["image"], axis=0), np.sort(alone["image"], axis=0))


def test_a_unit_is_shuffled_and_mixes_its_shards(tmp_path, tokenizer):
    manifest = write_shards(tmp_path, [40, 40])
    columns, _ = read(reader_of(manifest, tokenizer), Unit(0, (0, 1)))
    _, shards, indices = unpack_sample(columns["sample"])
    assert set(shards[:20].tolist()) == {0, 1}
    assert indices[shards == 0].tolist() != sorted(indices[shards == 0].tolist())
    assert columns["image"].dtype == np.uint8 and columns["image"].shape == (80, 3, 32, 32)
    assert columns["tokens"].dtype == np.int32 and columns["tokens"].shape == (80, CONTEXT)


@pytest.mark.parametrize("done", [0, 3, 15, 39])
def test_what_is_left_of_a_unit_keeps_its_order(tmp_path, tokenizer, done):
    """Left while the shuffle buffer (20 samples) was full, and while it drained; blocks may arrive in any order."""
    manifest = write_shards(tmp_path, [20, 20])
    reader = reader_of(manifest, tokenizer)
    whole, _ = read(reader, Unit(0, (0, 1)))
    chosen = np.random.default_rng(done).permutation(40) < done
    reader.trained.add(whole["sample"][chosen])
    rest, _ = read(reader, Unit(0, (0, 1)))
    for name, column in whole.items():
        np.testing.assert_array_equal(rest[name], column[~chosen])
    other_epoch, _ = read(reader, Unit(1, (0, 1)))
    assert len(other_epoch["sample"]) == 40


def jpeg(size):
    out = io.BytesIO()
    Image.new("RGB", size, "teal").save(out, "JPEG")
    return out.getvalue()


BAD = {
    "truncated_image": {"jpg": jpeg((200, 200))[:-400], "txt": b"x"},
    "undecodable_image": {"jpg": b"this is no picture", "txt": b"x"},
    "too_many_pixels": {"jpg": jpeg((400, 300)), "txt": b"x"},
    "missing_caption": {"jpg": jpeg((40, 40))},
    "missing_image": {"txt": b"x"},
    "empty_text": {"jpg": jpeg((40, 40)), "txt": b"  \n"},
    "bad_utf8": {"jpg": jpeg((40, 40)), "txt": b"caf\xe9 \xff"},
    "bad_json": {"jpg": jpeg((40, 40)), "json": b"{"},
}


def test_every_sample_of_every_epoch_once_with_bad_ones_among_them(tmp_path, tokenizer, local_ray):
    manifest = write_shards(tmp_path, [20, 15, 25], extra=list(BAD.items()))
    assert manifest.samples == 60 + len(BAD)
    config = config_of()
    rejects = RejectActor.remote(RejectLedger(manifest, 0.5), "mine")
    found = Counter()
    for batch in make_dataset(manifest, config, tokenizer, rejects).iter_batches(batch_size=16, batch_format="numpy"):
        assert batch["image"].dtype == np.uint8 and batch["tokens"].dtype == np.int32
        found.update(zip(*(part.tolist() for part in unpack_sample(batch["sample"])), strict=True))
    bad = set(range(10, 10 + len(BAD)))
    expected = Counter(
        (epoch, shard, index)
        for epoch in range(3)
        for shard, shape in enumerate(manifest.shards)
        for index in range(shape.samples)
        if not (shard == 0 and index in bad)
    )
    assert found == expected
    ledger = ray.get(rejects.ledger.remote())
    assert ledger.counts == Counter(dict.fromkeys(BAD, 1))
    listed = [json.loads(line) for line in ledger.to_jsonl().splitlines()]
    assert {line["index"] for line in listed} == bad
    assert set(ledger.places) == bad
    again = RejectLedger(manifest, 0.5)
    again.restore(ledger.to_bytes())
    assert (again.counts, again.places, again.to_jsonl()) == (ledger.counts, ledger.places, ledger.to_jsonl())


def test_too_many_bad_samples_stop_the_run_and_say_why(tmp_path, tokenizer, local_ray):
    manifest = write_shards(tmp_path, [20], extra=list(BAD.items()))
    rejects = RejectActor.remote(RejectLedger(manifest, 0.1), "mine")
    dataset = make_dataset(manifest, config_of(), tokenizer, rejects)
    with pytest.raises(Exception, match=r"data.max_reject_share=0.1: 8 of 28 samples are bad"):
        list(dataset.iter_batches(batch_size=16))


def test_a_shard_that_changed_is_refused(tmp_path, tokenizer):
    manifest = write_shards(tmp_path, [5])
    write_shards(tmp_path, [6])
    with pytest.raises(ShardChanged, match=r"0\.tar"):
        read(reader_of(manifest, tokenizer), Unit(0, (0,)))


def test_reading_tasks_do_not_import_torch(tmp_path, tokenizer, local_ray):
    """It costs each of them seconds."""
    manifest = write_shards(tmp_path, [5])
    reader = reader_of(manifest, tokenizer)

    @ray.remote
    def modules(reader):
        import sys

        list(reader.read_unit(Unit(0, (0,)), print))
        return [name for name in ("torch", "transformers", "matplotlib") if name in sys.modules]

    assert ray.get(modules.remote(reader)) == []
