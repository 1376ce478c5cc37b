"""Jobs on a cluster that Ray's autoscaler grows and shrinks, each node a group of real processes."""

from __future__ import annotations

import csv
import json

import pytest
import yaml
from PIL import Image
from ray_cluster import wait_until
from shapes import write_data

from cluster.local.cluster import LocalCluster, Settings
from cluster.local.demo import ELASTIC, Job, grow_and_shrink


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("CLIP_ON_RAY_CACHE", str(tmp_path_factory.mktemp("cache")))
    cluster = LocalCluster.start(
        Settings("test", cpus_per_node=2, max_nodes=3, idle_s=6, dashboard_port=0, object_store_mb=150, auth="disabled")
    )
    yield cluster
    cluster.stop()
    patch.undo()


def options_of(tmp_path, **train) -> list[str]:
    recipe = write_data(str(tmp_path / "data"))
    recipe["train"].update(trace=True, **train)
    # So slow that the run lasts until the cluster has changed.
    tower = {"kind": "vit", "layers": [4], "width": 128, "patch_size": 8, "heads": 2}
    recipe["model"].update(image_size=64, vision=tower)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe))
    return ["--config", str(file)]


@pytest.mark.timeout(900)
def test_a_run_grows_over_nodes_that_come_survives_one_and_leaves_an_empty_cluster(cluster, tmp_path):
    options = options_of(tmp_path, epochs=50, checkpoint_every=20)
    run = tmp_path / "data/runs/shapes"
    timeline = grow_and_shrink(cluster, [*options, *ELASTIC], str(run), tmp_path / "drawn")
    assert max(nodes for _, nodes, _ in timeline.points) == 3

    result = json.loads((run / "zero_shot.json").read_text())["held-out"]
    assert result["top1"] > 4 * result["chance"], result
    traces = sorted((run / "trace").glob("step_*.jsonl"))
    lines = [json.loads(line) for file in traces for line in file.read_text().splitlines()]
    samples = [tuple(sample) for line in lines for sample in line["samples"]]
    assert len(samples) == len(set(samples)) == 50 * 480
    workers = {json.loads(line)["workers"] for line in (run / "metrics.jsonl").read_text().splitlines()}
    assert 3 in workers

    rows = list(csv.DictReader((tmp_path / "drawn/timeline.csv").open()))
    assert {int(row["nodes"]) for row in rows} >= {0, 3} and max(float(row["images_per_s"]) for row in rows) > 0
    with Image.open(tmp_path / "drawn/timeline.png") as picture:
        assert min(picture.size) > 300


@pytest.mark.timeout(900)
def test_a_stopped_job_leaves_a_checkpoint_that_the_same_command_goes_on_from(cluster, tmp_path):
    options = options_of(tmp_path, epochs=400, checkpoint_every=10_000, num_workers=1, log_every=1)
    run = tmp_path / "data/runs/shapes"
    job = Job(cluster, options)

    def runs_on():
        assert job.status() in ("PENDING", "RUNNING"), job.log()[-4000:]
        return "  loss " in job.log()

    wait_until(runs_on, 240, "the first steps")
    job.client.stop_job(job.id)
    wait_until(lambda: job.status() == "STOPPED", 120, "the end of the job")
    assert "asked to stop: a checkpoint first" in job.log(), job.log()[-4000:]
    (checkpoint,) = (run / "checkpoints").glob("step_*/complete.json")
    step = int(checkpoint.parent.name.removeprefix("step_"))
    assert step > 0 and not (run / "final").exists()

    again = Job(cluster, [*options, "--run.resume", "must", "--train.max_steps", str(step + 5)])
    wait_until(lambda: again.status() in ("SUCCEEDED", "FAILED"), 240, "the end of the run")
    assert f"continuing shapes from step {step} of {step + 5}" in again.log(), again.log()[-4000:]
    assert again.status() == "SUCCEEDED" and (run / "final/model.safetensors").exists()
    traces = sorted((run / "trace").glob("step_*.jsonl"))
    steps = [json.loads(line)["step"] for file in traces for line in file.read_text().splitlines()]
    assert steps == list(range(1, step + 6))


def test_what_a_job_takes_along_is_the_project_alone(cluster):
    """Of what the jobs above have uploaded, as it arrived."""
    arrived = list(cluster.scratch.glob("session_*/runtime_resources/working_dir_files/_ray_pkg_*"))
    folders = [folder for folder in arrived if folder.is_dir()]
    assert folders
    for folder in folders:
        names = {file.name for file in folder.iterdir()}
        assert {"jobs", "orchestrator", "pyproject.toml"} <= names
        assert not names & {".venv", ".git", "runs", "build", ".data"}
