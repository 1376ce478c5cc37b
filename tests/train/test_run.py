"""Whether a run of a name may start, go on, or must not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_tokenizer

from orchestrator import storage
from orchestrator.cli import to_yaml
from orchestrator.config import Config, ConfigError
from orchestrator.data.manifest import Manifest, Shard
from orchestrator.train.metrics import MetricsWriter
from orchestrator.train.run import RunDirectory

MANIFEST = Manifest([Shard("s3://bucket/0.tar", 10, "etag", 0, 3)])


def config_at(root: Path | str, resume: str = "auto") -> Config:
    config = Config()
    config.run.storage_path, config.run.name = str(root), "mine"
    config.run.resume = resume  # type: ignore[assignment]
    return config


def start(root: Path | str) -> RunDirectory:
    config = config_at(root)
    run = RunDirectory(config)
    run.claim(config)
    run.save(to_yaml(config), MANIFEST, tiny_tokenizer())
    return run


def test_a_new_run_is_written_and_read_back(s3):
    run = start(s3.uri("runs"))
    assert run.started
    assert not run.finished
    assert run.load_manifest().to_json() == MANIFEST.to_json()
    texts = ["a red circle"]
    assert (run.load_tokenizer()(texts, 16) == tiny_tokenizer()(texts, 16)).all()
    assert "must-never" not in storage.read_bytes(run.path("config.yaml")).decode()


def test_resume_never_and_must(tmp_path):
    with pytest.raises(ConfigError, match=r"run\.resume='must': there is no run at .*mine; check run\.name"):
        RunDirectory(config_at(tmp_path)).claim(config_at(tmp_path, "must"))
    run = start(tmp_path)
    run.claim(config_at(tmp_path, "must"))
    run.claim(config_at(tmp_path, "auto"))
    with pytest.raises(ConfigError, match=r"run\.resume='never': .*holds a run already"):
        run.claim(config_at(tmp_path, "never"))


def test_another_model_under_the_same_name_is_refused_and_more_epochs_are_not(tmp_path):
    run = start(tmp_path)
    longer = config_at(tmp_path)
    longer.train.epochs += 5
    longer.train.num_workers += 1
    run.claim(longer)
    other = config_at(tmp_path)
    other.model.vision.width = 48
    with pytest.raises(ConfigError, match=r"model\.vision\.width=48: the run at .* was started with"):
        run.claim(other)
    other = config_at(tmp_path)
    other.train.precision = "pure_bf16"
    with pytest.raises(ConfigError, match=r"train\.precision='pure_bf16': the run at .* was started with 'auto'"):
        run.claim(other)
    other.train.precision = "bf16"
    run.claim(other)


def test_relative_paths_mean_the_same_in_every_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs") == str(tmp_path / "runs")
    assert storage.absolute("s3://bucket/runs") == "s3://bucket/runs"
    assert storage.absolute("~/runs") == str(Path.home() / "runs")
    submitted = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    submitted.mkdir(parents=True)
    monkeypatch.chdir(submitted)
    assert storage.absolute("runs") == str(Path.home() / "runs")


def test_steps_that_are_made_again_are_not_recorded_twice(tmp_path):
    uri = str(tmp_path)
    writer = MetricsWriter(uri, 0)
    for step in (10, 20, 30):
        writer.write({"step": step, "loss": 1.0})
    writer.close()
    again = MetricsWriter(uri, 20)
    again.write({"step": 30, "loss": 2.0})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 1.0), (20, 1.0), (30, 2.0)]
    assert list((tmp_path / "tensorboard").iterdir())
