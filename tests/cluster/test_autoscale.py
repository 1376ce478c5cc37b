"""Jobs on a cluster that Ray's autoscaler grows and shrinks, each node a group of real processes."""

from __future__ import annotations

import csv
import json

import pandas
import pytest
import yaml
from PIL import Image
from promql import names_of_rows, wait_until_exposed
from ray_cluster import PATIENCE_S, wait_until
from shapes import write_data

from cluster.local.cluster import LocalCluster, Settings
from cluster.local.demo import ELASTIC, Job, lose_a_node, see_the_end, wait_for
from cluster.local.timeline import Timeline
from orchestrator.inference import read_model
from orchestrator.telemetry import TRAINING

ROWS = ("Runs", "Ingest", "Compute", "Learning", "Checkpoints and failures", "Nodes", "Autoscaler")
# There are no GPUs, and no sample that cannot be used.
ABSENT = {"ray_clip_mfu", "ray_node_gpus_utilization", "ray_clip_rejects"}


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """One that nobody has used: an earlier job would have left on the head what a study must not leave on a node."""
    monkeypatch.setenv("CLIP_ON_RAY_CACHE", str(tmp_path / "cache"))
    cluster = LocalCluster.start(
        Settings(
            "test", cpus_per_node=2, max_nodes=3, idle_s=15, dashboard_port=0, object_store_mb=150, auth="disabled"
        )
    )
    yield cluster
    cluster.stop()


def options_of(tmp_path) -> list[str]:
    recipe = write_data(str(tmp_path / "data"))
    recipe["train"].update(trace=True, epochs=1000, checkpoint_every=20)
    # Slow enough that the cluster changes in the middle of it.
    recipe["model"]["image_size"] = 64
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return ["--config", str(file)]


def test_a_run_grows_over_nodes_survives_one_is_stopped_goes_on_and_leaves_an_empty_cluster(cluster, tmp_path):
    options = [*options_of(tmp_path), *ELASTIC]
    run = tmp_path / "data/runs/shapes"
    with Timeline(cluster) as timeline:
        job = Job(cluster, options)
        lose_a_node(timeline, job, PATIENCE_S)
        assert max(nodes for _, nodes, _ in timeline.points) == 3
        moments = {what: moment for moment, what in timeline.events}
        killed, replaced = moments["a node is killed"], moments["trains on 3 nodes again"]
        assert min(nodes for moment, nodes, _ in timeline.points if killed < moment < replaced) == 2
        asked = {name for name in names_of_rows(*ROWS) if not name.startswith("ray_serve_")}
        wait_until_exposed(asked - ABSENT, cluster.targets)

        job.client.stop_job(job.id)
        wait_until(lambda: job.status() == "STOPPED", "the end of the job")
        assert "asked to stop: a checkpoint first" in job.log(), job.log()[-4000:]
        step = max(int(file.parent.name[-8:]) for file in (run / "checkpoints").glob("step_*/complete.json"))
        assert not (run / "final").exists()

        last = step + 10
        again = Job(cluster, [*options, "--run.resume", "must", "--train.max_steps", str(last)])
        see_the_end(timeline, again, PATIENCE_S)
    assert f"continuing shapes from step {step} of {last}" in again.log(), again.log()[-4000:]

    assert read_model(str(run / "final")).model.config.image_size == 64
    traces = sorted((run / "trace").glob("step_*.jsonl"))
    lines = [json.loads(line) for file in traces for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, last + 1))
    samples = [tuple(sample) for line in lines for sample in line["samples"]]
    assert len(samples) == len(set(samples)) == last * 48
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 3 in {record["workers"] for record in records}
    assert records[-1]["loss"] < records[0]["loss"]
    # What a record has is exported, by the first worker or where the driver is.
    assert records[-1].keys() - {"time", "workers", "rejects"} == TRAINING.keys() - {"mfu"}

    timeline.write(str(run), tmp_path / "drawn")
    rows = list(csv.DictReader((tmp_path / "drawn/timeline.csv").open()))
    assert {int(row["nodes"]) for row in rows} >= {0, 3} and max(float(row["images_per_s"]) for row in rows) > 0
    with Image.open(tmp_path / "drawn/timeline.png") as picture:
        assert min(picture.size) > 300


def test_a_study_asks_for_nodes_for_its_trials_which_train_side_by_side(cluster, tmp_path):
    """A node has room for one trial, and nothing but the trials asks for nodes."""
    [_, recipe] = options_of(tmp_path)
    asked = ["--study", "options", "--search", "grid", "--base", recipe, "--name", "rates", "--trials", "3"]
    asked += ["--vary", "optim.lr=1e-3,2e-3,4e-3", "--train.max_steps", "120"]
    asked += ["--train.num_workers", "1", "--train.cpus_per_worker", "1"]
    with Timeline(cluster) as timeline:
        job = Job(cluster, asked, "jobs/tune.py")
        # Two training processes are two trials. How much of their steps they make at once is the machine's affair.
        wait_for(timeline, job, lambda: timeline.now[1] >= 2, "two trials side by side", PATIENCE_S)
        see_the_end(timeline, job, PATIENCE_S)
    assert 2 <= max(nodes for _, nodes, _ in timeline.points) <= 3
    assert timeline.now == (0, 0)
    table = pandas.read_parquet(tmp_path / "data/runs/rates/report/trials.parquet")
    assert list(table["state"]) == ["done"] * 3 and set(table["step"]) == {120}, job.log()[-4000:]
