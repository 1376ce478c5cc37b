"""Several models' evaluations beside each other: scores, scaling law, effective robustness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from orchestrator import storage
from orchestrator.evaluate import figures
from orchestrator.evaluate.answers import kept_answers
from orchestrator.evaluate.cells import Rows, write_csv
from orchestrator.evaluate.gate import SCORES, score_of
from orchestrator.evaluate.plan import FORMAT
from orchestrator.evaluate.robustness import baseline, effective_robustness, relative_robustness
from orchestrator.evaluate.scaling_law import scaling_law
from orchestrator.evaluate.shift import as_pair, papers_marks
from orchestrator.report.document import Part, Text, draw, rows_table, write_document
from orchestrator.statistics.intervals import bootstrap

Results = dict[str, dict[str, Any]]


def read_results(folders: list[str]) -> Results:
    """The evaluations, by the folder's name or, where two have one name, by the whole URI.

    Raises
    ------
    ValueError : fewer than two, or a folder without a result that this version reads
    """
    if len(folders) < 2:
        raise ValueError(f"--compare {' '.join(folders)}: name the folders of at least two evaluations")
    short = [folder.rstrip("/").removesuffix("/eval").rsplit("/", 1)[-1] for folder in folders]
    results: Results = {}
    for folder, name in zip(folders, short if len(set(short)) == len(short) else folders, strict=True):
        uri = storage.join(folder, "result.json")
        if not storage.exists(uri):
            raise ValueError(f"{uri}: missing; --compare wants folders that an evaluation has written")
        results[name] = json.loads(storage.read_bytes(uri)) | {"folder": folder}
        if results[name].get("format") != FORMAT:
            raise ValueError(f"{uri}: of another version of this evaluation; evaluate that model again")
    return results


def write_comparison(uri: str, results: Results) -> None:
    """Write the report of several models; `report.md` appears in the folder last.

    Parameters
    ----------
    uri : of the folder
    results : of `read_results`
    """
    rows = score_rows(results)
    write_csv(storage.join(uri, "scores.csv"), rows)
    parts: list[Part] = [Text(f"{len(results)} models: {', '.join(results)}.", "question")]
    parts += [Text("Scores, percent", "heading"), rows_table([_percent(row) for row in rows])]
    differences = difference_rows(results)
    write_csv(storage.join(uri, "differences.csv"), differences)
    if differences:
        first = next(iter(results))
        parts += [
            Text("Differences of zero-shot top-1", "heading"),
            Text(
                f"Percentage points above {first}, on the same pictures; 95% bootstrap intervals of the pairs.",
                "status",
            ),
            rows_table([_percent(row) for row in differences]),
        ]
    parts += _scaling(uri, results)
    parts += _robustness(uri, results)
    write_document(uri, "Evaluations compared", parts)


def score_rows(results: Results) -> Rows:
    """One row a set and score, one column a model."""
    names = list(dict.fromkeys(name for one in results.values() for name in one["sets"]))
    rows: Rows = []
    for name in names:
        for score in SCORES:
            found = {
                model: score_of(one["sets"][name], score) if name in one["sets"] else None
                for model, one in results.items()
            }
            if any(value is not None for value in found.values()):
                rows.append({"set": name, "score": score, **found})
    return rows


def difference_rows(results: Results) -> Rows:
    """Zero-shot top-1 of each model above the first's, with intervals over pictures that both have answered."""
    (first, *others), rows = results, []
    for name in results[first]["sets"]:
        base = _answers(results[first], name)
        for model in others:
            other = _answers(results[model], name) if name in results[model]["sets"] else {}
            keys = [key for key in base if key in other]
            if not keys:
                continue
            gain_N = np.array([other[key] - base[key] for key in keys], float)
            low, high = bootstrap(lambda drawn, gain_N=gain_N: float(gain_N[drawn].mean()), len(keys))  # type: ignore[misc]
            rows.append(
                {
                    "set": name,
                    "model": model,
                    "pictures": len(keys),
                    "gain": float(gain_N.mean()),
                    "low": low,
                    "high": high,
                }
            )
    return rows


