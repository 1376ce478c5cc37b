"""The paper's models as recipes: what its tables say of them."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator import cli
from orchestrator.model.clip import CLIP

# Radford et al. 2021, tables 19 and 20, for the sizes; parameters and operations as open_clip's tables print them:
# recipe -> learning rate, millions of parameters (image, text), GFLOPs of a forward pass (image, text).
PAPER = {
    "rn50": (5e-4, 38.32, 63.69, 12.22, 5.96),
    "rn101": (5e-4, 56.26, 63.43, 19.54, 5.96),
    "rn50x4": (5e-4, 87.14, 91.16, 42.56, 9.27),
    "rn50x16": (4e-4, 167.33, 123.65, 149.39, 13.30),
    "rn50x64": (3.6e-4, 420.38, 202.88, 529.11, 23.55),
    "vit-b-32": (5e-4, 87.85, 63.43, 8.82, 5.96),
    "vit-b-16": (5e-4, 86.19, 63.43, 35.13, 5.96),
    "vit-l-14": (4e-4, 303.97, 123.65, 162.03, 13.30),
    "vit-l-14-336": (2e-5, 304.29, 123.65, 381.92, 13.30),
}


def build(recipe: str):
    """The recipe's configuration, and its model without memory for the weights."""
    config = cli.parse(["--config", recipe, "--data.train", "s3://bucket/{0..9}.tar"], "")
    config.validate()
    config.model.vocab_size = config.tokenizer.vocab_size
    with torch.device("meta"):
        return config, CLIP(config.model).eval()


def test_every_recipe_but_the_demo_is_here():
    assert set(cli.recipe_names()) == {*PAPER, "demo"}


@pytest.mark.parametrize("recipe", PAPER)
def test_parameters_and_schedule_are_the_papers(recipe):
    lr, image_mparams, text_mparams, _, _ = PAPER[recipe]
    config, model = build(recipe)
    image = sum(p.numel() for p in model.visual.parameters())
    total = sum(p.numel() for p in model.parameters())
    assert round(image / 1e6, 2) == image_mparams
    assert round((total - image) / 1e6, 2) == text_mparams
    adam = (0.98, 1e-6) if recipe.startswith("vit") else (0.999, 1e-8)
    assert (config.optim.lr, config.optim.beta2, config.optim.eps) == (lr, *adam)
    assert (config.optim.warmup_steps, config.optim.weight_decay) == (2000, 0.2)
    goes_on = recipe == "vit-l-14-336"
    assert (config.train.global_batch, config.train.epochs) == (32768, 1 if goes_on else 32)
    assert bool(config.train.init) == goes_on


def count(module, *shape):
    """GFLOPs of a forward pass, by torch's own counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(torch.empty(1, *shape, device="meta"))
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("recipe", PAPER)
def test_operations_are_the_papers_but_for_the_attention_pool(recipe):
    """The paper's count has the attention pool attend from every position; ours asks from the one that is read."""
    _, _, _, image_gflops, text_gflops = PAPER[recipe]
    config, model = build(recipe)
    size, text_width = config.model.image_size, config.model.text.width
    assert count(model.transformer, 77, text_width) == pytest.approx(text_gflops, rel=0.01)
    ours = count(model.visual, 3, size, size)
    if config.model.vision.kind == "vit":
        assert ours == pytest.approx(image_gflops, rel=0.01)
        return
    positions, channels = (size // 32) ** 2 + 1, config.model.vision.width * 32
    pool = 2 * positions * channels * (3 * channels + config.model.embed_dim) + 4 * positions**2 * channels
    trunk = count(model.visual.feature_map, 3, size, size)
    assert trunk + pool / 1e9 == pytest.approx(image_gflops, rel=0.01)
    assert trunk < ours < trunk + 0.1 * pool / 1e9
