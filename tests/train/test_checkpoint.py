"""A checkpoint restores the run exactly, and counts only when it is whole."""

from __future__ import annotations

import json
import os
import resource
import threading

import pytest
import torch
from tiny import tiny_model

from orchestrator import storage
from orchestrator.config import OptimConfig
from orchestrator.storage import StorageError
from orchestrator.train.checkpoint import (
    CheckpointDamaged,
    CheckpointStore,
    Snapshot,
    TrainState,
)
from orchestrator.train.checkpoint_writer import CheckpointWriter
from orchestrator.train.optim import make_optimizer
from orchestrator.train.tensors import restore_tensors, snapshot_tensors


def train(model, optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=model.text_projection.dtype == torch.bfloat16):
        image, text, scale = model(torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([[1, 2, 599, 0]] * 4))
    loss = (scale * image.float() @ text.float().T).logsumexp(-1).sum() + image.float().sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def snapshot_at(step: int, model=None, optimizer=None) -> Snapshot:
    tensors = snapshot_tensors(model, optimizer) if model is not None else ({"w": torch.ones(3) * step}, {})
    return Snapshot(TrainState(step, step * 4), *tensors, ledger=b"ledger", rejects=b"rejects")


@pytest.mark.parametrize("low_precision", [False, True])
def test_going_on_from_a_checkpoint_equals_never_stopping(s3, low_precision):
    config = OptimConfig(lr=1e-2)

    def make(seed):
        model = tiny_model(600, seed=seed)
        if low_precision:
            model.round_text_tower()
        return model, make_optimizer(model, config, low_precision, seed=3)

    model, optimizer = make(0)
    train(model, optimizer, 1)
    store = CheckpointStore(s3.uri("runs/mine"))
    store.write(snapshot_at(1, model, optimizer), keep=2)
    train(model, optimizer, 2)

    other, other_optimizer = make(9)
    saved = store.read(store.newest().step)
    restore_tensors(other, other_optimizer, saved.model, saved.optimizer)
    assert (saved.state, saved.ledger, saved.rejects) == (TrainState(1, 4), b"ledger", b"rejects")
    train(other, other_optimizer, 2)
    expected, found = model.state_dict(), other.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_snapshot_does_not_move_with_training():
    model = tiny_model(600)
    optimizer = make_optimizer(model, OptimConfig(lr=1e-2))
    train(model, optimizer, 1)
    weights, moments = snapshot_tensors(model, optimizer)
    before = {name: tensor.clone() for name, tensor in {**weights, **moments}.items()}
    train(model, optimizer, 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in {**weights, **moments}.items())


def test_a_checkpoint_of_another_architecture_is_refused():
    model, other = tiny_model(600), tiny_model(600, "vit")
    weights, moments = snapshot_tensors(model, make_optimizer(model, OptimConfig()))
    with pytest.raises(RuntimeError, match="visual"):
        restore_tensors(other, make_optimizer(other, OptimConfig()), weights, moments)


def test_the_newest_are_kept_and_later_ones_of_an_abandoned_history_go(tmp_path):
    store = CheckpointStore(str(tmp_path))
    assert store.newest() == TrainState()
    for step in (10, 20, 30, 40):
        store.write(snapshot_at(step), keep=2)
    assert store.steps() == [30, 40]
    store.write(snapshot_at(35), keep=2)
    assert store.steps() == [30, 35]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000030", "step_00000035"]


def damage_missing(folder):
    (folder / "model.safetensors").unlink()


def damage_cut(folder):
    file = folder / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def damage_bit(folder):
    file = folder / "ledger.bin"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])


def damage_list(folder):
    (folder / "complete.json").write_text('{"fi')


@pytest.mark.parametrize("damage", [damage_missing, damage_cut, damage_bit, damage_list])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, capsys, damage):
    store = CheckpointStore(str(tmp_path))
    store.write(snapshot_at(10), keep=2)
    store.write(snapshot_at(20), keep=2)
    damage(tmp_path / "checkpoints" / "step_00000020")
    assert store.newest() == TrainState(10, 40)
    assert "step_00000020/" in capsys.readouterr().out
    assert store.steps() == [10]
    with pytest.raises((CheckpointDamaged, StorageError)):
        store.read(20)
    store.write(snapshot_at(20), keep=2)
    assert store.newest() == TrainState(20, 80)


def test_a_half_written_checkpoint_does_not_count(tmp_path):
    store = CheckpointStore(str(tmp_path))
    store.write(snapshot_at(10), keep=2)
    store.write(snapshot_at(20), keep=2)
    (tmp_path / "checkpoints" / "step_00000020" / "complete.json").unlink()
    assert store.newest() == TrainState(10, 40)
    store.write(snapshot_at(30), keep=3)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000010", "step_00000030"]


class Refusing(CheckpointStore):
    """A store out of reach until it is told to answer."""

    def __init__(self, uri):
        super().__init__(uri)
        self.answers, self.tried = threading.Event(), threading.Event()

    def write(self, snapshot, keep):
        self.tried.set()
        if not self.answers.is_set():
            raise StorageError("s3://bucket: out of reach")
        super().write(snapshot, keep)


def writer_of(store, patience_s, failures=2):
    said: list[str] = []
    return CheckpointWriter(store, 2, patience_s, failures, said.append), said


def test_a_store_out_of_reach_for_a_while_is_tried_again(tmp_path):
    store = Refusing(str(tmp_path))
    writer, said = writer_of(store, patience_s=600)
    writer.save(snapshot_at(10))
    assert store.tried.wait(60)
    store.answers.set()
    writer.finish()
    assert store.newest() == TrainState(10, 40) and said == []


def test_checkpoints_given_up_are_told_and_too_many_of_them_stop_the_run(tmp_path):
    store = Refusing(str(tmp_path))
    writer, said = writer_of(store, patience_s=0)
    writer.save(snapshot_at(10))
    writer.save(snapshot_at(20))
    with pytest.raises(StorageError, match="out of reach"):
        writer.save(snapshot_at(30))
    assert [line.split(":")[0] for line in said] == ["no checkpoint at step 10", "no checkpoint at step 20"]
    writer, said = writer_of(store, patience_s=0)
    writer.save(snapshot_at(10))
    writer.wait()
    store.answers.set()
    writer.save(snapshot_at(20))
    writer.finish()
    assert store.steps() == [20]


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """The kernel refuses to let a file grow, as it does when the disk is full."""
    store = CheckpointStore(str(tmp_path))
    store.write(snapshot_at(10), keep=2)
    large = snapshot_at(20)
    large.model["w"] = torch.zeros(1 << 20)
    writer, said = writer_of(store, patience_s=0)
    import signal

    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        writer.save(large)
        writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert len(said) == 1 and "no checkpoint at step 20" in said[0]
    assert store.newest() == TrainState(10, 40)
    assert not [file for _, _, files in os.walk(tmp_path) for file in files if file.endswith(".tmp")]
    writer.save(large)
    writer.finish()
    assert store.newest() == TrainState(20, 80)


def test_the_files_are_as_the_docstring_says(tmp_path):
    model = tiny_model(600)
    optimizer = make_optimizer(model, OptimConfig())
    train(model, optimizer, 1)
    CheckpointStore(str(tmp_path)).write(snapshot_at(40, model, optimizer), keep=1)
    folder = tmp_path / "checkpoints" / "step_00000040"
    written = json.loads((folder / "complete.json").read_text())["files"]
    assert sorted(written) == sorted(set(os.listdir(folder)) - {"complete.json"})
    assert storage.list_folders(str(tmp_path / "nowhere")) == []
