"""A checkpoint restores the run exactly."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model

from orchestrator.config import OptimConfig
from orchestrator.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from orchestrator.train.optim import make_optimizer


def step(model, optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train()
    image, text, scale = model(torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([[1, 2, 599, 0]] * 4))
    loss = (scale * image @ text.T).logsumexp(-1).sum() + image.sum()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def test_going_on_from_a_checkpoint_equals_never_stopping(tmp_path):
    config = OptimConfig(lr=1e-2)
    model = tiny_model(600)
    optimizer = make_optimizer(model, config)
    step(model, optimizer, 1)
    save_checkpoint(tmp_path, model, optimizer, TrainState(step=1, samples=4))
    step(model, optimizer, 2)

    other = tiny_model(600, seed=9)
    other_optimizer = make_optimizer(other, config)
    assert load_checkpoint(tmp_path, other, other_optimizer) == TrainState(step=1, samples=4)
    step(other, other_optimizer, 2)
    expected, found = model.state_dict(), other.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    model = tiny_model(600)
    save_checkpoint(tmp_path, model, make_optimizer(model, OptimConfig()), TrainState())
    other = tiny_model(600, "vit")
    with pytest.raises(RuntimeError, match="visual"):
        load_checkpoint(tmp_path, other, make_optimizer(other, OptimConfig()))
