"""What a node is like (versions, shared memory, disk), and whether that will do."""

from __future__ import annotations

import contextlib
import os
import platform
from dataclasses import dataclass
from importlib import metadata

from cluster.preflight.line import Line

GB = 1e9
# Ray stops spilling at this share of a full disk (its local_fs_capacity_threshold).
FULL = 0.95
# Object storage refuses requests that are signed minutes off; logs are hard to read long before.
SKEW_WARN_S, SKEW_FAIL_S = 1.0, 60.0


@dataclass(frozen=True)
class Facts:
    """Of one node.

    Parameters
    ----------
    versions : of Python and of the packages that must agree
    shm_bytes : size of its shared memory
    disk_bytes, disk_free_bytes : of the disk that objects are spilled to
    """

    versions: dict[str, str]
    shm_bytes: int
    disk_bytes: int
    disk_free_bytes: int


def observe(spill: str, shm: str = "/dev/shm") -> Facts:
    """The facts of the machine that this process runs on.

    Parameters
    ----------
    spill : folder that Ray spills objects to
    shm : where shared memory is mounted
    """
    memory, disk = os.statvfs(shm), os.statvfs(spill)
    versions = {"python": platform.python_version()}
    for name in ("ray", "torch", "clip-on-ray"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return Facts(
        versions,
        memory.f_frsize * memory.f_blocks,
        disk.f_frsize * disk.f_blocks,
        disk.f_frsize * disk.f_bavail,
    )


def judge_versions(facts: Facts, expected: dict[str, str], where: str) -> Line:
    """Hold a node's versions against the driver's."""
    other = [
        f"{name} {facts.versions.get(name, 'missing')} (here {version})"
        for name, version in expected.items()
        if facts.versions.get(name) != version
    ]
    if other:
        cure = "Start all nodes and the driver from one image, or install the same versions"
        return Line("fail", "versions", where, ", ".join(other), cure)
    return Line("ok", "versions", where, ", ".join(f"{name} {version}" for name, version in expected.items()))


def judge_shm(facts: Facts, object_store_bytes: float, where: str) -> Line:
    """Hold shared memory against the object store that lies in it."""
    seen = f"{facts.shm_bytes / GB:.2f} GB for an object store of {object_store_bytes / GB:.2f} GB"
    if facts.shm_bytes < object_store_bytes:
        cure = (
            "Give the container more (docker --shm-size, in Kubernetes an emptyDir with medium: Memory at /dev/shm), "
            "or start Ray with a smaller --object-store-memory"
        )
        return Line("fail", "shm", where, seen, cure)
    return Line("ok", "shm", where, seen)


def judge_disk(facts: Facts, object_store_bytes: float, where: str) -> Line:
    """Hold the free space of the spilling disk against Ray's limit and the object store."""
    used = 1 - facts.disk_free_bytes / facts.disk_bytes
    seen = f"{facts.disk_free_bytes / GB:.2f} GB free for spilling, {used:.0%} used"
    cure = "Free or add space, or start Ray with a --temp-dir on a larger disk"
    if used > FULL:
        return Line("fail", "disk", where, f"{seen}; Ray spills nothing beyond {FULL:.0%}", cure)
    if facts.disk_free_bytes < object_store_bytes:
        return Line("warn", "disk", where, f"{seen}: less than the object store", cure)
    return Line("ok", "disk", where, seen)


def judge_clock(exchanges: list[tuple[float, float, float]], where: str) -> Line:
    """Hold a node's clock against the driver's.

    Parameters
    ----------
    exchanges : (asked, answered, received): seconds since the epoch; the middle one is the node's clock

    Source: Cristian 1989: the exchange with the shortest round trip says most; its half bounds the error.
    """
    asked, answered, received = min(exchanges, key=lambda one: one[2] - one[0])
    skew, error = answered - (asked + received) / 2, (received - asked) / 2
    seen = f"{skew:+.3f} s from the driver's, to within {error:.3f} s"
    certain = abs(skew) - error
    if certain > SKEW_WARN_S:
        status = "fail" if certain > SKEW_FAIL_S else "warn"
        return Line(status, "clock", where, seen, "Run a time service (chrony) on the node and on the driver")  # type: ignore[arg-type]
    return Line("ok", "clock", where, seen)
