"""A loaded model that embeds pictures and texts.

Shapes: N pictures or texts, R image side, D embedding.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.inference.model_directory import read_model
from orchestrator.model.pixels import normalize_pixels


class Embedder:
    """A model directory, ready to embed.

    Parameters
    ----------
    uri : the model directory
    device : torch device
    batch_size : pictures or texts in one forward pass
    """

    def __init__(self, uri: str, device: str | torch.device = "cpu", batch_size: int = 256):
        directory = read_model(uri)
        # Filled and bounded by zero_shot_classifier: (names of each class, templates) -> weights (C, D).
        self.classifiers: dict[tuple[tuple[tuple[str, ...], ...], tuple[str, ...]], Tensor] = {}
        self.uri = uri
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.tokenizer = directory.tokenizer
        self.transform = directory.transform
        self.model = directory.model.to(self.device)
        self.model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def logit_scale(self) -> float:
        """The multiplier that turns cosine similarities into logits."""
        return float(self.model.logit_scale.detach().exp())

    @property
    def logit_bias(self) -> float | None:
        """The bias of a model that was trained with the sigmoid objective; None for the others."""
        return float(self.model.logit_bias.detach()) if self.model.config.objective == "sigmoid" else None

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits that name what the model computes: its sizes, weights and vocabulary."""
        content = hashlib.sha256(json.dumps(dataclasses.asdict(self.model.config)).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            content.update(name.encode())
            content.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
        content.update(json.dumps(self.transform.to_dict(), sort_keys=True).encode())
        content.update(self.tokenizer.fingerprint.encode())
        return content.hexdigest()[:16]

    @torch.inference_mode()
    def embed_images(self, image_N3RR: np.ndarray) -> Tensor:
        """Unit-length embeddings (N, D) of preprocessed pictures, uint8 (N, 3, R, R)."""
        parts = [self.model.encode_image(pixels).float().cpu() for pixels in self._pixels(image_N3RR)]
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.embed_dim)

    @torch.inference_mode()
    def embed_images_with_features(self, image_N3RR: np.ndarray) -> tuple[Tensor, Tensor]:
        """Of at least one picture, unit-length embeddings (N, D) and the features before the projection (N, F), which
        a linear probe reads, in one pass."""
        visual = self.model.visual
        features = [visual.features(pixels) for pixels in self._pixels(image_N3RR)]
        embeddings = [F.normalize(visual.project(part), dim=-1).float().cpu() for part in features]
        return torch.cat(embeddings), torch.cat([part.float().cpu() for part in features])

    def _pixels(self, image_N3RR: np.ndarray) -> Iterator[Tensor]:
        """Batches of normalised pixels on the device."""
        for start in range(0, len(image_N3RR), self.batch_size):
            image = torch.from_numpy(np.ascontiguousarray(image_N3RR[start : start + self.batch_size])).to(self.device)
            yield normalize_pixels(image, self.transform.mean, self.transform.std)

    @torch.inference_mode()
    def embed_texts(self, texts: list[str]) -> Tensor:
        """Unit-length embeddings (N, D) of texts."""
        context = self.model.config.text.context_length
        parts = []
        for start in range(0, len(texts), self.batch_size):
            tokens = torch.from_numpy(self.tokenizer(texts[start : start + self.batch_size], context))
            parts.append(self.model.encode_text(tokens.to(self.device)).float().cpu())
        return torch.cat(parts) if parts else torch.empty(0, self.model.config.embed_dim)
