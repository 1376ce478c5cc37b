"""The model directory: the one hand-over between training and everything after it.

model.safetensors           weights and batch-norm statistics
config.json                 ModelConfig; written last, so a directory that has it is whole
tokenizer.json ...          the tokenizer
preprocessor_config.json    the image preprocessing, in Hugging Face's keys
README.md                   model card
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

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
    with _reading(uri, "config.json"):
        fields = json.loads(_read(uri, "config.json"))
        if fields.pop("format", None) != FORMAT:
            raise ValueError(f"not a {FORMAT} model directory")
        fields["vision"], fields["text"] = VisionConfig(**fields["vision"]), TextConfig(**fields["text"])
        with torch.device("meta"):
            model = CLIP(ModelConfig(**fields))
    with _reading(uri, "model.safetensors"):
        weights = load_safetensors(_read(uri, "model.safetensors"))
        _check_fit(model.state_dict(), weights)
        model.load_state_dict(weights, assign=True)
    with _reading(uri, "tokenizer.json"), tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "tokenizer.json").write_bytes(_read(uri, "tokenizer.json"))
        for name in ("tokenizer_config.json", "special_tokens_map.json"):
            if storage.exists(storage.join(uri, name)):
                (Path(scratch) / name).write_bytes(_read(uri, name))
        tokenizer = Tokenizer.load(scratch)
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ValueError(f"{tokenizer.vocab_size} tokens, {model.config.vocab_size} in the model")
    with _reading(uri, "preprocessor_config.json"):
        transform = ImageTransform.from_dict(json.loads(_read(uri, "preprocessor_config.json")))
    return ModelDirectory(model.eval(), tokenizer, transform)


@contextlib.contextmanager
def _reading(uri: str, name: str) -> Iterator[None]:
    """Whatever a broken file makes its reader raise, the user hears of the file."""
    try:
        yield
    except (ModelDirectoryError, storage.StorageError):
        raise
    except Exception as error:
        raise ModelDirectoryError(
            f"{storage.join(uri, name)}: {error}; the file is damaged or not this model's, copy the directory again"
        ) from error


def _check_fit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """torch's own message names every tensor, hundreds of them; this one counts them and names one."""
    missing, strange = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    unlike = [name for name in wanted.keys() & found.keys() if wanted[name].shape != found[name].shape]
    problems = [
        f"{len(names)} tensors {what}, such as {names[0]}"
        for what, names in (("missing", missing), ("too many", strange), ("of another shape", sorted(unlike)))
        if names
    ]
    if problems:
        raise ValueError("weights of another architecture than config.json's: " + "; ".join(problems))


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
