"""Runs that must stop: each says why, leaves what it had, and never a model under the final name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file
from shapes import pairs

from orchestrator.config import Config, ConfigError, TextConfig, TrainConfig, VisionConfig
from orchestrator.data.shard_writers import ShardWriter
from orchestrator.inference import ModelDirectoryError, read_model
from orchestrator.model.compiler import missing_for_compile
from orchestrator.train.loop import compiles
from orchestrator.train.trainer import TrainingStopped, pretrain


@pytest.fixture(scope="module")
def local_ray():
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def config_for(root: Path, truncated: int = 0) -> Config:
    """A run on 96 samples in two shards, the first `truncated` of each shard cut in half."""
    for shard in range(2):
        with ShardWriter(str(root / "train" / f"{shard}.tar")) as writer:
            for number, (image, caption, _) in enumerate(pairs(48, seed=shard)):
                data = image[: len(image) // 2] if number < truncated else image
                writer.write(f"{number:07d}", {"jpg": data, "txt": caption.encode()})
    config = Config()
    config.run.storage_path, config.run.name = str(root / "runs"), "stops"
    config.data.train = str(root / "train" / "{0..1}.tar")
    config.data.cpus_per_reader = 0.5
    config.tokenizer.kind, config.tokenizer.vocab_size = "trained", 530
    config.model.embed_dim, config.model.image_size = 32, 32
    config.model.vision = VisionConfig("resnet", [1, 1, 1, 1], 16, 8, 8)
    config.model.text = TextConfig(1, 32, 2, 16)
    config.train.epochs, config.train.global_batch, config.train.num_workers = 4, 24, 1
    config.train.cpus_per_worker, config.train.torch_threads, config.train.checkpoint_every = 0.5, 1, 2
    config.train.precision = "fp32"
    config.validate()
    return config


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_the_checkpoint(local_ray, tmp_path):
    config = config_for(tmp_path)
    config.optim.lr, config.optim.warmup_steps = 1e30, 3
    config.train.max_skipped_steps, config.train.checkpoint_every = 2, 1
    with pytest.raises(TrainingStopped, match=r"step \d gave a loss of (nan|inf) .*, as did the 2 steps before"):
        pretrain(config)
    run = tmp_path / "runs" / "stops"
    lines = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 3  # the run went back to its checkpoint once
    for line in lines:
        assert len(line["samples"]) == len(set(line["samples"])) == config.train.global_batch
        assert all(".tar[" in name for name in line["samples"])
    (checkpoint,) = (run / "checkpoints").iterdir()
    assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert not (run / "final").exists()


def test_too_many_bad_samples_stop_the_run_and_are_listed(local_ray, tmp_path):
    config = config_for(tmp_path, truncated=20)
    config.data.max_reject_share = 0.1
    with pytest.raises(
        TrainingStopped, match=r"data\.max_reject_share=0\.1: \d+ of 96 samples are bad \(\d+ truncated"
    ):
        pretrain(config)
    run = tmp_path / "runs" / "stops"
    rejects = [json.loads(line) for line in (run / "rejects.jsonl").read_text().splitlines()]
    assert 9 < len(rejects) <= 40
    assert all(reject["index"] < 20 and reject["reason"].startswith("truncated") for reject in rejects)
    assert not (run / "final").exists()


def test_as_many_bad_samples_as_the_limit_allows_are_skipped(local_ray, tmp_path):
    config = config_for(tmp_path, truncated=4)
    config.data.max_reject_share = 0.1
    run = pretrain(config)
    assert run.finished
    assert len((tmp_path / "runs" / "stops" / "rejects.jsonl").read_text().splitlines()) == 8


def test_a_shard_that_changed_since_its_manifest_stops_the_run(local_ray, tmp_path):
    config = config_for(tmp_path)
    config.train.max_steps = 2
    run = pretrain(config)
    config.data.manifest, config.run.name = run.path("manifest.json"), "again"
    changed = tmp_path / "train" / "1.tar"
    data = bytearray(changed.read_bytes())
    data[700] ^= 1
    changed.write_bytes(data)
    config.train.max_steps = 0
    with pytest.raises(TrainingStopped, match=r"1\.tar: its content changed since the run began; restore it"):
        pretrain(config)


def test_a_run_starts_from_another_model_at_another_resolution(local_ray, tmp_path):
    config = config_for(tmp_path)
    config.train.max_steps = 2
    first = pretrain(config)
    config.model.image_size, config.run.name = 64, "larger"
    config.train.init, config.train.max_steps, config.optim.lr = first.path("final"), 1, 1e-12
    larger = read_model(pretrain(config).path("final")).model.state_dict()
    for name, tensor in read_model(first.path("final")).model.state_dict().items():
        if name == "visual.attnpool.positional_embedding":
            assert len(tensor) == 2 and len(larger[name]) == 5
            torch.testing.assert_close(larger[name][1:], tensor[1:].expand(4, -1), rtol=0, atol=1e-6)
        elif "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(larger[name], tensor, rtol=0, atol=1e-6)

    config.model.text.width, config.run.name = 64, "wider"
    with pytest.raises(ConfigError, match=r"model\.text\.width=64: the model to start from .* has 32"):
        pretrain(config)
    config.train.init = str(tmp_path / "nothing")
    with pytest.raises(ModelDirectoryError, match=r"nothing/config\.json: missing"):
        pretrain(config)


def test_a_run_in_pure_bf16_continues_and_ends_in_an_ordinary_model(local_ray, tmp_path):
    config = config_for(tmp_path)
    config.train.precision, config.train.checkpoint_activations = "pure_bf16", True
    config.train.num_workers, config.train.max_steps, config.run.name = 2, 2, "small"
    config.data.cpus_per_reader, config.optim.lr, config.optim.warmup_steps = 0.5, 1e-3, 1
    run = pretrain(config)
    weights = load_file(Path(run.uri) / "checkpoints" / "step_00000002" / "model.safetensors")
    assert {t.dtype for name, t in weights.items() if name.startswith("transformer")} == {torch.bfloat16}
    before = read_model(run.path("final")).model
    assert {p.dtype for p in before.parameters()} == {torch.float32}

    shutil.rmtree(run.path("final"))
    config.train.max_steps = 6
    after = read_model(pretrain(config).path("final")).model
    for name, parameter in after.named_parameters():
        assert parameter.isfinite().all(), name
        if name.startswith("transformer") and parameter.ndim == 2:
            assert not torch.equal(parameter, before.get_parameter(name)), name
            assert torch.equal(parameter, parameter.bfloat16().float()), name


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"train\.compile=True: .* lacks a C\+\+ compiler \(g\+\+\); install it"):
        compiles(TrainConfig(compile=True), torch.device("cpu"))
    assert not compiles(TrainConfig(), torch.device("cuda"))


@pytest.mark.skipif(bool(missing_for_compile()), reason=f"torch.compile needs {missing_for_compile()}")
def test_blocks_are_compiled_where_it_pays():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert compiles(TrainConfig(), gpu) and compiles(TrainConfig(compile=True), cpu)
    for settings in ({"compile": False}, {"deterministic": True}, {"parallel": "fsdp"}):
        assert not compiles(TrainConfig(**settings), gpu)
    assert not compiles(TrainConfig(), cpu)
