"""Another library's image encoder, without words, on the work of this project's models.

A folder as transformers saves it: config.json, safetensors, preprocessor_config.json. transformers is imported only
when such a folder is read; it is no dependency of this project.

Shapes: N pictures, R image side, F features.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator import storage
from orchestrator.data.images import decode_rgb
from orchestrator.inference.model_directory import ModelDirectoryError
from orchestrator.inference.published import from_hub
from orchestrator.model.pixels import normalize_pixels

CONFIG = "config.json"
# Where transformers keeps the preprocessing; since its version 5 also inside the processor's file.
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")
# Between the encoder's own preprocessing and the same in steps, in units of normalised pixels.
SAME = 1e-3


@dataclass(frozen=True)
class EncoderTransform:
    """The encoder's own preprocessing up to whole numbers; they are scaled and normalised on the device.

    Parameters
    ----------
    processor : transformers' image processor
    image_size : R
    mean, std : of each colour, on the scale 0 to 1
    """

    processor: Any
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def evaluate(self, data: bytes) -> np.ndarray:
        """An encoded picture -> uint8 (3, R, R).

        Raises
        ------
        ImageError
        """
        return self.pixels(decode_rgb(data))

    def pixels(self, image: Image.Image) -> np.ndarray:
        """A picture -> uint8 (3, R, R)."""
        return self.processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]


class ImageEncoder:
    """An image encoder of transformers, ready to embed; the features are what its own classifier would read.

    Of a model saved with a classifier, these are the inputs of that classifier's last layer; of others the pooled
    output, or, where the weights for pooling are not in the folder, the class token or else the mean of the tokens.

    Parameters
    ----------
    uri : the folder, on a disk or in object storage, or hf://owner/name
    device : torch device
    batch_size : pictures in one forward pass

    Raises
    ------
    ModelDirectoryError : transformers is not installed, or the folder is not such an encoder
    StorageError : it cannot be reached
    """

    def __init__(self, uri: str, device: str | torch.device = "cpu", batch_size: int = 256):
        self.uri, self.device, self.batch_size = uri, torch.device(device), batch_size
        with _local(uri) as folder:
            config = _config(uri, folder)
            transformers = _transformers(uri)
            try:
                self.transform = _transform(transformers, folder)
                self.model, self._kind, self._head = _model(transformers, folder, config)
            except Exception as error:  # transformers raises whatever a file's content broke.
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ModelDirectoryError(f"{uri}: transformers cannot read this image encoder: {reason}") from error
        self._config: Any = self.model.config
        self.model.eval().to(self.device)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name what the encoder computes: its configuration, weights and preprocessing."""
        # Neither where the folder lies nor who wrote it changes what it computes.
        elsewhere = {"_name_or_path", "transformers_version"}
        about = [
            {key: value for key, value in one.to_dict().items() if key not in elsewhere}
            for one in (self._config, self.transform.processor)
        ]
        content = hashlib.sha256(json.dumps([self._kind, about], sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            content.update(name.encode())
            content.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return content.hexdigest()[:16]

    @torch.inference_mode()
    def embed_images_with_features(self, image_N3RR: np.ndarray) -> tuple[Tensor, Tensor]:
        """Of at least one picture, uint8 (N, 3, R, R): features (N, F) at unit length, and as they are."""
        parts = []
        for start in range(0, len(image_N3RR), self.batch_size):
            image = torch.from_numpy(np.ascontiguousarray(image_N3RR[start : start + self.batch_size])).to(self.device)
            parts.append(self._features(normalize_pixels(image, self.transform.mean, self.transform.std)).float().cpu())
        feature_NF = torch.cat(parts)
        return F.normalize(feature_NF, dim=-1), feature_NF

    def _features(self, pixels: Tensor) -> Tensor:
        if self._head is not None:
            seen: list[Tensor] = []
            hook = self._head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
            with hook:
                self.model(pixel_values=pixels)
            return seen[-1].flatten(1)
        out = self.model(pixel_values=pixels)
        if self._kind == "pooled":
            return out.pooler_output.flatten(1)
        last = out.last_hidden_state
        if last.ndim == 4:
            return last.mean(dim=(2, 3))
        return last[:, 0] if self._kind == "class token" else last.mean(dim=1)


@contextlib.contextmanager
def _local(uri: str) -> Iterator[Path]:
    """The folder on this machine's disk: transformers opens no other."""
    if uri.startswith("hf://"):
        uri = from_hub(uri)
    scheme, path = storage.split(uri)
    if scheme == "file":
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as scratch:
        for file in storage.list_dir(uri):
            if file.endswith((".json", ".safetensors")):
                (Path(scratch) / file.rsplit("/", 1)[-1]).write_bytes(storage.read_bytes(file))
        yield Path(scratch)


def _config(uri: str, folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        raise ModelDirectoryError(f"{uri}/{CONFIG}: missing; --features wants a folder of an image encoder")
    try:
        config = json.loads((folder / CONFIG).read_text())
    except ValueError as error:
        raise ModelDirectoryError(f"{uri}/{CONFIG}: not JSON: {error}") from None
    if "pretrained_cfg" in config:
        raise ModelDirectoryError(
            f"{uri}: a timm model, which is not read: timm comes with torchvision and this project without it. Save it "
            "as one of transformers' own models"
        )
    if "model_type" not in config:
        raise ModelDirectoryError(
            f"{uri}/{CONFIG}: names no model_type: not an encoder that transformers saved (this project's own models "
            "are read by --model)"
        )
    if not any((folder / name).exists() for name in PREPROCESSING):
        raise ModelDirectoryError(
            f"{uri}/{PREPROCESSING[0]}: missing; save the encoder's image processor into the folder, too"
        )
    return config


def _transformers(uri: str) -> Any:
    try:
        import transformers
    except ImportError:
        raise ModelDirectoryError(
            f"{uri}: reading it needs the package transformers (5.24 or later), which is not installed: pip install "
            "'transformers>=5.24,<6'; on a cluster, on all nodes"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


def _transform(transformers: Any, folder: Path) -> EncoderTransform:
    # The other backend needs torchvision; where it is there, its resize would give other pixels.
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", local_files_only=True)
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ((0.0,) * 3, (1.0,) * 3)
    # (x factor - mean) / std, of pixels that are divided by 255 instead.
    mean, std = (tuple(float(one) / (255 * factor) for one in ends) for ends in (mean, std))
    rng = np.random.default_rng(0)
    shapes = []
    for height, width in ((90, 120), (150, 80)):
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        pixels = EncoderTransform(processor, 0, mean, std).pixels(image)
        whole = processor(image, return_tensors="pt")["pixel_values"]
        steps = normalize_pixels(torch.from_numpy(pixels)[None], mean, std)
        if pixels.dtype != np.uint8 or whole.shape != steps.shape or float((whole - steps).abs().max()) > SAME:
            raise ValueError(
                f"{type(processor).__name__} does more than to resize, cut out, scale and normalise pictures"
            )
        shapes.append(pixels.shape)
    if len(set(shapes)) > 1 or shapes[0][1] != shapes[0][2]:
        raise ValueError(f"its preprocessing does not make every picture the same square, but {shapes}")
    return EncoderTransform(processor, shapes[0][1], mean, std)


def _model(transformers: Any, folder: Path, config: dict[str, Any]) -> tuple[nn.Module, str, nn.Module | None]:
    """The model, what its features are, and the layer whose inputs they are."""
    classifies = any(name.endswith("ForImageClassification") for name in config.get("architectures") or [])
    auto = transformers.AutoModelForImageClassification if classifies else transformers.AutoModel
    model, loading = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True, dtype=torch.float32)
    missing = sorted(loading["missing_keys"])
    unpooled = bool(missing) and all("pool" in name for name in missing)
    if missing and not unpooled:
        raise ValueError(f"{len(missing)} tensors missing, such as {missing[0]}")
    if classifies:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        heads = [layer for layer in layers if layer.out_features == model.config.num_labels]
        if not heads:
            raise ValueError(f"no layer of {type(model).__name__} gives its {model.config.num_labels} classes")
        return model, "classifier's input", heads[-1]
    # Of a model that has a text tower, too.
    model = getattr(model, "vision_model", model)
    if unpooled or not _pools(model):
        tokens = [name for name, _ in model.named_parameters() if name.endswith(("cls_token", "class_embedding"))]
        return model, "class token" if tokens else "mean token", None
    return model, "pooled", None


def _pools(model: nn.Module) -> bool:
    side = getattr(model.config, "image_size", 224)
    height, width = (side, side) if isinstance(side, int) else side
    with torch.inference_mode():
        out = model(pixel_values=torch.zeros(1, getattr(model.config, "num_channels", 3), height, width))
    return getattr(out, "pooler_output", None) is not None
