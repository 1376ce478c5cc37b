"""What is measured of one set, from its stored features; plain, without Ray.

Sources: Radford et al. 2021, sections 3.1 (zero-shot, few-shot) and 3.2, A.3 (linear probe), A.1 (metrics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from orchestrator.evaluate.benchmarks import metric_of
from orchestrator.evaluate.classifiers import Classify
from orchestrator.evaluate.datasets import EvaluationSet
from orchestrator.evaluate.features import Features
from orchestrator.evaluate.few_shot import FewShot, examples_to_match, few_shot, mean_and_interval
from orchestrator.evaluate.linear_probe import LinearProbe, Probes
from orchestrator.evaluate.measure import Score, class_rows, measure, predictions, top_scores
from orchestrator.evaluate.metrics import METRICS
from orchestrator.evaluate.multilabel_probe import MultiLabelProbes
from orchestrator.evaluate.regularisation import search_strength
from orchestrator.evaluate.retrieval import DEPTHS, recall_interval, retrieval
from orchestrator.evaluate.retrieval_index import index_hits, worth_an_index

# How classes are worded. The first template of a set stands for one; a set's own file orders them.
BARE, ONE, ENSEMBLE = "bare name", "one template", "ensemble"
WAYS = "picture to text", "text to picture"
# One in so many of the training split's is held out where a set has no validation split of its own.
HELD_OUT = 5


def zero_shot_scores(
    classify: Classify, dataset: EvaluationSet, features: Features, templates: Sequence[str]
) -> np.ndarray:
    """Cosine similarities (N, C) of pictures and the classes' prompt ensembles."""
    image_ND = torch.from_numpy(np.array(features.embedding_ND))
    return (image_ND @ classify(dataset.class_names, templates).T).numpy()


def ensemble_score(result: Mapping[str, Any]) -> float:
    """The zero-shot score of the prompt ensemble in a set's result."""
    return result["zero_shot"]["wordings"][ENSEMBLE]["score"]["value"]


def zero_shot(classify: Classify, dataset: EvaluationSet, features: Features) -> tuple[dict[str, Any], pa.Table | None]:
    """Zero-shot scores of the three wordings side by side, each class, and every sample's answer.

    Parameters
    ----------
    classify : makes zero-shot classifiers
    dataset, features : the set

    Returns
    -------
    the result, and predictions; None for multi-label sets
    """
    metric = metric_of(dataset.name, dataset.kind)
    assert features.label is not None
    wordings = {BARE: ["{c}"], ONE: dataset.templates[:1], ENSEMBLE: dataset.templates}
    scores = {
        wording: zero_shot_scores(classify, dataset, features, templates) for wording, templates in wordings.items()
    }
    result: dict[str, Any] = {"metric": metric, "wordings": {}}
    single = dataset.kind == "classification"
    for wording, scores_NC in scores.items():
        one = {"score": measure(metric, scores_NC, features.label)._asdict()}
        if single:
            one |= {name: score._asdict() for name, score in top_scores(scores_NC, features.label).items()}
        result["wordings"][wording] = one
    if not single:
        return result, None
    result["classes"] = class_rows(scores[ENSEMBLE], features.label, dataset.class_names)
    return result, predictions(features.key_N, features.label, scores)


