"""Models of another compute, against the paper's own scaled ResNets and torch's counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from orchestrator import cli
from orchestrator.config import Config
from orchestrator.model.clip import CLIP
from orchestrator.model.scaling import count_flops, scale


def recipe(name):
    return cli.parse(["--config", name], "").model


@pytest.mark.parametrize(("compute", "paper"), [(4, "rn50x4"), (16, "rn50x16")])
def test_rn50_scaled_lands_near_the_papers_models(compute, paper):
    scaled, wanted = scale(recipe("rn50"), compute), recipe(paper)
    assert scaled.reached == pytest.approx(compute, rel=0.15)
    assert scaled.reached == pytest.approx(count_flops(scaled.config).image / count_flops(recipe("rn50")).image)
    assert scaled.config.vision.width == pytest.approx(wanted.vision.width, rel=0.1)
    assert scaled.config.image_size == pytest.approx(wanted.image_size, abs=32)
    assert sum(scaled.config.vision.layers) == pytest.approx(sum(wanted.vision.layers), rel=0.1)
    assert scaled.config.text.width == pytest.approx(wanted.text.width, rel=0.1)
    assert scaled.config.text.layers == 12


@pytest.mark.parametrize("name", ["rn50", "vit-b-32", "demo"])
@pytest.mark.parametrize("compute", [0.3, 1, 3])
def test_any_multiple_is_a_model_that_can_be_built(name, compute):
    base = recipe(name)
    scaled = scale(base, compute)
    config = Config()
    config.data.train, config.model = "x.tar", dataclasses.replace(scaled.config, vocab_size=100)
    config.validate()
    with torch.device("meta"):
        CLIP(config.model)
    assert scaled.config.text.layers == base.text.layers
    if compute == 1:
        assert scaled.config == base and scaled.reached == 1


def test_a_split_grows_only_what_it_names():
    base = recipe("vit-b-32")
    wide, deep, sharp = (scale(base, 4, split).config for split in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    assert (wide.vision.width, wide.vision.layers, wide.image_size) == (1536, [12], 224)
    assert (deep.vision.width, deep.vision.layers, deep.image_size) == (768, [48], 224)
    assert (sharp.vision.width, sharp.vision.layers, sharp.image_size) == (768, [12], 448)
    assert (wide.text.width, deep.text.width, sharp.text.width) == (1024, 512, 512)


def test_operations_are_those_of_a_real_forward_pass():
    config = dataclasses.replace(recipe("demo"), vocab_size=100)
    model = CLIP(config).eval()
    tokens = torch.full((1, config.text.context_length), 5)
    tokens[0, -1] = 99
    # The counter does not know the CPU's fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, 64, 64), tokens)
    counted = count_flops(config)
    assert counter.get_total_flops() == counted.image + counted.text


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"compute=0: a multiple"):
        scale(recipe("rn50"), 0)
    with pytest.raises(ValueError, match=r"add up to 1"):
        scale(recipe("rn50"), 2, (0.5, 0.5, 0.5))
