"""The layouts in which CLIP's weights are published, and the way from one to another.

    native          visual.*, transformer.resblocks.*, ...   this project's, OpenAI's and open_clip's, both towers
    hugging_face    vision_model.*, text_model.*, ...        transformers' CLIPModel, Vision Transformers only

Everything here is a renaming, a transposition or a cut: what goes out and comes in again is equal to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from orchestrator.config import ModelConfig, TextConfig, VisionConfig
from orchestrator.errors import UserError

Layout = Literal["native", "hugging_face"]

# Not weights: sizes that OpenAI's archives carry, position numbers and masks of older versions of the others.
NOT_WEIGHTS = {
    "input_resolution",
    "context_length",
    "vocab_size",
    "attn_mask",
    "text_model.embeddings.position_ids",
    "vision_model.embeddings.position_ids",
}
# All published models have 64 channels a head; their weights do not say.
HEAD_WIDTH = 64

# hugging face -> native, outside the blocks; transposed where a projection is a matrix here and a layer there.
_OUTSIDE = {
    "logit_scale": "logit_scale",
    "visual_projection.weight": "visual.proj",
    "text_projection.weight": "text_projection",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
_TRANSPOSED = {"visual_projection.weight", "text_projection.weight"}
_TOWERS = {
    "vision_model.encoder.layers": "visual.transformer.resblocks",
    "text_model.encoder.layers": "transformer.resblocks",
}
_IN_BLOCK = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


# transformers' defaults of CLIPVisionConfig and CLIPTextConfig.
_VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu",
}  # fmt: skip
_TEXT_DEFAULTS = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "max_position_embeddings": 77, "vocab_size": 49408, "hidden_act": "quick_gelu",
}  # fmt: skip


class LayoutError(UserError, ValueError):
    """Weights that are not CLIP's, or not of one of its layouts; the message names the tensors."""


def recognise(names: Iterable[str]) -> Layout:
    """The layout of a state dict, by its tensors' names.

    Raises
    ------
    LayoutError : neither
    """
    present = set(names)
    if {"visual.conv1.weight", "token_embedding.weight", "text_projection"} <= present:
        return "native"
    if {"text_model.embeddings.token_embedding.weight", "visual_projection.weight"} <= present:
        return "hugging_face"
    shown = ", ".join(sorted(present)[:3]) or "none"
    raise LayoutError(
        f"{len(present)} tensors ({shown} ...) are not CLIP's: expected visual.* and transformer.* as OpenAI and "
        "open_clip write them, or vision_model.* and text_model.* as transformers' CLIPModel does"
    )


