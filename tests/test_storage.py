"""Disks and an S3 server, through one door; and four different answers to four different mistakes."""

import errno
import gc
import os

import pytest
from evaluation_sets import write_classes

from orchestrator import storage
from orchestrator.config import DataConfig
from orchestrator.data.manifest import inspect_shard
from orchestrator.evaluate.datasets import open_evaluation_set


def test_round_trip_on_a_disk_and_in_s3(s3, tmp_path):
    for root in (str(tmp_path), f"file://{tmp_path}/f", s3.uri("a", "folder")):
        uri = storage.join(root, "x", "data.bin")
        assert not storage.exists(uri)
        storage.write_bytes(uri, b"\x00\x01" * 5000)
        assert storage.exists(uri)
        assert storage.read_bytes(uri) == b"\x00\x01" * 5000
        assert storage.list_dir(storage.join(root, "x")) == [storage.join(root, "x", "data.bin")]


def test_expand_braces_and_globs(s3, tmp_path):
    assert storage.expand("s3://b/{00008..00011}.tar") == [f"s3://b/{n:05d}.tar" for n in range(8, 12)]
    assert storage.expand(["{a,b}/{0..1}.tar", "c.tar"]) == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar", "c.tar"]
    for root in (str(tmp_path), s3.uri("glob")):
        for name in ("1.tar", "0.tar", "0.json"):
            storage.write_bytes(storage.join(root, name), b"x")
        assert storage.expand(storage.join(root, "*.tar")) == [storage.join(root, f"{n}.tar") for n in (0, 1)]
        with pytest.raises(storage.NothingMatches, match=r"\*\.parquet: matches no object"):
            storage.expand(storage.join(root, "*.parquet"))


def test_missing_bucket_and_missing_key_are_told_apart(s3):
    with pytest.raises(storage.MissingObject, match="no such object"):
        storage.read_bytes(s3.uri("nothing.tar"))
    with pytest.raises(storage.MissingBucket, match="no bucket 'not-there'"):
        storage.read_bytes("s3://not-there/nothing.tar")


def test_denied_is_its_own_error_without_the_secret(s3, refusing_s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", refusing_s3_server)
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    for attempt in (
        lambda: storage.read_bytes("s3://bucket/secret.tar"),
        lambda: storage.write_bytes("s3://bucket/secret.tar", b"x"),
        lambda: storage.expand("s3://bucket/*.tar"),
        lambda: inspect_shard("s3://bucket/secret.tar", DataConfig()),
    ):
        with pytest.raises(storage.AccessDenied, match="access denied; check the credentials") as denied:
            attempt()
        assert secret not in str(denied.value) and "\n" not in str(denied.value)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder in the hub's place, behind the same interface."""
    import huggingface_hub
    from fsspec.implementations.dirfs import DirFileSystem
    from fsspec.implementations.local import LocalFileSystem

    monkeypatch.setattr(huggingface_hub, "HfFileSystem", lambda: DirFileSystem(str(tmp_path), LocalFileSystem()))
    storage._filesystem.cache_clear()
    yield tmp_path / "datasets"
    storage._filesystem.cache_clear()


def test_data_sets_of_the_hub_are_read_as_other_folders(hub):
    write_classes(f"{hub}/people/wds_shapes", test=12)
    write_classes(f"{hub}/people/more/shapes", test=12)
    root = "hf://datasets/people/wds_shapes"
    dataset = open_evaluation_set("shapes", root, "test", [])
    assert [sample.label for sample in dataset.samples()] == [*range(0, 12, 2), *range(1, 12, 2)]
    assert len(dataset.content) == 16 and dataset.shards[0] == f"{root}/test/0.tar"
    assert storage.expand(f"{root}/test/*.tar") == dataset.shards
    assert storage.expand_folders(["hf://datasets/people/more/sh*"]) == ["hf://datasets/people/more/shapes"]
    with pytest.raises(storage.MissingObject, match="people/wds_shapes/none: no such object"):
        storage.read_bytes(f"{root}/none")
    with pytest.raises(storage.StorageError, match="the hub is not written to"):
        storage.write_bytes(f"{root}/x", b"")
    with pytest.raises(storage.StorageError, match="write hf://datasets/owner/name/path"):
        storage.exists("hf://people/model")


def test_what_the_hubs_client_raises_is_one_line_with_the_cure(hub, monkeypatch):
    import huggingface_hub

    class Unreachable(Exception):
        pass

    def refuse(self, path, **options):
        raise Unreachable("no route\nto the hub")

    whole = huggingface_hub.HfFileSystem()
    monkeypatch.setattr(type(whole), "info", refuse)
    with pytest.raises(
        storage.StorageError, match=r"x/y/z: cannot be had .*\(no route to the hub\); check the network"
    ):
        storage.exists("hf://datasets/x/y/z")


def test_an_unknown_scheme_and_a_nameless_bucket():
    with pytest.raises(storage.StorageError, match="unknown scheme 'ftp'"):
        storage.read_bytes("ftp://host/x")
    with pytest.raises(storage.StorageError, match="no bucket"):
        storage.read_bytes("s3:///x")


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path, monkeypatch):
    uri = str(tmp_path / "shard.tar")
    storage.write_bytes(uri, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(storage.StorageError, match="no space left"):
        storage.write_bytes(uri, b"new")
    assert os.listdir(tmp_path) == ["shard.tar"]
    assert storage.read_bytes(uri) == b"old"


@pytest.mark.parametrize("size", [1000, 30_000_000])
def test_an_interrupted_upload_is_never_visible(s3, size):
    """In one request and in several parts; and not later either, when the stream is collected."""
    uri = s3.uri("half.tar")
    with pytest.raises(RuntimeError, match="interrupted"), storage.open_output(uri) as stream:
        stream.write(b"x" * size)
        raise RuntimeError("interrupted")
    del stream
    gc.collect()
    assert storage.list_dir(f"s3://{s3.bucket}") == []
    storage.write_bytes(uri, b"whole")
    assert storage.read_bytes(uri) == b"whole"
    assert storage.list_dir(f"s3://{s3.bucket}") == [uri]
