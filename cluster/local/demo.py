"""A pretraining run on a cluster that grows with it, loses a node, and shrinks once the run has ended.

python -m cluster.local.demo                  # the demo's data; minutes on two cores; draws runs/autoscale/timeline.png

A head without CPUs; a job submitted to it that trains on one to three nodes; nodes come; one is killed and replaced;
the run ends with a model; the nodes leave. Every node is a group of processes on this machine: it shows how Ray's
autoscaler and an elastic run work together, not how fast several machines are.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from ray.job_submission import JobSubmissionClient

from cluster.local.cluster import ClusterError, LocalCluster, Settings
from cluster.local.processes import wait_until
from cluster.local.timeline import Timeline, trainers
from orchestrator import storage
from orchestrator.errors import UserError
from orchestrator.train import submission

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(name="autoscale", cpus_per_node=2.0, max_nodes=3, idle_s=30.0, dashboard_port=0)
# A node of two CPUs holds one trainer and one reading task.
ELASTIC = (
    "--train.num_workers", "1..3", "--train.cpus_per_worker", "1.5", "--data.cpus_per_reader", "0.5",
    "--train.resize_every_s", "10", "--train.max_failures", "20", "--train.torch_threads", "1",
)  # fmt: skip
# On three nodes, before one is killed: enough for a checkpoint, and to see how fast it was.
STEPS_BEFORE_LOSS = 30
OPTIONS = (
    "--config", "demo", "--run.name", "autoscale", "--train.max_steps", "120", "--train.checkpoint_every", "10",
    "--train.log_every", "5",
)  # fmt: skip


def lose_a_node(timeline: Timeline, job: Job, patience_s: float = 300.0) -> None:
    """Let an elastic run train on three nodes for a while, kill one, and wait until it trains on three again.

    Parameters
    ----------
    timeline : of the cluster, which has room for three nodes
    job : the run's
    patience_s : for each thing that is waited for

    Raises
    ------
    ClusterError : something did not happen in time, or the job ended; the message ends with the job's log
    """
    cluster = timeline.cluster
    said = 0

    def trains_on_three() -> bool:
        return timeline.now == (3, 3) and "  3 workers  " in job.log()[said:]

    wait_for(timeline, job, trains_on_three, "trains on 3 nodes", patience_s)
    enough = steps_made(job) + STEPS_BEFORE_LOSS

    def has_trained_on_three() -> bool:
        return trains_on_three() and steps_made(job) >= enough

    wait_for(timeline, job, has_trained_on_three, f"trained {STEPS_BEFORE_LOSS} steps", patience_s)
    before = {process.pid for process in cluster.nodes()}
    _kill_a_node(cluster)
    timeline.happened("a node is killed")
    wait_for(timeline, job, lambda: timeline.now[1] < 3, "its trainer is gone", patience_s)
    said = len(job.log())
    wait_for(timeline, job, trains_on_three, "trains on 3 nodes again", patience_s)
    if {process.pid for process in cluster.nodes()} == before:
        raise ClusterError("the node was not replaced")


def steps_made(job: Job) -> int:
    """Of the newest line of progress in the job's log; 0: there is none."""
    return int((re.findall(r"^step (\d+)/", job.log(), re.MULTILINE) or [0])[-1])


def see_the_end(timeline: Timeline, job: Job, patience_s: float = 600.0) -> None:
    """Wait until the run has ended well and the nodes have left.

    Raises
    ------
    ClusterError : as of `lose_a_node`
    """
    wait_for(timeline, job, lambda: job.status() == "SUCCEEDED", "run ended", patience_s)
    wait_for(timeline, job, lambda: timeline.now[0] == 0, "nodes have left", patience_s)


def wait_for(timeline: Timeline, job: Job, condition: Callable[[], bool], what: str, patience_s: float) -> None:
    """Wait for something to happen and note it."""

    def happened_or_over() -> bool:
        return condition() or job.status() in ("FAILED", "STOPPED")

    # Each look asks the dashboard, on cores that train.
    if not wait_until(happened_or_over, patience_s, interval_s=1.0) or not condition():
        raise ClusterError(f"{what}: not within {patience_s:.0f} s; the job's log ends:\n{job.log()[-4000:]}")
    timeline.happened(what)


def _kill_a_node(cluster: LocalCluster) -> None:
    """The whole of one that trains, at once: what the loss of a machine looks like to the others."""
    above = {parent.pid for parent in trainers(cluster.processes())[0].parents()}
    node = next(node for node in cluster.nodes() if node.pid in above)
    for process in [node, *node.children(recursive=True)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


class Job:
    """A job that was submitted as a user submits it.

    Parameters
    ----------
    cluster : that it runs on
    options : of the script
    script : jobs/pretrain.py, or another job

    Raises
    ------
    ClusterError : it was not taken
    """

    def __init__(self, cluster: LocalCluster, options: Sequence[str], script: str = "jobs/pretrain.py"):
        entrypoint = [sys.executable, script, *options]
        commit = submission.commit()
        command = [
            str(Path(sys.executable).with_name("ray")), "job", "submit", "--no-wait", "--working-dir", str(ROOT),
            *(["--metadata-json", json.dumps({"commit": commit})] if commit else []), "--", *entrypoint,
        ]  # fmt: skip
        environment = {**os.environ, **cluster.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        found = re.search(r"raysubmit_\w+", done.stdout)
        if done.returncode or found is None:
            raise ClusterError(f"the job was not taken: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        self.id, self.client = found.group(), JobSubmissionClient(cluster.dashboard, headers=cluster.headers())

    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return self.client.get_job_status(self.id).value

    def log(self) -> str:
        return self.client.get_job_logs(self.id)


def main() -> None:
    folder = Path("runs/autoscale").absolute()
    if storage.exists(str(folder / "config.yaml")):
        raise ClusterError(f"{folder} holds a run already; remove it first")
    cluster = LocalCluster.start(SETTINGS)
    try:
        with Timeline(cluster) as timeline:
            job = Job(cluster, [*OPTIONS, *ELASTIC, "--run.storage_path", str(folder.parent)])
            timeline.happened("job submitted")
            lose_a_node(timeline, job)
            see_the_end(timeline, job)
            print(job.log()[-1500:])
    finally:
        cluster.stop()
    timeline.write(str(folder), folder)
    print(f"picture   {folder / 'timeline.png'}\ndata      {folder / 'timeline.csv'}\nmodel     {folder / 'final'}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(f"ended by signal {number}"))
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
