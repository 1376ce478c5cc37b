"""What the HTTP interface does: decode, ask the encoders, make probabilities.

Shapes: N pictures of a request, R image side, C classes, D embedding.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from ray.serve import metrics

from orchestrator.inference import class_probabilities
from orchestrator.telemetry import export
from serving.classifiers import Definition, Words
from serving.errors import RequestError
from serving.handles import ask, through_the_store
from serving.http import make_app
from serving.keys import Keys
from serving.pictures import prepare
from serving.settings import Settings
from serving.together import Together

KEPT_CLASSIFIERS = 64
# Seconds after which a replica has heard of a classifier that was replaced or deleted through another.
FRESH_S = 1.0

# Messages on their way to an encoder: one that it works on, and one that lies ready.
MESSAGES_AHEAD = 2
# Times that is tried what the replacement of a model may upset.
TRIES = 50


class Ingress:
    """Answers HTTP requests; holds no model.

    Parameters
    ----------
    settings : of the application
    images, texts : handles of the encoders of each model
    classifiers : handle of Classifiers
    """

    def __init__(self, settings: Settings, images: dict[str, Any], texts: dict[str, Any], classifiers: Any):
        self.settings = settings
        self._images = {name: through_the_store(handle) for name, handle in images.items()}
        self._texts = {name: through_the_store(handle) for name, handle in texts.items()}
        self._classifiers = through_the_store(classifiers)
        self.keys = Keys(settings.keys)
        self._models: dict[str, dict[str, Any]] = {}
        # As many as cores: more would take turns at them, and at Python's lock.
        self._decoders = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")
        self._together = {name: self._bring_together(handle) for name, handle in self._images.items()}
        # Named classifiers, and when they were asked for.
        self._definitions: dict[str, tuple[float, Definition]] = {}
        # Weights by fingerprint and digest of the words: small, so that most requests ask nobody but the image encoder.
        self._weights: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._seconds = export("stage_seconds", metrics)
        self.requests = export("requests", metrics)
        self._cache = export("classifier_cache", metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self)

    def _bring_together(self, encoder: Any) -> Together:
        """Pictures of many requests in one message: that costs as much time as decoding a picture."""

        async def send(pixels: list[np.ndarray]) -> list[tuple[str, np.ndarray]]:
            fingerprint, embedding_ND = await ask(encoder.embed.remote(np.stack(pixels)))
            return [(fingerprint, embedding_D) for embedding_D in embedding_ND]

        return Together(send, self.settings.batch_size, MESSAGES_AHEAD, patience_s=self.settings.batch_wait_s)

    async def _embed_images(self, model: str, pixels: Sequence[np.ndarray]) -> tuple[str, np.ndarray]:
        """The model's fingerprint, and embeddings (N, D)."""
        for _ in range(TRIES):
            fingerprints, embeddings = zip(*await self._together[model](pixels), strict=True)
            if len(set(fingerprints)) == 1:
                return fingerprints[0], np.stack(embeddings)
        raise _replaced(model)  # for the pictures were seen by two versions

    async def models(self) -> dict[str, dict[str, Any]]:
        """What serves now, by name."""
        described = await asyncio.gather(*(ask(handle.describe.remote()) for handle in self._images.values()))
        self._models = dict(zip(self._images, described, strict=True))
        return self._models

    async def model_name(self, name: str) -> str:
        """A model of this server; the first where none is named."""
        chosen = name or next(iter(self._images))
        if chosen not in self._images:
            raise RequestError(404, "model", f"there is no model {chosen!r} here; GET /v1/models lists them")
        if chosen not in self._models:
            await self.models()
        return chosen

    async def classify(
        self, model: str, pixels: Sequence[np.ndarray], words: Words, temperature: float | None
    ) -> tuple[np.ndarray, bool]:
        """Probabilities (N, C), and whether the classifier was at hand."""
        for _ in range(TRIES):
            with self.stage("image_tower"):
                fingerprint, image_ND = await self._embed_images(model, pixels)
            try:
                with self.stage("classifier"):
                    weights_CD, cached = await self._classifier(model, fingerprint, words)
                break
            except RequestError as error:
                # While a model is replaced, the towers may be of two versions for a moment.
                if error.status != 503 or error.field != "model":
                    raise
                await asyncio.sleep(0.2)
        else:
            raise _replaced(model)
        described = self._models[model]
        if described["fingerprint"] != fingerprint:
            described = (await self.models())[model]
        scale = 1 / temperature if temperature else described["logit_scale"]
        cosine_NC = torch.from_numpy(image_ND @ weights_CD.T)
        return class_probabilities(cosine_NC, scale, described["logit_bias"]).numpy(), cached

    async def _classifier(self, model: str, fingerprint: str, words: Words) -> tuple[np.ndarray, bool]:
        key = (fingerprint, words.digest)
        hit = key in self._weights
        if hit:
            self._weights.move_to_end(key)
        else:
            _, hit, weights_CD = await ask(self._classifiers.weights.remote(model, fingerprint, words, False))
            self._weights[key] = weights_CD
            while len(self._weights) > KEPT_CLASSIFIERS:
                self._weights.popitem(last=False)
        self._cache.inc(1, {"hit": "yes" if hit else "no"})
        return self._weights[key], hit

    async def prepare(self, model: str, data: list[tuple[str, bytes]]) -> list[np.ndarray | RequestError]:
        """Each picture's pixels (3, R, R), or why it has none."""
        described = self._models[await self.model_name(model)]

        def one(field: str, encoded: bytes) -> np.ndarray | RequestError:
            try:
                return prepare(encoded, field, described["transform"], self.settings.limits)
            except RequestError as error:
                return error

        with self.stage("decode"):
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*(loop.run_in_executor(self._decoders, one, *picture) for picture in data))

    async def embed(self, model: str, kind: str, inputs: Any) -> np.ndarray:
        """Unit-length embeddings, float32 (N, D), of pixels, uint8 (3, R, R) each (kind image) or texts (kind text)."""
        with self.stage(f"{kind}_tower"):
            if kind == "image":
                return (await self._embed_images(model, inputs))[1]
            return (await ask(self._texts[model].embed.remote(inputs)))[1]

    async def classifiers(self, method: str, *arguments: Any) -> Any:
        """Call Classifiers."""
        answer = await ask(getattr(self._classifiers, method).remote(*arguments))
        if method in ("put", "delete"):
            self._definitions.clear()
        return answer

    async def definition(self, name: str) -> Definition:
        """A named classifier, as it was FRESH_S ago or later."""
        known: Definition | None
        asked, known = self._definitions.get(name, (-math.inf, None))
        now = time.monotonic()
        if known is not None and now - asked < FRESH_S:
            return known
        if known is not None:
            self._definitions[name] = (now, known)  # One asks, the others go on with what is known.
        try:
            changed = await self.classifiers("definition", name, known.digest if known else "")
        except RequestError as error:
            if known is not None and error.status == 503:  # Classifiers starts anew, or is busy: what is known holds.
                return known
            self._definitions.pop(name, None)
            raise
        if changed is not None:
            known = changed
        assert known is not None  # Nothing else can be unchanged.
        if len(self._definitions) >= KEPT_CLASSIFIERS:
            self._definitions.clear()
        self._definitions[name] = (now, known)
        return known

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time that a request spends in a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds.observe(time.perf_counter() - start, {"stage": name})

    def templates(self, asked: list[str] | str) -> tuple[str, ...]:
        """Prompt templates, by name or as they are."""
        if isinstance(asked, str):
            sets = self.settings.template_sets
            if asked not in sets:
                raise RequestError(422, "templates", f"there is no template set {asked!r}; there are {', '.join(sets)}")
            return tuple(sets[asked])
        return tuple(asked)


def _replaced(model: str) -> RequestError:
    return RequestError(503, "model", f"model {model!r} is being replaced; try again", 2)
