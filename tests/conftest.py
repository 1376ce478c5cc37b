"""What tests share."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ray_cluster import PATIENCE_S, wait_until

from cluster.local.processes import free_port

# Set before anything imports Ray: tests start clusters of their own and tell nobody.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
# Ray Data warns of tasks that do not start, in output that tests read: for want of resources, not of speed.
os.environ["RAY_DATA_STARVATION_WARNING_DELAY_S"] = str(PATIENCE_S)
# Set before anything imports torch: its threads would wait for each other by turning, on cores that other tests want.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
os.environ.pop("RAY_ADDRESS", None)

# Names of files whose tests go to one process.
TOGETHER = {
    "nodes": {"test_autoscale", "test_check_cluster", "test_exact_resume", "test_hosts", "test_local"},
    "server": {"test_api", "test_faults", "test_fetch", "test_models", "test_openapi", "test_page"},
}

KEY = "test-access-key"
SECRET = "test-secret-that-must-never-be-printed"


def pytest_xdist_make_scheduler(config, log):
    """A file's tests go to one process, since they share a cluster. So do those of the one server of the API, and those
    of many nodes, of which this machine can bear one at a time."""
    from xdist.scheduler import LoadFileScheduling

    class ByCluster(LoadFileScheduling):
        def _split_scope(self, nodeid):
            scope = super()._split_scope(nodeid)
            return next((one for one, names in TOGETHER.items() if Path(scope).stem in names), scope)

    return ByCluster(config, log)


@dataclass
class S3Server:
    """A local S3 server and a bucket in it."""

    endpoint: str
    bucket: str
    environment: dict[str, str] = field(default_factory=dict)

    def uri(self, *parts: str) -> str:
        return "/".join([f"s3://{self.bucket}", *parts])


@contextlib.contextmanager
def moto_server(**environment: str) -> Iterator[str]:
    """The URL of an S3 server in a process of its own."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    endpoint = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert server.poll() is None, "moto_server ended"
        try:
            with urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5):
                return True
        except OSError:
            return False

    try:
        wait_until(answers, "the start of the S3 server")
        yield endpoint
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def s3_server():
    with moto_server() as endpoint:
        yield endpoint


@pytest.fixture(scope="session")
def refusing_s3_server():
    """It checks signatures from the first request on, and knows no key."""
    with moto_server(INITIAL_NO_AUTH_ACTION_COUNT="0") as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_server, monkeypatch, request):
    """An S3 server with an empty bucket, named by the environment as a user would."""
    import boto3

    environment = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    bucket = f"bucket-{abs(hash(request.node.nodeid)) % 10**9}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return S3Server(s3_server, bucket, environment)
