"""The manifest: exactly which bytes a run reads."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator import storage
from orchestrator.config import DataConfig
from orchestrator.data.ledger import Ledger
from orchestrator.data.shards import count_samples, is_parquet
from orchestrator.errors import UserError


class ShardChanged(UserError, ValueError):
    """A shard is not the one that the manifest names."""


@dataclass(frozen=True)
class Shard:
    """One shard.

    Parameters
    ----------
    uri : where it lies
    size : bytes
    etag : S3's ETag, elsewhere sha256:<hex>
    modified_ns : time of the last change on a disk, in ns; 0 in object storage
    samples : good and bad ones
    """

    uri: str
    size: int
    etag: str
    modified_ns: int
    samples: int


@dataclass(frozen=True)
class Manifest:
    """The shards of a run, in order; a sample's identity is its place in here."""

    shards: list[Shard]

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    def ledger(self) -> Ledger:
        """An empty ledger of these shards."""
        return Ledger([shard.samples for shard in self.shards])

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the content: sizes, checksums and counts in order."""
        content = [(shard.size, shard.etag, shard.samples) for shard in self.shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def to_json(self) -> str:
        return json.dumps({"format": 1, "shards": [asdict(shard) for shard in self.shards]}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        return cls([Shard(**fields) for fields in json.loads(text)["shards"]])


def inspect_shard(uri: str, config: DataConfig) -> Shard:
    """Read a shard once and say what it is.

    Raises
    ------
    StorageError : it cannot be read
    """
    etag, size, modified_ns = identity(uri)
    if is_parquet(uri, config):
        import pyarrow.parquet as pq

        with storage.translated(uri):
            filesystem, path = storage.open_location(uri)
            samples = pq.read_metadata(path, filesystem=filesystem).num_rows
            if not etag:
                etag = _checksum(uri)
    else:
        with storage.open_input(uri) as stream:
            hashing = _HashingReader(stream, wanted=not etag)
            samples = count_samples(uri, hashing)
            etag = etag or hashing.finish()
    return Shard(uri, size, etag, modified_ns, samples)


def verify(shard: Shard) -> None:
    """Refuse a shard that is not the one of the manifest.

    On a disk the content is read only where size is right and the time of the last change is not.

    Raises
    ------
    ShardChanged : it names the shard and what differs
    StorageError : it cannot be reached
    """
    etag, size, modified_ns = identity(shard.uri)
    cure = "restore it, or start a run of another name on the new data"
    if size != shard.size:
        raise ShardChanged(f"{shard.uri}: {size} bytes, {shard.size} when the run began; {cure}")
    if etag:
        if etag != shard.etag:
            raise ShardChanged(f"{shard.uri}: its ETag changed since the run began; {cure}")
    elif modified_ns != shard.modified_ns and _checksum(shard.uri) != shard.etag:
        raise ShardChanged(f"{shard.uri}: its content changed since the run began; {cure}")


def identity(uri: str) -> tuple[str, int, int]:
    """An object's ETag (S3 only), size in bytes and time of change in ns (disks only): what tells it from its
    predecessor without reading it."""
    scheme, path = storage.split(uri)
    with storage.translated(uri):
        if scheme == "file":
            status = os.stat(path)
            return "", status.st_size, status.st_mtime_ns
        if scheme == "s3":
            return (*_head(uri, path), 0)
        filesystem, _ = storage.open_location(uri)
        return "", filesystem.get_file_info(path).size, 0
    raise AssertionError("unreachable")


def _head(uri: str, path: str) -> tuple[str, int]:
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = path.partition("/")
    try:
        head: dict[str, Any] = storage.s3_client().head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        if status == 404:
            raise FileNotFoundError(uri) from None
        if status == 403:
            raise storage.AccessDenied(
                f"{uri}: access denied; check the credentials of the AWS chain and the bucket's policy"
            ) from None
        raise storage.StorageError(f"{uri}: object storage answered {status}") from None
    except BotoCoreError as error:
        raise storage.StorageError(f"{uri}: {error}") from None
    return head["ETag"].strip('"'), head["ContentLength"]


def _checksum(uri: str) -> str:
    with storage.open_input(uri) as stream:
        reader = _HashingReader(stream, wanted=True)
        return reader.finish()


class _HashingReader:
    """A stream that remembers the checksum of what passes through it."""

    def __init__(self, stream: Any, wanted: bool):
        self._stream = stream
        self._hash = hashlib.sha256() if wanted else None

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size) if size >= 0 else self._stream.read()
        if self._hash is not None:
            self._hash.update(data)
        return data

    def finish(self) -> str:
        """Read what is left and return the checksum."""
        while self.read(1 << 20):
            pass
        assert self._hash is not None
        return f"sha256:{self._hash.hexdigest()}"
