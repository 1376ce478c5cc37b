"""The preflight's judgement of a node and of an all-reduce, without Ray."""

from __future__ import annotations

import dataclasses
import multiprocessing
import subprocess
import time

import pytest

from cluster.local.processes import free_port
from cluster.preflight import node, reduce
from cluster.preflight.line import Line, guarded
from cluster.preflight.storage import check_same

GB = 10**9
FACTS = node.Facts({"python": "3.11.1", "ray": "2.60.0", "torch": "2.13.0"}, 8 * GB, 100 * GB, 50 * GB)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_what_is_observed_is_what_other_means_see():
    facts = node.observe("/tmp")
    said = subprocess.run(["df", "-B1", "--output=size", "/dev/shm"], capture_output=True, text=True, check=True)
    assert facts.shm_bytes == int(said.stdout.split()[-1])
    assert facts.versions["ray"] == __import__("ray").__version__
    assert node.judge_versions(facts, facts.versions, "a").status == "ok"


@pytest.mark.parametrize("package", ["python", "ray", "torch"])
def test_another_version(package):
    other = dataclasses.replace(FACTS, versions={**FACTS.versions, package: "1.0"})
    line = node.judge_versions(other, FACTS.versions, "10.0.0.2")
    assert line.status == "fail"
    assert line.seen == f"{package} 1.0 (here {FACTS.versions[package]})"
    assert line.cure


def test_small_shared_memory(small_disk):
    facts = node.observe("/tmp", shm=str(small_disk))
    assert facts.shm_bytes == 4 << 20
    assert node.judge_shm(facts, 5e6, "a").status == "fail"
    assert "--shm-size" in node.judge_shm(facts, 5e6, "a").cure
    assert node.judge_shm(facts, 4e6, "a").status == "ok"


def test_a_full_disk(small_disk):
    assert node.judge_disk(node.observe(str(small_disk)), 1e6, "a").status == "ok"
    assert node.judge_disk(node.observe(str(small_disk)), 1e9, "a").status == "warn"
    (small_disk / "data").write_bytes(bytes(4_100_000))
    line = node.judge_disk(node.observe(str(small_disk)), 1e3, "a")
    assert (line.status, bool(line.cure)) == ("fail", True)


@pytest.mark.parametrize(
    ("skew", "status"), [(0.0, "ok"), (-0.9, "ok"), (5.0, "warn"), (-5.0, "warn"), (90.0, "fail"), (-90.0, "fail")]
)
def test_clocks(skew, status):
    # The quick exchange is right, the slow one says little.
    line = node.judge_clock([(100.0, 108.0 + skew, 110.0), (200.0, 200.1 + skew, 200.2)], "a")
    assert line.status == status
    assert f"{skew:+.3f} s" in line.seen


def test_a_slow_answer_is_no_skew():
    assert node.judge_clock([(100.0, 109.9, 110.0)], "a").status == "ok"


def test_a_mark_that_others_cannot_see(tmp_path):
    assert check_same(str(tmp_path / "mark"), b"1", "a").status == "fail"
    (tmp_path / "mark").write_bytes(b"2")
    assert check_same(str(tmp_path / "mark"), b"1", "a").status == "fail"
    assert check_same(str(tmp_path / "mark"), b"2", "a").status == "ok"


def test_a_check_that_raises_is_a_failed_line():
    def look():
        raise ZeroDivisionError

    assert guarded("disk", "a", look, "cure") == Line("fail", "disk", "a", "ZeroDivisionError", "cure")


def _measure(queue, *arguments):
    try:
        queue.put(reduce.measure(*arguments))
    except Exception as error:
        queue.put(str(error))


def test_an_all_reduce_of_two_processes_is_timed():
    context = multiprocessing.get_context("spawn")
    queue, port = context.Queue(), free_port()
    both = [
        context.Process(target=_measure, args=(queue, rank, 2, "127.0.0.1", "127.0.0.1", port, 60.0))
        for rank in range(2)
    ]
    start = time.monotonic()
    for process in both:
        process.start()
    seconds = [queue.get(timeout=120) for _ in both]
    for process in both:
        process.join()
    assert all(0 < one < time.monotonic() - start for one in seconds), seconds
    line = reduce.judge(seconds, gpu=False)
    assert line.status in ("ok", "warn")
    assert f"at {(64 << 20) / max(seconds) / 1e6:.0f} MB/s" in line.seen


def test_an_all_reduce_whose_other_side_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    with pytest.raises(Exception, match=r"(?i)timed? ?out|connect"):
        reduce.measure(1, 2, "127.0.0.1", "127.0.0.1", free_port(), 2.0)


def test_a_slow_network_is_told():
    assert reduce.judge([1.0, 2.0], gpu=False).status == "warn"
    assert reduce.judge([0.01, 0.02], gpu=True) == Line(
        "ok", "allreduce", "2 nodes",
        "NCCL at 3355 MB/s (bus bandwidth, 64 MiB of float32, best of 3, slowest node)",
    )  # fmt: skip


def test_an_address_that_no_interface_has():
    from orchestrator.train.network import interface_of

    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(ValueError, match=r"203\.0\.113\.7"):
        interface_of("203.0.113.7")
