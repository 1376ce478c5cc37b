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
from safetensors.torch import save as save_safetensors
from torch import Tensor
from torch.overrides import TorchFunctionMode

from orchestrator import storage
from orchestrator.config import ModelConfig, TextConfig, VisionConfig
from orchestrator.data.images import ImageTransform
from orchestrator.errors import UserError
from orchestrator.inference.published import (
    STATE_DICT_ENDINGS,
    from_hub,
    is_open_clip,
    published_config,
    read_state_dict,
)
from orchestrator.model.clip import CLIP
from orchestrator.model.layouts import infer_config
from orchestrator.model.tokenizer import Tokenizer

FORMAT = "clip-on-ray-1"
WEIGHTS = "model.safetensors"


class ModelDirectoryError(UserError, ValueError):
    """A directory that is not, or not wholly, a model; the message names the file and the cure."""


def save_model(uri: str, model: CLIP, tokenizer: Tokenizer, transform: ImageTransform, card: str) -> None:
    """Write a model directory.

    Parameters
    ----------
    uri : the directory, on a disk or in object storage
    model, tokenizer, transform : what it holds; weights are written in fp32
    card : text of README.md
    """
    weights = {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    storage.write_bytes(storage.join(uri, WEIGHTS), save_safetensors(weights, {"format": "pt"}))
    write_preprocessing(uri, tokenizer, transform)
    storage.write_bytes(storage.join(uri, "README.md"), card.encode())
    write_json(storage.join(uri, "config.json"), {"format": FORMAT, **dataclasses.asdict(model.config)})


def write_preprocessing(uri: str, tokenizer: Tokenizer, transform: ImageTransform) -> None:
    """Write the tokenizer's and the image preprocessing's files into a directory."""
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(scratch)
        for file in sorted(Path(scratch).iterdir()):
            storage.write_bytes(storage.join(uri, file.name), file.read_bytes())
    write_json(storage.join(uri, "preprocessor_config.json"), transform.to_dict())


@dataclasses.dataclass
class ModelDirectory:
    """What a model directory holds."""

    model: CLIP
    tokenizer: Tokenizer
    transform: ImageTransform


def read_model(uri: str) -> ModelDirectory:
    """Read a model; needs nothing but what the URI names.

    Parameters
    ----------
    uri : a model directory, on a disk or in object storage; or one published by others, as
        `orchestrator.inference.published` lists them, there or on the Hugging Face hub (hf://owner/name)

    Raises
    ------
    ModelDirectoryError : a file is missing or its content does not belong to the model
    StorageError : it cannot be reached
    """
    if uri.startswith("hf://"):
        uri = from_hub(uri)
    if uri.endswith(STATE_DICT_ENDINGS):
        with _reading(uri, ""):
            weights = read_state_dict(uri)
            config = infer_config(weights)
            model = _assemble(config, weights)
    else:
        with _reading(uri, "config.json"):
            config, weights_name = _read_config(uri)
        with _reading(uri, weights_name):
            weights = read_state_dict(storage.join(uri, weights_name))
            model = _assemble(config, weights)
    with _reading(uri, "tokenizer.json"):
        tokenizer = _read_tokenizer(uri, config)
    with _reading(uri, "preprocessor_config.json"):
        transform = _read_transform(uri, config)
    return ModelDirectory(model.eval(), tokenizer, transform)


def _read_config(uri: str) -> tuple[ModelConfig, str]:
    """The configuration and the name of the weights' file."""
    fields: dict[str, Any] | None = None
    if not is_open_clip(uri) or storage.exists(storage.join(uri, "config.json")):
        fields = json.loads(_read(uri, "config.json"))
        if fields.pop("format", None) == FORMAT:
            fields["vision"], fields["text"] = VisionConfig(**fields["vision"]), TextConfig(**fields["text"])
            return ModelConfig(**fields), WEIGHTS
    published = published_config(uri, fields)
    if published is None:
        raise ValueError(f"not a {FORMAT} model directory, nor one of a CLIPModel or of open_clip")
    return published


class _Uninitialised(TorchFunctionMode):
    """Leaves out what fills new weights at random: on the meta device it fills nothing, and loads torch's compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def _assemble(config: ModelConfig, weights: dict[str, Tensor]) -> CLIP:
    with torch.device("meta"), _Uninitialised():
        model = CLIP(config)
    _check_fit(model.state_dict(), weights)
    model.load_state_dict(weights, assign=True)
    return model


def _read_tokenizer(uri: str, config: ModelConfig) -> Tokenizer:
    """The model's own; a published one without tokenizer.json has the released vocabulary."""
    if uri.endswith(STATE_DICT_ENDINGS) or (is_open_clip(uri) and not storage.exists(f"{uri}/tokenizer.json")):
        tokenizer = Tokenizer.clip(config.text.context_length)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            (Path(scratch) / "tokenizer.json").write_bytes(_read(uri, "tokenizer.json"))
            for name in ("tokenizer_config.json", "special_tokens_map.json"):
                if storage.exists(storage.join(uri, name)):
                    (Path(scratch) / name).write_bytes(_read(uri, name))
            tokenizer = Tokenizer.load(scratch)
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"{tokenizer.vocab_size} tokens, {config.vocab_size} in the model")
    return tokenizer


def _read_transform(uri: str, config: ModelConfig) -> ImageTransform:
    name = "preprocessor_config.json"
    if uri.endswith(STATE_DICT_ENDINGS) or (is_open_clip(uri) and not storage.exists(storage.join(uri, name))):
        return ImageTransform(config.image_size)
    transform = ImageTransform.from_dict(json.loads(_read(uri, name)))
    if transform.image_size != config.image_size:
        raise ValueError(f"pictures of {transform.image_size} pixels, {config.image_size} in the model")
    return transform


@contextlib.contextmanager
def _reading(uri: str, name: str) -> Iterator[None]:
    """Whatever a missing or broken file makes its reader raise, the user hears of the file."""
    file = storage.join(uri, name) if name else uri
    try:
        yield
    except storage.MissingObject:
        raise ModelDirectoryError(
            f"{file}: missing; {uri} is not a whole model directory (a finished run's is <run>/final)"
        ) from None
    except storage.StorageError:
        raise
    except Exception as error:
        raise ModelDirectoryError(f"{file}: {error}; the file is damaged or not this model's, copy it again") from error


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
    return storage.read_bytes(storage.join(uri, name))


def write_json(uri: str, value: dict[str, Any]) -> None:
    """Write an object as indented JSON, whole or not at all."""
    storage.write_bytes(uri, (json.dumps(value, indent=2) + "\n").encode())
