"""Object storage that cannot be reached for a while loses no sample and makes none look bad."""

from __future__ import annotations

import os
import threading

import pytest
from gate import gate_before
from ray_cluster import wait_until

from orchestrator import storage
from orchestrator.config import DataConfig
from orchestrator.data.manifest import inspect_shard, verify
from orchestrator.data.shard_writers import ParquetShardWriter, ShardWriter
from orchestrator.data.shards import RawSample, read_shard

SAMPLES = 200


@pytest.fixture(params=["tar", "parquet"])
def shard(request, s3):
    """A shard of several times what is read ahead."""
    uri = s3.uri(f"0.{request.param}")
    with ShardWriter(uri) if request.param == "tar" else ParquetShardWriter(uri, rows_a_group=16) as writer:
        for number in range(SAMPLES):
            image = os.urandom(60_000)
            if request.param == "tar":
                writer.write(f"{number:04d}", {"jpg": image, "txt": str(number).encode()})
            else:
                writer.write(image, str(number))
    return uri


@pytest.fixture
def gate(s3, monkeypatch):
    with gate_before(s3.endpoint) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.endpoint)
        monkeypatch.setattr(storage, "RETRY_S", 0.1)
        yield gate


def test_reading_goes_on_where_it_was_lost(shard, gate):
    expected = list(read_shard(shard, DataConfig()))
    stream = read_shard(shard, DataConfig(), patience_s=600)
    found = [next(stream) for _ in range(3)]
    gate.shut()

    def open_again():
        wait_until(lambda: gate.refused >= 8, "the reader's tries")  # more than pyarrow makes by itself
        gate.open()

    opener = threading.Thread(target=open_again)
    opener.start()
    found += list(stream)
    opener.join()
    assert found == expected
    assert [sample.index for sample in found] == list(range(SAMPLES))
    assert all(isinstance(sample, RawSample) for sample in found)


def test_without_patience_it_is_an_error_and_never_a_short_shard(shard, gate):
    described = inspect_shard(shard, DataConfig())
    assert described.samples == SAMPLES
    stream = read_shard(shard, DataConfig())
    next(stream)
    gate.shut()
    with pytest.raises(storage.StorageError, match=shard):
        list(stream)
    with pytest.raises(storage.StorageError, match=shard):
        verify(described)
    with pytest.raises(storage.StorageError, match=shard):
        inspect_shard(shard, DataConfig())


def test_what_is_not_there_is_not_waited_for(s3):
    tries = []

    def action():
        tries.append(1)
        return storage.read_bytes(s3.uri("nothing"))

    with pytest.raises(storage.MissingObject):
        storage.patiently(action, 600)
    assert len(tries) == 1
