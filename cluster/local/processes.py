"""The processes of one cluster, known by a mark in their environment that all of them inherit, and by their logs."""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil

MARK = "CLIP_ON_RAY_CLUSTER"


def members(mark: str, folder: Path) -> list[psutil.Process]:
    """Every process of a cluster, however it was started and whoever its parent is now.

    Parameters
    ----------
    mark : what its processes inherit
    folder : that their logs lie in: some of Ray's processes overwrite their environment with a title
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if environment.get(MARK) == mark or (not environment and _holds(process, folder)):
                found.append(process)
    return found


def _holds(process: psutil.Process, folder: Path) -> bool:
    """Whether it has a file open below the folder."""
    return any(Path(file.path).is_relative_to(folder) for file in process.open_files())


def end(processes: list[psutil.Process], patience_s: float) -> None:
    """Ask them to end, and end those that have not after a while."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(processes, patience_s)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, patience_s)


def tree(process: subprocess.Popen) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        parent = psutil.Process(process.pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


# Above those of Ray's workers, below those that Linux gives to connections: none of them is taken by chance between a
# look at it and its use.
QUIET_PORTS = range(20000, 32768)


def free_port() -> int:
    """A port of the loopback interface that nobody listens at now."""
    while is_taken(port := secrets.choice(QUIET_PORTS)):
        continue
    return port


def is_taken(port: int) -> bool:
    """Whether somebody listens at a port of the loopback interface."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def tail(log: Path, lines: int = 15) -> str:
    """The end of a log, for an error message."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def wait_until(condition, timeout_s: float, interval_s: float = 0.2) -> bool:  # type: ignore[no-untyped-def]
    """Whether `condition()` came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_s)
    return True
