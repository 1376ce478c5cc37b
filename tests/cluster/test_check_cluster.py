"""The preflight of a real cluster of two nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest
import yaml
from ray_cluster import REPOSITORY, ray_cluster

from cluster.local.processes import free_port
from orchestrator.data.shard_writers import ShardWriter


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory):
    # Ray gives up a node that is silent for about a minute; the check is to find it before.
    patient = {"RAY_health_check_failure_threshold": "50"}
    with ray_cluster(num_cpus=1, scratch=tmp_path_factory.mktemp("ray"), environment=patient) as cluster:
        cluster.add_node(1)
        yield cluster


@pytest.fixture
def recipe(tmp_path):
    with ShardWriter(str(tmp_path / "0.tar")) as writer:
        writer.write("0", {"txt": b"a caption"})
    file = tmp_path / "recipe.yaml"
    fields = {
        "run": {"storage_path": str(tmp_path / "runs")},
        "data": {"train": str(tmp_path / "0.tar"), "cpus_per_reader": 0.5},
        "train": {"num_workers": 2, "cpus_per_worker": 0.5},
    }
    file.write_text(yaml.safe_dump(fields))
    return file


def run_check(cluster, recipe, *options, target=()):
    """Exit status, and the words of each line."""
    command = [sys.executable, "-m", "cluster.check", *target, "--config", str(recipe), *options]
    ended = subprocess.run(command, env=cluster.environment, cwd=REPOSITORY, capture_output=True, text=True)
    assert "checks, " in ended.stdout, ended.stderr
    lines = ended.stdout.splitlines()[:-1]
    return ended.returncode, lines, [tuple(line.split()[:2]) for line in lines]


def test_all_lines_of_two_nodes_are_ok(two_nodes, recipe, tmp_path):
    status, lines, words = run_check(two_nodes, recipe)
    assert status == 0, lines
    assert {word for word, _ in words} <= {"ok", "warn"}, lines
    by_node = ["clock", "disk", "shards", "shared", "shm", "storage", "versions"]
    assert sorted(check for _, check in words) == sorted([*by_node, *by_node, "address", "allreduce", "resources"])
    # Whether this machine is quick and has disk to spare is not the cluster's matter.
    assert {check for word, check in words if word == "warn"} <= {"allreduce", "disk"}
    assert not list((tmp_path / "runs").iterdir())


def test_what_fails_on_a_real_cluster_is_named(two_nodes, recipe):
    status, lines, words = run_check(
        two_nodes,
        recipe,
        "--train.num_workers",
        "9",
        "--run.storage_path",
        "/proc/nowhere",
        "--data.train",
        "/none.tar",
    )
    assert status == 1
    failed = [check for word, check in words if word == "fail"]
    assert sorted(failed) == sorted(["resources", *["storage"] * 3, *["shared"] * 2, *["shards"] * 2]), lines


def test_a_node_that_has_stopped_is_named_and_not_waited_for(two_nodes, recipe):
    name = two_nodes._alive_nodes()[1][:8]
    stopped = [two_nodes.nodes[1], *psutil.Process(two_nodes.nodes[1].pid).children(recursive=True)]
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        # The other node must answer within it, and where cores are busy its process alone takes 20 s to start.
        status, lines, words = run_check(two_nodes, recipe, "--timeout_s", "60")
    finally:
        for process in stopped:
            os.kill(process.pid, signal.SIGCONT)
    assert status == 1
    late = [line for line, word in zip(lines, words, strict=True) if word == ("fail", "answers")]
    assert len(late) == 1, lines
    assert f"({name}): no answer within 60 s" in late[0]
    # The other node was looked at all the same.
    assert words.count(("ok", "storage")) == 1


def test_an_address_where_no_cluster_is(two_nodes, recipe):
    status, _, words = run_check(two_nodes, recipe, target=[f"127.0.0.1:{free_port()}"])
    assert (status, words) == (1, [("fail", "address")])
