"""Models of equal compute, against torch's own count of the models as built."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from orchestrator import cli
from orchestrator.config import Config
from orchestrator.model.clip import CLIP
from orchestrator.tune.splits import equal_compute

BUDGETS = pytest.mark.parametrize(
    ("name", "compute"), [("demo", 0.5), ("demo", 1), ("demo", 4), ("vit-b-32", 1), ("vit-b-32", 4)]
)
AXES = {"wider": "width", "deeper": "depth", "sharper": "resolution"}


@functools.cache
def recipe(name):
    return cli.parse(["--config", name], "").model


@functools.cache
def splits(name, compute):
    return equal_compute(recipe(name), compute)


def operations(config):
    """Of a pair's forward pass, by torch alone."""
    with torch.device("meta"), torch.no_grad():
        model = CLIP(dataclasses.replace(config, vocab_size=100)).eval()
        with FlopCounterMode(display=False) as counter:
            model.visual(torch.empty(1, 3, config.image_size, config.image_size))
            end_1 = torch.empty(1, dtype=torch.long)
            words = model.transformer(torch.empty(1, config.text.context_length, config.text.width), end_1)
            words @ model.text_projection
    return counter.get_total_flops()


@BUDGETS
def test_models_of_a_budget_differ_in_everything_but_operations(name, compute):
    found = splits(name, compute)
    budget = compute * operations(recipe(name))
    counted = [operations(split.config) for split in found]
    assert len(found) >= 3 and len({split.name for split in found}) == len(found)
    assert all(one.config != other.config for one in found for other in found if one is not other)
    assert [split.flops for split in found] == counted
    assert max(counted) - min(counted) <= 0.03 * budget
    assert all(count == pytest.approx(budget, rel=0.03) for count in counted)


@BUDGETS
def test_names_tell_the_truth(name, compute):
    base, found = recipe(name), splits(name, compute)
    balanced = found[0]
    assert balanced.name == "balanced"
    assert {"wider", "deeper", "sharper"} <= {split.name for split in found}
    for split in found:
        vision = split.config.vision
        assert split.width == vision.width / base.vision.width
        assert split.depth == sum(vision.layers) / sum(base.vision.layers)
        assert split.resolution == split.config.image_size / base.image_size
        for word, axis in AXES.items():
            if split is not balanced:
                larger = getattr(split, axis) > getattr(balanced, axis)
                assert larger == (word in split.name.split("-")), (split, balanced)


@BUDGETS
def test_text_tower_keeps_pace_and_the_rest_stays(name, compute):
    base, found = recipe(name), splits(name, compute)
    for split in found:
        text = split.config.text
        assert text.width / base.text.width == pytest.approx(split.width, rel=0.15)
        kept = dataclasses.replace(split.config, vision=base.vision, image_size=base.image_size, text=base.text)
        assert kept == base
        assert dataclasses.replace(text, width=base.text.width, heads=base.text.heads) == base.text
        assert dataclasses.replace(split.config.vision, layers=[], width=0, heads=0) == dataclasses.replace(
            base.vision, layers=[], width=0, heads=0
        )
    by_width = sorted(found, key=lambda split: split.width)
    for narrow in by_width:
        for wide in by_width:
            if wide.width > 1.2 * narrow.width:
                assert wide.config.text.width > narrow.config.text.width


@BUDGETS
def test_every_model_can_be_trained(name, compute):
    for split in splits(name, compute):
        config = Config(model=split.config)
        config.data.train = "x.tar"
        config.validate()
        for tower, base in ((split.config.vision, recipe(name).vision), (split.config.text, recipe(name).text)):
            assert tower.width / tower.heads == pytest.approx(base.width / base.heads, rel=0.45)


@pytest.mark.parametrize("name", ["demo", "vit-b-32"])
def test_balanced_at_the_bases_own_budget_is_the_base(name):
    assert splits(name, 1)[0].config == recipe(name)


def test_shares_say_where_compute_goes():
    """At four times the compute all of the growth is where the name says, as in `scale`."""
    found = {split.name: split for split in splits("vit-b-32", 4)}
    for word, wanted in (("wider", (2, 1, 1)), ("deeper", (1, 4, 1)), ("sharper", (1, 1, 2))):
        split = found[word]
        # The text tower's compute, when it does not grow, goes to the image tower.
        assert (split.width, split.depth, split.resolution) == pytest.approx(wanted, rel=0.35)
        assert max(AXES.values(), key=lambda axis: getattr(split, axis) ** (1 if axis == "depth" else 2)) == AXES[word]


def test_a_resnets_stages_keep_their_proportion():
    base = recipe("rn50")
    found = {split.name: split for split in equal_compute(base, 1)}
    assert found["balanced"].config.vision.layers == [3, 4, 6, 3]
    for split in found.values():
        for blocks, base_blocks in zip(split.config.vision.layers, base.vision.layers, strict=True):
            assert abs(blocks - base_blocks * split.depth) <= 1


def test_shares_of_ones_own():
    near, far = equal_compute(recipe("vit-b-32"), 2, [(0.6, 0.2, 0.2), (1, 0, 0)])
    assert (near.name, far.name) == ("wider", "wider-2")
    assert far.width > near.width > 1


def test_too_small_a_budget_names_the_smallest():
    base = recipe("demo")
    with pytest.raises(ValueError, match=r"compute=1e-06: the smallest model has (0\.\d+) of the base's") as refused:
        equal_compute(base, 1e-6)
    smallest = float(str(refused.value).split("has ")[1].split(" ")[0])
    # The narrowest, shallowest model of the smallest picture, by hand.
    vision = dataclasses.replace(base.vision, width=2, layers=[1, 1, 1, 1], heads=1)
    text = dataclasses.replace(base.text, width=24, heads=1)
    least = operations(dataclasses.replace(base, image_size=32, vision=vision, text=text))
    assert smallest == pytest.approx(least / operations(base), rel=0.01)


def test_too_narrow_a_tolerance_names_one_that_admits_models():
    base = recipe("demo")
    with pytest.raises(ValueError, match=r"fewer than two models within tolerance=1e-07; the nearest are ") as refused:
        equal_compute(base, 1.01, tolerance=1e-7)
    admitted = float(str(refused.value).split("tolerance=")[-1].split(" ")[0])
    assert 1e-7 < admitted < 0.03
    assert len(equal_compute(base, 1.01, tolerance=admitted)) >= 2


def test_what_cannot_be_is_refused():
    base = recipe("demo")
    with pytest.raises(ValueError, match=r"model\.vision\.heads=7: must divide"):
        equal_compute(dataclasses.replace(base, vision=dataclasses.replace(base.vision, heads=7)), 1)
    with pytest.raises(ValueError, match=r"model\.image_size=65: a ResNet shrinks by 32"):
        equal_compute(dataclasses.replace(base, image_size=65), 1)
    with pytest.raises(ValueError, match=r"compute=nan: the smallest model"):
        equal_compute(base, float("nan"))
    with pytest.raises(ValueError, match=r"shares=.*add up to 1"):
        equal_compute(base, 1, [(1, 0, 0), (0.5, 0.5, 0.5)])
    with pytest.raises(ValueError, match=r"shares=.*two or more"):
        equal_compute(base, 1, [(1, 0, 0)])
    with pytest.raises(ValueError, match=r"tolerance=0: a share"):
        equal_compute(base, 1, tolerance=0)
