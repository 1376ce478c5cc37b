"""Sections of a report that look at single pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import storage
from orchestrator.evaluate import figures
from orchestrator.evaluate.cells import Rows, score_columns
from orchestrator.evaluate.reference import PEOPLE_ON_PETS
from orchestrator.evaluate.worst import picture_file, worst_rows
from orchestrator.report.document import Part, Picture, Text, draw, rows_table

# The paper's table 2: a mean over classes each.
COLUMNS = {
    "accuracy": "accuracy",
    "majority_vote_full": "majority vote",
    "accuracy_on_guesses": "accuracy on guesses",
    "majority_vote_on_guesses": "majority vote on guesses",
}
# Classes shown of each set; all are in classes.csv.
WORST = 10


def worst_section(uri: str, name: str, classes: Rows) -> list[Part]:
    """The classes of a set with the lowest accuracy, what they are taken for, and some of their pictures."""
    worst = worst_rows(classes)[:WORST]
    if not worst:
        return []
    parts: list[Part] = [Text(f"Worst classes of {name}", "heading"), rows_table(worst)]
    file = picture_file(name)
    if storage.exists(storage.join(uri, file)):
        data = storage.read_bytes(storage.join(uri, file))
        parts.append(Picture(f"Mistaken pictures of {name}, and what they are taken for", file, data, photo=True))
    return parts


def human_rows(humans: Mapping[str, Any]) -> Rows:
    """One row a set and who answered it."""
    return [
        {"set": name, "who": who, **{title: row[key] for key, title in COLUMNS.items()}}
        for name, one in humans.items()
        for who, row in one["table"].items()
    ]


def human_class_rows(humans: Mapping[str, Any]) -> Rows:
    """One row a class: what people and the model get right of the pictures that people have seen."""
    return [{"set": name, **row} for name, one in humans.items() for row in one["classes"]]


def human_section(humans: Mapping[str, Any]) -> list[Part]:
    """People beside the model, set by set."""
    parts: list[Part] = []
    for name, one in humans.items():
        lines: Rows = [
            {"who": who} | {title: _percent(row[key]) for key, title in COLUMNS.items()}
            for who, row in one["table"].items()
        ]
        lines += [
            {"who": f"the paper's {who}, on Pets"} | dict(zip(COLUMNS.values(), map(_percent, shares), strict=True))
            for who, shares in ((who, [share / 100 for share in row]) for who, row in PEOPLE_ON_PETS.items())
        ]
        if "correlation" in one:
            found = one["correlation"]
            low, high = found["interval"]
            text = (
                f"What is hard for people and for the model, over {found['classes']} classes: correlation "
                f"{found['value']:.2f} ({low:.2f} to {high:.2f}), p {found['p']:.2g}."
            )
        else:
            text = f"No correlation of difficulty: {one['no correlation']}."
        parts += [
            Text(f"People and the model on {name}", "heading"),
            Text(
                f"{one['people']} people on {one['pictures']:,} pictures; percent, means over classes. A guess is any "
                'answer but "don\'t know"; of a vote, pictures without a single most frequent answer are left out.',
                "status",
            ),
            rows_table(lines),
            Text(text),
            *draw({f"Difficulty of {name}": figures.difficulty(name, one["classes"])}),
        ]
    return parts


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.1f}"


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
        line["share"] = _percent(row["seen"] / row["samples"])
        if "clean" in row:
            line |= {name: _percent(row[name]) for name in ("all", "overlap", "clean")}
            line["all - clean"] = f"{100 * row['gain']:+.2f}"
            if row["seen"]:
                above = [
                    f"{100 * (row[end] - row['clean']):+.1f}" for end in ("overlap", "overlap low", "overlap high")
                ]
                line["overlap - clean (99.5%)"] = "{} ({} to {})".format(*above)
                line |= {side: row[side] for side in ("p, one-sided", "p, two-sided")}
        lines.append(line)
    rejected = f", {training['rejected']:,} more could not be read" if training["rejected"] else ""
    return [
        Text("Overlap with training", "heading"),
        Text(
            f"{training['pictures']:,} pictures of {training['shards']:,} training shards were compared with the sets' "
            f"by their pixels{rejected}. Accuracy in percent on all pictures, on those with a near-duplicate in "
            "training, and on the others; p of the binomial test of the overlap's accuracy against the clean one. The "
            "paper found a median overlap of 2.2% and a mean of 3.2% over 35 sets. The pairs: overlap/<set>.parquet.",
            "status",
        ),
        rows_table(lines),
    ]
