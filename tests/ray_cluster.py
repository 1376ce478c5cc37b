"""A Ray cluster of its own, in processes that a test can kill, away from any other on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster.local.processes import free_port

RAY = str(Path(sys.executable).with_name("ray"))
REPOSITORY = Path(__file__).parent.parent


@dataclass
class RayCluster:
    """Where a cluster listens.

    Parameters
    ----------
    address : host:port of its head
    dashboard : URL that jobs are submitted to
    environment : of the processes that use it
    nodes : the processes that run its nodes, the head first
    metrics : URL of the head's metrics, for Prometheus
    temporary : its folder of logs and sockets
    """

    address: str
    dashboard: str
    environment: dict[str, str]
    nodes: list[subprocess.Popen]
    metrics: str
    temporary: Path

    def add_node(self, num_cpus: int, labels: str = "") -> subprocess.Popen:
        """Join another node, with labels such as `a=b,c=d`, and wait until it is there; it ends with the cluster."""
        expected = sum(node.poll() is None for node in self.nodes) + 1
        command = [
            RAY, "start", f"--address={self.address}", "--block", f"--num-cpus={num_cpus}",
            "--node-ip-address=127.0.0.1", "--object-store-memory=200000000", f"--labels={labels}",
            f"--dashboard-agent-listen-port={free_port()}",
            "--include-log-monitor=false",  # The head's reads the logs of all nodes: they lie in one folder.
        ]  # fmt: skip
        environment = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}

        place = len(self.nodes)

        def start(log: Path) -> subprocess.Popen:
            with log.open("wb") as out:
                node = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
            self.nodes[place:] = [node]
            return node

        return start_node(start, lambda: self.alive() >= expected, self.temporary / f"node-{place}.log")

    def alive(self) -> int:
        """How many nodes the head knows to be alive."""
        return len(self._alive_nodes())

    def _alive_nodes(self) -> list[str]:
        """Ids of the nodes that are alive, in order of their start."""
        from ray._raylet import GcsClient
        from ray.core.generated.gcs_pb2 import GcsNodeInfo

        nodes = GcsClient(address=self.address).get_all_node_info().values()
        alive = [node for node in nodes if node.state == GcsNodeInfo.ALIVE]
        return [node.node_id.hex() for node in sorted(alive, key=lambda node: node.start_time_ms)]

    def announce_loss(self, number: int, seconds: int) -> None:
        """Tell the cluster, as a cloud's spot market would, that its n-th node will be taken away."""
        command = [
            RAY, "drain-node", "--address", self.address, "--node-id", self._alive_nodes()[number],
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot",
            "--deadline-remaining-seconds", str(seconds),
        ]  # fmt: skip
        subprocess.run(command, env=self.environment, check=True, capture_output=True)


def kill_tree(process: subprocess.Popen) -> None:
    """SIGKILL a process and all below it: what the loss of a machine looks like to the others."""
    import psutil

    parent = psutil.Process(process.pid)
    for member in [parent, *parent.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


PATIENCE_S = 600.0  # what nothing takes that happens at all, on a machine however slow


def wait_until(condition, what: str):
    """Poll until `condition()` is true and return its value."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not happen within {PATIENCE_S:.0f} s")


def start_node(start: Callable[[Path], subprocess.Popen], there: Callable[[], bool], log: Path) -> subprocess.Popen:
    """Run `ray start --block`, which writes to `log`, until the node is there; again if it was too slow for Ray."""
    from orchestrator.train.cluster import STARTS, TOO_SLOW  # imports Ray, before which conftest has settings to make

    for _ in range(STARTS):
        node = start(log)
        wait_until(lambda node=node: node.poll() is not None or there(), f"the start of a node, {log}")
        if node.poll() is None:
            return node
        if TOO_SLOW not in log.read_text():
            break
    raise RuntimeError(f"ray start failed:\n{log.read_text()}")


@contextlib.contextmanager
def ray_cluster(num_cpus: int, scratch: Path, environment: dict[str, str]) -> Iterator[RayCluster]:
    """Start a head with a dashboard, yield it, and end just what was started."""
    port, dashboard_port, metrics_port = free_port(), free_port(), free_port()
    full = {**os.environ, **environment, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    full.pop("RAY_ADDRESS", None)
    # /tmp: the sockets' paths must stay short.
    command = [
        RAY, "start", "--head", "--block", f"--port={port}", f"--num-cpus={num_cpus}", "--node-ip-address=127.0.0.1",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}",
        f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}",
        f"--metrics-export-port={metrics_port}",
        f"--temp-dir=/tmp/clip-on-ray-test-{port}", "--object-store-memory=500000000",
    ]  # fmt: skip
    url = f"http://127.0.0.1:{dashboard_port}"
    cluster = RayCluster(
        f"127.0.0.1:{port}",
        url,
        {**full, "RAY_ADDRESS": f"127.0.0.1:{port}"},
        [],
        f"http://127.0.0.1:{metrics_port}/metrics",
        Path(f"/tmp/clip-on-ray-test-{port}"),
    )

    def start(log: Path) -> subprocess.Popen:
        with log.open("wb") as out:
            head = subprocess.Popen(command, env=full, stdout=out, stderr=out, start_new_session=True)
        cluster.nodes[:] = [head]
        return head

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/api/jobs/", timeout=5) as reply:
                return isinstance(json.load(reply), list)
        except OSError:
            return False

    try:
        start_node(start, ready, scratch / "head.log")
        yield cluster
    finally:
        for node in reversed(cluster.nodes):
            if node.poll() is None:
                kill_tree(node)
        # Ray's own processes leave the head's process group; they are known by the cluster's folder.
        subprocess.run(["pkill", "-9", "-f", f"clip-on-ray-test-{port}"], check=False)
        subprocess.run(["rm", "-rf", f"/tmp/clip-on-ray-test-{port}"], check=False)
