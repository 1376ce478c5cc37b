"""Whatever is killed, each epoch trains on every good sample exactly once.

The oracle is the trace: which samples each step of the surviving history trained on. It is written beside the ledger
and not from it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from gate import gate_before
from ray_cluster import PATIENCE_S, REPOSITORY, RayCluster, kill_tree, ray_cluster, wait_until
from safetensors.torch import load_file
from shapes import pairs

from orchestrator import storage
from orchestrator.config import OptimConfig
from orchestrator.data.shard_writers import ShardWriter
from orchestrator.train.optim import learning_rate

SAMPLES, SHARDS, BAD = 1997, 7, 5


def write_recipe(root: Path, data: str = "", **train) -> Path:
    """Shards of unequal length with some bad pictures, and a recipe that reads them and runs beside them.

    They lie in `root`, or where `data` says.
    """
    data = data or str(root)
    rng = np.random.default_rng(0)
    samples = pairs(SAMPLES, seed=0)
    bad = set(rng.permutation(SAMPLES)[:BAD].tolist())
    bounds = [0, *sorted(rng.choice(SAMPLES - 1, SHARDS - 1, replace=False) + 1), SAMPLES]
    for shard in range(SHARDS):
        with ShardWriter(f"{data}/train/{shard}.tar") as writer:
            for number in range(bounds[shard], bounds[shard + 1]):
                image, caption, _ = samples[number]
                jpeg = image[: len(image) // 2] if number in bad else image
                writer.write(f"{number:07d}", {"jpg": jpeg, "txt": caption.encode()})
    recipe = {
        "run": {"name": "exact", "storage_path": f"{data}/runs"},
        "data": {
            "train": [f"{data}/train/*.tar"], "interleave": 2, "shuffle_buffer": 100, "cpus_per_reader": 0.5,
        },
        "tokenizer": {"kind": "trained", "vocab_size": 530},
        "model": {
            "embed_dim": 32,
            "image_size": 32,
            "vision": {"kind": "vit", "layers": [2], "width": 64, "patch_size": 8, "heads": 2},
            "text": {"layers": 1, "width": 32, "heads": 2, "context_length": 16},
        },
        "optim": {"lr": 1.0e-3, "warmup_steps": 10},
        "train": {
            "epochs": 2, "global_batch": 17, "num_workers": 2, "cpus_per_worker": 0.5, "torch_threads": 1,
            "checkpoint_every": 6, "precision": "fp32", "max_failures": 20, "trace": True, "log_every": 5, **train,
        },
    }  # fmt: skip
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return file


def write_slow_recipe(root: Path, **train) -> Path:
    """A model so slow that the run lasts until the cluster has changed; of three CPUs a trainer takes two."""
    recipe = write_recipe(root, cpus_per_worker=2.0, resize_every_s=2.0, **train)
    fields = yaml.safe_load(recipe.read_text())
    fields["model"]["image_size"] = 64
    fields["model"]["vision"] = {"kind": "vit", "layers": [4], "width": 192, "patch_size": 8, "heads": 3}
    recipe.write_text(yaml.safe_dump(fields))
    return recipe


def start_driver(recipe: Path, log: Path, environment: dict[str, str], *options: str) -> subprocess.Popen:
    command = [sys.executable, str(REPOSITORY / "jobs/pretrain.py"), "--config", str(recipe), *options]
    with log.open("ab") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)


def last_checkpoint(root: Path) -> int:
    found = (root / "runs/exact/checkpoints").glob("step_*/complete.json")
    return max((int(file.parent.name.removeprefix("step_")) for file in found), default=0)


def wait_for_checkpoint(root: Path, step: int, driver: subprocess.Popen, log: Path) -> None:
    def reached():
        assert driver.poll() is None, log.read_text()[-5000:]
        return last_checkpoint(root) >= step

    wait_until(reached, f"a checkpoint at step {step}")


def trainers(nodes: list[subprocess.Popen]) -> list[psutil.Process]:
    """The training processes of a cluster, on whatever node."""
    found = []
    for node in nodes:
        if node.poll() is None:
            for process in psutil.Process(node.pid).children(recursive=True):
                try:
                    if "RayTrainWorker" in " ".join(process.cmdline()):
                        found.append(process)
                except psutil.NoSuchProcess:
                    continue
    return found


def node_of(process: psutil.Process, cluster: RayCluster) -> subprocess.Popen:
    above = {parent.pid for parent in process.parents()}
    return next(node for node in cluster.nodes if node.pid in above)


def read_lines(run: str, name: str) -> list[dict]:
    return [json.loads(line) for line in storage.read_bytes(f"{run}/{name}").decode().splitlines()]


def surviving_history(run: str) -> list[dict]:
    traces = [uri.rpartition("/")[2] for uri in storage.list_dir(f"{run}/trace")]
    lines = [line for name in traces for line in read_lines(run, f"trace/{name}")]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return lines


def check_every_sample_once(root: Path | str) -> None:
    run = f"{root}/runs/exact"
    manifest = json.loads(storage.read_bytes(f"{run}/manifest.json"))["shards"]
    rejects = read_lines(run, "rejects.jsonl")
    uris = [shard["uri"] for shard in manifest]
    bad = {(uris.index(reject["shard"]), reject["index"]) for reject in rejects}
    assert len(bad) == len(rejects) == BAD
    expected = {
        (epoch, shard, index)
        for epoch in range(2)
        for shard, fields in enumerate(manifest)
        for index in range(fields["samples"])
        if (shard, index) not in bad
    }
    assert len(expected) == 2 * (SAMPLES - BAD)
    history = surviving_history(run)
    found = Counter(tuple(sample) for line in history for sample in line["samples"])
    assert {sample: count for sample, count in found.items() if count > 1} == {}
    assert set(found) == expected
    # The learning rate is that of the step, whoever made it.
    for line in read_lines(run, "metrics.jsonl"):
        expected = learning_rate(line["step"] - 1, len(history), OptimConfig(lr=1e-3, warmup_steps=10))
        assert line["lr"] == pytest.approx(expected)
    # The global batch holds whatever the number of workers; only the last two steps share what is left.
    assert all(len(line["samples"]) == 17 for line in history[:-2])
    assert all(8 <= len(line["samples"]) <= 17 for line in history[-2:])
    assert storage.exists(f"{run}/final/model.safetensors")


def test_every_sample_once_whatever_is_killed(tmp_path):
    """Three nodes; in both epochs workers, a node and the driver are killed, and the number of workers changes."""
    recipe, log, rng = write_recipe(tmp_path), tmp_path / "driver.log", np.random.default_rng(7)
    # The head alone has room for three trainers and a reading task: whatever is lost with a node, the run goes on.
    with ray_cluster(num_cpus=2, scratch=tmp_path, environment={}) as cluster:
        cluster.add_node(2)
        cluster.add_node(2)
        driver = start_driver(recipe, log, cluster.environment)
        try:
            for _ in range(2):
                wait_for_checkpoint(tmp_path, last_checkpoint(tmp_path) + int(rng.integers(6, 30)), driver, log)
                rng.choice(wait_until(lambda: trainers(cluster.nodes), "training processes")).kill()
            wait_for_checkpoint(tmp_path, last_checkpoint(tmp_path) + 12, driver, log)
            used = [node_of(process, cluster) for process in trainers(cluster.nodes)]
            kill_tree(next((node for node in used if node is not cluster.nodes[0]), cluster.nodes[1]))
            wait_for_checkpoint(tmp_path, last_checkpoint(tmp_path) + 12, driver, log)
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()
            middle = last_checkpoint(tmp_path)
            assert 0 < middle < 2 * SAMPLES // 17

            driver = start_driver(recipe, log, cluster.environment, "--train.num_workers", "3", "--run.resume", "must")
            wait_for_checkpoint(tmp_path, max(middle, SAMPLES // 17) + int(rng.integers(6, 30)), driver, log)
            rng.choice(wait_until(lambda: trainers(cluster.nodes), "training processes")).kill()
            assert driver.wait(PATIENCE_S) == 0, log.read_text()[-5000:]
        finally:
            if driver.poll() is None:
                driver.kill()
    text = log.read_text()
    assert "continuing exact from step" in text
    assert "2 of 2 epochs whole" in text
    check_every_sample_once(tmp_path)


def test_a_notice_that_a_node_will_be_taken_away_brings_a_checkpoint(tmp_path):
    recipe, log = write_slow_recipe(tmp_path, num_workers="1..2", checkpoint_every=1000), tmp_path / "driver.log"
    with ray_cluster(num_cpus=3, scratch=tmp_path, environment={}) as cluster:
        added = cluster.add_node(3)
        driver = start_driver(recipe, log, cluster.environment)

        def said(words):
            assert driver.poll() is None, log.read_text()[-5000:]
            return words in log.read_text()

        try:
            wait_until(lambda: said("step "), "the first steps")
            assert len(trainers(cluster.nodes)) == 2
            cluster.announce_loss(cluster.nodes.index(added), seconds=600)
            wait_until(lambda: said("1 node(s) will be taken away in "), "the notice")
            wait_until(lambda: last_checkpoint(tmp_path), "the checkpoint")
            kill_tree(added)
            assert driver.wait(PATIENCE_S) == 0, log.read_text()[-5000:]
        finally:
            if driver.poll() is None:
                driver.kill()
    check_every_sample_once(tmp_path)
    # Nothing was trained on twice but what came after that checkpoint: its trace is part of the history.
    assert len(list((tmp_path / "runs/exact/trace").glob("step_*.jsonl"))) == 2


def test_object_storage_out_of_reach_for_a_while_loses_nothing(tmp_path, s3):
    """Shards and run lie in a bucket that goes away twice: when reading begins and when checkpoints are written."""
    recipe, log = write_recipe(tmp_path, data=s3.uri("exact")), tmp_path / "driver.log"
    with gate_before(s3.endpoint) as gate:
        environment = {**os.environ, "AWS_ENDPOINT_URL": gate.endpoint}
        environment.pop("RAY_ADDRESS", None)
        driver = start_driver(recipe, log, environment)

        def go_away_when(condition, what):
            def reached():
                assert driver.poll() is None, log.read_text()[-5000:]
                return condition()

            wait_until(reached, what)
            gate.shut()
            refused = gate.refused
            wait_until(lambda: gate.refused >= refused + 12, "tries to reach the bucket")
            gate.open()

        try:
            go_away_when(lambda: trainers([driver]), "training processes")
            go_away_when(lambda: "step " in log.read_text(), "the first steps")
            assert driver.wait(PATIENCE_S) == 0, log.read_text()[-5000:]
        finally:
            if driver.poll() is None:
                driver.kill()
    check_every_sample_once(s3.uri("exact"))


def test_a_deterministic_run_stopped_in_mid_epoch_ends_with_the_same_weights(tmp_path):
    options = ["--train.deterministic", "true"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    data = write_recipe(tmp_path / "data")
    fields = yaml.safe_load(data.read_text())
    # The larger of the models whose results depend on the order of sums.
    fields["model"]["vision"] = {"kind": "resnet", "layers": [1, 1, 1, 1], "width": 16, "heads": 8}
    fields["model"]["image_size"] = 64
    fields["train"].update(epochs=1, half_resolution=0.6)
    weights = {}
    for name in ("whole", "stopped"):
        root, log = tmp_path / name, tmp_path / f"{name}.log"
        fields["run"]["storage_path"] = str(root / "runs")
        data.write_text(yaml.safe_dump(fields))
        driver = start_driver(data, log, environment, *options)
        try:
            if name == "stopped":
                wait_for_checkpoint(root, 30, driver, log)
                os.kill(driver.pid, signal.SIGKILL)
                driver.wait()
                assert last_checkpoint(root) < SAMPLES // 17
                driver = start_driver(data, log, environment, *options, "--run.resume", "must")
            assert driver.wait(PATIENCE_S) == 0, log.read_text()[-5000:]
        finally:
            if driver.poll() is None:
                driver.kill()
        weights[name] = load_file(root / "runs/exact/final/model.safetensors")
    assert "continuing exact from step" in (tmp_path / "stopped.log").read_text()
    check_halved_steps_cost_less(tmp_path / "whole/runs/exact/metrics.jsonl")
    for name, tensor in weights["whole"].items():
        assert torch.equal(tensor, weights["stopped"][name]), name


def check_halved_steps_cost_less(metrics):
    """What is recorded of a step's operations falls under half of the whole pictures', then rises above it."""
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    of_a_sample = [record["flops"] / record["samples_per_s"] for record in records]
    switch = round(0.6 * records[-1]["step"])
    early = [cost for cost, record in zip(of_a_sample, records, strict=True) if record["step"] <= switch]
    late = [cost for cost, before in zip(of_a_sample[1:], records, strict=False) if before["step"] >= switch]
    assert early and late and max(early) < min(late) / 2
