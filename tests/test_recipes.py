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


def count(module, *inputs):
    """GFLOPs of a forward pass, by torch's own counter."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 1e9


def unread(transformer, positions):
    """GFLOPs of the last block that are not computed: those of the positions that nothing reads."""
    block = transformer.resblocks[-1]
    with torch.device("meta"):
        x_1TW, place_1 = torch.empty(1, positions, block.ln_1.normalized_shape[0]), torch.empty(1, dtype=torch.long)
    return count(block, x_1TW, transformer.causal) - count(block, x_1TW, transformer.causal, place_1)


@pytest.mark.parametrize("recipe", PAPER)
def test_operations_are_the_papers_but_for_what_nothing_reads(recipe):
    """The paper's count has the last block, and the ResNets' attention pool, compute every position; ours only the one
    that is read."""
    _, _, _, image_gflops, text_gflops = PAPER[recipe]
    config, model = build(recipe)
    size, text = config.model.image_size, config.model.text
    with torch.device("meta"):
        image_13RR, text_1TW = torch.empty(1, 3, size, size), torch.empty(1, 77, text.width)
        place_1 = torch.empty(1, dtype=torch.long)
    words, spared = count(model.transformer, text_1TW, place_1), unread(model.transformer, 77)
    assert words + spared == pytest.approx(text_gflops, rel=0.01)
    assert 0.9 * text_gflops / text.layers < spared < text_gflops / text.layers
    ours = count(model.visual, image_13RR)
    if config.model.vision.kind == "vit":
        layers = config.model.vision.layers[0]
        spared = unread(model.visual.transformer, (size // config.model.vision.patch_size) ** 2 + 1)
        assert ours + spared == pytest.approx(image_gflops, rel=0.01)
        assert 0.9 * image_gflops / layers < spared < image_gflops / layers
        return
    positions, channels = (size // 32) ** 2 + 1, config.model.vision.width * 32
    pool = 2 * positions * channels * (3 * channels + config.model.embed_dim) + 4 * positions**2 * channels
    trunk = count(model.visual.feature_map, image_13RR)
    assert trunk + pool / 1e9 == pytest.approx(image_gflops, rel=0.01)
    assert trunk < ours < trunk + 0.1 * pool / 1e9
