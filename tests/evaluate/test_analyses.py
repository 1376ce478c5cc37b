"""Analyses of features that were made with a known answer, against scikit-learn and scipy."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, confusion_matrix
from sklearn.multiclass import OneVsRestClassifier

from orchestrator.evaluate import measure
from orchestrator.evaluate.analyses import Probing, few_shot_result, finite, split_validation
from orchestrator.evaluate.datasets import EvaluationSet
from orchestrator.evaluate.features import Features
from orchestrator.evaluate.few_shot import FewShot
from orchestrator.evaluate.metrics import average_precision_11

NAMES = ["a", "b", "c", "d", "e"]
RNG = np.random.default_rng(0)


def features(count, seed, classes=5):
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(1).normal(size=(5, 16))
    label = np.arange(count) % classes
    x = (centre[label] * 0.8 + rng.normal(size=(count, 16))).astype(np.float32)
    return Features([f"s{n}" for n in range(count)], label, x, x, [], np.empty((0, 16)), np.empty(0))


@pytest.mark.parametrize(("name", "score"), [("mine", None), ("pets", balanced_accuracy_score)])
def test_the_probe_is_fitted_on_training_and_validation_data_at_the_best_strength(name, score):
    dataset = EvaluationSet(name, NAMES, ["{c}"], [])
    training, validation, test = features(100, 2), features(63, 3), features(203, 4)
    probing = Probing(dataset, training, test, validation)
    found = probing.full()
    x, y = (np.concatenate([getattr(one, what) for one in (training, validation)]) for what in ("feature_NF", "label"))
    theirs = LogisticRegression(C=found["strength"], max_iter=20000, tol=1e-8).fit(x, y)
    answers = theirs.predict(test.feature_NF)
    expected = score(test.label, answers) if score else np.mean(answers == test.label)
    assert found["score"]["value"] == pytest.approx(expected, abs=0.006) and found["training samples"] == 163
    best = LogisticRegression(C=found["strength"], max_iter=20000).fit(training.feature_NF, training.label)
    reached = found["validation"][f"{found['strength']:.4g}"]
    assert reached == pytest.approx(best.score(validation.feature_NF, validation.label), abs=0.05)
    assert reached == max(found["validation"].values())


def test_without_a_validation_split_a_fifth_of_each_class_is_held_out():
    training = features(100, 2)
    fit, held = split_validation(training)
    assert sorted([*fit, *held]) == list(range(100))
    assert np.bincount(training.label[held]).tolist() == [4] * 5
    with pytest.raises(ValueError, match="no class has 5 training examples"):
        split_validation(features(20, 2))


def test_a_class_that_training_lacks_is_never_chosen():
    dataset = EvaluationSet("mine", NAMES, ["{c}"], [])
    probing = Probing(dataset, features(80, 2, classes=4), features(50, 4))
    found = probing.full()
    assert 0.4 < found["score"]["value"] <= 0.8


def test_of_many_labels_each_class_is_fitted_for_itself():
    dataset = EvaluationSet("voc2007", NAMES, ["{c}"], [], "multilabel")

    def many(count, seed):
        one = features(count, seed)
        both = np.eye(5, dtype=int)[one.label] | np.eye(5, dtype=int)[(one.label + 1) % 5]
        return Features(one.key_N, both, one.embedding_ND, one.feature_NF, [], np.empty((0, 16)), np.empty(0))

    training, test = many(100, 2), many(203, 4)
    found = Probing(dataset, training, test).full()
    theirs = OneVsRestClassifier(LogisticRegression(C=found["strength"], solver="newton-cholesky", tol=1e-9))
    decided = theirs.fit(training.feature_NF, training.label).decision_function(test.feature_NF)
    expected = np.mean([average_precision_11(*pair) for pair in zip(decided.T, test.label.T, strict=True)])
    assert found["metric"] == "11-point mAP" and found["score"]["value"] == pytest.approx(expected, abs=0.006)
    assert found["samples a class"] == 40 and found["chosen on"] == "20 held-out training samples"


def test_few_shots_up_to_all_examples_and_what_zero_shot_is_worth():
    full = {"score": {"value": 0.9}, "samples a class": 64.0}
    found = few_shot_result(FewShot([1, 4], np.array([[0.3, 0.5], [0.3, 0.5]])), full, 0.7)
    # Halfway, in the logarithm, between 4 and 64 examples.
    assert found["zero-shot is worth"]["value"] == pytest.approx(16)
    assert found["curve"][0]["value"] == pytest.approx(0.3) and found["scores"] == [[0.3, 0.3], [0.5, 0.5]]
    assert "zero-shot is worth" not in few_shot_result(FewShot([1], np.array([[0.3]])), full, None)
    assert few_shot_result(FewShot([1], np.array([[0.3]])), full, 0.95)["zero-shot is worth"]["text"] == "more than 64"


SCORES, LABEL = RNG.normal(size=(90, 5)), RNG.integers(5, size=90)


def test_intervals_are_exact_for_accuracy_and_bootstrapped_for_others():
    found = measure.measure("accuracy", SCORES, LABEL)
    ends = stats.binomtest(round(90 * found.value), 90).proportion_ci(method="exact")
    assert found.interval == pytest.approx((ends.low, ends.high))
    for metric, scores, label in (
        ("mean per class", SCORES, LABEL),
        ("mean of top-1 and top-5", SCORES, LABEL),
        ("ROC AUC", SCORES[:, :2], LABEL % 2),
        ("11-point mAP", SCORES, np.eye(5, dtype=int)[LABEL]),
    ):
        value, (low, high) = measure.measure(metric, scores, label)
        assert low < value < high or (metric == "11-point mAP" and low < high), metric
        assert high - low < 0.35


def test_class_rows_are_scikit_learns_confusions():
    # Mostly right: what a class is taken for otherwise is not itself.
    scores = SCORES + 1.5 * np.eye(5)[LABEL]
    rows = measure.class_rows(scores, LABEL, NAMES)
    matrix = confusion_matrix(LABEL, scores.argmax(axis=1), labels=range(5))
    assert (matrix.argmax(axis=1) == range(5)).all()
    for place, row in enumerate(rows):
        assert row["samples"] == matrix[place].sum()
        assert row["accuracy"] == pytest.approx(matrix[place, place] / matrix[place].sum())
        others = np.delete(matrix[place], place)
        assert row["times"] == others.max()
        counts = [int(count) for count in re.findall(r"\((\d+)\)", row["then for"])]
        assert counts == [count for count in sorted(others, reverse=True)[1:3] if count]
        assert matrix[place, NAMES.index(row["taken for"])] == others.max()


def test_predictions_keep_the_likeliest_first():
    table = measure.predictions([str(n) for n in range(90)], LABEL, {"x": SCORES}).to_pydict()
    assert table["x: classes"] == np.argsort(-SCORES, axis=1).tolist() and table["label"] == LABEL.tolist()


def test_json_holds_no_number_that_is_none():
    assert finite({"a": [float("nan"), (1.0, float("inf"))]}) == {"a": [None, [1.0, None]]}
