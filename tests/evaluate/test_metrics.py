"""Metrics against scikit-learn, scipy and loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

from orchestrator.evaluate import metrics, retrieval, retrieval_index
from orchestrator.evaluate.analyses import retrieval_result
from orchestrator.evaluate.benchmarks import PAPER_METRICS, metric_of, paper_name
from orchestrator.evaluate.features import Features
from orchestrator.statistics.intervals import bootstrap, clopper_pearson

RNG = np.random.default_rng(0)
SCORES_NC, LABEL_N = RNG.normal(size=(300, 9)), RNG.integers(9, size=300)


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_top_k_is_scikit_learns(chunk, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    hits_NK = metrics.top_k_hits(SCORES_NC, LABEL_N, [1, 3, 8])
    for k, share in zip((1, 3, 8), hits_NK.mean(axis=0), strict=True):
        assert share == pytest.approx(sk.top_k_accuracy_score(LABEL_N, SCORES_NC, k=k, labels=range(9)))
    mean = sk.balanced_accuracy_score(LABEL_N, SCORES_NC.argmax(axis=1))
    assert metrics.mean_per_class(SCORES_NC, LABEL_N) == pytest.approx(mean)
    both = metrics.top_k_hits(SCORES_NC, LABEL_N).mean(axis=0)
    assert metrics.mean_of_top1_and_top5(SCORES_NC, LABEL_N) == pytest.approx(both.mean())


def test_a_constant_model_scores_what_chance_does():
    constant = np.zeros((300, 9))
    assert metrics.top_k_hits(constant, LABEL_N).mean(axis=0) == pytest.approx([1 / 9, 5 / 9])
    assert metrics.roc_auc(constant[:, :2], LABEL_N % 2) == 0.5


def test_a_class_without_samples_does_not_count():
    assert metrics.mean_per_class(np.eye(4)[[0, 0, 2]], np.array([0, 1, 2])) == pytest.approx(2 / 3)
    assert np.isnan(metrics.per_class(np.ones(3), np.array([0, 1, 2]), 4)[3])


@pytest.mark.parametrize("decimals", [1, 8])
def test_eleven_points_are_those_of_scikit_learns_curve(decimals):
    scores_NC = SCORES_NC.round(decimals)
    relevant_NC = RNG.random(scores_NC.shape) < 0.2
    expected = []
    for scores, relevant in zip(scores_NC.T, relevant_NC.T, strict=True):
        precision, recall, _ = sk.precision_recall_curve(relevant, scores)
        # Its last point, precision 1 at recall 0, is no threshold's.
        expected.append(np.mean([precision[:-1][recall[:-1] >= t / 10 - 1e-12].max() for t in range(11)]))
    assert metrics.mean_average_precision_11(scores_NC, relevant_NC) == pytest.approx(np.mean(expected))


def test_roc_auc_is_scikit_learns():
    scores = SCORES_NC[:, :2].round(1)
    expected = sk.roc_auc_score(LABEL_N % 2, scores[:, 1] - scores[:, 0])
    assert metrics.roc_auc(scores, LABEL_N % 2) == pytest.approx(expected)


def test_a_subset_of_classes_chooses_among_them_alone():
    scores, label = metrics.restrict(np.array([[3.0, 2, 1], [0, 1, 2], [9, 1, 5]]), np.array([1, 2, 0]), [2, 1])
    assert scores.tolist() == [[1, 2], [2, 1]] and label.tolist() == [1, 0]
    assert metrics.accuracy(scores, label) == 1


def brute_recall(query, item, query_picture, item_picture, k):
    """One of its own among the k nearest, over many random orders of ties."""
    order = np.random.default_rng(1)
    hits = []
    for vector, picture in zip(query, query_picture, strict=True):
        similarity = item @ vector
        found = 0
        for _ in range(200):
            nearest = np.lexsort((order.random(len(item)), -similarity))[:k]
            found += picture in item_picture[nearest]
        hits.append(found / 200)
    return np.array(hits)


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_recall_both_ways_is_that_of_a_loop(chunk, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    # Small whole numbers: the similarities tie often, and exactly.
    image, text = RNG.integers(-1, 2, size=(20, 3)), RNG.integers(-1, 2, size=(50, 3))
    picture_T = np.concatenate([np.arange(20), RNG.integers(20, size=30)])
    tensors = torch.tensor(image).float(), torch.tensor(text).float(), torch.tensor(picture_T)
    there, back = retrieval.retrieval(*tensors, depths=[1, 5])
    for column, k in enumerate((1, 5)):
        assert there[:, column].numpy() == pytest.approx(
            brute_recall(image, text, np.arange(20), picture_T, k), abs=0.15
        )
        assert there[:, column].mean() == pytest.approx(
            brute_recall(image, text, np.arange(20), picture_T, k).mean(), abs=0.03
        )
        assert back[:, column].mean() == pytest.approx(
            brute_recall(text, image, picture_T, np.arange(20), k).mean(), abs=0.03
        )


def test_the_interval_of_a_recall_draws_pictures_with_all_their_captions():
    hit_I = RNG.random(150) < 0.4
    picture_Q = np.repeat(np.arange(150), 5)
    found = retrieval.recall_interval(hit_I[picture_Q].astype(float), picture_Q, 4000)
    expected = stats.bootstrap((hit_I,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.01)


def test_equal_embeddings_recall_what_chance_does():
    same, picture = torch.ones(3000, 2), torch.arange(3000)
    there, _ = retrieval.retrieval(same, same, picture)
    assert there.mean(dim=0).tolist() == pytest.approx([1 / 3000, 5 / 3000, 10 / 3000])


def test_an_index_finds_what_exact_search_finds(monkeypatch):
    """On embeddings in clusters, as a model's are; the recall that it says it has is the one that it has."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(40, 24))
    image = centre[rng.integers(40, size=1500)] + 0.5 * rng.normal(size=(1500, 24))
    picture_T = np.repeat(np.arange(1500), 2)
    text = image[picture_T] + 0.8 * rng.normal(size=(3000, 24))
    image, text = ((one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float32) for one in (image, text))
    there, back = retrieval.retrieval(*map(torch.from_numpy, (image, text, picture_T)))
    for exact, given in (
        (there, (image, text, np.arange(1500), picture_T)),
        (back, (text, image, picture_T, np.arange(1500))),
    ):
        found = retrieval_index.index_hits(*given, (1, 5, 10))
        assert found.recall >= retrieval_index.ENOUGH and found.looked_into < 0.5
        assert found.hit_QK.mean(axis=0) == pytest.approx(exact.numpy().mean(axis=0), abs=0.01)
        nearest = np.argsort(-(given[0] @ given[1].T), axis=1)[:, :10]
        own = given[3][nearest] == given[2][:, None]
        assert (own.any(axis=1) >= found.hit_QK[:, 2]).mean() > 0.999
    monkeypatch.setattr(retrieval_index, "WORTH", 1)
    features = Features([], None, image, image, [], text, picture_T)
    result = retrieval_result(features)
    assert min(result["index recall"].values()) >= 0.99
    value = result["text to picture"]["recall@5"]["value"]
    assert value == pytest.approx(float(back[:, 1].mean()), abs=0.01) and 0.3 < value < 0.99


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (3, 10), (612, 1000)])
def test_the_exact_interval_is_scipys(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(method="exact")
    assert clopper_pearson(hits, count) == pytest.approx((expected.low, expected.high))


def test_the_bootstrap_is_scipys():
    sample = RNG.normal(size=200)
    expected = stats.bootstrap((sample,), np.mean, method="percentile", n_resamples=4000, rng=0).confidence_interval
    low, high = bootstrap(lambda places: sample[places].mean(), 200, resamples=4000)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.015)


