"""A regression gate: scores below which an evaluation fails.

pets: 0.85                                   # zero-shot, the prompt ensemble, the set's own metric
cifar10: {zero-shot: 0.9, probe: 0.95}
flickr30k: {picture to text: 0.6}            # recall@1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import storage
from orchestrator.evaluate.analyses import WAYS, ensemble_score

Gate = dict[str, dict[str, float]]
SCORES = ("zero-shot", "probe", *WAYS)


def read_gate(uri: str, names: Sequence[str]) -> Gate:
    """Read the file.

    Parameters
    ----------
    uri : YAML
    names : the sets that are measured

    Raises
    ------
    ValueError : a set that is not measured, a score that there is not, or a bound outside 0 to 1
    """
    import yaml

    try:
        content = yaml.safe_load(storage.read_bytes(uri).decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{uri}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{uri}: write a bound for each set, such as `pets: 0.85`")
    gate: Gate = {}
    for name, bounds in content.items():
        if name not in names:
            raise ValueError(f"{uri}: there is no set {name!r}; the sets are {', '.join(names)}")
        gate[name] = bounds if isinstance(bounds, dict) else {"zero-shot": bounds}
        for score, bound in gate[name].items():
            if score not in SCORES:
                raise ValueError(f"{uri}: {name}: there is no score {score!r}; it must be one of {', '.join(SCORES)}")
            if isinstance(bound, bool) or not isinstance(bound, int | float) or not 0 <= bound <= 1:
                raise ValueError(f"{uri}: {name}: {score}: {bound!r} is no bound from 0 to 1")
    return gate


def score_of(result: Mapping[str, Any], score: str) -> float | None:
    """A set's score by its name here; None where it was not measured."""
    if score == "zero-shot":
        return ensemble_score(result) if "zero_shot" in result else None
    if score == "probe":
        return result["probe"]["score"]["value"] if "probe" in result else None
    return result["retrieval"][score]["recall@1"]["value"] if "retrieval" in result else None


def below(gate: Gate, sets: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each bound that is not reached; what was not measured does not reach it."""
    lines = []
    for name, bounds in gate.items():
        for score, bound in bounds.items():
            found = score_of(sets[name], score) if name in sets else None
            if found is None:
                lines.append(f"{name}: {score} was not measured; it must reach {bound:g}")
            elif found < bound:
                lines.append(f"{name}: {score} {found:.4f} is below {bound:g}")
    return lines
