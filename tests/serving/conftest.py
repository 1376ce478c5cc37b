"""One server for all tests of the API."""

from __future__ import annotations

import subprocess

import pytest
from ray_cluster import ray_cluster
from server import Server
from tiny import save_tiny

from cluster.local.processes import free_port


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving")
    for seed in (1, 2):
        save_tiny(str(folder / f"model-{seed}"), seed=seed)
    scratch = free_port()
    environment = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"/tmp/haproxy-test-{scratch}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"/tmp/haproxy-test-{scratch}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"/tmp/haproxy-test-{scratch}",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"/tmp/haproxy-test-{scratch}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_metrics_report_interval_ms": "1000",
        "CLIP_TEST_KEY": "a-key-of-more-than-sixteen-characters",
    }
    with ray_cluster(num_cpus=4, scratch=folder, environment=environment) as cluster:
        server = Server(f"http://127.0.0.1:{free_port()}", cluster, folder)
        server.deploy(model=str(folder / "model-1"), storage=str(folder / "classifiers"),
                      limits={"image_bytes": 2_000_000})  # fmt: skip
        server.wait_until_running()
        yield server
    subprocess.run(["rm", "-rf", f"/tmp/haproxy-test-{scratch}"], check=False)
