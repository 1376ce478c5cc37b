"""Whether storage can be used from here: written, read back, deleted, the same for all, and its shards readable."""

from __future__ import annotations

import contextlib
import uuid

from cluster.preflight.line import Line, guarded
from orchestrator import storage
from orchestrator.config import Config

CURE = "Let this machine's credentials and mounts reach run.storage_path for reading, writing and deleting"


def check_writable(uri: str, where: str) -> Line:
    """Write, read back and delete a small object under a URI."""

    def look() -> Line:
        written = uuid.uuid4().hex.encode()
        name = storage.join(uri, f"preflight-{uuid.uuid4().hex}")
        try:
            storage.write_bytes(name, written)
            read = storage.read_bytes(name)
        finally:
            with contextlib.suppress(storage.StorageError):
                storage.delete_file(name)
        if read != written:
            return Line("fail", "storage", where, f"{uri} gave back other bytes than were written", CURE)
        if storage.exists(name):
            return Line("fail", "storage", where, f"{uri} keeps what is deleted", CURE)
        return Line("ok", "storage", where, f"{uri} written, read back and deleted")

    return guarded("storage", where, look, CURE)


def check_same(mark: str, expected: bytes, where: str) -> Line:
    """Read what another machine has written.

    Parameters
    ----------
    mark : URI of the object
    expected : its bytes
    """
    cure = "Take object storage or a disk that all nodes mount at this path (run.storage_path)"

    def look() -> Line:
        if storage.read_bytes(mark) != expected:
            return Line("fail", "shared", where, f"{mark} holds other bytes than the driver wrote", cure)
        return Line("ok", "shared", where, "reads what the driver wrote")

    return guarded("shared", where, look, cure)


def check_shards(config: Config, where: str) -> Line:
    """Read the start of the first and of the last training shard."""
    cure = "Check data.train, and that this machine may read it"

    def look() -> Line:
        if config.data.train == "demo":
            return Line("ok", "shards", where, "the demo's, made by the job")
        found = storage.expand(config.data.train)
        for uri in {found[0], found[-1]}:
            with storage.open_input(uri) as stream:
                if not stream.read(512):
                    return Line("fail", "shards", where, f"{uri} is empty", cure)
        return Line("ok", "shards", where, f"{len(found)} named; the first and the last are readable")

    return guarded("shards", where, look, cure)
