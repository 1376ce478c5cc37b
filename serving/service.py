"""What the HTTP interface does: decode, ask the encoders, make probabilities.

Shapes: N pictures of a request, R image side, C classes, D embedding.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import Awaitable, Iterator
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from fastapi import FastAPI
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.metrics import Counter, Histogram

from orchestrator.inference import class_probabilities
from serving.classifiers import Words
from serving.errors import RequestError
from serving.http import make_app
from serving.keys import Keys
from serving.pictures import prepare
from serving.settings import Settings

STAGE_SECONDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
KEPT_CLASSIFIERS = 64

T = TypeVar("T")


class Ingress:
    """Answers HTTP requests; holds no model.

    Parameters
    ----------
    settings : of the application
    images, texts : handles of the encoders of each model
    classifiers : handle of Classifiers
    """

    def __init__(self, settings: Settings, images: dict[str, Any], texts: dict[str, Any], classifiers: Any):
        self.settings, self._images, self._texts, self._classifiers = settings, images, texts, classifiers
        self.keys = Keys(settings.keys)
        self._models: dict[str, dict[str, Any]] = {}
        # Weights by (fingerprint, words): small, so that most requests ask nobody but the image encoder.
        self._weights: OrderedDict[tuple[str, Words], np.ndarray] = OrderedDict()
        self._seconds = Histogram("clip_stage_seconds", "time of a request by stage", STAGE_SECONDS, ("stage",))
        self.requests = Counter("clip_requests", "requests by route and outcome", ("handler", "status"))  # type: ignore[arg-type]
        self._cache = Counter("clip_classifier_cache", "classifiers asked for, by whether they were at hand", ("hit",))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self)

    async def models(self) -> dict[str, dict[str, Any]]:
        """What serves now, by name."""
        described = await asyncio.gather(*(self._ask(handle.describe.remote()) for handle in self._images.values()))
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
        self, model: str, pixels_N3RR: np.ndarray, words: Words, temperature: float | None
    ) -> tuple[np.ndarray, bool]:
        """Probabilities (N, C), and whether the classifier was at hand."""
        for _ in range(50):
            with self.stage("image_tower"):
                fingerprint, image_ND = await self._ask(self._images[model].embed.remote(pixels_N3RR))
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
            raise RequestError(503, "model", f"model {model!r} is being replaced; try again", 2)
        described = self._models[model]
        if described["fingerprint"] != fingerprint:
            described = (await self.models())[model]
        scale = 1 / temperature if temperature else described["logit_scale"]
        cosine_NC = torch.from_numpy(image_ND @ weights_CD.T)
        return class_probabilities(cosine_NC, scale, described["logit_bias"]).numpy(), cached

    async def _classifier(self, model: str, fingerprint: str, words: Words) -> tuple[np.ndarray, bool]:
        key = (fingerprint, words)
        hit = key in self._weights
        if hit:
            self._weights.move_to_end(key)
        else:
            _, hit, weights_CD = await self._ask(self._classifiers.weights.remote(model, fingerprint, words, False))
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
            return list(await asyncio.gather(*(asyncio.to_thread(one, field, encoded) for field, encoded in data)))

    async def embed(self, model: str, kind: str, inputs: Any) -> np.ndarray:
        """Unit-length embeddings, float32 (N, D), of pixels (kind image) or texts (kind text)."""
        handles = self._images if kind == "image" else self._texts
        with self.stage(f"{kind}_tower"):
            _, embedding_ND = await self._ask(handles[model].embed.remote(inputs))
        return embedding_ND

    async def classifiers(self, method: str, *arguments: Any) -> Any:
        """Call Classifiers."""
        return await self._ask(getattr(self._classifiers, method).remote(*arguments))

    async def _ask(self, response: Awaitable[T]) -> T:
        """What a deployment answers; its errors as this project's."""
        try:
            return await response
        except (BackPressureError, DeploymentUnavailableError):
            raise RequestError(503, "", "the server has as much to do as it can; try again", 1) from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RequestError):
                raise error.cause from None
            raise
        except ray.exceptions.RayActorError:
            raise RequestError(503, "", "a part of the server was lost and starts anew; try again", 1) from None

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
