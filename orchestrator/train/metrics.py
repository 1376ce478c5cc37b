"""What a run records: one JSON line a logged step, and TensorBoard."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from orchestrator import storage


class MetricsWriter:
    """Writes `metrics.jsonl` and `tensorboard/` of a run.

    Object storage cannot append, so both grow on local disk and `publish` copies them to the run's folder.
    After a restart the lines of steps that will be made again are dropped.

    Parameters
    ----------
    run_uri : the run's folder
    first_step : steps already made, by the restored checkpoint
    """

    def __init__(self, run_uri: str, first_step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._uri = storage.join(run_uri, "metrics.jsonl")
        kept: list[str] = []
        if first_step and storage.exists(self._uri):
            lines = storage.read_bytes(self._uri).decode().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= first_step]
        self._lines = kept
        self._board_uri = storage.join(run_uri, "tensorboard")
        self._scratch = tempfile.TemporaryDirectory(prefix="clip-on-ray-")
        self._board = SummaryWriter(self._scratch.name, purge_step=first_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        self._lines.append(json.dumps(record))
        for key, value in record.items():
            if key != "step":
                self._board.add_scalar(key, value, record["step"])

    def publish(self) -> None:
        """Bring the run's folder up to date."""
        storage.write_bytes(self._uri, ("\n".join(self._lines) + "\n").encode())
        self._board.flush()
        for file in Path(self._scratch.name).iterdir():
            storage.write_bytes(storage.join(self._board_uri, file.name), file.read_bytes())

    def close(self) -> None:
        self.publish()
        self._board.close()
        self._scratch.cleanup()
