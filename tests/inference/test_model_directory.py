"""A model directory: read back whole, or refused with the file's name."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import save_tiny, tiny_model, tiny_tokenizer

from orchestrator import storage
from orchestrator.data.images import ImageTransform
from orchestrator.inference import Embedder, ModelDirectoryError, read_model, save_model
from orchestrator.inference.export import export_model
from orchestrator.model.clip import CLIP
from orchestrator.model.layouts import LayoutError


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_what_is_read_is_what_was_saved(tmp_path, kind):
    saved = save_tiny(str(tmp_path / "m"), kind)
    read = read_model(str(tmp_path / "m"))
    assert read.model.config == saved.config
    assert not read.model.training
    expected, found = saved.state_dict(), read.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_it_goes_through_object_storage(s3):
    saved = save_tiny(s3.uri("models", "m"))
    embedder = Embedder(s3.uri("models", "m"))
    assert torch.equal(embedder.model.text_projection, saved.text_projection)
    assert embedder.logit_scale == pytest.approx(1 / 0.07, rel=1e-5)


def test_no_file_of_it_is_a_pickle(tmp_path):
    save_tiny(str(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json", "README.md"} <= {*names}
    for name in names:
        if name != "model.safetensors":
            (tmp_path / name).read_text(encoding="utf-8")


def test_loading_needs_nothing_but_the_directory_and_neither_ray_nor_torchs_compiler(tmp_path):
    save_tiny(str(tmp_path / "m"))
    code = (
        "import sys\n"
        "from orchestrator.inference import Embedder\n"
        f"print(Embedder({str(tmp_path / 'm')!r}).embed_texts(['a red circle']).shape)\n"
        "assert 'ray' not in sys.modules, 'Ray was imported'\n"
        "assert 'torch._dynamo' not in sys.modules, 'the compiler, which takes seconds, was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "torch.Size([1, 32])" in done.stdout, done.stderr


def test_embeddings_do_not_depend_on_the_batch_size(tmp_path):
    save_tiny(str(tmp_path))
    images = np.random.default_rng(0).integers(0, 255, (7, 3, 32, 32), dtype=np.uint8)
    texts = ["a red circle", "a blue", "a picture of a yellow circle, and another"]
    whole, parts = Embedder(str(tmp_path)), Embedder(str(tmp_path), batch_size=2)
    torch.testing.assert_close(whole.embed_images(images), parts.embed_images(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(whole.embed_texts(texts), parts.embed_texts(texts), rtol=0, atol=1e-5)
    assert whole.embed_images(images).norm(dim=-1) == pytest.approx([1.0] * 7, abs=1e-5)
    assert whole.embed_images(images[:0]).shape == (0, 32)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_missing_file_is_named(tmp_path, name):
    save_tiny(str(tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(ModelDirectoryError, match=name):
        read_model(str(tmp_path))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"])
def test_a_truncated_file_is_named(tmp_path, name):
    save_tiny(str(tmp_path))
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelDirectoryError, match=name):
        read_model(str(tmp_path))


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_tiny(str(tmp_path / "resnet"))
    save_tiny(str(tmp_path / "vit"), "vit")
    weights = (tmp_path / "vit" / "model.safetensors").read_bytes()
    (tmp_path / "resnet" / "model.safetensors").write_bytes(weights)
    with pytest.raises(ModelDirectoryError, match=r"model\.safetensors.*visual"):
        read_model(str(tmp_path / "resnet"))


def test_an_unknown_field_or_format_is_refused(tmp_path):
    save_tiny(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "surprise": 1}))
    with pytest.raises(ModelDirectoryError, match="surprise"):
        read_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**config, "format": "other"}))
    with pytest.raises(ModelDirectoryError, match="not a clip-on-ray-1 model directory"):
        read_model(str(tmp_path))


def test_an_interrupted_write_leaves_no_directory_that_reads(tmp_path, monkeypatch):
    write = storage.write_bytes

    def full_disk(uri: str, data: bytes) -> None:
        if uri.endswith("preprocessor_config.json"):
            raise OSError(28, "No space left on device", uri)
        write(uri, data)

    monkeypatch.setattr(storage, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_tiny(str(tmp_path / "m"))
    with pytest.raises(ModelDirectoryError, match=r"config\.json: missing"):
        read_model(str(tmp_path / "m"))


def test_a_sigmoid_model_keeps_its_bias_and_is_not_exported_as_what_it_is_not(tmp_path):
    tokenizer = tiny_tokenizer()
    config = dataclasses.replace(tiny_model(tokenizer.vocab_size).config, objective="sigmoid", init_logit_bias=-7.0)
    model = CLIP(config)
    save_model(str(tmp_path / "model"), model, tokenizer, ImageTransform(32), "a card\n")
    read = read_model(str(tmp_path / "model")).model
    assert read.config.objective == "sigmoid" and float(read.logit_bias) == -7.0
    for layout in ("hugging_face", "open_clip"):
        with pytest.raises(LayoutError, match=r"model\.objective='sigmoid'"):
            export_model(str(tmp_path / "model"), str(tmp_path / layout), layout)
        assert not (tmp_path / layout).exists()
