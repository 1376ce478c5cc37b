"""A model directory in the layouts that other libraries load as they are."""

from __future__ import annotations

from typing import Any, Literal

from safetensors.torch import save as save_safetensors

from orchestrator import storage
from orchestrator.config import ModelConfig
from orchestrator.inference.model_directory import ModelDirectory, read_model, write_json, write_preprocessing
from orchestrator.inference.published import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS
from orchestrator.model.layouts import HEAD_WIDTH, LayoutError, config_to_hugging_face, to_hugging_face

Target = Literal["hugging_face", "open_clip"]


def export_model(source: str, destination: str, layout: Target) -> None:
    """Write a model for another library.

    Parameters
    ----------
    source : anything that `read_model` reads
    destination : a folder that is not there yet, on a disk or in object storage
    layout : hugging_face (transformers' CLIPModel and CLIPProcessor; Vision Transformers only) or open_clip

    Raises
    ------
    LayoutError : the layout has no place for this model
    ModelDirectoryError, StorageError
    """
    if storage.exists(destination):
        raise LayoutError(f"{destination}: is there already; name another folder")
    model = read_model(source)
    if model.model.config.objective == "sigmoid":
        raise LayoutError(
            "model.objective='sigmoid': CLIP's layouts have no place for its bias; use the directory as it is"
        )
    if layout == "hugging_face":
        weights, name = to_hugging_face(model.model.state_dict()), "model.safetensors"
        config_name, config = "config.json", config_to_hugging_face(model.model.config)
    else:
        weights, name = dict(model.model.state_dict()), OPEN_CLIP_WEIGHTS[0]
        config_name, config = OPEN_CLIP_CONFIG, config_to_open_clip(model)
    storage.write_bytes(storage.join(destination, name), save_safetensors(weights, {"format": "pt"}))
    write_preprocessing(destination, model.tokenizer, model.transform)
    # Last, so that a folder that has it is whole.
    write_json(storage.join(destination, config_name), config)


def config_to_open_clip(model: ModelDirectory) -> dict[str, Any]:
    """The open_clip_config.json of a model.

    Raises
    ------
    LayoutError : heads of another width than 64, which open_clip's ResNets cannot have
    """
    config: ModelConfig = model.model.config
    vision, text = config.vision, config.text
    tower: dict[str, Any] = {"image_size": config.image_size, "width": vision.width}
    if vision.kind == "vit":
        head_width = vision.width // vision.heads
        tower |= {"layers": vision.layers[0], "patch_size": vision.patch_size, "head_width": head_width}
    else:
        head_width = vision.width * 32 // vision.heads
        tower |= {"layers": vision.layers, "head_width": head_width}
        if head_width != HEAD_WIDTH:
            raise LayoutError(
                f"model.vision.heads={vision.heads}: open_clip's ResNets have {HEAD_WIDTH} channels a head"
            )
    return {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "quick_gelu": config.activation == "quick_gelu",
            "vision_cfg": tower,
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": config.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
            },
        },
        "preprocess_cfg": {"mean": list(model.transform.mean), "std": list(model.transform.std)},
    }