def _answers(result: Mapping[str, Any], name: str) -> dict[str, bool]:
    """Whether each picture's likeliest class is its own; empty where answers were not kept."""
    found = kept_answers(result["folder"], name)
    return dict(zip(found.key_N, found.right_N.tolist(), strict=True)) if found else {}


def _scaling(uri: str, results: Results) -> list[Part]:
    shared = [
        name
        for name in next(iter(results.values()))["sets"]
        if all(name in one["sets"] and score_of(one["sets"][name], "zero-shot") is not None for one in results.values())
    ]
    error = {
        name: {model: 1 - float(score_of(one["sets"][name], "zero-shot") or 0) for model, one in results.items()}
        for name in shared
    }
    # The logarithm of no error at all is none.
    error = {name: one for name, one in error.items() if min(one.values()) > 0}
    if not error:
        return []
    compute = {model: float(one["flops"]) for model, one in results.items()}
    law = scaling_law(compute, error)
    mean = {model: float(np.mean([one[model] for one in error.values()])) for model in results}
    rows = [
        {"model": model, "flops": compute[model], "mean error": mean[model]}
        | {name: one[model] for name, one in error.items()}
        for model in results
    ]
    write_csv(storage.join(uri, "scaling.csv"), rows)
    panels = [{"set": name, "law": one.sentence("error")} for name, one in law.panels.items()]
    return [
        Text("Scaling law", "heading"),
        Text(f"{law.mean.sentence('mean zero-shot error')}; C in FLOPs of the image tower on a picture."),
        *draw({"Error against compute": figures.scaling(compute, mean, law.mean)}),
        rows_table(panels),
    ]


def _robustness(uri: str, results: Results) -> list[Part]:
    pairs = [
        title
        for title in next(iter(results.values()))["shifts"]
        if all(title in one["shifts"] for one in results.values())
    ]
    if not pairs:
        return []
    counts = {model: {title: one["shifts"][title] for title in pairs} for model, one in results.items()}
    rows: Rows = []
    for model in results:
        own = [as_pair(found) for found in counts[model].values()]
        others = [[as_pair(found) for found in counts[other].values()] for other in results if other != model]
        row: dict[str, Any] = {"model": model}
        for title, pair in zip(pairs, own, strict=True):
            row |= {f"{title}, without": pair.standard.accuracy, f"{title}, under": pair.shifted.accuracy}
        try:
            found = effective_robustness(others, own)
            row |= {"effective robustness": found.value, "low": found.interval[0], "high": found.interval[1]}
        except ValueError as error:
            row["effective robustness"] = str(error)
        rows.append(row)
    write_csv(storage.join(uri, "robustness.csv"), rows)
    gains = relative_rows(counts)
    write_csv(storage.join(uri, "relative-robustness.csv"), gains)
    both = [as_pair(one) for by_title in counts.values() for one in by_title.values()]
    x, y = np.array([[count.inner_accuracy for count in pair] for pair in both]).T
    line = baseline(x, y) if len(results) > 2 and np.ptp(x) > 0 else None
    return [
        Text("Natural distribution shift", "heading"),
        Text(
            "Effective robustness: accuracy above what the line through the other models foretells, a mean over "
            "shifts; percentage points.",
            "status",
        ),
        rows_table([_percent(row) for row in rows]),
        Text(
            f"Relative robustness: accuracy under the shift above that of {next(iter(results))}, in percentage points; "
            "95% bootstrap intervals.",
            "status",
        ),
        rows_table([_percent(row) for row in gains]),
        *draw({"Robustness": figures.robustness(counts, line, papers_marks(next(iter(counts.values()))))}),
    ]


def relative_rows(counts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Rows:
    """One row a model after the first and shift: accuracy under the shift gained over the first model.

    Parameters
    ----------
    counts : of each model its pairs, {pair: {standard, shifted}}
    """
    (first, *others), rows = counts, []
    for model in others:
        for title in counts[model]:
            before, after = (as_pair(counts[who][title]).shifted for who in (first, model))
            found = relative_robustness(before, after)
            low, high = found.interval
            rows.append({"model": model, "shift": title, "gain": found.value, "low": low, "high": high})
    return rows


def _percent(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: round(100 * value, 1) if isinstance(value, float) else value for key, value in row.items()}
