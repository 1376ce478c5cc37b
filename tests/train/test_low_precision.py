"""bf16 weights and statistics: right on average, the same on every replica, the same after a pause."""

from __future__ import annotations

import copy

import torch
from tiny import tiny_model

from orchestrator.config import OptimConfig
from orchestrator.objectives import info_nce
from orchestrator.train.low_precision import StochasticAdamW, round_stochastically
from orchestrator.train.optim import make_optimizer


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rounding_is_right_on_average_and_goes_to_a_neighbour():
    values = torch.tensor([1.0, 1.001, -1.001, 3e-20, -7.77, 0.0, 1 + 2**-8])
    rounded = torch.stack([round_stochastically(values, generator(seed)).double() for seed in range(20_000)])
    step = torch.finfo(torch.bfloat16).eps * values.double().abs()  # the widest distance of two bf16 numbers there
    assert bool(((rounded - values.double()).abs() <= step).all())
    error_in_steps = (rounded.mean(0) - values.double()) / step.clamp(min=1e-300)
    assert error_in_steps.abs().max() < 5 * 0.5 / 20_000**0.5  # five standard errors of a coin at its worst
    assert rounded[:, 0].unique().tolist() == [1.0] and rounded[:, 5].unique().tolist() == [0.0]


def test_rounding_keeps_what_is_not_finite():
    values = torch.tensor([float("inf"), float("-inf"), float("nan")])
    rounded = round_stochastically(values, generator())
    assert rounded[0] == float("inf") and rounded[1] == float("-inf") and rounded[2].isnan()


def test_updates_below_the_last_bit_are_not_lost():
    """Weights of 1 take 200 steps of 1/40 of the distance to the next bf16 number, each the same way."""
    weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = StochasticAdamW([weight], lr=1e-4, betas=(0.9, 0.98), eps=1e-8)
    assert (torch.ones(1) - 1e-4).bfloat16() == 1  # what rounding to nearest would make of each
    for _ in range(200):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert abs(weight.double().mean().item() - (1 - 200 * 1e-4)) < 1e-3


def test_moves_as_adamw_does_in_float64():
    """fp32 parameters, bf16 moments: within what 8 bits of statistics can change."""
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(64, 32))
    theirs = torch.nn.Parameter(ours.detach().double())
    arguments = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
    optimizer, oracle = StochasticAdamW([ours], **arguments), torch.optim.AdamW([theirs], **arguments)
    start = theirs.detach().clone()
    for step in range(50):
        gradient = torch.randn(64, 32, generator=generator(step)) + 0.3
        ours.grad, theirs.grad = gradient, gradient.double()
        optimizer.step(), oracle.step()
    moved = (theirs.detach() - start).norm()
    assert (ours.detach().double() - theirs.detach()).norm() < 0.01 * moved
    assert {moment.dtype for moment in optimizer.state[ours].values()} == {torch.bfloat16}


def test_replicas_agree_and_a_continued_run_is_the_unbroken_one():
    def steps(optimizer, weight, numbers):
        for number in numbers:
            weight.grad = torch.randn(weight.shape, generator=generator(number)).to(weight.dtype)
            optimizer.step()

    def fresh():
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 1000).bfloat16())
        return weight, StochasticAdamW([weight], lr=1e-3, betas=(0.9, 0.98), eps=1e-6, seed=3)

    torch.manual_seed(1)
    weight, optimizer = fresh()
    steps(optimizer, weight, range(4))
    saved, kept = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    steps(optimizer, weight, range(4, 8))

    torch.manual_seed(2)  # another process
    replica, replica_optimizer = fresh()
    steps(replica_optimizer, replica, range(8))
    assert torch.equal(weight, replica)

    continued, continued_optimizer = fresh()
    continued.data.copy_(kept)
    continued_optimizer.load_state_dict(saved)
    steps(continued_optimizer, continued, range(4, 8))
    assert torch.equal(weight, continued)


def test_a_text_tower_in_bf16_learns_as_one_in_fp32_does():
    def train(low_precision: bool) -> list[float]:
        model = tiny_model(600, "vit")
        if low_precision:
            model.round_text_tower()
        config = OptimConfig(lr=1e-3)
        optimizer = make_optimizer(model, config, low_precision)
        image = torch.randn(16, 3, 32, 32, generator=generator(0))
        tokens = torch.randint(1, 598, (16, 8), generator=generator(1))
        tokens[:, -1] = 599
        losses = []
        for _ in range(60):
            image_BD, text_BD, scale = model(image, tokens)
            loss = info_nce(image_BD.float(), text_BD.float(), scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if low_precision:
            text = [p for name, p in model.named_parameters() if not name.startswith(("visual", "logit"))]
            assert {p.dtype for p in text} == {torch.bfloat16}
            assert {p.dtype for p in model.visual.parameters()} == {torch.float32}
        return losses

    full, low = train(False), train(True)
    assert full[-1] < 0.1 * full[0] and low[-1] < 0.1 * low[0], (full[-1], low[-1])
