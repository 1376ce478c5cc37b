"""Training checkpoints: all that a run needs to go on.

A checkpoint is a directory:

    model.safetensors      weights and batch-norm statistics
    optimizer.pt           Adam's moments; read with weights_only
    state.json             step, samples consumed, format version
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


@dataclass
class TrainState:
    """Where a run stands.

    Parameters
    ----------
    step : optimiser steps made
    samples : samples consumed by all workers, over all epochs
    """

    step: int = 0
    samples: int = 0


def save_checkpoint(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    """Write a checkpoint into an empty local directory."""
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()}, directory / "model.safetensors"
    )
    torch.save(optimizer.state_dict(), directory / "optimizer.pt")
    (directory / "state.json").write_text(json.dumps({"format": 1, **asdict(state)}))


def load_checkpoint(directory: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restore model and optimiser in place and return where the run stood.

    Raises
    ------
    RuntimeError : the checkpoint belongs to another architecture; torch names the tensors
    """
    model.load_state_dict(load_file(directory / "model.safetensors"))
    optimizer.load_state_dict(torch.load(directory / "optimizer.pt", map_location="cpu", weights_only=True))
    return read_state((directory / "state.json").read_bytes())


def read_state(data: bytes) -> TrainState:
    """Read the bytes of a checkpoint's state.json."""
    fields = json.loads(data)
    return TrainState(step=fields["step"], samples=fields["samples"])
