"""A run's folder: what is there, what it holds, and whether a run may go on.

<storage_path>/<name>/
  config.yaml, manifest.json, tokenizer/     what the run is
  parent.json                                the run whose checkpoint it began with, if any
  checkpoints/                               where it can go on from
  trace/                                     which samples each step trained on, if train.trace
  metrics.jsonl, tensorboard/, rejects.jsonl what happened
  final/                                     the model directory
  zero_shot.json, predictions.png            what it can do
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import yaml

from orchestrator import storage
from orchestrator.config import Config, ConfigError
from orchestrator.data.manifest import Manifest
from orchestrator.model.tokenizer import Tokenizer
from orchestrator.train.checkpoint import CheckpointStore

# A continued run may take more epochs or other hardware; these make it another run.
FIXED = ("model", "tokenizer", "run.seed", "train.global_batch")


class RunDirectory:
    """The folder of one run.

    Parameters
    ----------
    config : of the run that is starting
    """

    def __init__(self, config: Config):
        self.storage_path = storage.absolute(config.run.storage_path)
        self.uri = storage.join(self.storage_path, config.run.name)

    def path(self, name: str) -> str:
        return storage.join(self.uri, name)

    @property
    def started(self) -> bool:
        return storage.exists(self.path("config.yaml"))

    @property
    def finished(self) -> bool:
        return storage.exists(self.path("final/config.json"))

    def claim(self, config: Config) -> None:
        """Check `run.resume` against what is there.

        Raises
        ------
        ConfigError : the name is in use and must not be, is not and must be, or is that of another model
        """
        name, resume = config.run.name, config.run.resume
        if resume == "must" and not self.started:
            raise ConfigError(f"run.resume='must': there is no run at {self.uri}; check run.name and run.storage_path")
        if resume == "never" and self.started:
            raise ConfigError(
                f"run.resume='never': {self.uri} holds a run already; choose another run.name than {name!r}, "
                "continue it with run.resume=auto, or move it away"
            )
        if self.started:
            self._refuse_another_model(config)

    def _refuse_another_model(self, config: Config) -> None:
        saved = yaml.safe_load(storage.read_bytes(self.path("config.yaml")))
        now = config.as_dict()
        differences = [_first_difference(fixed, _lookup(saved, fixed), _lookup(now, fixed)) for fixed in FIXED]
        before, precision = saved["train"]["precision"], config.train.precision
        # Its checkpoints keep other dtypes; the other precisions' are all in fp32.
        if before != precision and "pure_bf16" in (before, precision):
            differences.append(("train.precision", before, precision))
        for key, before, value in filter(None, differences):
            raise ConfigError(
                f"{key}={value!r}: the run at {self.uri} was started with {before!r}; "
                f"set that to continue it, or choose another run.name"
            )

    def save(self, config_yaml: str, manifest: Manifest, tokenizer: Tokenizer) -> None:
        """Write what the run is; config.yaml last, since it says that the run has started."""
        storage.write_bytes(self.path("manifest.json"), manifest.to_json().encode())
        with tempfile.TemporaryDirectory() as scratch:
            tokenizer.save(scratch)
            for file in sorted(Path(scratch).iterdir()):
                storage.write_bytes(storage.join(self.path("tokenizer"), file.name), file.read_bytes())
        storage.write_bytes(self.path("config.yaml"), config_yaml.encode())

    def load_manifest(self) -> Manifest:
        return Manifest.from_json(storage.read_bytes(self.path("manifest.json")).decode())

    def load_tokenizer(self) -> Tokenizer:
        with tempfile.TemporaryDirectory() as scratch:
            for uri in storage.list_dir(self.path("tokenizer")):
                name = uri.rstrip("/").rsplit("/", 1)[-1]
                (Path(scratch) / name).write_bytes(storage.read_bytes(storage.join(self.path("tokenizer"), name)))
            return Tokenizer.load(scratch)

    @property
    def checkpoints(self) -> CheckpointStore:
        return CheckpointStore(self.uri)


def _lookup(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _first_difference(key: str, before: Any, now: Any) -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in now:
            # The model's vocabulary size is found while the run starts.
            if f"{key}.{name}" != "model.vocab_size":
                difference = _first_difference(f"{key}.{name}", before.get(name), now[name])
                if difference:
                    return difference
        return None
    return None if before == now else (key, before, now)
