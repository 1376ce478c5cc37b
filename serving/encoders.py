"""The towers as deployments: each answers for one model, batches by itself, and scales by its own queue.

Shapes: N pictures or texts of a call, R image side, D embedding.
"""

from __future__ import annotations

import abc
import asyncio
import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from ray.serve import metrics

from orchestrator.inference import Embedder
from orchestrator.telemetry import export
from serving.together import Together

# Inputs that a core takes at a time; more are hardly faster.
PIECE = 8


class _Encoder(abc.ABC):
    """A model, loaded, and batches through it in threads: the replica answers health checks meanwhile.

    Parameters
    ----------
    name : of the model, for metrics
    uri : of its directory
    hardware : cpu or gpu
    """

    KIND = ""

    def __init__(self, name: str, uri: str, hardware: str):
        self.embedder = Embedder(uri, "cuda" if hardware == "gpu" else "cpu")
        self._threads = os.cpu_count() or 1
        self._lanes = self._threads if hardware == "cpu" else 1
        self._pool = ThreadPoolExecutor(self._lanes, thread_name_prefix="tower")
        # One at work and one that is ready: no core waits for another batch. Serve calls reconfigure for the size.
        self._together = Together(self._pass, size=1, ahead=2)
        self._tags = {"model": name}
        self._sizes = export(f"{self.KIND}_batch_size", metrics)
        self._encoded = export(f"{self.KIND}s_encoded", metrics)
        # The first pass allocates and chooses kernels; a replica without it would be slow to its first caller. Nothing
        # is served by a model that gives no finite numbers.
        if not np.isfinite(self._run([self.probe()])).all():
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
        self._together.size, self._together.wait_s = int(options["batch_size"]), float(options["batch_wait_s"])

    async def embed(self, inputs: Any) -> tuple[str, np.ndarray]:
        """The model's fingerprint and unit-length embeddings, float32 (N, D)."""
        return self.embedder.fingerprint, np.stack(await self._together(inputs))

    async def _pass(self, batch: list[Any]) -> np.ndarray:
        self._sizes.observe(len(batch), dict(self._tags))  # Serve adds to what it is given.
        self._encoded.inc(len(batch), dict(self._tags))
        return await asyncio.to_thread(self._run, batch)

    def _run(self, batch: list[Any]) -> np.ndarray:
        """Embeddings (N, D) of a batch."""
        lanes = min(self._lanes, len(batch))
        if lanes == 1:
            return self._embed_with(self._threads, batch)
        # Cores that work on inputs of their own wait for each other once, not at every layer, and share their time
        # better with what brings the inputs; of small pieces, none has much to do when the other is done.
        pieces = lanes * math.ceil(len(batch) / lanes / PIECE)
        cuts = [len(batch) * place // pieces for place in range(pieces + 1)]
        parts = [batch[start:end] for start, end in itertools.pairwise(cuts) if end > start]
        threads = itertools.repeat(max(1, self._threads // lanes))
        return np.concatenate(list(self._pool.map(self._embed_with, threads, parts)))

    def _embed_with(self, threads: int, inputs: list[Any]) -> np.ndarray:
        if self.embedder.device.type == "cpu":
            torch.set_num_threads(threads)
        return self.forward(inputs).numpy()

    @abc.abstractmethod
    def forward(self, inputs: list[Any]) -> torch.Tensor:
        """Unit-length embeddings (N, D)."""

    @abc.abstractmethod
    def probe(self) -> Any:
        """An input to try the model with."""


class ImageEncoder(_Encoder):
    """Preprocessed pictures, uint8 (N, 3, R, R), to embeddings."""

    KIND = "image"

    def forward(self, inputs: list[np.ndarray]) -> torch.Tensor:
        return self.embedder.embed_images(np.stack(inputs))

    def probe(self) -> np.ndarray:
        side = self.embedder.model.config.image_size
        return np.zeros((3, side, side), np.uint8)


class TextEncoder(_Encoder):
    """Texts to embeddings."""

    KIND = "text"

    def forward(self, inputs: list[str]) -> torch.Tensor:
        return self.embedder.embed_texts(inputs)

    def probe(self) -> str:
        return "a photo"
