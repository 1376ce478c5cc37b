"""Sections of a report that look at single pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.evaluate.cells import Rows, from_columns, score_columns
from orchestrator.report.document import Part, Text, rows_table


def overlap_rows(overlap: Mapping[str, Any]) -> Rows:
    """One row a set: accuracies on all pictures, on those that training has seen, and on the others."""
    rows: Rows = []
    for name, one in overlap.get("sets", {}).items():
        row = {"set": name, "samples": one["samples"], "seen": one["seen"]}
        if "clean" in one:
            seen = {"value": one["overlap"], "interval": one["interval"]}
            row |= {"all": one["all"], **score_columns("overlap", seen), "clean": one["clean"], "gain": one["gain"]}
            row |= {"p, one-sided": one["greater"], "p, two-sided": one["different"]}
        rows.append(row)
    return rows


def overlap_section(overlap: Mapping[str, Any], rows: Rows) -> list[Part]:
    """What training has seen of the sets; nothing where nobody has looked."""
    if not rows:
        return []
    training = overlap["training"]
    lines = []
    for row in rows:
        line = {"set": row["set"], "pictures": row["samples"], "seen in training": row["seen"]}
        if "clean" in row:
            seen = from_columns(row, "overlap") if row["seen"] else None
            line |= {"share": f"{100 * row['seen'] / row['samples']:.1f}", "all": f"{100 * row['all']:.1f}"}
            line |= {
                "overlap (99.5%)": seen,
                "clean": f"{100 * row['clean']:.1f}",
                "all - clean": f"{100 * row['gain']:+.2f}",
            }
            line |= {"p, one-sided": row["p, one-sided"], "p, two-sided": row["p, two-sided"]}
        lines.append(line)
    rejected = f", {training['rejected']:,} more could not be read" if training["rejected"] else ""
    return [
        Text("Overlap with training", "heading"),
        Text(
            f"{training['pictures']:,} pictures of {training['shards']:,} training shards were compared with the sets' "
            f"by their pixels{rejected}. Accuracy in percent on all pictures, on those with a near-duplicate in "
            "training, and on the others; p of the binomial test of the overlap's accuracy against the clean one. The "
            "paper found a median overlap of 2.2% and a mean of 3.2% over 35 sets.",
            "status",
        ),
        rows_table(lines),
    ]
