"""How well scores name what is in a picture.

Shapes: N samples, C classes, K depths. Scores are of any monotone scale. A tie is worth what random order would give on
average, so that neither the order of the classes nor a constant model gains by it.

Sources: Everingham et al. 2010, section 4.2 (11-point average precision); Hanley & McNeil 1982 (area under ROC).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy

# Scores looked at together: tens of megabytes.
CHUNK = 1 << 22


def top_k_hits(scores_NC: np.ndarray, label_N: np.ndarray, depths: Sequence[int] = (1, 5)) -> np.ndarray:
    """Whether each sample's class is among the k best.

    Parameters
    ----------
    scores_NC : higher is likelier
    label_N : places of the true classes
    depths : the K values of k

    Returns
    -------
    (N, K) float64 in [0, 1]; between the two only for ties

    Raises
    ------
    ValueError : shapes that do not match, a score that is not a number, a label that is no class
    """
    scores_NC, label_N = _checked(scores_NC, label_N)
    hits_NK = np.empty((len(label_N), len(depths)))
    step = max(1, CHUNK // scores_NC.shape[1])
    for start in range(0, len(label_N), step):
        part_NC, label = scores_NC[start : start + step], label_N[start : start + step, None]
        true_N1 = np.take_along_axis(part_NC, label, axis=1)
        above_N1 = (part_NC > true_N1).sum(axis=1, keepdims=True)
        tied_N1 = (part_NC == true_N1).sum(axis=1, keepdims=True)
        hits_NK[start : start + step] = np.clip((np.asarray(depths) - above_N1) / tied_N1, 0, 1)
    return hits_NK


def accuracy(scores_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The share of samples whose class has the highest score."""
    return float(top_k_hits(scores_NC, label_N, [1]).mean())


def mean_of_top1_and_top5(scores_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The mean of the two accuracies, as Kinetics is scored."""
    return float(top_k_hits(scores_NC, label_N, [1, 5]).mean())


def per_class(hits_N: np.ndarray, label_N: np.ndarray, classes: int) -> np.ndarray:
    """Accuracy of each class, (C,); NaN for a class without samples."""
    count_C = np.bincount(label_N, minlength=classes)
    with np.errstate(invalid="ignore"):
        return np.bincount(label_N, hits_N, minlength=classes) / count_C


def mean_per_class(scores_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The mean of the accuracies of the classes that have samples."""
    hits_N = top_k_hits(scores_NC, label_N, [1])[:, 0]
    return float(np.nanmean(per_class(hits_N, label_N, np.shape(scores_NC)[1])))


def average_precision_11(scores_N: np.ndarray, relevant_N: np.ndarray) -> float:
    """Mean over recalls 0, 0.1 ... 1 of the best precision at that recall or beyond.

    Parameters
    ----------
    scores_N : higher is likelier
    relevant_N : bool

    Returns
    -------
    in [0, 1]; NaN where nothing is relevant
    """
    relevant_N = np.asarray(relevant_N, bool)
    if not relevant_N.any():
        return float("nan")
    order = np.argsort(-scores_N, kind="stable")
    # Only the end of a run of equal scores is a threshold.
    end_T = np.flatnonzero(np.append(np.diff(scores_N[order]) != 0, True))
    found_T = np.cumsum(relevant_N[order])[end_T]
    best_T = np.maximum.accumulate((found_T / (end_T + 1))[::-1])[::-1]
    # In whole numbers: a recall of 3 of 10 is 0.3 whatever 0.3 is in binary.
    at = np.searchsorted(10 * found_T, np.arange(11) * found_T[-1])
    return float(best_T[at].mean())


def mean_average_precision_11(scores_NC: np.ndarray, relevant_NC: np.ndarray) -> float:
    """The mean of 11-point average precision over the classes that have a relevant sample (VOC2007)."""
    scores_NC, relevant_NC = np.asarray(scores_NC), np.asarray(relevant_NC)
    if scores_NC.ndim != 2 or scores_NC.shape != relevant_NC.shape:
        raise ValueError(f"scores {scores_NC.shape}, labels {relevant_NC.shape}: both (samples, classes), multi-label")
    _numbers(scores_NC)
    found = [average_precision_11(*pair) for pair in zip(scores_NC.T, relevant_NC.T, strict=True)]
    if np.isnan(found).all():
        raise ValueError("no class has a relevant sample: the labels are all zero")
    return float(np.nanmean(found))


def roc_auc(scores_N2: np.ndarray, label_N: np.ndarray) -> float:
    """Area under the ROC curve of the second of two classes.

    Raises
    ------
    ValueError : not two classes, or samples of one only
    """
    scores_N2, label_N = _checked(scores_N2, label_N)
    ones = int(label_N.sum())
    zeros = len(label_N) - ones
    if scores_N2.shape[1] != 2 or not ones or not zeros:
        raise ValueError(
            f"ROC AUC of {scores_N2.shape[1]} classes, {ones} samples of class 1 and {zeros} others: "
            "two classes, and samples of both"
        )
    rank_N = scipy.stats.rankdata(scores_N2[:, 1].astype(np.float64) - scores_N2[:, 0])
    return float((rank_N[label_N == 1].sum() - ones * (ones + 1) / 2) / (ones * zeros))


# By the names that reports use.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "mean per class": mean_per_class,
    "mean of top-1 and top-5": mean_of_top1_and_top5,
    "11-point mAP": mean_average_precision_11,
    "ROC AUC": roc_auc,
}


def restrict(scores_NC: np.ndarray, label_N: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Only the samples of some classes, and only these classes to choose from.

    Parameters
    ----------
    scores_NC, label_N : of all classes
    classes : the M places to keep, in the order wanted

    Returns
    -------
    scores (n, M) and labels (n,), places in `classes`
    """
    scores_NC, label_N = _checked(scores_NC, label_N)
    place_C = np.full(scores_NC.shape[1], -1)
    place_C[list(classes)] = np.arange(len(classes))
    kept_N = place_C[label_N] >= 0
    if not kept_N.any():
        raise ValueError(f"no sample is of the {len(classes)} classes kept: do they belong to this set?")
    return scores_NC[kept_N][:, list(classes)], place_C[label_N[kept_N]]


def _checked(scores_NC: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores_NC, label_N = np.asarray(scores_NC), np.asarray(label_N)
    if scores_NC.ndim != 2 or label_N.shape != scores_NC.shape[:1] or not len(label_N):
        raise ValueError(
            f"scores {scores_NC.shape}, labels {label_N.shape}: (samples, classes) and (samples,), not empty"
        )
    if label_N.dtype.kind not in "iu":
        raise ValueError(f"labels of type {label_N.dtype}: whole numbers, places in the list of classes")
    bad = np.flatnonzero((label_N < 0) | (label_N >= scores_NC.shape[1]))
    if bad.size:
        raise ValueError(f"label {label_N[bad[0]]} of sample {bad[0]}: a place from 0 to {scores_NC.shape[1] - 1}")
    _numbers(scores_NC)
    return scores_NC, label_N


def _numbers(scores_NC: np.ndarray) -> None:
    bad = np.flatnonzero(np.isnan(scores_NC).any(axis=1))
    if bad.size:
        raise ValueError(f"scores of sample {bad[0]} hold NaN: the features or the model's weights do")
