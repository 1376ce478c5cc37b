"""The towers as deployments: each answers for one model, batches by itself, and scales by its own queue.

Shapes: N pictures or texts of a call, R image side, D embedding.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import numpy as np
import torch
from ray import serve
from ray.serve.metrics import Counter, Histogram

from orchestrator.inference import Embedder

BATCH_SIZES = [1.0, 2, 4, 8, 16, 32, 64, 128, 256]


def _count(batch: list[Any]) -> int:
    return sum(len(inputs) for inputs in batch)


class _Encoder:
    """A model, loaded, and one batch at a time through it in a thread: the replica answers health checks meanwhile.

    Parameters
    ----------
    name : of the model, for metrics
    uri : of its directory
    hardware : cpu or gpu
    """

    KIND = ""

    def __init__(self, name: str, uri: str, hardware: str):
        torch.set_num_threads(os.cpu_count() or 1)
        self.embedder = Embedder(uri, "cuda" if hardware == "gpu" else "cpu")
        self._tags = {"model": name}
        self._sizes = Histogram(
            f"clip_{self.KIND}_batch_size", f"{self.KIND}s in one forward pass", BATCH_SIZES, ("model",)
        )
        self._encoded = Counter(f"clip_{self.KIND}s_encoded", f"{self.KIND}s through the tower", ("model",))
        # The first pass allocates and chooses kernels; a replica without it would be slow to its first caller. Nothing
        # is served by a model that gives no finite numbers.
        if not np.isfinite(self._run([self.probe()])[0]).all():
            raise RuntimeError(f"{uri}: the model's embedding of a test input is not finite; it cannot be served")

    def describe(self) -> dict[str, Any]:
        """What others need to know of the model, without its weights."""
        embedder, config = self.embedder, self.embedder.model.config
        return {
            "uri": embedder.uri,
            "fingerprint": embedder.fingerprint,
            "image_size": config.image_size,
            "embed_dim": config.embed_dim,
            "objective": config.objective,
            "logit_scale": embedder.logit_scale,
            "logit_bias": embedder.logit_bias,
            "transform": embedder.transform,
        }

    def reconfigure(self, options: dict[str, Any]) -> None:
        """Batch size and wait, which an operator may change while the replica runs."""
        self._batch_size = int(options["batch_size"])
        self._batched.set_max_batch_size(self._batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(float(options["batch_wait_s"]))  # type: ignore[attr-defined]

    async def embed(self, inputs: Any) -> tuple[str, np.ndarray]:
        """The model's fingerprint and unit-length embeddings, float32 (N, D)."""
        size = self._batch_size
        parts = [inputs[start : start + size] for start in range(0, len(inputs), size)]
        embeddings = await asyncio.gather(*(self._batched(part) for part in parts))  # type: ignore[attr-defined]
        return self.embedder.fingerprint, np.concatenate(embeddings)

    async def _pass(self, batch: list[Any]) -> list[np.ndarray]:
        size = _count(batch)
        self._sizes.observe(size, dict(self._tags))  # Serve adds to what it is given.
        self._encoded.inc(size, dict(self._tags))
        return await asyncio.to_thread(self._run, batch)

    def _run(self, batch: list[Any]) -> list[np.ndarray]:
        raise NotImplementedError

    def probe(self) -> Any:
        raise NotImplementedError


class ImageEncoder(_Encoder):
    """Preprocessed pictures, uint8 (N, 3, R, R), to embeddings."""

    KIND = "image"

    @serve.batch(batch_size_fn=_count)
    async def _batched(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        return await self._pass(batch)

    def _run(self, batch: list[np.ndarray]) -> list[np.ndarray]:
        embedding_ND = self.embedder.embed_images(batch[0] if len(batch) == 1 else np.concatenate(batch)).numpy()
        return np.split(embedding_ND, np.cumsum([len(inputs) for inputs in batch])[:-1])

    def probe(self) -> np.ndarray:
        side = self.embedder.model.config.image_size
        return np.zeros((1, 3, side, side), np.uint8)


class TextEncoder(_Encoder):
    """Texts to embeddings."""

    KIND = "text"

    @serve.batch(batch_size_fn=_count)
    async def _batched(self, batch: list[list[str]]) -> list[np.ndarray]:
        return await self._pass(batch)

    def _run(self, batch: list[list[str]]) -> list[np.ndarray]:
        embedding_ND = self.embedder.embed_texts([text for texts in batch for text in texts]).numpy()
        return np.split(embedding_ND, np.cumsum([len(inputs) for inputs in batch])[:-1])

    def probe(self) -> list[str]:
        return ["a photo"]
