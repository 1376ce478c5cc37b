"""However the work is shared, the weights after some steps are those of one process on the whole batch."""

from __future__ import annotations

import numpy as np
import processes
import pytest
import torch
import torch.distributed as dist
from tiny import tiny_model

from orchestrator.config import Config
from orchestrator.data.batch import count, take
from orchestrator.data.images import ImageTransform
from orchestrator.model.clip import CLIP
from orchestrator.train.optim import make_optimizer
from orchestrator.train.parallel import share_gradients
from orchestrator.train.step import Step
from orchestrator.train.tensors import restore_tensors, snapshot_tensors

PAIRS, STEPS = 12, 3


def config_of(objective, max_grad_norm):
    config = Config()
    config.model = tiny_model(600, "vit").config
    config.model.objective = objective
    config.optim.lr, config.optim.warmup_steps, config.optim.max_grad_norm = 1e-2, 0, max_grad_norm
    config.train.precision = "fp32"
    return config


def batch_of(step):
    rng = np.random.default_rng(step)
    tokens = rng.integers(2, 590, (PAIRS, 8)).astype(np.int32)
    tokens[:, -1] = 599
    return {
        "image": rng.integers(0, 256, (PAIRS, 3, 32, 32), dtype=np.uint8),
        "tokens": tokens,
        "sample": np.arange(PAIRS),
    }


def train(rank, sizes, kind, objective="contrastive", max_grad_norm=0.0, chunks=1, start=None, first=0):
    """Weights and moments after some steps, with each step's loss and gradient norm."""
    config, device, world_size = config_of(objective, max_grad_norm), torch.device("cpu"), len(sizes)
    torch.manual_seed(0)
    # Adam makes a whole step of a gradient of any size: of one that cancels out, of its last bits, unless they are far.
    model = CLIP(config.model).double()
    model.visual.register_forward_pre_hook(lambda tower, inputs: (inputs[0].double(),))
    shared = share_gradients(model, kind, device, world_size)
    optimizer = make_optimizer(model, config.optim)
    if start is not None:
        restore_tensors(model, optimizer, *start)
    workers = dist.group.WORLD if world_size > 1 else None
    step = Step(model, shared, optimizer, config, ImageTransform(32), device, workers)
    told = []
    for number in range(first, first + STEPS):
        batch = batch_of(number)
        begin = sum(sizes[:rank])
        part = take(batch, begin, begin + sizes[rank])
        assert count([part]) == sizes[rank]
        outcome = step(part, 1e-2, chunks)
        told.append((outcome.loss, outcome.grad_norm, step.param_norm()))
    weights, moments = snapshot_tensors(model, optimizer)
    return [list(weights), list(weights.values()), list(moments), list(moments.values()), told]


def tensors(result):
    names, weights, keys, moments, told = result
    return dict(zip(names, weights, strict=True)), dict(zip(keys, moments, strict=True)), told


def check_equal(found, expected):
    for name, tensor in {**expected[0], **expected[1]}.items():
        mine = {**found[0], **found[1]}[name]
        torch.testing.assert_close(mine, tensor, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-8)


@pytest.mark.parametrize("objective", ["contrastive", "sigmoid"])
@pytest.mark.parametrize(
    ("kind", "sizes", "chunks"),
    [("ddp", [12], 5), ("ddp", [7, 5], 2), ("fsdp", [7, 5], 1), ("fsdp", [4, 4, 4], 2)],
)
def test_equal_to_one_process(kind, sizes, chunks, objective):
    limit = 0.5
    expected = tensors(processes.run(1, train, [PAIRS], "ddp", objective, limit)[0])
    assert all(norm > limit for _, norm, _ in expected[2]), "clipping was not tested"
    for result in processes.run(len(sizes), train, sizes, kind, objective, limit, chunks):
        check_equal(tensors(result), expected)


@pytest.mark.parametrize(("kind", "sizes"), [("fsdp", [4, 4, 4]), ("ddp", [12]), ("ddp", [6, 6])])
def test_sharded_state_goes_on_over_another_number_of_workers(kind, sizes):
    saved = tensors(processes.run(2, train, [6, 6], "fsdp")[0])
    expected = tensors(processes.run(1, train, [PAIRS], "ddp", "contrastive", 0.0, 1, (saved[0], saved[1]), STEPS)[0])
    again = processes.run(len(sizes), train, sizes, kind, "contrastive", 0.0, 1, (saved[0], saved[1]), STEPS)
    for result in again:
        check_equal(tensors(result), expected)
