"""How values are written in figures and tables."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


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
