"""Linear probes and their search against scikit-learn's LogisticRegression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from orchestrator.evaluate import linear_probe
from orchestrator.evaluate.linear_probe import Probes
from orchestrator.evaluate.regularisation import GRID, search_strength


def made(samples, features=24, classes=4, seed=0):
    """Features of very unequal variance and a mean away from zero, as image towers give them."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(classes, features))
    label = np.append(np.arange(classes), rng.integers(classes, size=samples - classes))
    return (rng.normal(size=(samples, features)) + centre[label]) * np.arange(1, features + 1) ** -1.0 + 2, label


def objective(weight_KD, bias_K, x_ND, label_N, strength):
    """By hand, in float64; scikit-learn's one vector of two classes stands for (0, w)."""
    penalty = (weight_KD**2).sum() / (2 * strength * len(x_ND))
    if len(weight_KD) == 1:
        weight_KD, bias_K = np.vstack([0 * weight_KD, weight_KD]), np.append(0, bias_K)
    logits = x_ND @ weight_KD.T + bias_K
    return float(np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(label_N)), label_N]) + penalty)


@pytest.mark.parametrize("samples", [16, 200])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_accuracy_are_scikit_learns(samples, classes, dtype):
    x_ND, label_N = made(samples, classes=classes)
    test_ND, test_N = made(400, classes=classes, seed=1)
    strengths = [1e-6, 1e-2, 1.0, 1e2, 1e4]
    for probe, strength in zip(Probes(x_ND, label_N, dtype).fit(strengths), strengths, strict=True):
        theirs = LogisticRegression(C=strength, max_iter=20000, tol=1e-10).fit(x_ND, label_N)
        expected = objective(theirs.coef_, theirs.intercept_, x_ND, label_N, strength)
        assert probe.loss == pytest.approx(expected, rel=1e-4) and probe.converged
        if classes > 2:
            ours = objective(probe.weight_KD.double().numpy(), probe.bias_K.double().numpy(), x_ND, label_N, strength)
            assert ours == pytest.approx(expected, rel=1e-4)
        assert probe.accuracy(test_ND, test_N) == pytest.approx(theirs.score(test_ND, test_N), abs=0.0051)


def test_chunks_batches_and_starts_make_no_difference(monkeypatch):
    x_ND, label_N = made(100)
    probes = Probes(x_ND, label_N, torch.float64)
    together = probes.fit([1e-2, 1.0])
    alone = probes.fit([1.0], start=together[0])[0]
    monkeypatch.setattr(linear_probe, "CHUNK", 7 * 4)
    chunked = probes.fit([1.0])[0]
    for other in (alone, chunked):
        assert other.loss == pytest.approx(together[1].loss, rel=1e-5)
        assert other.weight_KD.numpy() == pytest.approx(together[1].weight_KD.numpy(), abs=0.02)
    assert probes.fit([1.0], start=together[1])[0].iterations <= 1


def test_labels_are_those_of_training():
    x_ND, label_N = made(100)
    probe = Probes(x_ND, label_N * 10 + 7).fit([1e4])[0]
    assert probe.class_K.tolist() == [7, 17, 27, 37] and probe.accuracy(x_ND, label_N * 10 + 7) > 0.9


def test_the_search_takes_the_papers_steps():
    x_ND, label_N = made(60)
    training = Probes(x_ND, label_N)
    asked = []

    def peak_at(probe):
        asked.append(round(np.log10(probe.strength) * 8))
        return -abs(asked[-1] - 21)

    assert search_strength(training, peak_at).strength == pytest.approx(10 ** (21 / 8))
    assert asked == [-48, -32, -16, 0, 16, 32, 48, 8, 24, 20, 28, 18, 22, 19, 21]
    assert len(GRID) == 97 and (GRID[0], GRID[-1]) == pytest.approx((1e-6, 1e6))
    assert search_strength(training, lambda probe: 1.0).strength == pytest.approx(1e-6)


def test_the_search_chooses_what_scikit_learn_would():
    (x_ND, label_N), (validation_ND, validation_N) = made(60), made(300, seed=2)
    found = search_strength(Probes(x_ND, label_N, torch.float64), lambda p: p.accuracy(validation_ND, validation_N))
    for strength, score in found.scores.items():
        theirs = LogisticRegression(C=strength, max_iter=20000, tol=1e-9).fit(x_ND, label_N)
        assert score == pytest.approx(theirs.score(validation_ND, validation_N), abs=0.0067)
    assert found.scores[found.strength] == max(found.scores.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Probes(np.ones((3, 2)), np.zeros(3, int)), "1 class among 3 labels"),
        (lambda: Probes(np.ones((3, 2)), np.zeros(2, int)), r"features \(3, 2\), labels \(2,\)"),
        (lambda: Probes(np.array([[1.0], [np.inf]]), np.array([0, 1])), "features of sample 1 are not finite"),
        (lambda: Probes(np.eye(2), np.array([0, 1])).fit([0.0]), "all above 0"),
        (lambda: search_strength(Probes(np.eye(2), np.array([0, 1])), lambda p: np.nan), "at C = 1e-06 is NaN"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