def to_native(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of any layout under this project's names; what is no weight is left out.

    Raises
    ------
    LayoutError : not CLIP's, or a tensor without its partners
    """
    kept = {name: tensor for name, tensor in tensors.items() if name not in NOT_WEIGHTS}
    if recognise(kept) == "native":
        return kept
    found: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, tensor in kept.items():
        if name in _OUTSIDE:
            found[_OUTSIDE[name]] = tensor.T if name in _TRANSPOSED else tensor
            continue
        there, _, rest = name.partition(".layers.")
        block, _, part = rest.partition(".")
        here, (module, _, kind) = _TOWERS.get(f"{there}.layers"), part.rpartition(".")
        if here is None or not block.isdigit() or (module not in _IN_BLOCK and not _is_qkv(module)):
            strange.append(name)
        elif module in _IN_BLOCK:
            found[f"{here}.{block}.{_IN_BLOCK[module]}.{kind}"] = tensor
        elif module == "self_attn.q_proj":
            parts = [kept.get(f"{there}.layers.{block}.self_attn.{x}_proj.{kind}") for x in "qkv"]
            if any(part is None for part in parts):
                raise LayoutError(f"{name}: the key or value projection that belongs to it is missing")
            found[f"{here}.{block}.attn.in_proj_{kind}"] = torch.cat([part for part in parts if part is not None])
    if strange:
        raise LayoutError(f"{len(strange)} tensors that CLIPModel does not have, such as {sorted(strange)[0]}")
    return found


def to_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of this project under the names of transformers' CLIPModel.

    Raises
    ------
    LayoutError : a ResNet, for which CLIPModel has no place
    """
    if "visual.proj" not in tensors:
        raise LayoutError("transformers' CLIPModel has no ResNet image tower; export open_clip's layout instead")
    found = {there: tensors[here].T if there in _TRANSPOSED else tensors[here] for there, here in _OUTSIDE.items()}
    names = {here: there for there, here in _IN_BLOCK.items()}
    for there, here in _TOWERS.items():
        for name, tensor in tensors.items():
            if not name.startswith(here + "."):
                continue
            block, _, part = name.removeprefix(here + ".").partition(".")
            if part.startswith("attn.in_proj_"):
                for x, third in zip("qkv", tensor.chunk(3), strict=True):
                    found[f"{there}.{block}.self_attn.{x}_proj.{part.removeprefix('attn.in_proj_')}"] = third
            else:
                module, _, kind = part.rpartition(".")
                found[f"{there}.{block}.{names[module]}.{kind}"] = tensor
    return {name: tensor.contiguous() for name, tensor in found.items()}


def _is_qkv(module: str) -> bool:
    return module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def infer_config(tensors: Mapping[str, Tensor]) -> ModelConfig:
    """The sizes that native weights were made with; heads are taken as 64 channels wide, as in all published models.

    Source: what `build_model` of the released code reads from the same shapes.
    """
    names = tensors.keys()

    def blocks(prefix: str) -> int:
        return len({name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)})

    if "visual.proj" in tensors:
        width, _, patch_size, _ = tensors["visual.conv1.weight"].shape
        side = math.isqrt(len(tensors["visual.positional_embedding"]) - 1) * patch_size
        vision = VisionConfig("vit", [blocks("visual.transformer.resblocks.")], width, patch_size, width // HEAD_WIDTH)
    else:
        width = tensors["visual.layer1.0.conv1.weight"].shape[0]
        side = math.isqrt(len(tensors["visual.attnpool.positional_embedding"]) - 1) * 32
        layers = [blocks(f"visual.layer{stage}.") for stage in (1, 2, 3, 4)]
        vision = VisionConfig("resnet", layers, width, heads=width * 32 // HEAD_WIDTH)
    vocab_size, text_width = tensors["token_embedding.weight"].shape
    text = TextConfig(
        blocks("transformer.resblocks."), text_width, text_width // HEAD_WIDTH, len(tensors["positional_embedding"])
    )
    return ModelConfig(
        embed_dim=tensors["text_projection"].shape[1], image_size=side, vision=vision, text=text, vocab_size=vocab_size
    )


def config_from_hugging_face(fields: Mapping[str, Any]) -> ModelConfig:
    """The ModelConfig of a CLIPModel's config.json.

    Raises
    ------
    LayoutError : something that the towers here do not have; the message names the key
    """
    # What a published file leaves out has transformers' default, which is ViT-B-32's value.
    vision = {**_VISION_DEFAULTS, **(fields.get("vision_config") or {})}
    text = {**_TEXT_DEFAULTS, **(fields.get("text_config") or {})}
    for name, tower in (("vision_config", vision), ("text_config", text)):
        if tower["intermediate_size"] != 4 * tower["hidden_size"]:
            raise LayoutError(f"{name}.intermediate_size={tower['intermediate_size']}: must be 4 * hidden_size")
        if tower["hidden_act"] not in ("quick_gelu", "gelu"):
            raise LayoutError(f"{name}.hidden_act={tower['hidden_act']!r}: must be quick_gelu or gelu")
    if vision["hidden_act"] != text["hidden_act"]:
        raise LayoutError(f"hidden_act: {vision['hidden_act']} for pictures, {text['hidden_act']} for text")
    return ModelConfig(
        embed_dim=fields.get("projection_dim", 512),
        image_size=vision["image_size"],
        activation=vision["hidden_act"],
        vision=VisionConfig(
            "vit",
            [vision["num_hidden_layers"]],
            vision["hidden_size"],
            vision["patch_size"],
            vision["num_attention_heads"],
        ),
        text=TextConfig(
            text["num_hidden_layers"], text["hidden_size"], text["num_attention_heads"], text["max_position_embeddings"]
        ),
        vocab_size=text["vocab_size"],
    )


def config_to_hugging_face(config: ModelConfig) -> dict[str, Any]:
    """A CLIPModel's config.json for a Vision Transformer's ModelConfig."""
    vision, text = config.vision, config.text
    shared = {"hidden_act": config.activation, "projection_dim": config.embed_dim, "layer_norm_eps": 1e-5}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": math.log(1 / config.init_temperature),
        "vision_config": {
            **shared,
            "model_type": "clip_vision_model",
            "hidden_size": vision.width,
            "intermediate_size": 4 * vision.width,
            "num_hidden_layers": vision.layers[0],
            "num_attention_heads": vision.heads,
            "image_size": config.image_size,
            "patch_size": vision.patch_size,
        },
        "text_config": {
            **shared,
            "model_type": "clip_text_model",
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.context_length,
            "vocab_size": config.vocab_size,
            "bos_token_id": config.vocab_size - 2,
            "eos_token_id": config.vocab_size - 1,
            "pad_token_id": config.vocab_size - 1,
        },
    }
