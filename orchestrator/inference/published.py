"""Models published by others, as a configuration and this project's weights.

    Hugging Face    config.json (model_type clip), model.safetensors or pytorch_model.bin
    open_clip       open_clip_config.json, open_clip_model.safetensors or open_clip_pytorch_model.bin
    a state dict    one file, .safetensors, .pt, .pth or .bin, as OpenAI or open_clip name its tensors

Pickled files are read with torch's `weights_only`, which runs nothing that they hold.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from orchestrator import storage
from orchestrator.config import ModelConfig, TextConfig, VisionConfig
from orchestrator.model.layouts import HEAD_WIDTH, LayoutError, config_from_hugging_face, to_native

STATE_DICT_ENDINGS = (".safetensors", ".pt", ".pth", ".bin")
HUGGING_FACE_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def from_hub(uri: str) -> str:
    """The local folder of a model on the Hugging Face hub, `hf://owner/name`, downloaded if need be.

    Raises
    ------
    StorageError : no such model, or no network and no copy in the hub's cache
    """
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(
            uri.removeprefix("hf://"), allow_patterns=["*.json", "*.safetensors", "*.txt", "*model.bin"]
        )
    except Exception as error:  # The hub's client raises its own, httpx's and the socket's errors.
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise storage.StorageError(
            f"{uri}: cannot be had from the Hugging Face hub ({first_line}); check the name and the network, or "
            "download the model elsewhere and name its folder"
        ) from None


def read_state_dict(uri: str) -> dict[str, Tensor]:
    """The tensors of a weights file under this project's names, in float32.

    Raises
    ------
    LayoutError : it is damaged, or not CLIP's
    StorageError : it cannot be read
    """
    data = storage.read_bytes(uri)
    try:
        if uri.endswith(".safetensors"):
            tensors: Any = load_safetensors(data)
        else:
            tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        reason = "TorchScript archive" if "TorchScript" in str(error) else "more than weights, or damaged"
        raise LayoutError(f"a {reason}; save its state_dict() with safetensors or torch.save, and read that") from error
    # open_clip's training checkpoints keep the weights beside the optimiser's, saved through a wrapper.
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise LayoutError("holds no state dict")
    native = to_native({name.removeprefix("module."): tensor for name, tensor in tensors.items()})
    for name, tensor in native.items():
        if not tensor.is_floating_point() and not name.endswith("num_batches_tracked"):
            raise LayoutError(f"{name} is {tensor.dtype}, not floating point; quantised weights are not read")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in native.items()}


def config_from_open_clip(fields: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of an open_clip_config.json.

    Raises
    ------
    LayoutError : a tower that is not CLIP's; the message names the key
    """
    model = fields["model_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
    for key in ("timm_model_name", "hf_model_name"):
        if key in vision or key in text:
            raise LayoutError(f"{key}: a tower of another library; only CLIP's own are read")
    layers, width = vision["layers"], vision["width"]
    head_width = vision.get("head_width", HEAD_WIDTH)
    if isinstance(layers, list):
        tower = VisionConfig("resnet", layers, width, heads=width * 32 // head_width)
    else:
        tower = VisionConfig("vit", [layers], width, vision["patch_size"], width // head_width)
    return ModelConfig(
        embed_dim=model["embed_dim"],
        image_size=vision["image_size"],
        activation="quick_gelu" if model.get("quick_gelu") else "gelu",
        vision=tower,
        text=TextConfig(text["layers"], text["width"], text["heads"], text["context_length"]),
        vocab_size=text["vocab_size"],
    )


def published_config(uri: str, config_json: Mapping[str, Any] | None) -> tuple[ModelConfig, str] | None:
    """A published folder's configuration and the name of its weights' file; None: not a published folder.

    Parameters
    ----------
    uri : the folder
    config_json : content of its config.json, where it has one

    Raises
    ------
    LayoutError, StorageError
    """
    if config_json is not None and config_json.get("model_type") == "clip":
        config, names = config_from_hugging_face(config_json), HUGGING_FACE_WEIGHTS
    elif is_open_clip(uri):
        config = config_from_open_clip(json.loads(storage.read_bytes(storage.join(uri, OPEN_CLIP_CONFIG))))
        names = OPEN_CLIP_WEIGHTS
    else:
        return None
    return config, next((name for name in names if storage.exists(storage.join(uri, name))), names[0])


def is_open_clip(uri: str) -> bool:
    """Whether a folder is laid out as open_clip publishes its models."""
    return storage.exists(storage.join(uri, OPEN_CLIP_CONFIG))
