"""Image encoders of transformers, against transformers itself."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import save_tiny

from orchestrator.inference import ModelDirectoryError
from orchestrator.inference.image_encoder import ImageEncoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
VIT = {**SIZES, "image_size": 32, "patch_size": 8}


def picture(seed, size=(70, 50)):
    """Smooth, so that one pixel's rounding does not change the features much."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image):
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def save(folder, kind):
    """A tiny encoder of random weights with a preprocessing unlike CLIP's, and what its features should be."""
    import transformers as t

    torch.manual_seed(0)
    squeeze = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.4] * 3}
    processor = t.ViTImageProcessorPil(**squeeze)
    if kind == "clip":
        model = t.CLIPVisionModel(t.CLIPVisionConfig(**VIT, projection_dim=16))
        cut = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 3}
        processor = t.CLIPImageProcessorPil(**cut)
        expected = lambda x: model(pixel_values=x).pooler_output  # noqa: E731
    elif kind == "vit":
        model = t.ViTModel(t.ViTConfig(**VIT))
        expected = lambda x: model(pixel_values=x).pooler_output  # noqa: E731
    elif kind == "vit without pooling":
        model = t.ViTModel(t.ViTConfig(**VIT), add_pooling_layer=False)
        expected = lambda x: model(pixel_values=x).last_hidden_state[:, 0]  # noqa: E731
    elif kind == "vit classifier":
        model = t.ViTForImageClassification(t.ViTConfig(**VIT, num_labels=7))
        expected = lambda x: model.vit(pixel_values=x).last_hidden_state[:, 0]  # noqa: E731
    else:
        processor = t.ViTImageProcessorPil(**squeeze | {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3})
        config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
        classifier = kind == "resnet classifier"
        model = t.ResNetForImageClassification(config) if classifier else t.ResNetModel(config)
        inner = model.resnet if classifier else model
        expected = lambda x: inner(pixel_values=x).pooler_output.flatten(1)  # noqa: E731
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor, expected


KINDS = ["clip", "vit", "vit without pooling", "vit classifier", "resnet", "resnet classifier"]


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_those_of_transformers_on_its_own_preprocessing(tmp_path, kind):
    processor, expected = save(tmp_path, kind)
    images = [picture(0), picture(1, (48, 90)), picture(2, (33, 32))]
    with torch.no_grad():
        theirs = expected(processor(images, return_tensors="pt")["pixel_values"])
    encoder = ImageEncoder(str(tmp_path), batch_size=2)
    transform = pickle.loads(pickle.dumps(encoder.transform))
    pixels = np.stack([transform.evaluate(encoded(image)) for image in images])
    assert pixels.shape == (3, 3, 32, 32) and pixels.dtype == np.uint8
    embedding, feature = encoder.embed_images_with_features(pixels)
    torch.testing.assert_close(feature, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(embedding, theirs / theirs.norm(dim=1, keepdim=True), rtol=1e-4, atol=1e-4)


def test_the_fingerprint_is_of_weights_and_preprocessing(tmp_path):
    save(tmp_path, "vit")
    first = ImageEncoder(str(tmp_path)).fingerprint
    assert ImageEncoder(str(tmp_path)).fingerprint == first
    file = tmp_path / "preprocessor_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"resample": 3}))
    second = ImageEncoder(str(tmp_path)).fingerprint
    from transformers import ViTModel

    model = ViTModel.from_pretrained(tmp_path)
    with torch.no_grad():
        model.layernorm.bias += 1
    model.save_pretrained(tmp_path)
    assert len({first, second, ImageEncoder(str(tmp_path)).fingerprint}) == 3


def test_an_encoder_is_read_from_object_storage(tmp_path, s3):
    from orchestrator import storage

    save(tmp_path, "resnet")
    for file in tmp_path.iterdir():
        storage.write_bytes(s3.uri(f"encoder/{file.name}"), file.read_bytes())
    assert ImageEncoder(s3.uri("encoder")).fingerprint == ImageEncoder(str(tmp_path)).fingerprint


def without(name):
    return lambda folder: (folder / name).unlink()


def write_config(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({key: one for key, one in config.items() if one is not None}))

    return change


def drop_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.bias"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def keep_sizes(folder):
    file = folder / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_resize": False}))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (without("config.json"), "config.json: missing; --features wants a folder of an image encoder"),
        (without("preprocessor_config.json"), "preprocessor_config.json: missing; save the encoder's image processor"),
        (write_config(model_type=None), "names no model_type"),
        (write_config(pretrained_cfg={}), "a timm model, which is not read: timm comes with torchvision"),
        (write_config(model_type="nonsense"), "transformers cannot read this image encoder: .*nonsense"),
        (drop_weights, "1 tensors missing, such as layernorm.bias"),
        (keep_sizes, "does not make every picture the same square"),
    ],
)
def test_what_is_no_encoder_is_named(tmp_path, break_it, message):
    save(tmp_path, "vit")
    break_it(tmp_path)
    with pytest.raises(ModelDirectoryError, match=message):
        ImageEncoder(str(tmp_path))


def test_this_projects_own_models_are_sent_to_the_right_option(tmp_path):
    save_tiny(str(tmp_path))
    with pytest.raises(ModelDirectoryError, match="this project's own models are read by --model"):
        ImageEncoder(str(tmp_path))


def test_without_transformers_the_package_is_named(tmp_path):
    save(tmp_path, "resnet")
    code = "import sys; sys.modules['transformers'] = None\n"
    code += f"from orchestrator.inference.image_encoder import ImageEncoder\nImageEncoder({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "needs the package transformers (5.24 or later), which is not installed: pip install" in done.stderr
