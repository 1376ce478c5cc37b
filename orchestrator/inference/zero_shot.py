"""From class names and prompt templates to a zero-shot classifier.

Shapes: C classes, P prompts of a class, N pictures, D embedding.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.inference.embed import Embedder

# Classifiers that an embedder remembers; the oldest goes first.
CLASSIFIERS_KEPT = 32
# Prompts embedded before their classes' means are taken: memory does not grow with the number of classes.
PROMPTS_AT_ONCE = 1024

# A class has one name, or several that count alike.
Class = str | Sequence[str]


def zero_shot_classifier(embedder: Embedder, classes: Sequence[Class], templates: Sequence[str]) -> Tensor:
    """The weights of a classifier made of words, as `build_classifier` makes them.

    The embedder keeps the result, so that asking again for the same classes and templates costs nothing.

    Parameters
    ----------
    embedder : the model
    classes, templates : as for `build_classifier`
    """
    key = (tuple(_names(one) for one in classes), tuple(templates))
    if key not in embedder.classifiers:
        weights_CD = build_classifier(embedder.embed_texts, classes, templates)
        while len(embedder.classifiers) >= CLASSIFIERS_KEPT:
            del embedder.classifiers[next(iter(embedder.classifiers))]
        embedder.classifiers[key] = weights_CD
    return embedder.classifiers[key]


def build_classifier(
    embed_texts: Callable[[list[str]], Tensor],
    classes: Sequence[Class],
    templates: Sequence[str],
    on_progress: Callable[[int], None] = lambda classes_done: None,
) -> Tensor:
    """The weights of a classifier made of words.

    Each class is the mean of its prompts' unit-length embeddings, made unit length again.

    Parameters
    ----------
    embed_texts : texts -> unit-length embeddings (texts, D)
    classes : C classes, each one name or several
    templates : prompt templates, each with {c} where the name goes
    on_progress : told how many classes are done, now and then

    Returns
    -------
    tensor (C, D), rows of unit length

    Raises
    ------
    ValueError : no class, a class without a name, no template, or a template without {c}

    Source: Radford et al. 2021, section 3.1.4.
    """
    if not classes or not templates:
        raise ValueError("a zero-shot classifier needs at least one class name and one template")
    for template in templates:
        if "{c}" not in template:
            raise ValueError(f"template {template!r} has no {{c}} for the class name")
    if not all(_names(one) for one in classes):
        raise ValueError("a class needs at least one name")
    rows: list[Tensor] = []
    pending: list[list[str]] = []
    for one in classes:
        pending.append([template.replace("{c}", name) for name in _names(one) for template in templates])
        if sum(map(len, pending)) >= PROMPTS_AT_ONCE:
            rows += _means(embed_texts, pending)
            pending = []
            on_progress(len(rows))
    rows += _means(embed_texts, pending)
    on_progress(len(rows))
    return torch.stack(rows)


def class_probabilities(cosine_NC: Tensor, logit_scale: float, logit_bias: float | None) -> Tensor:
    """What a model makes of cosine similarities, (N, C).

    Parameters
    ----------
    cosine_NC : pictures against classes
    logit_scale : the model's multiplier
    logit_bias : the bias of a model trained with the sigmoid objective; None: contrastive

    Returns
    -------
    contrastive: shares of one, over the classes; sigmoid: each class by itself, in [0, 1]
    """
    if logit_bias is None:
        return torch.softmax(logit_scale * cosine_NC, dim=-1)
    return torch.sigmoid(logit_scale * cosine_NC + logit_bias)


def _names(one: Class) -> tuple[str, ...]:
    return (one,) if isinstance(one, str) else tuple(one)


def _means(embed_texts: Callable[[list[str]], Tensor], classes: list[list[str]]) -> list[Tensor]:
    if not classes:
        return []
    prompts_PD = embed_texts(list(itertools.chain.from_iterable(classes)))
    parts = prompts_PD.split([len(prompts) for prompts in classes])
    return [F.normalize(part.mean(dim=0), dim=-1) for part in parts]
