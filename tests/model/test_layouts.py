"""Weights of other homes, against transformers' CLIPModel and a checkpoint laid out as OpenAI's."""

from __future__ import annotations

import pytest
import torch

from orchestrator.config import ModelConfig, TextConfig, VisionConfig
from orchestrator.model.clip import CLIP
from orchestrator.model.layouts import LayoutError, infer_config, recognise, to_hugging_face, to_native

SHAPES = {
    "wide text": ((64, 2, 8, 32), (192, 3, 16)),
    "deep image": ((128, 5, 16, 64), (64, 1, 12)),
    "uneven": ((192, 3, 7, 35), (128, 2, 20)),
}


def clip_config(shape: str) -> ModelConfig:
    (width, layers, patch, side), (text_width, text_layers, context) = SHAPES[shape]
    return ModelConfig(
        embed_dim=24,
        image_size=side,
        vision=VisionConfig("vit", [layers], width, patch, width // 64),
        text=TextConfig(text_layers, text_width, text_width // 64, context),
        vocab_size=99,
    )


def hugging_face_model(config: ModelConfig):
    from transformers import CLIPConfig, CLIPModel

    vision, text = config.vision, config.text
    return CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": 99, "hidden_size": text.width, "intermediate_size": 4 * text.width,
                "num_hidden_layers": text.layers, "num_attention_heads": text.heads,
                "max_position_embeddings": text.context_length, "hidden_act": "quick_gelu",
                "bos_token_id": 97, "eos_token_id": 98, "projection_dim": config.embed_dim,
            },
            vision_config={
                "hidden_size": vision.width, "intermediate_size": 4 * vision.width,
                "num_hidden_layers": vision.layers[0], "num_attention_heads": vision.heads,
                "image_size": config.image_size, "patch_size": vision.patch_size, "hidden_act": "quick_gelu",
                "projection_dim": config.embed_dim,
            },
            projection_dim=config.embed_dim,
        )
    ).eval()  # fmt: skip


def inputs(config: ModelConfig):
    tokens = torch.randint(1, 98, (4, config.text.context_length))
    for row, length in enumerate([3, 5, 9, 4]):
        tokens[row, length - 1] = 98
        tokens[row, length:] = 0
    return torch.randn(4, 3, config.image_size, config.image_size), tokens


def assert_same_answers(ours: CLIP, theirs, config: ModelConfig) -> None:
    image, tokens = inputs(config)
    with torch.no_grad():
        image_BD, text_BD, scale = ours(image, tokens)
        out = theirs(input_ids=tokens, pixel_values=image)
    torch.testing.assert_close(image_BD, out.image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(text_BD, out.text_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scale * image_BD @ text_BD.T, out.logits_per_image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_from_hugging_face(shape):
    torch.manual_seed(0)
    config = clip_config(shape)
    theirs = hugging_face_model(config)
    native = to_native(theirs.state_dict())
    assert infer_config(native) == config
    ours = CLIP(config).eval()
    ours.load_state_dict(native)
    assert_same_answers(ours, theirs, config)


@pytest.mark.parametrize("shape", SHAPES)
def test_to_hugging_face_and_back_is_equal_to_the_bit(shape):
    torch.manual_seed(1)
    config = clip_config(shape)
    ours = CLIP(config).eval()
    theirs = hugging_face_model(config)
    exported = to_hugging_face(ours.state_dict())
    theirs.load_state_dict(exported)
    assert_same_answers(ours, theirs, config)
    back = to_native(exported)
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())


def test_a_checkpoint_as_openai_lays_it_out():
    """The same names, and three sizes beside the weights."""
    torch.manual_seed(2)
    vision = VisionConfig("resnet", [1, 2, 3, 1], 8, heads=4)
    config = ModelConfig(embed_dim=24, image_size=96, vision=vision, text=TextConfig(2, 64, 1, 16), vocab_size=99)
    model = CLIP(config)
    archive = {**model.state_dict(), "input_resolution": torch.tensor(96), "context_length": torch.tensor(16)}
    native = to_native({**archive, "vocab_size": torch.tensor(99)})
    assert recognise(archive) == "native"
    assert native.keys() == model.state_dict().keys()
    inferred = infer_config(native)
    assert inferred.vision.patch_size == VisionConfig().patch_size  # no ResNet has one
    assert inferred == config


def test_what_is_not_clips_is_named():
    config = clip_config("wide text")
    tensors = to_hugging_face(CLIP(config).state_dict())
    with pytest.raises(LayoutError, match=r"2 tensors \(conv\.bias, conv\.weight \.\.\.\) are not CLIP's"):
        to_native({"conv.weight": torch.zeros(1), "conv.bias": torch.zeros(1)})
    with pytest.raises(
        LayoutError, match=r"1 tensors that CLIPModel does not have, such as vision_model\.head\.weight"
    ):
        to_native({**tensors, "vision_model.head.weight": torch.zeros(1)})
    del tensors["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(LayoutError, match=r"layers\.1\.self_attn\.q_proj\.bias: the key or value projection"):
        to_native(tensors)
    with pytest.raises(LayoutError, match="CLIPModel has no ResNet"):
        to_hugging_face({"visual.attnpool.positional_embedding": torch.zeros(1)})
