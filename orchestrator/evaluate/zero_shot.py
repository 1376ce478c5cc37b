"""Zero-shot classification: how often words alone name the picture.

Shapes: N pictures, C classes, D embedding, K best classes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.evaluate.datasets import EvaluationSet, EvaluationSetError
from orchestrator.inference import Embedder, class_probabilities, zero_shot_classifier


@dataclass(frozen=True)
class Prediction:
    """One picture and its likeliest classes.

    Parameters
    ----------
    image : encoded
    truth : its class
    best : classes and their probabilities, likeliest first
    """

    image: bytes
    truth: str
    best: list[tuple[str, float]]


@dataclass(frozen=True)
class ZeroShotResult:
    """What one set gave.

    Parameters
    ----------
    top1, top5, chance : shares of the samples, 0 to 1
    classes, samples : counts
    examples : some predictions, evenly spaced over the set
    """

    top1: float
    top5: float
    chance: float
    classes: int
    samples: int
    examples: list[Prediction]

    def summary(self) -> dict[str, float | int]:
        return {
            "top1": self.top1,
            "top5": self.top5,
            "chance": self.chance,
            "classes": self.classes,
            "samples": self.samples,
        }


def zero_shot(embedder: Embedder, dataset: EvaluationSet, batch_size: int, examples: int = 12) -> ZeroShotResult:
    """Measure a model on one set.

    Parameters
    ----------
    embedder : the model
    dataset : the set
    batch_size : pictures decoded and embedded at once; memory does not grow with the set
    examples : predictions kept to be shown

    Source: Radford et al. 2021, section 3.1.
    """
    weights_CD = zero_shot_classifier(embedder, dataset.class_names, dataset.templates)
    kept = min(5, len(dataset.class_names))
    samples = dataset.samples()
    hits_top1 = hits_top5 = count = 0
    # Every picture's answer is kept, the pictures themselves only of the examples: drawn by reservoir sampling.
    rng = np.random.default_rng(0)
    reservoir: list[Prediction] = []
    while batch := list(itertools.islice(samples, batch_size)):
        image_N3RR = np.stack([embedder.transform.evaluate(sample.image) for sample in batch])
        cosine_NC = embedder.embed_images(image_N3RR) @ weights_CD.T
        probability_NC = class_probabilities(cosine_NC, embedder.logit_scale, embedder.logit_bias)
        best_probability_NK, best_NK = probability_NC.topk(kept, dim=-1)
        label_N1 = torch.tensor([[sample.label] for sample in batch])
        hit_NK = best_NK == label_N1
        hits_top1 += int(hit_NK[:, 0].sum())
        hits_top5 += int(hit_NK.any(dim=-1).sum())
        for row, sample in enumerate(batch):
            place = count + row if count + row < examples else int(rng.integers(count + row + 1))
            if place >= examples:
                continue
            best = [
                (dataset.class_names[c], float(p))
                for c, p in zip(best_NK[row].tolist(), best_probability_NK[row].tolist(), strict=True)
            ]
            assert sample.label is not None
            prediction = Prediction(sample.image, dataset.class_names[sample.label], best)
            if place == len(reservoir):
                reservoir.append(prediction)
            else:
                reservoir[place] = prediction
        count += len(batch)
    if count == 0:
        raise EvaluationSetError(f"evaluation set {dataset.name}: its shards hold no samples")
    return ZeroShotResult(
        top1=hits_top1 / count,
        top5=hits_top5 / count,
        chance=1 / len(dataset.class_names),
        classes=len(dataset.class_names),
        samples=count,
        examples=reservoir,
    )
