"""Training across hosts with addresses of their own, one of which is cut off in mid-run and healed.

A host is a network namespace with one interface on a common bridge, and a folder of its own for Ray. The disk with the
shards and the run is common to all, as a network file system would be.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray_cluster import PATIENCE_S, RAY, REPOSITORY, kill_tree, start_node, wait_until
from train.test_exact_resume import check_every_sample_once, last_checkpoint, wait_for_checkpoint, write_slow_recipe

PREFIX = "clipray"
BRIDGE = f"{PREFIX}-br"
TEMPORARY = "/tmp/clip-on-ray-hosts"
PORT = 6390
# A node is lost after four seconds without an answer instead of Ray's half minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


def ip(*words, check=True):
    return subprocess.run(["ip", *words], check=check, capture_output=True, text=True).stdout


def remove_all():
    """The namespaces, processes and bridge of this test, also of one that crashed."""
    for name in [line.split()[0] for line in ip("netns", "list", check=False).splitlines() if line]:
        if name.startswith(f"{PREFIX}-"):
            for process in ip("netns", "pids", name, check=False).split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            ip("netns", "del", name, check=False)
    ip("link", "del", BRIDGE, check=False)
    shutil.rmtree(TEMPORARY, ignore_errors=True)


class Host:
    """One host.

    Parameters
    ----------
    number : from 0
    scratch : where its folder for Ray and its log are put
    """

    def __init__(self, number: int, scratch: Path):
        self.name, self.address = f"{PREFIX}-{number}", f"10.213.77.{10 + number}"
        self.cable, self.log = f"{PREFIX}-v{number}", scratch / f"host-{number}.log"
        self.folder = scratch / f"host-{number}"
        self.folder.mkdir()
        ip("netns", "add", self.name)
        ip("link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.cable, "master", BRIDGE, "up")
        ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.name, "link", "set", "eth0", "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    def start(self, command, environment) -> subprocess.Popen:
        script = f'mount --bind "{self.folder}" {TEMPORARY} && exec "$@"'
        with self.log.open("ab") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, "sh", "-c", script, "host", *command],
                env=environment, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def start_ray(self, options, environment) -> subprocess.Popen:
        """Run a node of Ray and wait until it is there."""
        command = [RAY, "start", "--block", f"--node-ip-address={self.address}", *options]
        command.append("--object-store-memory=200000000")

        def starts():
            return self.log.read_text().count("Ray runtime started") if self.log.exists() else 0

        before = starts()
        return start_node(lambda log: self.start(command, environment), lambda: starts() > before, self.log)

    def join(self, head: Host, environment) -> subprocess.Popen:
        return self.start_ray([f"--address={head.address}:{PORT}", "--num-cpus=3"], environment)

    def trains(self) -> bool:
        """Whether a training process runs here."""
        for process in ip("netns", "pids", self.name).split():
            with contextlib.suppress(OSError):
                if b"RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                    return True
        return False

    def cut_off(self):
        ip("link", "set", self.cable, "down")

    def heal(self):
        ip("link", "set", self.cable, "up")


@pytest.fixture
def hosts(tmp_path):
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    remove_all()
    try:
        ip("netns", "add", f"{PREFIX}-try")
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("link", "set", BRIDGE, "up")
        Path(TEMPORARY).mkdir()
    except subprocess.CalledProcessError as error:
        remove_all()
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
    try:
        yield [Host(number, tmp_path) for number in range(3)]
    finally:
        remove_all()


def test_a_run_across_hosts_survives_the_loss_of_one_and_takes_it_back(hosts, tmp_path):
    head, near, far = hosts
    recipe, log = write_slow_recipe(tmp_path, num_workers="1..2"), head.log
    environment = {**os.environ, **QUICK, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    environment.pop("GLOO_SOCKET_IFNAME", None)
    options = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={TEMPORARY}"]
    head.start_ray(options, environment)
    near.join(head, environment)
    node = far.join(head, environment)
    job = [sys.executable, str(REPOSITORY / "jobs/pretrain.py"), "--config", str(recipe)]
    driver = head.start(job, {**environment, "RAY_ADDRESS": f"{head.address}:{PORT}"})

    def both_train(expected):
        assert driver.poll() is None, log.read_text()[-5000:]
        return [near.trains(), far.trains()] == expected

    try:
        wait_until(lambda: both_train([True, True]), "training on both hosts")
        wait_for_checkpoint(tmp_path, 6, driver, log)
        assert both_train([True, True])
        far.cut_off()
        cut_at = last_checkpoint(tmp_path)
        wait_for_checkpoint(tmp_path, cut_at + 18, driver, log)
        far.heal()
        # It learns that it was given up, and ends; whoever keeps it running starts it anew.
        wait_until(lambda: node.poll() is not None, "the end of the node that was given up")
        far.join(head, environment)
        wait_until(lambda: both_train([True, True]), "training on both hosts again")
        wait_for_checkpoint(tmp_path, last_checkpoint(tmp_path) + 12, driver, log)
        assert driver.wait(PATIENCE_S) == 0, log.read_text()[-5000:]
    finally:
        if driver.poll() is None:
            kill_tree(driver)
    check_every_sample_once(tmp_path)
