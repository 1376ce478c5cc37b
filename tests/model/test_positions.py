"""A tower at another resolution, against transformers' own interpolation."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import tiny_model

from orchestrator.model.clip import CLIP
from orchestrator.model.layouts import config_to_hugging_face, to_hugging_face
from orchestrator.model.positions import resize_image_positions


def at_size(model: CLIP, side: int) -> CLIP:
    other = CLIP(dataclasses.replace(model.config, image_size=side)).eval()
    other.load_state_dict(resize_image_positions(model.state_dict(), other.state_dict()))
    return other


def test_a_larger_picture_is_seen_as_transformers_sees_it():
    from transformers import CLIPConfig, CLIPModel

    model = tiny_model(600, "vit").eval()
    fields = config_to_hugging_face(model.config)
    theirs = CLIPModel(CLIPConfig(**fields)).eval()
    theirs.load_state_dict(to_hugging_face(model.state_dict()))
    image = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        ours = at_size(model, 56).visual(image)
        out = theirs.vision_model(pixel_values=image, interpolate_pos_encoding=True)
        expected = theirs.visual_projection(out.pooler_output)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_same_size_changes_nothing_and_every_size_runs(kind):
    model = tiny_model(600, kind).eval()
    same = resize_image_positions(model.state_dict(), model.state_dict())
    assert all(torch.equal(same[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert at_size(model, 96).encode_image(torch.randn(1, 3, 96, 96)).shape == (1, 32)


def test_a_grid_that_shrinks_keeps_its_mean():
    """Without antialiasing, most of the old positions would be left out."""
    model = tiny_model(600, "vit")
    larger = at_size(model, 128)
    noise = torch.randn(257, 32)
    larger.visual.positional_embedding.data.copy_(noise)
    small = at_size(larger, 32).visual.positional_embedding
    assert torch.equal(small[0], noise[0])
    torch.testing.assert_close(small[1:].mean(0), noise[1:].mean(0), rtol=0, atol=0.05)
