"""A score with its interval, and what a classifier answers, from scores of stored features.

Shapes: N samples, C classes, K best classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from orchestrator.evaluate.metrics import METRICS, per_class, top_k_hits
from orchestrator.statistics.intervals import Interval, bootstrap, clopper_pearson

BEST = 5
# Classes that a class is most often taken for.
CONFUSED = 3
# Of metrics that must be computed anew from all scores of each resample.
FEW_RESAMPLES = 200


class Score(NamedTuple):
    """A metric, in [0, 1], and its 95% interval."""

    value: float
    interval: Interval


def measure(metric: str, scores_NC: np.ndarray, label: np.ndarray) -> Score:
    """A metric and its interval: exact (Clopper-Pearson) for accuracy, bootstrap over samples for the others.

    Parameters
    ----------
    metric : a key of `metrics.METRICS`
    scores_NC : higher is likelier
    label : classes (N,), or 0 and 1 (N, C) for 11-point mAP
    """
    value = METRICS[metric](scores_NC, label)
    samples, classes = scores_NC.shape
    if metric == "accuracy":
        return Score(value, _share(top_k_hits(scores_NC, label, [1])[:, 0]))
    if metric == "mean per class":
        hit_N = top_k_hits(scores_NC, label, [1])[:, 0]
        return Score(value, bootstrap(lambda drawn: _mean_of_classes(hit_N[drawn], label[drawn], classes), samples))
    if metric == "mean of top-1 and top-5":
        mean_N = top_k_hits(scores_NC, label, [1, 5]).mean(axis=1)
        return Score(value, bootstrap(lambda drawn: float(mean_N[drawn].mean()), samples))

    def again(drawn: np.ndarray) -> float:
        try:
            return METRICS[metric](scores_NC[drawn], label[drawn])
        except ValueError:  # Of one class alone: undefined.
            return float("nan")

    return Score(value, bootstrap(again, samples, FEW_RESAMPLES))


def top_scores(scores_NC: np.ndarray, label_N: np.ndarray) -> dict[str, Score]:
    """Top-1 and top-5 accuracy with exact intervals."""
    hit_N2 = top_k_hits(scores_NC, label_N, [1, BEST])
    return {
        f"top{depth}": Score(float(hit_N.mean()), _share(hit_N))
        for depth, hit_N in zip((1, BEST), hit_N2.T, strict=True)
    }


def class_rows(scores_NC: np.ndarray, label_N: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row a class: its name, samples, accuracy, and what its samples are mostly taken for otherwise."""
    classes = len(names)
    accuracy_C = per_class(top_k_hits(scores_NC, label_N, [1])[:, 0], label_N, classes)
    best_N = scores_NC.argmax(axis=1)
    confusion_CC = np.zeros((classes, classes), np.int64)
    np.add.at(confusion_CC, (label_N, best_N), 1)
    count_C = confusion_CC.sum(axis=1)
    np.fill_diagonal(confusion_CC, 0)
    order_CK = np.argsort(-confusion_CC, axis=1, kind="stable")[:, :CONFUSED]
    return [
        {
            "class": name,
            "samples": int(count_C[place]),
            "accuracy": float(accuracy_C[place]) if count_C[place] else None,
            "taken for": names[order_CK[place, 0]] if confusion_CC[place, order_CK[place, 0]] else None,
            "times": int(confusion_CC[place, order_CK[place, 0]]),
            "then for": ", ".join(
                f"{names[other]} ({confusion_CC[place, other]})"
                for other in order_CK[place, 1:]
                if confusion_CC[place, other]
            ),
        }
        for place, name in enumerate(names)
    ]


def predictions(keys: Sequence[str], label_N: np.ndarray, scores: dict[str, np.ndarray]) -> pa.Table:
    """Every sample's answer: key, label, and of each classifier its likeliest classes, likeliest first.

    Parameters
    ----------
    keys : names of the samples
    label_N : true classes
    scores : of each classifier by name, (N, C)
    """
    columns: dict[str, pa.Array] = {"key": pa.array(keys), "label": pa.array(label_N, pa.int32())}
    for name, scores_NC in scores.items():
        kept = min(BEST, scores_NC.shape[1])
        best_NK = np.argsort(-scores_NC, axis=1, kind="stable")[:, :kept]
        score_NK = np.take_along_axis(scores_NC, best_NK, axis=1)
        for what, value_NK, kind in (("classes", best_NK, pa.int32()), ("scores", score_NK, pa.float32())):
            columns[f"{name}: {what}"] = pa.FixedSizeListArray.from_arrays(pa.array(value_NK.ravel(), kind), kept)
    return pa.table(columns)


def _share(hit_N: np.ndarray) -> Interval:
    # Rounding may carry the sum of shared ties a hair beyond the count.
    return clopper_pearson(min(float(hit_N.sum()), len(hit_N)), len(hit_N))


def _mean_of_classes(hit_N: np.ndarray, label_N: np.ndarray, classes: int) -> float:
    return float(np.nanmean(per_class(hit_N, label_N, classes)))
