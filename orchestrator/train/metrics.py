"""What a run records: one JSON line a logged step, TensorBoard, and whatever trackers there are."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import storage
from orchestrator.data.batch import unpack_sample
from orchestrator.train.trackers import Tracker


class MetricsWriter:
    """Writes `metrics.jsonl`, `skipped.jsonl` and `tensorboard/` of a run.

    Object storage cannot append, so they grow here and `publish` copies them to the run's folder.
    After a restart the lines of steps that will be made again are dropped.

    Parameters
    ----------
    run_uri : the run's folder
    first_step : steps already made, by the restored checkpoint
    trackers : told each record too
    say : told what goes wrong with them, once each
    """

    def __init__(
        self, run_uri: str, first_step: int, trackers: Sequence[Tracker] = (), say: Callable[[str], None] = print
    ):
        from torch.utils.tensorboard import SummaryWriter

        self._run_uri = run_uri
        self._trackers, self._say = list(trackers), say
        self._uri = storage.join(run_uri, "metrics.jsonl")
        kept: list[str] = []
        if first_step and storage.exists(self._uri):
            lines = storage.read_bytes(self._uri).decode().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= first_step]
        self._lines = kept
        self.skipped_uri = storage.join(run_uri, "skipped.jsonl")
        self._skipped = (
            storage.read_bytes(self.skipped_uri).decode().splitlines() if storage.exists(self.skipped_uri) else []
        )
        self._board_uri = storage.join(run_uri, "tensorboard")
        self._scratch = tempfile.TemporaryDirectory(prefix="clip-on-ray-")
        self._board = SummaryWriter(self._scratch.name, purge_step=first_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        self._lines.append(json.dumps(record))
        for key, value in record.items():
            if key not in ("step", "time"):  # TensorBoard notes both itself
                self._board.add_scalar(key, value, record["step"])
        self._tell(lambda tracker: tracker.log(record))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                what(tracker)
            except Exception as error:  # whatever its client raises: a tracker must never stop a run
                self._trackers.remove(tracker)
                self._say(f"{type(tracker).__name__} is not told any more: {error}")

    def skip(self, step: int, loss: float, grad_norm: float, samples: list[str]) -> None:
        """Record a step that left the weights alone, with the samples of its batch."""
        self._skipped.append(json.dumps({"step": step, "loss": loss, "grad_norm": grad_norm, "samples": samples}))

    def trace(self, step: int, workers: list[list[tuple[int, list[int]]]]) -> None:
        """Record which samples the steps since the checkpoint before, up to `step`, trained on, as each worker noted.

        Traces of later steps belong to a history that was given up.
        """
        folder = storage.join(self._run_uri, "trace")
        for uri in storage.list_dir(folder) if storage.exists(folder) else []:
            if int(uri.rpartition("step_")[2].removesuffix(".jsonl")) >= step:
                storage.delete_file(uri)
        lines = []
        for parts in zip(*workers, strict=True):
            identities = unpack_sample(np.array([sample for _, samples in parts for sample in samples]))
            triples = np.stack(identities, axis=1).tolist()
            lines.append(json.dumps({"step": parts[0][0] + 1, "samples": triples}))
        storage.write_bytes(storage.join(folder, f"step_{step:08d}.jsonl"), _text(lines))

    def publish(self) -> None:
        """Bring the run's folder up to date."""
        if self._skipped:
            storage.write_bytes(self.skipped_uri, _text(self._skipped))
        storage.write_bytes(self._uri, _text(self._lines))
        self._board.flush()
        for file in Path(self._scratch.name).iterdir():
            storage.write_bytes(storage.join(self._board_uri, file.name), file.read_bytes())

    def close(self) -> None:
        self.publish()
        self._tell(lambda tracker: tracker.close())
        self._board.close()
        self._scratch.cleanup()


def _text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()
