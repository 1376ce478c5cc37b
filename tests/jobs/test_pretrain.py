"""The pretraining job as a user runs it: submitted to a cluster, on shards in object storage; killed and continued."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from ray_cluster import RAY, REPOSITORY, ray_cluster, wait_until
from shapes import NAMES, write_data

from orchestrator import storage
from orchestrator.inference import Embedder


def test_submitted_job_on_object_storage_beats_chance(s3, tmp_path):
    recipe = write_data(s3.uri("submitted"))
    with ray_cluster(num_cpus=3, scratch=tmp_path, environment=s3.environment) as cluster:
        # The recipe travels as a file of the working directory, as a user's would.
        work = tmp_path / "work"
        work.mkdir()
        for name in ("orchestrator", "jobs"):
            os.symlink(REPOSITORY / name, work / name)
        (work / "mine.yaml").write_text(yaml.safe_dump(recipe))
        done = subprocess.run(
            [RAY, "job", "submit", f"--address={cluster.dashboard}", f"--working-dir={work}", "--",
             sys.executable, "jobs/pretrain.py", "--config", "mine.yaml"],
            env=cluster.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    run = storage.join(recipe["run"]["storage_path"], "shapes")
    result = json.loads(storage.read_bytes(f"{run}/zero_shot.json"))["held-out"]
    assert result["samples"] == 120 and result["classes"] == len(NAMES)
    assert result["top1"] > 4 * result["chance"], result
    lines = [json.loads(line) for line in storage.read_bytes(f"{run}/metrics.jsonl").decode().splitlines()]
    assert lines[-1]["step"] == 480 * 12 // 48
    assert lines[-1]["loss"] < lines[0]["loss"]

    from PIL import Image

    with Image.open(io.BytesIO(storage.read_bytes(f"{run}/predictions.png"))) as picture:
        assert min(picture.size) > 100
    embedder = Embedder(f"{run}/final")
    assert embedder.embed_texts(["a red circle"]).norm().item() == pytest.approx(1.0, abs=1e-5)
    text = done.stdout + storage.read_bytes(f"{run}/config.yaml").decode()
    assert s3.environment["AWS_SECRET_ACCESS_KEY"] not in text


def test_killed_driver_continues_from_its_last_checkpoint(tmp_path):
    recipe = write_data(str(tmp_path / "data"))
    recipe["train"].update(num_workers=1, epochs=40)
    # A recipe for a cluster's nodes: on this machine alone they do not count.
    recipe["placement"] = {kind: {"clip-on-ray/role": kind} for kind in ("data", "train")}
    # The other kind of image tower: both learn through this job.
    recipe["model"]["vision"] = {"kind": "vit", "layers": [2], "width": 64, "patch_size": 8, "heads": 2}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, str(REPOSITORY / "jobs/pretrain.py"), "--config", str(file)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    run = tmp_path / "data/runs/shapes"

    first_log = tmp_path / "first.log"
    with first_log.open("wb") as log:
        first = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:

        def checkpoint_recorded():
            assert first.poll() is None, first_log.read_text()[-4000:]
            return (run / "checkpoints/step_00000040/complete.json").exists()

        wait_until(checkpoint_recorded, "the second checkpoint")
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert not (run / "final").exists()

    again = subprocess.run(
        [*command, "--run.resume", "must"], env=environment, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stdout[-6000:] + again.stderr[-3000:]
    continued = [line for line in again.stdout.splitlines() if line.startswith("continuing shapes from step ")]
    assert continued and int(continued[0].split()[4]) >= 40
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)) and steps[-1] == 480 * 40 // 48
    result = json.loads((run / "zero_shot.json").read_text())["held-out"]
    assert result["top1"] > 4 * result["chance"], result

    never = subprocess.run(
        [*command, "--run.resume", "never"], env=environment, capture_output=True, text=True, check=False
    )
    assert never.returncode == 1
    assert "run.resume='never'" in never.stderr and "Traceback" not in never.stderr
