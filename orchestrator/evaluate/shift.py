"""The same classes under a natural shift of distribution: which sets belong together, and what is counted of a pair.

Sets need not have the same classes: a pair is compared on those that both name, case aside, and each side chooses among
these alone.

Source: Radford et al. 2021, section 3.3; Taori et al. 2020.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.evaluate import analyses
from orchestrator.evaluate.classifiers import Classify
from orchestrator.evaluate.datasets import EvaluationSet, EvaluationSetError
from orchestrator.evaluate.features import Features
from orchestrator.evaluate.metrics import restrict, top_k_hits
from orchestrator.evaluate.reference import papers_shifts
from orchestrator.evaluate.robustness import Count, Pair

# The shifts of ImageNet that CLIP_benchmark has, letters and digits of their names alone.
IMAGENET = ("imagenet1k", "imagenet")
IMAGENET_SHIFTS = ("imagenetv2", "imageneta", "imagenetr", "imagenetsketch", "objectnet")


def plain_name(name: str) -> str:
    """Letters and digits of a set's name, without the hub's prefix."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^wds[_/]", "", name.lower()))


def known_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """ImageNet and its shifts, those that are among the sets."""
    plain = {name: plain_name(name) for name in names}
    standards = [name for name in names if plain[name] in IMAGENET]
    return [(standards[0], name) for name in names if standards and plain[name] in IMAGENET_SHIFTS]


def asked_pairs(shifts: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs that the user names, `standard=shifted`.

    Raises
    ------
    ValueError : not of that form, or a set that is not measured
    """
    pairs = []
    for text in shifts:
        standard, equals, shifted = text.partition("=")
        if not equals:
            raise ValueError(f"--shift {text}: write standard=shifted, the names of two sets")
        for name in (standard, shifted):
            if name not in names:
                raise ValueError(f"--shift {text}: there is no set {name!r}; the sets are {', '.join(names)}")
        pairs.append((standard, shifted))
    return pairs


def count_pair(
    classify: Classify, standard: tuple[EvaluationSet, Features], shifted: tuple[EvaluationSet, Features]
) -> dict[str, Any]:
    """Right answers of the prompt ensemble on both sets.

    Parameters
    ----------
    classify : makes zero-shot classifiers
    standard, shifted : the sets and their features

    Returns
    -------
    {of: the sets' names, classes: shared, standard: Count, shifted: Count}, as dicts

    Raises
    ------
    EvaluationSetError : the two share fewer than two classes, or one is not of single labels
    """
    for dataset, _ in (standard, shifted):
        if dataset.kind != "classification":
            raise EvaluationSetError(f"evaluation set {dataset.name}: of {dataset.kind}; a shift needs single labels")
    places = [
        {name.strip().lower(): place for place, name in enumerate(one.class_names)} for one, _ in (standard, shifted)
    ]
    shared = [name for name in places[0] if name in places[1]]
    if len(shared) < 2:
        raise EvaluationSetError(
            f"evaluation sets {standard[0].name} and {shifted[0].name}: {len(shared)} class names in common; "
            "a shift needs at least two: write the same names in both classnames.txt"
        )
    found: dict[str, Any] = {"of": [standard[0].name, shifted[0].name], "classes": len(shared)}
    for side, (dataset, features), place in zip(("standard", "shifted"), (standard, shifted), places, strict=True):
        assert features.label is not None
        scores_NC = analyses.zero_shot_scores(classify, dataset, features, dataset.templates)
        kept_NC, label_N = restrict(scores_NC, features.label, [place[name] for name in shared])
        hits = int(np.rint(top_k_hits(kept_NC, label_N, [1]).sum()))
        found[side] = Count(hits, len(label_N))._asdict()
    return found


def papers_marks(shifts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """What the paper's classifiers reach on ImageNet and those of its shifts that are among these pairs, in [0, 1]."""
    marks: dict[str, list[tuple[float, float]]] = {}
    for found in shifts.values():
        standard, shifted = (plain_name(name) for name in found.get("of", ["", ""]))
        for who, place in papers_shifts(shifted).items() if standard in IMAGENET else []:
            marks.setdefault(who, []).append(place)
    return marks


def as_pair(found: Mapping[str, Any]) -> Pair:
    """The counts of a stored pair."""
    return Pair(Count(**found["standard"]), Count(**found["shifted"]))
