"""The zero-shot classifier against a direct computation."""

from __future__ import annotations

import pytest
import torch
from tiny import save_tiny

from orchestrator.inference import Embedder, zero_shot_classifier

NAMES = ["red circle", "blue square", "green cross"]
TEMPLATES = ["a {c}", "a picture of a {c}", "{c}, seen twice: {c}"]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Embedder:
    folder = str(tmp_path_factory.mktemp("model"))
    save_tiny(folder)
    return Embedder(folder)


def test_each_class_is_the_mean_of_its_prompts_unit_embeddings(embedder):
    weights_CD = zero_shot_classifier(embedder, NAMES, TEMPLATES)
    for row, name in enumerate(NAMES):
        total = torch.zeros(32, dtype=torch.float64)
        for template in TEMPLATES:
            tokens = torch.from_numpy(embedder.tokenizer([template.replace("{c}", name)], 16))
            with torch.no_grad():
                embedding = embedder.model.encode_text(tokens)[0].double()
            total += embedding / embedding.norm()
        torch.testing.assert_close(weights_CD[row].double(), total / total.norm(), rtol=0, atol=1e-6)


def test_the_same_classes_are_embedded_once(embedder, monkeypatch):
    first = zero_shot_classifier(embedder, NAMES, TEMPLATES[:1])
    monkeypatch.setattr(embedder, "embed_texts", lambda texts: pytest.fail("embedded again"))
    assert torch.equal(zero_shot_classifier(embedder, list(NAMES), tuple(TEMPLATES[:1])), first)
    with pytest.raises(pytest.fail.Exception):
        zero_shot_classifier(embedder, NAMES[::-1], TEMPLATES[:1])


def test_what_cannot_be_a_classifier_is_refused(embedder):
    with pytest.raises(ValueError, match=r"'a photo' has no \{c\}"):
        zero_shot_classifier(embedder, NAMES, ["a {c}", "a photo"])
    with pytest.raises(ValueError, match="at least one class name"):
        zero_shot_classifier(embedder, [], TEMPLATES)
    with pytest.raises(ValueError, match="one template"):
        zero_shot_classifier(embedder, NAMES, [])
