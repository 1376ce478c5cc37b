"""A model small enough to build in every test."""

from __future__ import annotations

import torch

from orchestrator.config import ModelConfig, TextConfig, VisionConfig
from orchestrator.data.images import ImageTransform
from orchestrator.inference import save_model
from orchestrator.model.clip import CLIP
from orchestrator.model.tokenizer import Tokenizer

CAPTIONS = ["a red circle", "a blue square", "a green cross", "a picture of a yellow circle"] * 4


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 530)


def tiny_model(vocab_size: int, kind: str = "resnet", vision: VisionConfig | None = None, seed: int = 0) -> CLIP:
    torch.manual_seed(seed)
    if vision is None:
        resnet = kind == "resnet"
        vision = VisionConfig("resnet", [1, 1, 1, 1], 16, heads=8) if resnet else VisionConfig("vit", [2], 32, 8, 2)
    return CLIP(
        ModelConfig(embed_dim=32, image_size=32, vision=vision, text=TextConfig(1, 32, 2, 16), vocab_size=vocab_size)
    )


def save_tiny(uri: str, kind: str = "resnet", vision: VisionConfig | None = None, seed: int = 0) -> CLIP:
    """Write a model directory of random weights and return what went into it."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer.vocab_size, kind, vision, seed)
    # Batch statistics unlike the initial ones, so that losing them would show.
    model.train()
    with torch.no_grad():
        model.encode_image(torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    save_model(uri, model, tokenizer, ImageTransform(32), "a card\n")
    return model.eval()