def test_the_metric_of_a_set():
    assert len(PAPER_METRICS) == 27 and set(PAPER_METRICS.values()) <= set(metrics.METRICS)
    means = (
        "wds/vtab/pets",
        "wds_vtab-pets",
        "s3://eval/wds_vtab/flowers/",
        "FGVC Aircraft",
        "fgvc_aircraft",
        "caltech101",
    )
    for name in means:
        assert metric_of(name) == "mean per class"
    assert metric_of("wds/voc2007_multilabel", "multilabel") == "11-point mAP"
    assert (paper_name("wds_vtab-clevr_count_all"), paper_name("wds/cars")) == ("CLEVR", "Stanford Cars")
    assert metric_of("voc2007") == metric_of("my own") == "accuracy"
    assert (metric_of("hateful_memes"), metric_of("flickr30k", "retrieval")) == ("ROC AUC", "recall@k")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy(np.zeros((2, 3)), np.array([0, 3])), "label 3 of sample 1: a place from 0 to 2"),
        (lambda: metrics.accuracy(np.array([[0, np.nan]]), np.array([0])), "scores of sample 0 hold NaN"),
        (lambda: metrics.accuracy(np.zeros((2, 3)), np.array([0])), r"scores \(2, 3\), labels \(1,\)"),
        (lambda: metrics.roc_auc(np.zeros((2, 2)), np.array([0, 0])), "two classes, and samples of both"),
        (lambda: clopper_pearson(3, 2), "3 hits in 2 trials"),
        (lambda: metric_of("x", "video"), "set x: dataset_type 'video'"),
        (
            lambda: retrieval.retrieval(torch.eye(2), torch.eye(2), torch.tensor([0, 0])),
            "query 1 has no item of its own",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
