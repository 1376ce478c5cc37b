"""What is decayed, and the learning rate over a run."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import tiny_model

from orchestrator.config import OptimConfig
from orchestrator.train.optim import learning_rate, make_optimizer


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_gains_biases_and_the_logit_scale_are_not_decayed(kind):
    model = tiny_model(600, kind)
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.2))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        free = name.endswith("bias") or "ln_" in name or ".bn" in name or name == "logit_scale"
        free = free or name.endswith(("class_embedding", "downsample.1.weight"))
        assert decay[id(parameter)] == (0.0 if free else 0.2), name


def test_a_step_is_adamw_with_decoupled_decay():
    """Against the update rule written out for one matrix and one bias, in float64."""
    layer = torch.nn.Linear(3, 2)
    config = OptimConfig(lr=0.01, weight_decay=0.5, beta1=0.9, beta2=0.98, eps=1e-6)
    optimizer = make_optimizer(layer, config)
    before = [p.detach().double().clone() for p in layer.parameters()]
    layer(torch.ones(1, 3)).square().sum().backward()
    gradients = [p.grad.double() for p in layer.parameters()]
    optimizer.step()
    for updated, old, gradient, decay in zip(layer.parameters(), before, gradients, (0.5, 0.0), strict=True):
        # First step: the bias-corrected moments are the gradient and its square.
        expected = old * (1 - 0.01 * decay) - 0.01 * gradient / (gradient.abs() + 1e-6)
        torch.testing.assert_close(updated.double(), expected, rtol=0, atol=1e-6)


def test_warm_up_is_a_line_and_then_a_cosine_to_zero():
    config = OptimConfig(lr=2.0, warmup_steps=4)
    rates = [learning_rate(step, 20, config) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    for step in range(4, 20):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 4) / 16))
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert learning_rate(20, 20, config) == pytest.approx(0, abs=1e-12)
    assert learning_rate(99, 20, config) == pytest.approx(0, abs=1e-12)