def split_validation(training: Features, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places of the training samples to fit on and of those to choose with: a fifth of each class, or of all samples
    where they have several classes each."""
    assert training.label is not None
    label_N = training.label if training.label.ndim == 1 else np.zeros(len(training.label), np.int64)
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    # Ranks within each class, in the order drawn: every fifth is held out.
    rank_N = np.empty(len(order_N), np.int64)
    for label in np.unique(label_N):
        own = order_N[label_N[order_N] == label]
        rank_N[own] = np.arange(len(own))
    held = rank_N % HELD_OUT == HELD_OUT - 1
    if not held.any():
        raise ValueError(
            f"no class has {HELD_OUT} training examples: too few to choose the probe's regularisation with; add a "
            "validation split"
        )
    return np.flatnonzero(~held), np.flatnonzero(held)


class Probing:
    """Linear probes of a set: training, validation and test features before the projection.

    Parameters
    ----------
    dataset : the test split
    training, test : features
    validation : its own split; None: a fifth of the training split's
    device : torch device
    """

    def __init__(
        self,
        dataset: EvaluationSet,
        training: Features,
        test: Features,
        validation: Features | None = None,
        device: str = "cpu",
    ):
        assert training.label is not None and test.label is not None
        self.metric = metric_of(dataset.name, dataset.kind)
        self._classes, self._device = len(dataset.class_names), device
        self._probes = MultiLabelProbes if dataset.kind == "multilabel" else Probes
        self.test = test.feature_NF, test.label
        if validation is None:
            fit, held = split_validation(training)
            self.training = training.feature_NF[fit], training.label[fit]
            self.validation = training.feature_NF[held], training.label[held]
            self.chosen_on = f"{len(held)} held-out training samples"
        else:
            assert validation.label is not None
            self.training = training.feature_NF, training.label
            self.validation = validation.feature_NF, validation.label
            self.chosen_on = f"{len(validation.label)} samples of the validation split"

    def all_scores(self, probe: LinearProbe, features_NF: np.ndarray) -> np.ndarray:
        """Logits (N, C) of all classes of the set; those that training lacks are never chosen."""
        scores_NC = np.full((len(features_NF), self._classes), -np.inf, np.float32)
        scores_NC[:, probe.class_K.cpu().numpy()] = probe.scores(features_NF)
        return scores_NC

    def score(self, data: tuple[np.ndarray, np.ndarray]) -> Callable[[LinearProbe], float]:
        """The set's metric of a probe on some data."""
        return lambda probe: METRICS[self.metric](self.all_scores(probe, data[0]), data[1])

    def full(self) -> dict[str, Any]:
        """The paper's probe: strength chosen on validation data, then fitted on training and validation data."""
        search = search_strength(self._probes(*self.training, device=self._device), self.score(self.validation))
        feature_NF, label = (np.concatenate(parts) for parts in zip(self.training, self.validation, strict=True))
        (probe,) = self._probes(feature_NF, label, device=self._device).fit([search.strength])
        scores_NC = self.all_scores(probe, self.test[0])
        # Of several classes each, a sample counts for every one of them.
        a_class = label.sum(axis=0).mean() if label.ndim > 1 else len(label) / len(np.unique(label))
        return {
            "metric": self.metric,
            "score": measure(self.metric, scores_NC, self.test[1])._asdict(),
            "strength": search.strength,
            "chosen on": self.chosen_on,
            "validation": {f"{strength:.4g}": score for strength, score in search.scores.items()},
            "training samples": len(label),
            "samples a class": float(a_class),
            "converged": probe.converged,
        }

    def few(self, shots: tuple[int, ...], repeats: int) -> FewShot:
        """Probes of few examples a class."""
        return few_shot(self.training, self.validation, self.score(self.test), shots, range(repeats), self._device)


def few_shot_result(found: FewShot, full: dict[str, Any], zero_shot_score: float | None) -> dict[str, Any]:
    """The curve with intervals, and how many examples a class zero-shot is worth.

    Parameters
    ----------
    found : the curve of few examples
    full : the probe of all, the curve's last point
    zero_shot_score : of the ensemble; None: an encoder without words, whose curve stands alone
    """
    shots = [float(one) for one in found.shots_S]
    score_RS = found.score_RS
    if full["samples a class"] > shots[-1]:
        shots.append(full["samples a class"])
        every_R1 = np.full((len(score_RS), 1), full["score"]["value"])
        score_RS = np.concatenate([score_RS, every_R1], axis=1)
    curve = [mean_and_interval(score_R.tolist()) for score_R in found.score_RS.T]
    result = {
        "shots": found.shots_S,
        "scores": found.score_RS.T.tolist(),
        "curve": [Score(*one)._asdict() for one in curve],
    }
    if zero_shot_score is not None:
        match = examples_to_match(shots, score_RS, zero_shot_score)
        result["zero-shot is worth"] = {**match._asdict(), "text": str(match)}
    return result


def retrieval_result(features: Features, device: str = "cpu") -> dict[str, Any]:
    """Recall at 1, 5 and 10, from pictures to captions and back, with intervals over pictures.

    Exact on a GPU, and on a CPU below `retrieval_index.WORTH`; above, through an index where there is one.
    """
    image_ND, text_TD = features.embedding_ND, features.caption_embedding_TD
    picture_N, picture_T = np.arange(len(image_ND)), features.picture_T
    result: dict[str, Any] = {"captions": len(text_TD)}
    if device == "cpu" and worth_an_index(len(image_ND), len(text_TD)):
        there = index_hits(image_ND, text_TD, picture_N, picture_T, DEPTHS)
        back = index_hits(text_TD, image_ND, picture_T, picture_N, DEPTHS)
        hits = there.hit_QK, back.hit_QK
        result["index recall"] = {way: one.recall for way, one in zip(WAYS, (there, back), strict=True)}
    else:
        image, text, picture = (torch.from_numpy(np.array(part)).to(device) for part in (image_ND, text_TD, picture_T))
        exact = retrieval(image, text, picture)
        hits = exact[0].numpy(), exact[1].numpy()
    for way, hit_QK, picture_Q in zip(WAYS, hits, (picture_N, picture_T), strict=True):
        result[way] = {
            f"recall@{depth}": Score(float(hit_Q.mean()), recall_interval(hit_Q, picture_Q))._asdict()
            for depth, hit_Q in zip(DEPTHS, hit_QK.T, strict=True)
        }
    return result


def finite(value: Any) -> Any:
    """A result as JSON can hold it: null in place of NaN and infinities."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
