"""Training checkpoints: all that a run needs to go on, whole or not there at all.

    <run>/checkpoints/step_00000040/
      model.safetensors        weights and batch-norm statistics
      optimizer.safetensors    Adam's moments, <moment>.<parameter>
      ledger.bin, rejects.bin  what was trained on, what cannot be
      state.json               step, samples
      complete.json            size and SHA-256 of every file, written last

A checkpoint without `complete.json` was interrupted: it does not count, and the next one clears it away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from orchestrator import storage

if TYPE_CHECKING:  # torch takes seconds to load, and not every process that looks for a checkpoint reads its tensors.
    from torch import Tensor

COMPLETE = "complete.json"


class CheckpointDamaged(RuntimeError):
    """A checkpoint's file is not what was written; the message names it."""


@dataclass
class TrainState:
    """Where a run stands.

    Parameters
    ----------
    step : optimiser steps made
    samples : samples trained on by all workers, over all epochs
    """

    step: int = 0
    samples: int = 0


@dataclass
class Snapshot:
    """A moment of a run, in memory of its own.

    Parameters
    ----------
    state : where the run stands
    model : weights and statistics by name, on the CPU
    optimizer : moments by name, on the CPU
    ledger, rejects : as `orchestrator.data` writes them
    """

    state: TrainState
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ledger: bytes
    rejects: bytes


class CheckpointStore:
    """A run's checkpoints.

    Parameters
    ----------
    run_uri : the run's folder
    """

    def __init__(self, run_uri: str):
        self._uri = storage.join(run_uri, "checkpoints")

    def uri(self, step: int) -> str:
        return storage.join(self._uri, f"step_{step:08d}")

    def steps(self) -> list[int]:
        """The complete checkpoints, oldest first."""
        return [step for step in self._all_steps() if storage.exists(storage.join(self.uri(step), COMPLETE))]

    def write(self, snapshot: Snapshot, keep: int) -> None:
        """Write a checkpoint, then delete all but the newest `keep`.

        Raises
        ------
        StorageError : it could not be written; earlier checkpoints are unharmed
        """
        step = snapshot.state.step
        for old in self._all_steps():
            if old >= step or not storage.exists(storage.join(self.uri(old), COMPLETE)):
                storage.delete_folder(self.uri(old))
        files = {}
        for name, data in _files(snapshot):
            storage.write_bytes(storage.join(self.uri(step), name), data)
            files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        storage.write_bytes(storage.join(self.uri(step), COMPLETE), json.dumps({"format": 1, "files": files}).encode())
        for old in self.steps()[:-keep]:
            # First what makes it complete: an interrupted deletion leaves nothing that looks whole.
            storage.delete_file(storage.join(self.uri(old), COMPLETE))
            storage.delete_folder(self.uri(old))

    def newest(self) -> TrainState:
        """Where the newest checkpoint whose files are all as they were written stands; the start where there is none.

        A damaged one is set aside: its `complete.json` becomes `damaged.json`, and the one before is taken.
        """
        for step in reversed(self.steps()):
            try:
                for name in self._listed(step):
                    self._read(step, name)
            except CheckpointDamaged as error:
                print(f"{error}; going back to the checkpoint before it", flush=True)
                self._set_aside(step)
                continue
            return self.state(step)
        return TrainState()

    def adopt(self, other: CheckpointStore) -> TrainState:
        """Copy another run's newest checkpoint whose files are all as they were written; its folder is only read.

        It may be repeated. Checkpoints that the other run deletes in the meantime are passed over.

        Returns
        -------
        where it stands

        Raises
        ------
        CheckpointDamaged : the other run has no checkpoint that is whole
        """
        tried: set[int] = set()
        # Listed anew each time: a run that goes on writes newer ones while it deletes those that are being copied.
        while untried := [step for step in other.steps() if step not in tried]:
            step = untried[-1]
            tried.add(step)
            try:
                files = other._listed(step)
                for name in files:
                    storage.write_bytes(storage.join(self.uri(step), name), other._read(step, name))
            except (CheckpointDamaged, storage.MissingObject) as error:
                print(f"{error}; taking the checkpoint before it", flush=True)
                continue
            complete = json.dumps({"format": 1, "files": files}).encode()
            storage.write_bytes(storage.join(self.uri(step), COMPLETE), complete)
            return self.state(step)
        raise CheckpointDamaged(f"{other._uri}: no checkpoint there is whole")

    def state(self, step: int) -> TrainState:
        """Where a checkpoint stands; step 0 is the start."""
        if step == 0:
            return TrainState()
        fields = json.loads(self._read(step, "state.json"))
        return TrainState(step=fields["step"], samples=fields["samples"])

    def read(self, step: int) -> Snapshot:
        """A checkpoint.

        Raises
        ------
        CheckpointDamaged : a file is not what was written
        """
        from safetensors.torch import load

        return Snapshot(
            self.state(step),
            load(self._read(step, "model.safetensors")),
            load(self._read(step, "optimizer.safetensors")),
            self.ledger(step),
            self.rejects(step),
        )

    def ledger(self, step: int) -> bytes:
        return self._read(step, "ledger.bin")

    def rejects(self, step: int) -> bytes:
        return self._read(step, "rejects.bin")

    def _all_steps(self) -> list[int]:
        names = storage.list_folders(self._uri)
        return sorted(int(name.removeprefix("step_")) for name in names if name.startswith("step_"))

    def _listed(self, step: int) -> dict[str, dict]:
        uri = storage.join(self.uri(step), COMPLETE)
        try:
            return json.loads(storage.read_bytes(uri))["files"]
        except (ValueError, KeyError) as error:
            raise CheckpointDamaged(f"{uri}: {error}") from None

    def _read(self, step: int, name: str) -> bytes:
        uri = storage.join(self.uri(step), name)
        written = self._listed(step)[name]
        try:
            data = storage.read_bytes(uri)
        except storage.MissingObject:
            raise CheckpointDamaged(f"{uri}: missing") from None
        if len(data) != written["size"]:
            raise CheckpointDamaged(f"{uri}: {len(data):,} bytes where {written['size']:,} were written")
        if hashlib.sha256(data).hexdigest() != written["sha256"]:
            raise CheckpointDamaged(f"{uri}: its SHA-256 is not that of what was written")
        return data

    def _set_aside(self, step: int) -> None:
        complete = storage.join(self.uri(step), COMPLETE)
        storage.write_bytes(storage.join(self.uri(step), "damaged.json"), storage.read_bytes(complete))
        storage.delete_file(complete)


def _files(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """One at a time: each is as large in memory as on disk."""
    from safetensors.torch import save

    yield "model.safetensors", save(snapshot.model)
    yield "optimizer.safetensors", save(snapshot.optimizer)
    yield "ledger.bin", snapshot.ledger
    yield "rejects.bin", snapshot.rejects
    yield "state.json", json.dumps({"format": 1, **asdict(snapshot.state)}).encode()
