"""The report of a study: what was asked, what was found, and every trial, in one folder that needs nothing else.

report.md, report.html            to read; the page holds its figures and asks nothing of the network
trials.csv, trials.parquet        one row a trial, the options of its setting as columns
paths.parquet                     loss and logit scale of each trial on the way
recipe.yaml                       the winner's, where there is one
<figure>.png
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from matplotlib.figure import Figure

from orchestrator import storage
from orchestrator.report.document import Part, Picture, Table, Text, draw, is_numeric, rows_table, utf8, write_document
from orchestrator.report.wording import cell, number, plain
from orchestrator.tune.trial import Trial
from orchestrator.tune.wording import differing, options_of, short_names

RECIPE = "recipe.yaml"
FILES = [
    {"file": "trials.csv", "what": "one row a trial"},
    {"file": "trials.parquet", "what": "the same, typed"},
    {"file": "paths.parquet", "what": "loss and logit scale on the way"},
]
FIELDS = {
    "name": pa.string(), "seed": pa.int64(), "state": pa.string(), "step": pa.int64(), "samples": pa.int64(),
    "flops": pa.float64(), "loss": pa.float64(), "accuracy": pa.float64(), "seconds": pa.float64(),
    "run": pa.string(), "error": pa.string(), "parent": pa.string(),
}  # fmt: skip
PATHS = pa.schema({"trial": pa.string(), "step": pa.int64(), "loss": pa.float64(), "logit_scale": pa.float64()}.items())


@dataclass(frozen=True)
class Answer:
    """What a study found.

    Parameters
    ----------
    title : of the report
    sentences : plain text, the main thing first
    recipe_yaml : the winner's recipe; None: no winner
    tables : title -> rows, each a value by column
    """

    title: str
    sentences: list[str]
    recipe_yaml: str | None
    tables: dict[str, list[dict[str, Any]]]


def write_report(
    uri: str, question: str, trials: Sequence[Trial], answer: Answer, figures: Mapping[str, Figure | None]
) -> None:
    """Write the report; it may be written again as the study goes on.

    Parameters
    ----------
    uri : of the report's folder; `report.md` appears in it last
    question : what the study asks, one sentence
    trials : all of the study, in any state
    answer : what they say so far
    figures : title -> figure; a figure that is None is left out

    Raises
    ------
    StorageError : the folder cannot be written
    """
    ordered = sorted(trials, key=_merit)
    pictures = draw(figures)
    table = trials_table(ordered)
    storage.write_bytes(storage.join(uri, "trials.parquet"), _parquet(table))
    sink = io.BytesIO()
    pa.csv.write_csv(table, sink)
    storage.write_bytes(storage.join(uri, "trials.csv"), sink.getvalue())
    storage.write_bytes(storage.join(uri, "paths.parquet"), _parquet(paths_table(ordered)))
    recipe = storage.join(uri, RECIPE)
    if answer.recipe_yaml is not None:
        storage.write_bytes(recipe, utf8(answer.recipe_yaml).encode())
    elif storage.exists(recipe):
        # An earlier report's winner is none of this one's.
        storage.delete_file(recipe)
    parts = _parts(question, ordered, answer, pictures)
    write_document(uri, answer.title, parts)


def trials_table(trials: Sequence[Trial]) -> pa.Table:
    """One row a trial: its name, the options of its setting, then what is known of it; what is missing is null."""
    fields = {name: pa.array([_value(getattr(trial, name)) for trial in trials], kind) for name, kind in FIELDS.items()}
    options = {
        f"setting.{option}" if option in FIELDS else option: _column([trial.setting.get(option) for trial in trials])
        for option in options_of(trials)
    }
    return pa.table({"name": fields.pop("name")} | options | fields)


def paths_table(trials: Sequence[Trial]) -> pa.Table:
    """One row a point on a trial's way. A NaN here was measured, and stays."""
    rows = [(utf8(trial.name), *point) for trial in trials for point in trial.path]
    columns = zip(*rows, strict=True) if rows else [()] * len(PATHS)
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, PATHS, strict=True)], schema=PATHS)


