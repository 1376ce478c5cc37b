"""Metrics reach the trackers that are asked for, and a broken one never stops a run."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import time
import urllib.request

import pytest
import ray
import yaml
from ray.util.metrics import Gauge
from ray_cluster import wait_until

from orchestrator.config import ConfigError
from orchestrator.data.manifest import Manifest, Shard
from orchestrator.data.rejects import RejectActor, RejectLedger
from orchestrator.data.shards import Reject
from orchestrator.train.metrics import MetricsWriter
from orchestrator.train.progress import RunBoard
from orchestrator.train.trackers import RayMetrics, check_trackers, make_trackers


def run_of(name, tmp_path, first_step, steps):
    """What one training process does between its start and its end."""
    trackers = make_trackers([name], "mine", str(tmp_path / "run"), {"optim": {"lr": 0.5}})[1:]
    writer = MetricsWriter(str(tmp_path / "run"), first_step, trackers)
    for step in steps:
        writer.write({"step": step, "loss": step + 0.125})
    writer.close()


def test_mlflow_continues_its_run_after_a_restart(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlflow")
    run_of("mlflow", tmp_path, 0, [10, 20])
    run_of("mlflow", tmp_path, 20, [30])
    (found,) = mlflow.search_runs(output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(10, 10.125), (20, 20.125), (30, 30.125)]
    assert (found.info.run_name, found.info.status) == ("mine", "FINISHED")
    config = mlflow.artifacts.load_text(f"{found.info.artifact_uri}/config.yaml")
    assert yaml.safe_load(config) == {"optim": {"lr": 0.5}}


def test_wandb_gets_the_records(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run_of("wandb", tmp_path, 0, [10, 20])
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert b"10.125" in data and b"20.125" in data and b"loss" in data


def test_a_tracker_that_breaks_is_told_of_once_and_left(tmp_path):
    class Broken:
        def log(self, record):
            raise ConnectionError("the server is gone")

        def close(self):
            raise AssertionError("it was left")

    said: list[str] = []
    writer = MetricsWriter(str(tmp_path), 0, [Broken()], said.append)
    for step in (1, 2):
        writer.write({"step": step, "loss": 1.0})
    writer.close()
    assert said == ["Broken is not told any more: the server is gone"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_one_that_is_not_installed_or_not_there_is_a_plain_error(tmp_path, monkeypatch):
    import mlflow

    mlflow.set_tracking_uri("nonsense://nowhere")
    with pytest.raises(ConfigError, match=r"run\.trackers: mlflow cannot be used: .*nonsense"):
        make_trackers(["mlflow"], "mine", str(tmp_path), {})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"mlflow is not installed; pip install mlflow-skinny on every node"):
        check_trackers(["mlflow"])


def test_the_nodes_metrics_endpoint_shows_the_newest_values_as_long_as_the_run_lives(monkeypatch):
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        tracker = RayMetrics("mine")
        tracker.log({"step": 10, "loss": 3.0, "time": 1.0})
        tracker.log({"step": 20, "loss": 2.5, "time": 2.0})
        # What is known where the driver is.
        began = time.time()
        board = RunBoard.remote("mine")
        calls = [board.begin.remote(0), board.placed.remote(2), board.say.remote("a node leaves", "preemption")]
        ray.get([*calls, board.begin.remote(4), board.placed.remote(3), board.post.remote({"step": 5})])
        ledger = RejectLedger(Manifest([Shard("a.tar", 1, "", 0, samples=40)]), max_share=0.5)
        rejects = RejectActor.remote(ledger, "mine")
        kinds = ["empty_text", "truncated_image", "truncated_image"]
        ray.get(rejects.add.remote([Reject("a.tar", index, "key", kind) for index, kind in enumerate(kinds)]))
        training, counted = {"step": 20, "loss": 2.5}, {"events_total start": 2, "events_total preemption": 1}
        of_the_run = {"workers": 3, "progressed_at_s": True, **counted}
        unusable = {"reject_limit": 20, "rejects empty_text": 1, "rejects truncated_image": 2}
        wait_until_shown({**training, **of_the_run, **unusable}, began)

        # One that is told of once is gone after a while, and these are still there.
        Gauge("clip_once", tag_keys=("run",)).set(1.0, {"run": "mine"})
        wait_until_shown({**training, **of_the_run, **unusable, "once": 1}, began)
        wait_until_shown({**training, **of_the_run, **unusable}, began)

        tracker.close()
        ray.kill(board)
        wait_until_shown({**counted, **unusable}, began)
    finally:
        ray.shutdown()


def wait_until_shown(expected: dict[str, float], began: float) -> None:
    """Until the run's own metrics are just these."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[str, float] = {}

    def as_expected() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
            found.clear()
            found.update(values(reply.read().decode()))
            if "progressed_at_s" in found:
                found["progressed_at_s"] = began <= found["progressed_at_s"] <= time.time()
        return found == expected

    with contextlib.suppress(TimeoutError):
        wait_until(as_expected, "the metrics at the endpoint")
    assert found == expected


def values(exposition: str) -> dict[str, float]:
    """The run's own samples, by name and by the label that tells those of one name apart."""
    found = {}
    for line in exposition.splitlines():
        if line.startswith("ray_clip_") and 'run="mine"' in line:
            name, value = line[len("ray_clip_") : line.index("{")], line.rsplit(" ", 1)[1]
            kind = re.search(r'[{,](?:event|reason)="(\w+)"', line)
            found[f"{name} {kind.group(1)}" if kind else name] = float(value)
    return found
