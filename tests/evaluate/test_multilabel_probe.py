"""One logistic regression a class, and its search, against scikit-learn's OneVsRestClassifier."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from orchestrator.evaluate import multilabel_probe
from orchestrator.evaluate.metrics import mean_average_precision_11
from orchestrator.evaluate.multilabel_probe import MultiLabelProbes
from orchestrator.evaluate.regularisation import search_strength


def made(samples, features=24, classes=5, seed=0):
    """Several classes a sample, rare and common ones; features of unequal variance and a mean away from zero."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(classes, features))
    label = (rng.random((samples, classes)) < np.linspace(0.1, 0.7, classes)).astype(int)
    label[:2] = [[0] * classes, [1] * classes]
    return (rng.normal(size=(samples, features)) + label @ centre) * np.arange(1, features + 1) ** -1.0 + 2, label


def objective(weight_D, bias, x_ND, label_N, strength):
    margin = (2 * label_N - 1) * (x_ND @ weight_D + bias)
    return np.logaddexp(0, -margin).mean() + (weight_D**2).sum() / (2 * strength * len(x_ND))


def theirs(x_ND, label_NK, strength):
    fit = LogisticRegression(C=strength, solver="newton-cholesky", max_iter=1000, tol=1e-9)
    return OneVsRestClassifier(fit).fit(x_ND, label_NK)


@pytest.mark.parametrize("samples", [20, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_and_map_are_scikit_learns(samples, dtype):
    x_ND, label_NK = made(samples)
    test_ND, test_NK = made(300, seed=1)
    strengths = [1e-6, 1e-2, 1.0, 1e2]
    for probe, strength in zip(MultiLabelProbes(x_ND, label_NK, dtype).fit(strengths), strengths, strict=True):
        other = theirs(x_ND, label_NK, strength)
        ends = [(one.coef_[0], one.intercept_[0]) for one in other.estimators_]
        expected = [objective(*end, x_ND, label, strength) for end, label in zip(ends, label_NK.T, strict=True)]
        ours = zip(probe.weight_KD.double().numpy(), probe.bias_K.double().numpy(), strict=True)
        found = [objective(*end, x_ND, label, strength) for end, label in zip(ours, label_NK.T, strict=True)]
        assert found == pytest.approx(expected, rel=1e-4) and probe.loss == pytest.approx(np.mean(expected), rel=1e-4)
        assert probe.converged
        map_theirs = mean_average_precision_11(other.decision_function(test_ND), test_NK)
        assert mean_average_precision_11(probe.scores(test_ND), test_NK) == pytest.approx(map_theirs, abs=5e-3)


def test_the_search_by_map_chooses_what_scikit_learn_would():
    (x_ND, label_NK), (validation_ND, validation_NK) = made(60), made(300, seed=2)
    found = search_strength(
        MultiLabelProbes(x_ND, label_NK, torch.float64),
        lambda probe: mean_average_precision_11(probe.scores(validation_ND), validation_NK),
    )
    for strength, score in found.scores.items():
        decided = theirs(x_ND, label_NK, strength).decision_function(validation_ND)
        assert score == pytest.approx(mean_average_precision_11(decided, validation_NK), abs=5e-3)
    assert found.scores[found.strength] == max(found.scores.values())


def test_chunks_and_starts_make_no_difference(monkeypatch):
    x_ND, label_NK = made(100)
    probes = MultiLabelProbes(x_ND, label_NK, torch.float64)
    first, second = probes.fit([1e-2, 1.0], tolerance=1e-10)
    monkeypatch.setattr(multilabel_probe, "CHUNK", 7 * 5)
    for other in (*probes.fit([1.0], tolerance=1e-10), *probes.fit([1.0], start=first, tolerance=1e-10)):
        assert other.weight_KD.numpy() == pytest.approx(second.weight_KD.numpy(), abs=1e-3)
    assert probes.fit([1.0], start=second)[0].iterations <= 1


def test_classes_that_all_or_none_have_are_scored_alike():
    x_ND, label_NK = made(50)
    label_NK[:, 0], label_NK[:, 3] = 0, 1
    (probe,) = MultiLabelProbes(x_ND, label_NK).fit([1.0])
    scores_NK = probe.scores(x_ND)
    assert np.ptp(scores_NK[:, [0, 3]], axis=0).tolist() == [0, 0] and scores_NK[0, 0] < 0 < scores_NK[0, 3]
    assert np.ptp(scores_NK[:, 1]) > 0


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros(3, int), r"labels \(3,\): a 0 or a 1"),
        (np.full((3, 2), 2), r"a 0 or a 1 for each sample and class"),
        (np.zeros((2, 2), int), r"features \(3, 2\), labels \(2, 2\)"),
        (np.zeros((3, 2), int), "each of 2 classes is in all or in none of 3"),
    ],
)
def test_bad_input_is_named(label, message):
    with pytest.raises(ValueError, match=message):
        MultiLabelProbes(np.eye(3)[:, :2], label)
