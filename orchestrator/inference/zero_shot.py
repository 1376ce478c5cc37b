"""From class names and prompt templates to a zero-shot classifier.

Shapes: C classes, P templates, N pictures, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from orchestrator.inference.embed import Embedder

# Classifiers that an embedder remembers; the oldest goes first.
CLASSIFIERS_KEPT = 32


def zero_shot_classifier(embedder: Embedder, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """The weights of a classifier made of words.

    Each class is the mean of its prompts' unit-length embeddings, made unit length again. The embedder keeps the
    result, so that asking again for the same classes and templates costs nothing.

    Parameters
    ----------
    embedder : the model
    class_names : C names
    templates : P prompt templates, each with {c} where the name goes

    Returns
    -------
    tensor (C, D), rows of unit length

    Raises
    ------
    ValueError : no class, no template, or a template without {c}

    Source: Radford et al. 2021, section 3.1.4.
    """
    if not class_names or not templates:
        raise ValueError("a zero-shot classifier needs at least one class name and one template")
    for template in templates:
        if "{c}" not in template:
            raise ValueError(f"template {template!r} has no {{c}} for the class name")
    key = (tuple(class_names), tuple(templates))
    if key in embedder.classifiers:
        return embedder.classifiers[key]
    prompts = [template.replace("{c}", name) for name in class_names for template in templates]
    prompt_CPD = embedder.embed_texts(prompts).unflatten(0, (len(class_names), len(templates)))
    while len(embedder.classifiers) >= CLASSIFIERS_KEPT:
        del embedder.classifiers[next(iter(embedder.classifiers))]
    embedder.classifiers[key] = F.normalize(prompt_CPD.mean(dim=1), dim=-1)
    return embedder.classifiers[key]
