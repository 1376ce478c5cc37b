"""The zero-shot classifier against a direct computation."""

from __future__ import annotations

import pytest
import torch
from tiny import save_tiny

from orchestrator.inference import (
    Embedder,
    build_classifier,
    class_probabilities,
    zero_shot,
    zero_shot_classifier,
)

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


def test_several_names_of_a_class_count_alike_and_memory_is_bounded(embedder, monkeypatch):
    classes = [["red circle", "crimson disc"], "blue square", ("green cross",)]
    asked, done = [], []

    def embed(texts):
        asked.append(len(texts))
        return embedder.embed_texts(texts)

    monkeypatch.setattr(zero_shot, "PROMPTS_AT_ONCE", 4)
    weights_CD = build_classifier(embed, classes, TEMPLATES[:2], done.append)
    assert asked == [4, 4] and done == [1, 3, 3]
    prompts = embedder.embed_texts([t.replace("{c}", n) for n in classes[0] for t in TEMPLATES[:2]]).double().mean(0)
    torch.testing.assert_close(weights_CD[0].double(), prompts / prompts.norm(), rtol=0, atol=1e-6)
    # The same four prompts at once: matrix products of another size may round otherwise.
    assert torch.equal(weights_CD[1:], zero_shot_classifier(embedder, ["blue square", "green cross"], TEMPLATES[:2]))
    with pytest.raises(ValueError, match="at least one name"):
        build_classifier(embed, [[]], TEMPLATES)


def test_probabilities_are_the_objectives_own():
    cosine_NC = torch.tensor([[0.3, -0.1], [0.2, 0.25]], dtype=torch.float64)
    exponentials = (20 * cosine_NC).exp()
    torch.testing.assert_close(
        class_probabilities(cosine_NC, 20.0, None), exponentials / exponentials.sum(1, keepdim=True)
    )
    torch.testing.assert_close(class_probabilities(cosine_NC, 20.0, -3.0), 1 / (1 + (3 - 20 * cosine_NC).exp()))


def test_the_fingerprint_is_of_what_the_model_computes(embedder, tmp_path):
    assert Embedder(embedder.uri).fingerprint == embedder.fingerprint
    save_tiny(str(tmp_path / "other"), seed=1)
    other = Embedder(str(tmp_path / "other"))
    assert other.fingerprint != embedder.fingerprint
    model = Embedder(embedder.uri)
    with torch.no_grad():
        model.model.logit_scale += 1e-6
    assert model.fingerprint != embedder.fingerprint
