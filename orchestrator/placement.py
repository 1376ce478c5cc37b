"""Which nodes a selector of labels admits, in Ray's syntax.

A selector maps a label to what it must be: a value, `!value`, `in(a, b)` or `!in(a, b)`; all of its labels must fit. A
node without the label is one whose label is not the value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?"
_LABEL = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_EXPRESSION = re.compile(rf"(!?)(?:in\(({_WORD}(?:, ?{_WORD})*)\)|({_WORD}))")


def check(selector: Mapping[str, str]) -> None:
    """Whether Ray can read a selector.

    Raises
    ------
    ValueError : it cannot; the message names the label and what is wrong
    """
    for label, expression in selector.items():
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{label!r} is no label: take letters, digits, '-', '_' and '.', one '/' in between")
        _read(label, expression)


def admits(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels is one of the selector's.

    Parameters
    ----------
    selector : label -> expression; empty: any node
    labels : of the node

    Raises
    ------
    ValueError : an expression that cannot be read
    """
    for label, expression in selector.items():
        wanted, values = _read(label, expression)
        if (labels.get(label) in values) != wanted:
            return False
    return True


def _read(label: str, expression: str) -> tuple[bool, list[str]]:
    """Whether the label must be among some values, or must not, and the values."""
    found = _EXPRESSION.fullmatch(expression)
    if not found:
        raise ValueError(f"{label}: {expression!r} is neither a value, !value, in(a, b) nor !in(a, b)")
    negated, several, one = found.groups()
    return not negated, re.split(", ?", several) if several else [one]
