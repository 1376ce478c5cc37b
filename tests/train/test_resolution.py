"""Half the side in the first part of a run: which steps, of what pictures, at what cost."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tiny import tiny_model
from torch.nn import functional as F

from orchestrator.config import Config, ConfigError
from orchestrator.data.images import ImageTransform
from orchestrator.model.clip import CLIP
from orchestrator.model.pixels import normalize_pixels
from orchestrator.model.positions import positions_for, resize_image_positions
from orchestrator.model.scaling import count_flops
from orchestrator.train.optim import make_optimizer
from orchestrator.train.parallel import share_gradients
from orchestrator.train.resolution import Resolutions
from orchestrator.train.step import Step

CPU = torch.device("cpu")


def config_at(size: int, kind: str, share: float) -> Config:
    config = Config()
    config.data.train = ["any"]
    config.model = dataclasses.replace(tiny_model(600, kind).config, image_size=size)
    config.train.half_resolution, config.train.precision = share, "fp32"
    config.tokenizer.kind, config.tokenizer.vocab_size = "trained", 600
    return config


def test_the_first_steps_are_halved_and_cost_what_the_smaller_pictures_cost():
    config = config_at(64, "resnet", 0.7)
    resolutions = Resolutions.of(config, 10)
    assert [resolutions.halved(step) for step in range(10)] == [True] * 7 + [False] * 3
    small, large = (count_flops(dataclasses.replace(config.model, image_size=side)) for side in (32, 64))
    assert small.image < large.image / 3 and small.text == large.text
    costs = [(small if step < 7 else large).training for step in range(10)]
    for start, stop in ((0, 10), (0, 3), (5, 9), (7, 10), (8, 8), (2, 7)):
        assert resolutions.training(start, stop) == sum(costs[start:stop])
    assert [3 * resolutions.flops(step).total for step in range(10)] == costs
    assert not Resolutions.of(config_at(64, "resnet", 0.0), 10).halved(0)


def test_positions_of_half_the_side_are_the_means_of_squares():
    learned_PC = torch.randn(17, 5, requires_grad=True)
    assert positions_for(17, learned_PC) is learned_PC
    half_PC = positions_for(5, learned_PC)
    grid = learned_PC[1:].detach().reshape(4, 4, 5)
    for row in range(2):
        for column in range(2):
            square = grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean(dim=(0, 1))
            torch.testing.assert_close(half_PC[1 + 2 * row + column].detach(), square)
    assert torch.equal(half_PC[0], learned_PC[0])
    half_PC.sum().backward()
    assert learned_PC.grad is not None and bool((learned_PC.grad > 0).all())


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_halved_step_is_a_step_on_pictures_halved_before(kind):
    """The same step on averaged pixels, by a model of that size which has the averaged positions."""
    config = config_at(64, kind, 0.5)
    rng = np.random.default_rng(0)
    tokens_BT = rng.integers(2, 590, (6, 8)).astype(np.int32)
    tokens_BT[:, -1] = 599
    image_B3RR = rng.integers(0, 256, (6, 3, 64, 64), dtype=np.uint8)
    batch = {"image": image_B3RR, "tokens": tokens_BT, "sample": np.arange(6)}
    torch.manual_seed(0)
    model = CLIP(config.model)
    small = CLIP(dataclasses.replace(config.model, image_size=32))
    weights = resize_image_positions(model.state_dict(), small.state_dict())
    for name in ("visual.positional_embedding", "visual.attnpool.positional_embedding"):
        if name in weights:
            weights[name] = positions_for(len(weights[name]), model.state_dict()[name])
    small.load_state_dict(weights)

    transform = ImageTransform(64)
    step = Step(
        model, share_gradients(model, "ddp", CPU, 1), make_optimizer(model, config.optim), config, transform, CPU, None
    )
    halved = step(batch, 0.0, chunks=2, halved=True)

    pixels = normalize_pixels(torch.from_numpy(image_B3RR), transform.mean, transform.std)
    pixels = pixels.reshape(6, 3, 32, 2, 32, 2).mean(dim=(3, 5))
    small.train()
    text_BD = small.encode_text(torch.from_numpy(tokens_BT))
    parts = [small.encode_image(part) for part in (pixels[:3], pixels[3:])]  # as batch normalisation sees them
    logits = small.logit_scale.exp() * torch.cat(parts) @ text_BD.T
    truth = torch.arange(6)
    expected = (F.cross_entropy(logits, truth) + F.cross_entropy(logits.T, truth)) / 2
    assert halved.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert step(batch, 0.0).loss != pytest.approx(halved.loss, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "kind", "share", "message"),
    [
        (64, "resnet", 1.0, r"train\.half_resolution=1\.0: a share of the steps, in \[0, 1\)"),
        (32, "resnet", 0.5, r"half of model\.image_size=32 is no multiple of 32; take 0, or another size"),
        (24, "vit", 0.5, r"half of model\.image_size=24 is no multiple of 8"),
    ],
)
def test_what_cannot_be_halved_is_refused(size, kind, share, message):
    with pytest.raises(ConfigError, match=message):
        config_at(size, kind, share).validate()
    config_at(size, kind, 0.0).validate()
