"""Shards as they are meant to be, and as they come."""

import io
import json
import tarfile

import pytest
from shapes import pairs

from orchestrator import storage
from orchestrator.config import DataConfig
from orchestrator.data import shards
from orchestrator.data.manifest import Manifest, Shard, ShardChanged, inspect_shard, verify
from orchestrator.data.rejects import RejectLedger
from orchestrator.data.shard_writers import ParquetShardWriter, ShardWriter
from orchestrator.data.shards import RawSample, Reject, read_shard

JPEG = pairs(1, 0)[0][0]


def write_tar(path, members):
    """A tar with exactly these (name, bytes), written by tarfile alone."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return str(path)


def good(key):
    return [(f"{key}.jpg", JPEG), (f"{key}.txt", f"caption {key}".encode())]


def test_tar_round_trip_in_s3(s3):
    uri = s3.uri("shard.tar")
    with ShardWriter(uri) as writer:
        for number in range(5):
            writer.write(f"{number:04d}", {"jpg": JPEG, "txt": f"caption {number}".encode()})
    samples = list(read_shard(uri, DataConfig()))
    assert [(s.index, s.key, s.texts) for s in samples] == [(n, f"{n:04d}", [f"caption {n}"]) for n in range(5)]
    assert all(s.image == JPEG for s in samples)


def test_an_error_while_writing_leaves_no_shard(tmp_path):
    with pytest.raises(ValueError, match="has a dot"), ShardWriter(str(tmp_path / "a.tar")) as writer:
        writer.write("0", {"jpg": JPEG})
        writer.write("1.5", {"jpg": JPEG})
    assert list(tmp_path.iterdir()) == []


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        with ShardWriter(str(tmp_path / name)) as writer:
            writer.write("0", {"jpg": JPEG, "txt": b"x"})
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_parquet_round_trip_and_its_bad_rows(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    uri = str(tmp_path / "a.parquet")
    with ParquetShardWriter(uri, rows_a_group=2) as writer:
        for number in range(5):
            writer.write(JPEG, f"caption {number}")
    assert [s.texts for s in read_shard(uri, DataConfig())] == [[f"caption {n}"] for n in range(5)]
    assert inspect_shard(uri, DataConfig()).samples == 5

    table = pa.table({"jpg": [JPEG, None, JPEG, JPEG], "alt": ["a", "b", None, "  "]})
    pq.write_table(table, tmp_path / "b.parquet")
    config = DataConfig(image_column="jpg", text_column="alt")
    found = list(read_shard(str(tmp_path / "b.parquet"), config))
    assert isinstance(found[0], RawSample)
    assert [f.reason for f in found[1:]] == [shards.MISSING_IMAGE, shards.MISSING_CAPTION, shards.EMPTY_TEXT]
    with pytest.raises(storage.StorageError, match=r"no column 'image' among jpg, alt; set data.image_column"):
        list(read_shard(str(tmp_path / "b.parquet"), DataConfig()))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ([("b.txt", b"a caption")], shards.MISSING_IMAGE),
        ([("b.jpg", JPEG)], shards.MISSING_CAPTION),
        ([("b.jpg", JPEG), ("b.txt", b" \n ")], shards.EMPTY_TEXT),
        ([("b.jpg", JPEG), ("b.txt", b"\xff\xfe\x00caf\xe9")], shards.BAD_UTF8),
        ([("b.jpg", JPEG), ("b.json", b"{not json")], shards.BAD_JSON),
        ([("b.jpg", JPEG), ("b.json", b'{"width": 3}')], shards.MISSING_CAPTION),
        ([("b.jpg", JPEG), ("b.jpg", JPEG), ("b.txt", b"x")], shards.DUPLICATE_MEMBER),
        ([("a.json", b"{}")], shards.REPEATED_KEY),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_sample_is_named_and_its_neighbours_kept(tmp_path, bad, reason):
    uri = write_tar(tmp_path / "x.tar", [*good("a"), *good("a2"), *bad, *good("c")])
    found = list(read_shard(uri, DataConfig()))
    assert [type(f) for f in found] == [RawSample, RawSample, Reject, RawSample]
    assert (found[2].shard, found[2].index, found[2].reason) == (uri, 2, reason)
    assert found[3].index == 3


def test_captions_from_json(tmp_path):
    fields = {"caption": "one", "captions": ["first", "", "second"]}
    uri = write_tar(tmp_path / "x.tar", [("a.png", JPEG), ("a.json", json.dumps(fields).encode())])
    assert next(read_shard(uri, DataConfig())).texts == ["one"]
    assert next(read_shard(uri, DataConfig(caption="captions"))).texts == ["first", "second"]


@pytest.mark.parametrize("cut", [0.35, 0.6, 0.9])
def test_a_truncated_tar_loses_only_what_is_truncated(tmp_path, cut):
    whole = tmp_path / "whole.tar"
    write_tar(whole, [member for n in range(10) for member in good(str(n))])
    data = whole.read_bytes()
    # The archive's end is padding; what counts is where the last sample ends.
    with tarfile.open(whole) as archive:
        length = int(archive.getmembers()[-1].offset_data * cut)
    (tmp_path / "cut.tar").write_bytes(data[:length])
    with tarfile.open(whole) as archive:
        complete = sum(
            member.offset_data + member.size <= length for member in archive.getmembers() if member.name.endswith("txt")
        )
    found = list(read_shard(str(tmp_path / "cut.tar"), DataConfig()))
    samples = [f for f in found if isinstance(f, RawSample)]
    assert [s.key for s in samples] == [str(n) for n in range(complete)]
    assert isinstance(found[-1], Reject) and found[-1].reason == shards.TRUNCATED_SHARD
    assert len(found) == len(samples) + 1


def test_manifest_pins_the_bytes(tmp_path, s3):
    for root in (str(tmp_path), s3.uri("pin")):
        uri = storage.join(root, "a.tar")
        with ShardWriter(uri) as writer:
            for number in range(3):
                writer.write(str(number), {"jpg": JPEG, "txt": b"x"})
        shard = inspect_shard(uri, DataConfig())
        assert shard.samples == 3
        manifest = Manifest([shard])
        assert Manifest.from_json(manifest.to_json()) == manifest
        verify(shard)
        data = storage.read_bytes(uri)
        # Rewritten with the same bytes it is the same shard; with one other byte it is not.
        storage.write_bytes(uri, data)
        verify(shard)
        storage.write_bytes(uri, data[:600] + bytes([data[600] ^ 1]) + data[601:])
        with pytest.raises(ShardChanged, match=r"a\.tar.*since the run began"):
            verify(shard)
        storage.write_bytes(uri, data + b"\0")
        with pytest.raises(ShardChanged, match=r"a\.tar"):
            verify(shard)
    with pytest.raises(storage.MissingObject):
        inspect_shard(s3.uri("pin", "b.tar"), DataConfig())


def test_ledger_counts_each_bad_sample_once_and_says_when_to_stop():
    ledger = RejectLedger(Manifest([Shard("s.tar", 1, "", 0, 100)]), max_share=0.02)
    first = Reject("s.tar", 3, "k3", shards.EMPTY_TEXT)
    for _ in range(5):
        assert ledger.add([first]) == ""
    assert ledger.add([Reject("s.tar", 4, "k4", shards.BAD_UTF8)]) == ""
    why = ledger.add([Reject("s.tar", 5, "k5", shards.BAD_UTF8)])
    assert "3 of 100 samples are bad (2 bad_utf8, 1 empty_text)" in why and "s.tar sample 3 (k3)" in why
    assert [json.loads(line)["index"] for line in ledger.to_jsonl().splitlines()] == [3, 4, 5]
