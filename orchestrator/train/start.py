"""A run that starts from another model's weights."""

from __future__ import annotations

import dataclasses

from orchestrator.config import ConfigError, ModelConfig
from orchestrator.inference import read_model
from orchestrator.model.clip import CLIP
from orchestrator.model.positions import resize_image_positions
from orchestrator.model.tokenizer import Tokenizer

# What a run may choose for itself: the resolution, and how the logit scale starts and is bounded.
_FREE = {"image_size", "init_temperature", "max_logit_scale", "vocab_size"}


def check_start(uri: str, config: ModelConfig) -> Tokenizer:
    """The tokenizer of the model to start from, once its sizes are found to be the configuration's.

    Raises
    ------
    ConfigError : another size; the message names it
    ModelDirectoryError, StorageError : the model cannot be read
    """
    start = read_model(uri)
    there, here = _flat(start.model.config), _flat(config)
    for key, value in here.items():
        if key not in _FREE and there[key] != value:
            raise ConfigError(f"model.{key}={value!r}: the model to start from (train.init={uri}) has {there[key]!r}")
    return start.tokenizer


def load_start(model: CLIP, uri: str) -> None:
    """Load another model's weights; its image tower's position embeddings are interpolated to this resolution."""
    weights = read_model(uri).model.state_dict()
    model.load_state_dict(resize_image_positions(weights, model.state_dict()))


def _flat(config: ModelConfig) -> dict[str, object]:
    fields = dataclasses.asdict(config)
    vision, text = fields.pop("vision"), fields.pop("text")
    if config.vision.kind == "resnet":
        del vision["patch_size"]
    fields |= {f"vision.{key}": value for key, value in vision.items()}
    return fields | {f"text.{key}": value for key, value in text.items()}
