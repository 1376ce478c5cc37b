"""A run that begins where another stands: whole or not at all, as often as it is cut off."""

from __future__ import annotations

import json

import pytest
import torch

from orchestrator import storage
from orchestrator.config import Config
from orchestrator.train.checkpoint import CheckpointDamaged, CheckpointStore, Snapshot, TrainState
from orchestrator.train.inherit import PARENT, inherit
from orchestrator.train.run import RunDirectory


def snapshot_at(step: int) -> Snapshot:
    return Snapshot(TrainState(step, step * 4), {"w": torch.ones(3) * step}, {}, ledger=b"ledger", rejects=b"rejects")


def run_at(root, name: str) -> RunDirectory:
    config = Config()
    config.run.storage_path, config.run.name = str(root), name
    return RunDirectory(config)


@pytest.fixture
def parent(tmp_path) -> RunDirectory:
    run = run_at(tmp_path, "parent")
    for step in (10, 20):
        run.checkpoints.write(snapshot_at(step), keep=2)
    storage.write_bytes(run.path("metrics.jsonl"), b'{"step": 10}\n{"step": 20}\n')
    return run


def everything(run: RunDirectory) -> dict[str, bytes]:
    folder = run.uri
    paths = [
        storage.list_dir(folder),
        *(storage.list_dir(run.checkpoints.uri(step)) for step in run.checkpoints.steps()),
    ]
    return {uri: storage.read_bytes(uri) for part in paths for uri in part}


def test_all_that_the_parent_was_is_there(tmp_path, parent):
    before, run = everything(parent), run_at(tmp_path, "child")
    assert inherit(run, parent.uri) == run.checkpoints.newest() == TrainState(20, 80)
    mine, theirs = run.checkpoints.read(20), parent.checkpoints.read(20)
    assert torch.equal(mine.model["w"], theirs.model["w"]) and (mine.ledger, mine.rejects) == (b"ledger", b"rejects")
    assert storage.read_bytes(run.path("metrics.jsonl")) == storage.read_bytes(parent.path("metrics.jsonl"))
    assert json.loads(storage.read_bytes(run.path(PARENT))) == {
        "format": 1, "parent": parent.uri, "step": 20, "samples": 80,
    }  # fmt: skip
    assert everything(parent) == before


def test_a_child_that_has_trained_is_left_alone(tmp_path, parent):
    run = run_at(tmp_path, "child")
    inherit(run, parent.uri)
    run.checkpoints.write(snapshot_at(30), keep=1)
    storage.write_bytes(run.path("metrics.jsonl"), b"its own")
    parent.checkpoints.write(snapshot_at(99), keep=1)
    before = everything(run)
    assert inherit(run, parent.uri) == TrainState(20, 80)
    assert everything(run) == before and run.checkpoints.steps() == [30]


def test_cut_off_anywhere_it_begins_again_and_ends_alike(tmp_path, parent, monkeypatch):
    whole = run_at(tmp_path, "whole")
    inherit(whole, parent.uri)
    expected = {uri.replace("/whole/", "/cut/"): data for uri, data in everything(whole).items()}
    write, run = storage.write_bytes, run_at(tmp_path, "cut")
    writes = len(expected)
    for allowed in range(writes):
        left = [allowed]

        def cut_off(uri: str, data: bytes, left=left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(uri, data)

        monkeypatch.setattr(storage, "write_bytes", cut_off)
        with pytest.raises(KeyboardInterrupt):
            inherit(run, parent.uri)
        monkeypatch.undo()
        assert not storage.exists(run.path(PARENT))
        # What is there by then is whole or does not count.
        assert run.checkpoints.newest().step in (0, 20)
        if run.checkpoints.steps():
            break
    else:
        pytest.fail("the checkpoint never came before the last write")
    # Damaged by now, the parent's newest is what the child has all the same.
    storage.write_bytes(f"{parent.checkpoints.uri(20)}/model.safetensors", b"torn")
    assert inherit(run, parent.uri) == TrainState(20, 80)
    assert everything(run) == expected


@pytest.mark.parametrize("harm", ["torn", "missing", "unfinished"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, parent, harm):
    file = f"{parent.checkpoints.uri(20)}/{'complete.json' if harm == 'unfinished' else 'optimizer.safetensors'}"
    if harm == "torn":
        storage.write_bytes(file, storage.read_bytes(file)[:-1])
    else:
        storage.delete_file(file)
    run = run_at(tmp_path, "child")
    assert inherit(run, parent.uri) == run.checkpoints.newest() == TrainState(10, 40)


def test_a_checkpoint_that_is_deleted_while_it_is_copied_is_passed_over(tmp_path, parent, monkeypatch):
    """The parent goes on: it writes newer ones and keeps only those."""
    read, run = CheckpointStore._read, run_at(tmp_path, "child")

    def prune_first(store: CheckpointStore, step: int, name: str) -> bytes:
        if step == 20 and name == "optimizer.safetensors" and not parent.checkpoints.steps()[-1] > 20:
            monkeypatch.undo()
            parent.checkpoints.write(snapshot_at(40), keep=1)
        return read(store, step, name)

    monkeypatch.setattr(CheckpointStore, "_read", prune_first)
    assert inherit(run, parent.uri) == run.checkpoints.newest() == TrainState(40, 160)
    assert run.checkpoints.steps() == [40]


def test_without_a_whole_checkpoint_nothing_begins(tmp_path):
    run = run_at(tmp_path, "child")
    with pytest.raises(CheckpointDamaged, match="no checkpoint there is whole"):
        inherit(run, run_at(tmp_path, "parent").uri)
    assert not storage.exists(run.path(PARENT)) and run.checkpoints.newest().step == 0
