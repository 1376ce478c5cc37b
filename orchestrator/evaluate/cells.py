"""Rows of a report's tables, and how scores stand in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import storage

Rows = list[dict[str, Any]]


def write_csv(uri: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows, each a value by column, as CSV; an empty file where there are none."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(dict.fromkeys(column for row in rows for column in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    storage.write_bytes(uri, sink.getvalue().encode() if rows else b"")


def percent(score: Mapping[str, Any]) -> str:
    """A score and its interval as a table shows them."""
    low, high = score["interval"]
    return f"{100 * score['value']:.1f}" + ("" if low is None else f" ({100 * low:.1f} to {100 * high:.1f})")


def score_columns(name: str, score: Mapping[str, Any]) -> dict[str, Any]:
    """A score and the ends of its interval."""
    low, high = score["interval"]
    return {name: score["value"], f"{name} low": low, f"{name} high": high}


def from_columns(row: Mapping[str, Any], name: str) -> str:
    """What `percent` says of a score that `score_columns` has spread."""
    return percent({"value": row[name], "interval": (row[f"{name} low"], row[f"{name} high"])})
