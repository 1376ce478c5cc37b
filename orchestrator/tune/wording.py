"""How numbers, options and settings are written in a study's figures and tables."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from orchestrator.tune.trial import Trial


def plain(value: Any) -> Any:
    """A Python value instead of numpy's scalar; None instead of NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value


def number(value: float, digits: int = 4) -> str:
    """A number with that many significant digits, such as 0.0123, 5e-5 or 3.2e15."""
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{value:,.0f}"
    mantissa, e, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def cell(value: Any) -> str:
    """A value as a person reads it; what is missing is a dash."""
    value = plain(value)
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(cell, value))}]"
    return str(value)


def options_of(trials: Iterable[Trial]) -> list[str]:
    """Every option that a trial sets, in the order they are met."""
    return list(dict.fromkeys(itertools.chain.from_iterable(trial.setting for trial in trials)))


def differing(trials: Sequence[Trial]) -> list[str]:
    """The options that are not the same in all trials."""
    return [o for o in options_of(trials) if len({repr(plain(trial.setting.get(o))) for trial in trials}) > 1]


def short_names(options: Sequence[str]) -> dict[str, str]:
    """The shortest ending of each option's name that no other has: `width`, or `vision.width` beside `text.width`."""
    parts = {option: option.split(".") for option in options}
    endings = {o: [".".join(p[-length:]) for length in range(1, len(p) + 1)] for o, p in parts.items()}
    count = Counter(itertools.chain.from_iterable(endings.values()))
    return {o: next((ending for ending in endings[o] if count[ending] == 1), o) for o in options}


def label(trial: Trial, options: Sequence[str] | None = None) -> str:
    """The group of a trial: its setting, or those options of it, as one short text; seeds share a group."""
    names = short_names(list(trial.setting) if options is None else options)
    return ", ".join(f"{name}={cell(trial.setting.get(option))}" for option, name in names.items())
