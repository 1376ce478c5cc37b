"""The model directory: the one hand-over between training and everything after it.

model.safetensors           weights and batch-norm statistics
config.json                 ModelConfig; written last, so a directory that has it is whole
tokenizer.json ...          the tokenizer
preprocessor_config.json    the image preprocessing, in Hugging Face's keys
README.md                   model card
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from orchestrator import storage
from orchestrator.config import ModelConfig, TextConfig, VisionConfig
from orchestrator.data.images import ImageTransform
from orchestrator.model.clip import CLIP
from orchestrator.model.tokenizer import Tokenizer

FORMAT = "clip-on-ray-1"


class ModelDirectoryError(ValueError):
    """A directory that is not, or not wholly, a model; the message names the file and the cure."""


def save_model(uri: str, model: CLIP, tokenizer: Tokenizer, transform: ImageTransform, card: str) -> None:
    """Write a model directory.

    Parameters
    ----------
    uri : the directory, on a disk or in object storage
    model, tokenizer, transform : what it holds
    card : text of README.md
    """
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    storage.write_bytes(storage.join(uri, "model.safetensors"), save_safetensors(weights, {"format": "pt"}))
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(scratch)
        for file in sorted(Path(scratch).iterdir()):
            storage.write_bytes(storage.join(uri, file.name), file.read_bytes())
    _write_json(storage.join(uri, "preprocessor_config.json"), transform.to_dict())
    storage.write_bytes(storage.join(uri, "README.md"), card.encode())
    _write_json(storage.join(uri, "config.json"), {"format": FORMAT, **dataclasses.asdict(model.config)})


@dataclasses.dataclass
class ModelDirectory:
    """What a model directory holds."""

    model: CLIP
    tokenizer: Tokenizer
    transform: ImageTransform


def read_model(uri: str) -> ModelDirectory:
    """Read a model directory; needs nothing but the directory.

    Raises
    ------
    ModelDirectoryError : a file is missing or its content does not belong to the model
    """
    fields = json.loads(_read(uri, "config.json"))
    if fields.pop("format", None) != FORMAT:
        raise ModelDirectoryError(f"{storage.join(uri, 'config.json')}: not a {FORMAT} model directory")
    fields["vision"], fields["text"] = VisionConfig(**fields["vision"]), TextConfig(**fields["text"])
    with torch.device("meta"):
        model = CLIP(ModelConfig(**fields))
    try:
        weights = load_safetensors(_read(uri, "model.safetensors"))
        model.load_state_dict(weights, assign=True)
    except ModelDirectoryError:
        raise
    except Exception as error:
        # safetensors raises a class of its own for truncated files, torch a RuntimeError for wrong tensors.
        raise ModelDirectoryError(f"{storage.join(uri, 'model.safetensors')}: {error}") from error
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            if storage.exists(storage.join(uri, name)):
                (Path(scratch) / name).write_bytes(_read(uri, name))
        tokenizer = Tokenizer.load(scratch)
    transform = ImageTransform.from_dict(json.loads(_read(uri, "preprocessor_config.json")))
    return ModelDirectory(model.eval(), tokenizer, transform)


def _read(uri: str, name: str) -> bytes:
    try:
        return storage.read_bytes(storage.join(uri, name))
    except storage.MissingObject:
        raise ModelDirectoryError(
            f"{storage.join(uri, name)}: missing; {uri} is not a whole model directory "
            "(a finished run's is <run>/final)"
        ) from None


def _write_json(uri: str, value: dict[str, Any]) -> None:
    storage.write_bytes(uri, (json.dumps(value, indent=2) + "\n").encode())
