"""The report of an evaluation, in one folder that needs nothing else.

report.md, report.html     to read; the page holds its figures and asks nothing of the network
<figure>.csv               every figure's data
scores.csv                 one row a set
classes.csv                one row a class of a set
result.json                all of it, for machines (written by `run`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator import storage
from orchestrator.evaluate import figures
from orchestrator.evaluate.analyses import BARE, ENSEMBLE, ONE, WAYS, ensemble_score
from orchestrator.evaluate.cells import Rows, from_columns, percent, score_columns, write_csv
from orchestrator.evaluate.few_shot import headroom
from orchestrator.evaluate.reference import released_scores
from orchestrator.evaluate.robustness import Count
from orchestrator.evaluate.sections import (
    human_class_rows,
    human_rows,
    human_section,
    overlap_rows,
    overlap_section,
    worst_section,
)
from orchestrator.evaluate.shift import papers_marks
from orchestrator.report.document import Part, Text, draw, rows_table, write_document
from orchestrator.statistics.intervals import clopper_pearson


def write_report(uri: str, result: Mapping[str, Any]) -> None:
    """Write the report of one model.

    Parameters
    ----------
    uri : of the folder; `report.md` appears in it last
    result : what `run.evaluate` returns
    """
    sets = result["sets"]
    tables = {
        "scores": score_rows(sets), "classes": class_rows(sets), "few-shot": few_shot_rows(sets),
        "shifts": shift_rows(result["shifts"]), "humans": human_rows(result["humans"]),
        "human-classes": human_class_rows(result["humans"]), "overlap": overlap_rows(result["overlap"]),
    }  # fmt: skip
    for name, rows in tables.items():
        write_csv(storage.join(uri, f"{name}.csv"), rows)
    write_document(uri, "Evaluation", _parts(uri, result, tables))


def score_rows(sets: Mapping[str, Mapping[str, Any]]) -> Rows:
    """One row a set: its scores and the ends of their 95% intervals."""
    rows: Rows = []
    for name, one in sets.items():
        row: dict[str, Any] = {"set": name, "samples": one["samples"], "classes": one["classes"]}
        if "zero_shot" in one:
            row["metric"] = one["zero_shot"]["metric"]
            for wording in (BARE, ONE, ENSEMBLE):
                row |= score_columns(wording, one["zero_shot"]["wordings"][wording]["score"])
            for depth in ("top1", "top5"):
                if depth in one["zero_shot"]["wordings"][ENSEMBLE]:
                    row[depth] = one["zero_shot"]["wordings"][ENSEMBLE][depth]["value"]
        if "probe" in one:
            row["metric"] = one["probe"]["metric"]
            row |= score_columns("probe", one["probe"]["score"]) | {"probe C": one["probe"]["strength"]}
        if "retrieval" in one:
            for way in WAYS:
                for depth, score in one["retrieval"][way].items():
                    row |= score_columns(f"{way} {depth}", score)
        rows.append(row)
    return rows


def class_rows(sets: Mapping[str, Mapping[str, Any]]) -> Rows:
    """One row a class of each set, as `measure.class_rows` gives them."""
    return [
        {"set": name, **row}
        for name, one in sets.items()
        if "zero_shot" in one
        for row in one["zero_shot"].get("classes", [])
    ]


def few_shot_rows(sets: Mapping[str, Mapping[str, Any]]) -> Rows:
    """One row a set and number of shots."""
    return [
        {"set": name, "shots": shots, **score_columns("probe", score)}
        | ({"zero-shot": ensemble_score(one)} if "zero_shot" in one else {})
        for name, one in sets.items()
        if "few_shot" in one
        for shots, score in zip(one["few_shot"]["shots"], one["few_shot"]["curve"], strict=True)
    ]


def shift_rows(shifts: Mapping[str, Mapping[str, Any]]) -> Rows:
    """One row a pair of sets: accuracies on the classes that both have."""
    rows: Rows = []
    for title, found in shifts.items():
        row: dict[str, Any] = {"shift": title, "classes": found["classes"]}
        for side in ("standard", "shifted"):
            count = Count(**found[side])
            low, high = clopper_pearson(*count)
            row |= score_columns(side, {"value": count.accuracy, "interval": (low, high)})
        rows.append(row | {"lost": row["standard"] - row["shifted"]})
    return rows


def _parts(uri: str, result: Mapping[str, Any], tables: Mapping[str, Rows]) -> list[Part]:
    sets = result["sets"]
    parts: list[Part] = [
        Text(f"{result['model']} (fingerprint {result['fingerprint']}), suite {result['suite']}.", "question"),
        Text(f"{len(sets)} sets measured, {len(result['failed'])} failed.", "lead"),
        Text("Scores in percent, with 95% intervals.", "status"),
    ]
    if result["failed"]:
        failed = [{"what": name, "why": why} for name, why in result["failed"].items()]
        parts += [Text("Failed", "heading"), rows_table(failed)]
    classified = {name: one for name, one in sets.items() if "zero_shot" in one or "probe" in one}
    if classified:
        parts += [Text("Classification", "heading"), rows_table([_line(name, one) for name, one in classified.items()])]
        parts += draw({"Zero-shot and linear probe": figures.wordings(sets)})
    if found := [_retrieval_line(name, one) for name, one in sets.items() if "retrieval" in one]:
        parts += [Text("Retrieval, recall@k", "heading"), rows_table(found)]
    few = {name: one for name, one in sets.items() if "few_shot" in one}
    if few:
        worth = [
            {"set": name, "zero-shot is worth, examples a class": one["few_shot"]["zero-shot is worth"]["text"]}
            for name, one in few.items()
            if "zero-shot is worth" in one["few_shot"]
        ]
        parts += [Text("Few-shot and data efficiency", "heading"), *([rows_table(worth)] if worth else [])]
        parts += draw({f"Few-shot probes of {name}": figures.few_shot(name, one) for name, one in few.items()})
    parts += _headroom(sets)
    if tables["shifts"]:
        lines = [
            {"shift": row["shift"], "shared classes": row["classes"], "without": from_columns(row, "standard"),
             "under the shift": from_columns(row, "shifted"),
             **{f"the paper's {who}": f"{100 * under:.1f}"
                for who, ((_, under),) in papers_marks({"": result["shifts"][row["shift"]]}).items()}}
            for row in tables["shifts"]
        ]  # fmt: skip
        parts += [Text("Natural distribution shift", "heading"), rows_table(lines)]
        parts += draw(
            {"Robustness": figures.robustness({"this model": result["shifts"]}, None, papers_marks(result["shifts"]))}
        )
    parts += human_section(result["humans"])
    parts += overlap_section(result["overlap"], tables["overlap"])
    for name, one in classified.items():
        parts += worst_section(uri, name, one.get("zero_shot", {}).get("classes", []))
    files = [{"file": f"{name}.csv", "rows": len(rows)} for name, rows in tables.items()]
    return [*parts, Text("Files", "heading"), rows_table([*files, {"file": "result.json", "rows": None}])]


def _line(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    line = {"set": name, "samples": one["samples"], "classes": one["classes"]}
    line["metric"] = (one.get("zero_shot") or one["probe"])["metric"]
    if "zero_shot" in one:
        wordings = one["zero_shot"]["wordings"]
        line |= {wording: percent(wordings[wording]["score"]) for wording in (BARE, ONE, ENSEMBLE)}
    line["linear probe"] = percent(one["probe"]["score"]) if "probe" in one else None
    reference = released_scores(name)
    line["released ViT-L-14-336, zero-shot"] = f"{reference['ViT-L-14-336']:.1f}" if reference else None
    return line


def _retrieval_line(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    line = {"set": name, "pictures": one["samples"], "captions": one["retrieval"]["captions"]}
    if "index recall" in one["retrieval"]:
        line["through an index that finds"] = ", ".join(f"{x:.1%}" for x in one["retrieval"]["index recall"].values())
    return line | {f"{way}, {k}": percent(score) for way in WAYS for k, score in one["retrieval"][way].items()}


def _headroom(sets: Mapping[str, Mapping[str, Any]]) -> list[Part]:
    pairs = [
        (one["probe"]["score"]["value"], ensemble_score(one))
        for one in sets.values()
        if "probe" in one and "zero_shot" in one
    ]
    if len(pairs) < 2:
        return []
    try:
        found = headroom([x for x, _ in pairs], [y for _, y in pairs])
        text = (
            f"Correlation {found.correlation:.2f} ({found.correlation_interval[0]:.2f} to "
            f"{found.correlation_interval[1]:.2f}), slope {found.slope:.2f} ({found.slope_interval[0]:.2f} to "
            f"{found.slope_interval[1]:.2f}) over {len(pairs)} sets. The paper's correlation over its sets: 0.82."
        )
    except ValueError as error:
        text = f"No correlation: {error}."
    return [Text("Headroom", "heading"), Text(text), *draw({"Headroom": figures.headroom(sets)})]