def _merit(trial: Trial) -> tuple[bool, float, float, str]:
    """Best first: accuracy, then loss; what is not measured after what is, failures last."""
    accuracy = -math.inf if math.isnan(trial.accuracy) else trial.accuracy
    return trial.state == "failed", -accuracy, math.inf if math.isnan(trial.loss) else trial.loss, trial.name


def _value(value: Any) -> Any:
    value = plain(value)
    return utf8(value) if isinstance(value, str) else value


def _column(values: list[Any]) -> pa.Array:
    """An option's values: typed where they are of one type, else as text."""
    values = [_value(value) for value in values]
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return pa.array(values, pa.float64())
    if len(kinds) == 1 and kinds <= {bool, int, float, str}:
        return pa.array(values)
    texts = [value if value is None or isinstance(value, str) else json.dumps(value, default=str) for value in values]
    return pa.array(texts, pa.string())


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink)
    return sink.getvalue()


def _parts(question: str, trials: Sequence[Trial], answer: Answer, pictures: Sequence[Picture]) -> list[Part]:
    parts: list[Part] = [Text(question, "question")]
    parts += [Text(sentence, "" if place else "lead") for place, sentence in enumerate(answer.sentences)]
    parts.append(Text(_status(trials), "status"))
    for title, rows in answer.tables.items():
        parts += [Text(title, "heading"), rows_table(rows)]
    if pictures:
        parts += [Text("Figures", "heading"), *pictures]
    if answer.recipe_yaml is not None:
        parts += [Text("The winner's recipe", "heading"), Text(utf8(answer.recipe_yaml).strip(), "code")]
    parts.append(Text("Trials", "heading"))
    constant = [option for option in options_of(trials) if option not in differing(trials)]
    if constant and len(trials) > 1:
        same = "; ".join(f"{option} = {cell(trials[0].setting[option])}" for option in constant)
        parts.append(Text(f"The same in all: {same}.", "status"))
    files = FILES if answer.recipe_yaml is None else [*FILES, {"file": RECIPE, "what": "the winner's recipe"}]
    return [*parts, _trials(trials), Text("Files", "heading"), rows_table(files)]


def _status(trials: Sequence[Trial]) -> str:
    if not trials:
        return "No trials yet."
    count = Counter(trial.state for trial in trials)
    states = ", ".join(f"{count[s]} {s}" for s in ("done", "stopped", "failed", "running") if count[s])
    flops = sum(trial.flops for trial in trials if math.isfinite(trial.flops))
    seconds = sum(trial.seconds for trial in trials if math.isfinite(trial.seconds))
    text = (
        f"{len(trials)} trials: {states}. {number(flops, 3)} FLOPs of training in {_duration(seconds)} of trial time."
    )
    return f"Unfinished. {text}" if count["running"] else text


def _trials(trials: Sequence[Trial]) -> Part:
    if not trials:
        return Text("None yet.")
    options = differing(trials) if len(trials) > 1 else options_of(trials)
    failed = any(trial.error for trial in trials)
    rows = [
        [
            trial.name,
            *(cell(trial.setting.get(option)) for option in options),
            str(trial.seed),
            trial.state,
            cell(trial.step),
            cell(trial.samples),
            f"{trial.flops:.2e}".replace("e+", "e") if trial.flops > 0 else "–",
            "–" if math.isnan(trial.loss) else f"{trial.loss:.3f}",
            "–" if math.isnan(trial.accuracy) else f"{trial.accuracy:.1%}",
            _duration(trial.seconds),
            *([_first_line(trial.error)] if failed else []),
        ]
        for trial in trials
    ]
    short = short_names(options_of(trials))
    numeric = [all(is_numeric(trial.setting.get(option)) for trial in trials) for option in options]
    known = ["seed", "state", "steps", "pairs", "FLOPs", "loss", "accuracy", "time"]
    columns = ["trial", *(short[option] for option in options), *known, *(["error"] if failed else [])]
    right = [False, *numeric, True, False, *[True] * 6, *([False] if failed else [])]
    return Table(columns, rows, right)


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    for unit, size, below in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600)):
        if seconds < below:
            return f"{seconds / size:.{0 if unit == 's' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _first_line(error: str) -> str:
    """The first line that says something; Ray colours its errors for a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", error)
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= 200 else line[:199] + "…"
