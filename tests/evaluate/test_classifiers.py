"""Classifiers that are kept: the same weights, and the text tower left alone."""

from __future__ import annotations

import numpy as np
import pytest
from shapes import NAMES, TEMPLATES
from tiny import save_tiny

from orchestrator.evaluate.classifiers import KeptClassifiers
from orchestrator.inference import Embedder, zero_shot_classifier


def test_classes_that_are_known_are_not_embedded_again(tmp_path, monkeypatch):
    model, root = str(tmp_path / "model"), str(tmp_path / "features")
    save_tiny(model)
    embedder = Embedder(model)
    asked = []
    embed = Embedder.embed_texts
    monkeypatch.setattr(Embedder, "embed_texts", lambda self, texts: asked.extend(texts) or embed(self, texts))
    first = KeptClassifiers(embedder, root)(NAMES, TEMPLATES)
    assert len(asked) == len(NAMES) * len(TEMPLATES)
    asked.clear()
    # Another process: the same classes, some of them in another order, and some of them beside a new one.
    again = KeptClassifiers(Embedder(model), root)
    assert np.array_equal(again(NAMES, TEMPLATES), first)
    some = [NAMES[5], NAMES[2], NAMES[5]]
    assert np.array_equal(again(some, TEMPLATES), first[[5, 2, 5]]) and asked == []
    mixed = again([NAMES[1], "a boat"], TEMPLATES)
    assert asked == [template.replace("{c}", "a boat") for template in TEMPLATES]
    fresh = zero_shot_classifier(Embedder(model), [NAMES[1], "a boat"], TEMPLATES)
    assert mixed.numpy() == pytest.approx(fresh.numpy(), abs=1e-6)
    asked.clear()
    assert again(NAMES, ["{c}"]).shape == first.shape and len(asked) == len(NAMES)
