"""Zero-shot classifiers, made once of a model and read by every set that asks for the same classes, or some of them.

    <root>/<model fingerprint>/classifiers/<templates>/<classes>.parquet     one row a class: its name and weights

ImageNet's thousand classes in eighty templates cost more than the pictures of many a set; its shifts ask for the same.

Shapes: C classes, D embedding.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from orchestrator import storage
from orchestrator.inference import Embedder, zero_shot_classifier


class Classify(Protocol):
    """Makes the weights (C, D) of a classifier, of C class names and prompt templates."""

    def __call__(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor: ...


class KeptClassifiers:
    """Makes zero-shot classifiers; the text tower runs for classes alone that no earlier classifier has.

    Parameters
    ----------
    embedder : the model
    root : URI of the folder, as of features
    """

    def __init__(self, embedder: Embedder, root: str):
        self._embedder = embedder
        self._root = storage.join(root, embedder.fingerprint, "classifiers")

    def __call__(self, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
        """The weights (C, D), as `zero_shot_classifier` makes them."""
        folder = storage.join(self._root, _digest(templates))
        own = storage.join(folder, f"{_digest(class_names)}.parquet")
        if storage.exists(own):
            known = _read(own)
        else:
            known = {}
            for uri in storage.list_dir(folder) if storage.exists(folder) else []:
                known |= _read(uri)
        # Two of ImageNet's classes have a name twice.
        if missing := [name for name in dict.fromkeys(class_names) if name not in known]:
            made_MD = zero_shot_classifier(self._embedder, missing, templates).numpy()
            known |= dict(zip(missing, made_MD, strict=True))
        weights_CD = np.stack([known[name] for name in class_names])
        if not storage.exists(own):
            _write(own, class_names, weights_CD)
        return torch.from_numpy(weights_CD)


def _read(uri: str) -> dict[str, np.ndarray]:
    table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
    weights_CD = np.stack(table["weights"].to_numpy())
    return dict(zip(table["name"].to_pylist(), weights_CD, strict=True))


def _write(uri: str, class_names: Sequence[str], weights_CD: np.ndarray) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"name": list(class_names), "weights": list(weights_CD)}), sink)
    storage.write_bytes(uri, sink.getvalue())


def _digest(texts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()[:16]
