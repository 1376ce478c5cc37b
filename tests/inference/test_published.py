"""Models of other libraries in, and models for other libraries out; transformers is the judge."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CAPTIONS, save_tiny

from orchestrator import storage
from orchestrator.config import ModelConfig, TextConfig, VisionConfig
from orchestrator.inference import Embedder, ModelDirectoryError, export_model, read_model
from orchestrator.model.clip import CLIP
from orchestrator.model.layouts import LayoutError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def exported(tmp_path):
    save_tiny(str(tmp_path / "ours"), "vit")
    export_model(str(tmp_path / "ours"), str(tmp_path / "hugging_face"), "hugging_face")
    return tmp_path / "hugging_face"


def test_transformers_loads_what_is_exported_and_answers_the_same(exported):
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    theirs, processor = CLIPModel.from_pretrained(exported).eval(), CLIPProcessor.from_pretrained(exported)
    ours = Embedder(str(exported.parent / "ours"))
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    inputs = processor(text=CAPTIONS[:4], images=Image.fromarray(pixels), return_tensors="pt", padding=True)
    with torch.no_grad():
        out = theirs(**inputs)
    encoded = exported.parent / "picture.png"
    Image.fromarray(pixels).save(encoded)
    image_1D = ours.embed_images(ours.transform.evaluate(encoded.read_bytes())[None])
    text_ND = ours.embed_texts(CAPTIONS[:4])
    torch.testing.assert_close(text_ND, out.text_embeds, rtol=1e-5, atol=1e-5)
    # Their processor may round a resized pixel otherwise: one step of 255.
    torch.testing.assert_close(image_1D, out.image_embeds, rtol=0, atol=5e-3)


def test_what_transformers_saves_is_read(exported, tmp_path):
    """Written by transformers itself, as a published model is; through the export and back, equal to the bit."""
    from transformers import CLIPModel, CLIPProcessor

    published = tmp_path / "published"
    CLIPModel.from_pretrained(exported).save_pretrained(published)
    CLIPProcessor.from_pretrained(exported).save_pretrained(published)
    processor = published / "processor_config.json"
    if not (published / "preprocessor_config.json").exists():  # since transformers 5 inside the processor's
        fields = json.loads(processor.read_text())["image_processor"]
        (published / "preprocessor_config.json").write_text(json.dumps(fields))
    ours, read = read_model(str(tmp_path / "ours")), read_model(str(published))
    assert read.model.config == ours.model.config
    for name, tensor in ours.model.state_dict().items():
        assert torch.equal(read.model.state_dict()[name], tensor), name
    assert (read.tokenizer(CAPTIONS) == ours.tokenizer(CAPTIONS)).all()
    assert read.transform == ours.transform


def test_pickled_weights_are_read_without_running_them(exported):
    torch.save(load_file(exported / "model.safetensors"), exported / "pytorch_model.bin")
    expected = read_model(str(exported)).model.state_dict()
    (exported / "model.safetensors").unlink()
    found = read_model(str(exported)).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    class Trap:
        def __reduce__(self):
            return (Path.touch, (exported / "ran",))

    torch.save({"text_projection": Trap()}, exported / "pytorch_model.bin")
    with pytest.raises(ModelDirectoryError, match=r"pytorch_model\.bin: a more than weights, or damaged"):
        read_model(str(exported))
    assert not (exported / "ran").exists()


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_open_clips_layout_out_and_in_is_equal_to_the_bit(s3, kind):
    torch.manual_seed(0)
    vision = (
        VisionConfig("resnet", [1, 1, 2, 1], 16, heads=8) if kind == "resnet" else VisionConfig("vit", [2], 64, 8, 1)
    )
    saved = save_tiny(s3.uri("ours"), kind, vision)
    export_model(s3.uri("ours"), s3.uri("open_clip"), "open_clip")
    names = {uri.rsplit("/", 1)[-1] for uri in storage.list_dir(s3.uri("open_clip"))}
    assert {"open_clip_config.json", "open_clip_model.safetensors"} <= names and "config.json" not in names
    read = read_model(s3.uri("open_clip"))
    assert read.model.config.vision == saved.config.vision
    assert all(torch.equal(read.model.state_dict()[name], tensor) for name, tensor in saved.state_dict().items())


def test_a_state_dict_as_openai_published_it(tmp_path):
    """Half precision, sizes beside the weights, the released vocabulary."""
    config = ModelConfig(
        embed_dim=24,
        image_size=64,
        vision=VisionConfig("resnet", [1, 1, 1, 1], 8, heads=4),
        text=TextConfig(1, 64, 1, 77),
        vocab_size=49408,
    )
    weights = {name: t.half() if t.is_floating_point() else t for name, t in CLIP(config).state_dict().items()}
    torch.save({**weights, "input_resolution": torch.tensor(64)}, tmp_path / "RN.pt")
    read = read_model(str(tmp_path / "RN.pt"))
    assert read.model.config == config and read.model.config.activation == "quick_gelu"
    assert read.model.text_projection.dtype == torch.float32
    assert torch.equal(read.model.text_projection, weights["text_projection"].float())
    assert read.tokenizer(["a cat"], 8)[0, :4].tolist() == [49406, 320, 2368, 49407]


def test_bad_weights_are_named(exported):
    file = exported / "model.safetensors"
    good = load_file(file)
    without = {name: tensor for name, tensor in good.items() if name != "text_projection.weight"}
    save_file(without, file)
    with pytest.raises(ModelDirectoryError, match=r"model\.safetensors.*1 tensors missing, such as text_projection"):
        read_model(str(exported))
    save_file({**good, "text_projection.weight": good["text_projection.weight"].to(torch.int8)}, file)
    with pytest.raises(ModelDirectoryError, match=r"text_projection is torch\.int8, not floating point"):
        read_model(str(exported))
    save_file({**good, "text_projection.weight": torch.zeros(3, 3)}, file)
    with pytest.raises(ModelDirectoryError, match="1 tensors of another shape, such as text_projection"):
        read_model(str(exported))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelDirectoryError, match=r"model\.safetensors: .*the file is damaged"):
        read_model(str(exported))


def test_a_hub_model_without_a_network_is_a_plain_error(tmp_path):
    code = "from orchestrator.inference import read_model; read_model('hf://openai/clip-vit-base-patch32')"
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, env=environment)
    last = done.stderr.strip().splitlines()[-1]
    assert "StorageError: hf://openai/clip-vit-base-patch32: cannot be had from the Hugging Face hub" in last


def test_the_export_job_refuses_what_has_no_place(tmp_path):
    save_tiny(str(tmp_path / "resnet"))
    command = [sys.executable, "jobs/export.py", str(tmp_path / "resnet"), str(tmp_path / "out"), "--layout"]
    refused = subprocess.run([*command, "hugging_face"], capture_output=True, text=True, cwd=REPOSITORY)
    assert refused.returncode == 1 and refused.stderr.startswith("error: transformers' CLIPModel has no ResNet")
    assert not (tmp_path / "out").exists()
    with pytest.raises(LayoutError, match="is there already"):
        export_model(str(tmp_path / "resnet"), str(tmp_path), "open_clip")
