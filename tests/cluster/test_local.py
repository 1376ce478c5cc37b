"""A cluster on this machine: what it starts is what it stops, and nothing else."""

from __future__ import annotations

import ast
import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobSubmissionClient
from ray_cluster import RAY, REPOSITORY, wait_until

from cluster.local.cluster import ClusterError, LocalCluster, Settings, find

SMALL = {"dashboard_port": 0, "object_store_mb": 100}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Where clusters are noted down."""
    monkeypatch.setenv("CLIP_ON_RAY_CACHE", str(tmp_path / "cache"))


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "cluster.local", *words], capture_output=True, text=True, check=False)


def status_of(cluster: LocalCluster, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"{cluster.dashboard}/api/jobs/", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code


def holders(folder: Path) -> list[str]:
    """Processes that have a file of the folder open, though it may have been removed; Ray's all have their logs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if any(str(link.readlink()).startswith(str(folder)) for link in Path(f"/proc/{process.pid}/fd").iterdir()):
                found.append(process.name())
    return found


def test_up_says_what_to_do_next_asks_for_the_token_and_down_leaves_nothing():
    up = command("up", "--name", "mine", "--dashboard_port", "0", "--object_store_mb", "100")
    cluster = find("mine")
    try:
        assert up.returncode == 0, up.stdout + up.stderr
        assert cluster is not None and cluster.address in up.stdout and cluster.dashboard in up.stdout
        assert f"export RAY_API_SERVER_ADDRESS={cluster.dashboard} RAY_AUTH_MODE=token" in up.stdout
        assert status_of(cluster, {}) == 401 and status_of(cluster, cluster.headers()) == 200
        # Nobody else on the network can reach the port that takes jobs.
        port = int(cluster.dashboard.rpartition(":")[2])
        listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
        assert listening == {"127.0.0.1"}
        again = command("up", "--name", "mine", "--dashboard_port", "0")
        assert again.returncode == 1 and "cluster mine runs already" in again.stderr
        assert "0 nodes of at most 3" in command("status", "--name", "mine").stdout
        scratch = cluster.scratch
        assert scratch.exists() and cluster.processes()
    finally:
        down = command("down", "--name", "mine")
    assert down.returncode == 0 and not holders(scratch) and not scratch.exists()
    assert "no cluster mine" in command("down", "--name", "mine").stdout


def test_what_a_crash_leaves_is_cleaned_up_and_another_cluster_stays():
    other = LocalCluster.start(Settings(name="other", auth="disabled", **SMALL))
    try:
        crashed = LocalCluster.start(Settings(name="crashed", auth="disabled", min_nodes=1, **SMALL))
        wait_until(lambda: len(crashed.nodes()) == 1, "a node")
        commands = {process: " ".join(process.cmdline()) for process in crashed.processes()}
        for process, words in commands.items():
            if "--head" in words or "gcs_server" in words or "monitor.py" in words:
                process.kill()
        wait_until(lambda: not crashed.is_up, "the head's death")
        assert crashed.processes(), "nothing was left to clean up"
        status = command("status", "--name", "crashed")
        assert status.returncode == 1 and "does not answer" in status.stderr
        anew = LocalCluster.start(Settings(name="crashed", auth="disabled", **SMALL))
        try:
            assert not holders(crashed.scratch) and not crashed.scratch.exists() and anew.is_up
        finally:
            anew.stop()
        assert other.is_up and not anew.processes()
    finally:
        other.stop()
    assert not holders(other.scratch)


def test_a_port_that_is_taken_is_named_before_anything_starts():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"dashboard_port={port}: another process listens there"):
            LocalCluster.start(Settings(name="mine", dashboard_port=port))
    assert find("mine") is None


def test_an_autoscaler_that_does_not_start_leaves_nothing_and_says_why(monkeypatch):
    monkeypatch.setattr(LocalCluster, "autoscaling", lambda self: {"cluster_name": "broken"})
    started: list[LocalCluster] = []
    monkeypatch.setattr(LocalCluster, "_remember", lambda self: started.append(self))
    with pytest.raises(ClusterError, match=r"Ray did not start; its log ends:(?s:.)*monitor"):
        LocalCluster.start(Settings(name="mine", auth="disabled", **SMALL))
    assert started and not started[0].processes()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"name": "a/b"}, "name='a/b': letters, digits and hyphens"),
        ({"max_nodes": 0}, "max_nodes=0: at least 1"),
        ({"min_nodes": 4}, "max_nodes=3: at least 1 and min_nodes"),
        ({"idle_s": 0.0}, "idle_s=0.0: above 0"),
        ({"auth": "none"}, "auth='none': token or disabled"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, message):
    with pytest.raises(ClusterError, match=message):
        LocalCluster.start(Settings(**setting))


JOB = """
import pathlib, ray
print([str(path) for path in pathlib.Path('.').rglob('*') if path.is_file()])
from orchestrator.train import submission
ray.init(log_to_driver=False)
submission.note(recipe='mine.yaml', run='s3://bucket/runs/mine', commit='known to the submitter', nothing='')
"""


def test_a_job_takes_along_code_alone_and_says_its_run_and_every_port_that_takes_jobs_asks_for_the_token(tmp_path):
    work = tmp_path / "work"
    code = {"job.py", "code/recipe.yaml"}
    left_behind = "runs/demo/checkpoints/step/x .data/x .venv/bin/x .git/x a.tar b/c.parquet final/model.safetensors"
    for name in [*code, *left_behind.split()]:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text("")
    (work / "job.py").write_text(JOB)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(REPOSITORY / name, work / name)
    cluster = LocalCluster.start(Settings(name="mine", **SMALL))
    try:
        done = subprocess.run(
            [RAY, "job", "submit", f"--working-dir={work}", "--submission-id=one", '--metadata-json={"commit": "abc"}',
             "--", sys.executable, "job.py"],
            env={**os.environ, **cluster.environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        said = JobSubmissionClient(cluster.dashboard, headers=cluster.headers()).get_job_info("one").metadata
        # Agents take jobs, too, and listen on the machine's address.
        pids = {process.pid for process in cluster.processes()}
        listening = [c.laddr for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.pid in pids]
        answers = {ask_for_a_job(f"http://{place.ip}:{place.port}/api/job_agent/jobs/") for place in listening}
    finally:
        cluster.stop()
    (arrived,) = (set(ast.literal_eval(line)) for line in done.stdout.splitlines() if line.startswith("['"))
    assert arrived - {".gitignore", ".rayignore"} == code
    assert said == {"recipe": "mine.yaml", "run": "s3://bucket/runs/mine", "commit": "abc"}
    assert 401 in answers and not answers & {200, 400, 500}, answers


def ask_for_a_job(url: str) -> int:
    """The status that a submission without an entrypoint and a token gets; 0: no HTTP there."""
    request = urllib.request.Request(url, data=b"{}", headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=3) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return 0
