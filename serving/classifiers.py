"""Classifiers as resources: classes and templates by name, and their weights by content.

    <storage>/classifiers/<name>.json             what was asked for
    <storage>/weights/<key>.safetensors           what the text tower made of it; the key says of which model and words

Shapes: C classes, D embedding.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import time
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from ray.serve import metrics
from safetensors.numpy import load, save

from orchestrator import storage
from orchestrator.inference import build_classifier
from orchestrator.telemetry import export
from serving.errors import RequestError
from serving.handles import ask, through_the_store
from serving.settings import Settings

LOG = logging.getLogger("ray.serve")
# Weights that this process keeps beside storage.
KEPT_BYTES = 256 << 20


@dataclass(frozen=True)
class Words:
    """What a classifier is made of.

    Parameters
    ----------
    classes : the names of each
    templates : with {c}
    """

    classes: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]

    @functools.cached_property
    def digest(self) -> str:
        """64 hex digits that name them."""
        return hashlib.sha256(json.dumps([self.classes, self.templates]).encode()).hexdigest()

    def key(self, fingerprint: str) -> str:
        """32 hex digits that name the weights which a model makes of them."""
        return hashlib.sha256(f"{fingerprint} {self.digest}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Definition:
    """A named classifier.

    Parameters
    ----------
    name, model : of the classifier and of the model that it asks
    words : classes and templates
    temperature : in place of the model's own; None: that
    """

    name: str
    model: str
    words: Words
    temperature: float | None

    @property
    def digest(self) -> str:
        """Names all of it."""
        return f"{self.model} {self.temperature} {self.words.digest}"

    def to_json(self) -> bytes:
        return json.dumps({"format": 1, **asdict(self)}, indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Definition:
        fields = json.loads(data)
        words = fields["words"]
        classes = tuple(tuple(names) for names in words["classes"])
        return cls(fields["name"], fields["model"], Words(classes, tuple(words["templates"])), fields["temperature"])


class _Build:
    """One that is being made: whoever asks for the same weights waits for it."""

    def __init__(self, classes: int):
        self.classes, self.done = classes, 0
        self.task: asyncio.Task[np.ndarray]


def _replaced(model: str) -> RequestError:
    return RequestError(503, "model", f"model {model!r} is being replaced; try again", 1)


class Classifiers:
    """The one place where classifiers are made, so that what many ask for at once is made once.

    Parameters
    ----------
    settings : of the application
    texts : handle of the text encoder of each model
    """

    def __init__(self, settings: Settings, texts: dict[str, Any]):
        self._settings = settings
        self._texts = {name: through_the_store(handle) for name, handle in texts.items()}
        self._definitions: dict[str, Definition] = {}
        self._builds: dict[str, _Build] = {}
        self._failed: dict[str, str] = {}
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._asked = export("classifier_weights", metrics)
        for uri in self._stored_definitions():
            definition = Definition.from_json(storage.read_bytes(uri))
            self._definitions[definition.name] = definition

    def _stored_definitions(self) -> list[str]:
        folder = storage.join(self._settings.storage, "classifiers")
        return [uri for uri in storage.list_dir(folder) if uri.endswith(".json")] if storage.exists(folder) else []

    def _path(self, kind: str, name: str) -> str:
        return storage.join(self._settings.storage, kind, name)

    def _weights_path(self, key: str) -> str:
        return self._path("weights", f"{key}.safetensors")

    async def put(self, definition: Definition, wait_s: float) -> dict[str, Any]:
        """Keep a classifier under its name and make its weights; returns its state after `wait_s` at the latest."""
        path = self._path("classifiers", f"{definition.name}.json")
        await asyncio.to_thread(storage.write_bytes, path, definition.to_json())
        self._definitions[definition.name] = definition
        self._failed.pop(definition.name, None)
        making = asyncio.create_task(self._make_named(definition))
        await asyncio.wait([making], timeout=wait_s)
        return await self.get(definition.name)

    async def _make_named(self, definition: Definition) -> None:
        try:
            await self.weights(definition.model, "", definition.words, keep=True)
        except Exception as error:
            self._failed[definition.name] = str(error)

    async def get(self, name: str) -> dict[str, Any]:
        """A classifier and how far it is.

        Raises
        ------
        RequestError : there is none of that name
        """
        definition = self._defined(name)
        key = definition.words.key(await self._fingerprint(definition.model))
        build = self._builds.get(key)
        if build is not None:
            state, progress = "building", build.done / build.classes
        elif name in self._failed:
            state, progress = "failed", 0.0
        else:
            here = key in self._kept or await asyncio.to_thread(storage.exists, self._weights_path(key))
            state, progress = ("ready", 1.0) if here else ("building", 0.0)
        return {
            "name": name,
            "model": definition.model,
            "state": state,
            "progress": progress,
            "classes": [names[0] for names in definition.words.classes],
            "templates": list(definition.words.templates),
            "temperature": definition.temperature,
            "error": self._failed.get(name, ""),
        }

    async def definition(self, name: str, known: str = "") -> Definition | None:
        """A named classifier; None where it is the one that is known, by its digest."""
        definition = self._defined(name)
        return None if definition.digest == known else definition

    def _defined(self, name: str) -> Definition:
        if name not in self._definitions:
            raise RequestError(404, "name", f"there is no classifier {name!r}; PUT /v1/classifiers/{name} makes one")
        return self._definitions[name]

    async def list_all(self) -> list[dict[str, Any]]:
        return [await self.get(name) for name in sorted(self._definitions)]

    async def delete(self, name: str) -> None:
        """Forget a classifier; its weights stay where another has the same words."""
        definition = self._defined(name)
        await asyncio.to_thread(storage.delete_file, self._path("classifiers", f"{name}.json"))
        del self._definitions[name]
        if any(other.words == definition.words for other in self._definitions.values()):
            return
        key = definition.words.key(await self._fingerprint(definition.model))
        self._kept.pop(key, None)
        path = self._weights_path(key)
        if await asyncio.to_thread(storage.exists, path):
            await asyncio.to_thread(storage.delete_file, path)

    async def _fingerprint(self, model: str) -> str:
        return (await ask(self._texts[model].describe.remote()))["fingerprint"]

    async def weights(self, model: str, fingerprint: str, words: Words, keep: bool) -> tuple[str, bool, np.ndarray]:
        """A classifier's weights.

        Parameters
        ----------
        model : its name
        fingerprint : of the model whose weights are wanted; empty: of the one that serves now
        words : classes and templates
        keep : on storage, so that they are there after a restart

        Returns
        -------
        the fingerprint of the model that they are of; whether they were at hand; float32 (C, D)

        Raises
        ------
        RequestError : another version of the model serves texts now; asking again helps
        """
        serving = await self._fingerprint(model)
        key = words.key(fingerprint or serving)
        at_hand = True
        if key in self._kept:
            self._kept.move_to_end(key)
        elif key not in self._builds:
            stored = await asyncio.to_thread(self._read, key)
            if stored is not None:
                self._keep(key, stored)
            elif fingerprint not in ("", serving):
                raise _replaced(model)
            elif key not in self._kept and key not in self._builds:  # nobody else came while storage was asked
                at_hand = False
                build = self._builds[key] = _Build(len(words.classes))
                build.task = asyncio.create_task(self._build(build, model, serving, key, words))
        if key in self._builds:
            at_hand = False
            weights_CD = await asyncio.shield(self._builds[key].task)
        else:
            weights_CD = self._kept[key]
        if keep:
            await asyncio.to_thread(self._store, key, weights_CD)
        self._asked.inc(1, {"found": "yes" if at_hand else "no"})
        return fingerprint or serving, at_hand, weights_CD

    async def _build(self, build: _Build, model: str, fingerprint: str, key: str, words: Words) -> np.ndarray:
        loop, started = asyncio.get_running_loop(), time.monotonic()

        def embed(texts: list[str]) -> torch.Tensor:
            future = asyncio.run_coroutine_threadsafe(self._embed(model, texts), loop)
            made_by, embedding_ND = future.result()
            if made_by != fingerprint:
                raise _replaced(model)
            return torch.from_numpy(embedding_ND)

        def progress(done: int) -> None:
            build.done = done

        try:
            made = await asyncio.to_thread(build_classifier, embed, words.classes, words.templates, progress)
            weights_CD = made.numpy()
            self._keep(key, weights_CD)
            seconds = time.monotonic() - started
            LOG.info(
                f"{len(words.classes)} classes x {len(words.templates)} templates: a classifier in {seconds:.1f} s"
            )
            return weights_CD
        finally:
            del self._builds[key]

    async def _embed(self, model: str, texts: list[str]) -> tuple[str, np.ndarray]:
        return await ask(self._texts[model].embed.remote(texts))

    def _read(self, key: str) -> np.ndarray | None:
        path = self._weights_path(key)
        return load(storage.read_bytes(path))["weights"] if storage.exists(path) else None

    def _store(self, key: str, weights_CD: np.ndarray) -> None:
        path = self._weights_path(key)
        if not storage.exists(path):
            storage.write_bytes(path, save({"weights": weights_CD}))

    def _keep(self, key: str, weights_CD: np.ndarray) -> None:
        self._kept[key] = weights_CD
        limit = self._settings.limits.adhoc_classifiers
        while len(self._kept) > limit or sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
            if len(self._kept) == 1:
                break
            self._kept.popitem(last=False)
