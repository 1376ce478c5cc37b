"""The report of a study: what was asked, what was found, and every trial, in one folder that needs nothing else.

    report.md, report.html            to read; the page holds its figures and asks nothing of the network
    trials.csv, trials.parquet        one row a trial, the options of its setting as columns
    paths.parquet                     loss and logit scale of each trial on the way
    recipe.yaml                       the winner's, where there is one
    <figure>.png

The page and the Markdown are two renderings of the same parts, so that they cannot say different things.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from matplotlib.figure import Figure

from orchestrator import storage
from orchestrator.tune.drawing import DPI
from orchestrator.tune.trial import Trial
from orchestrator.tune.wording import cell, differing, number, options_of, plain, short_names

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
    pictures = _pictures(figures)
    table = trials_table(ordered)
    storage.write_bytes(storage.join(uri, "trials.parquet"), _parquet(table))
    sink = io.BytesIO()
    pa.csv.write_csv(table, sink)
    storage.write_bytes(storage.join(uri, "trials.csv"), sink.getvalue())
    storage.write_bytes(storage.join(uri, "paths.parquet"), _parquet(paths_table(ordered)))
    for picture in pictures:
        storage.write_bytes(storage.join(uri, picture.file), picture.png)
    recipe = storage.join(uri, RECIPE)
    if answer.recipe_yaml is not None:
        storage.write_bytes(recipe, _utf8(answer.recipe_yaml).encode())
    elif storage.exists(recipe):
        # An earlier report's winner is none of this one's.
        storage.delete_file(recipe)
    parts = _parts(question, ordered, answer, pictures)
    storage.write_bytes(storage.join(uri, "report.html"), _page(answer.title, parts).encode())
    storage.write_bytes(storage.join(uri, "report.md"), _markdown(answer.title, parts).encode())


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
    rows = [(_utf8(trial.name), *point) for trial in trials for point in trial.path]
    columns = zip(*rows, strict=True) if rows else [()] * len(PATHS)
    return pa.table([pa.array(values, field.type) for values, field in zip(columns, PATHS, strict=True)], schema=PATHS)


def _merit(trial: Trial) -> tuple[bool, float, float, str]:
    """Best first: accuracy, then loss; what is not measured after what is, failures last."""
    accuracy = -math.inf if math.isnan(trial.accuracy) else trial.accuracy
    return trial.state == "failed", -accuracy, math.inf if math.isnan(trial.loss) else trial.loss, trial.name


def _value(value: Any) -> Any:
    value = plain(value)
    return _utf8(value) if isinstance(value, str) else value


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


def _utf8(text: str) -> str:
    """Without the lone surrogates that undecodable bytes of a program's output become."""
    return text.encode("utf-8", "replace").decode()


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink)
    return sink.getvalue()


@dataclass(frozen=True)
class _Text:
    """A paragraph; or, by its kind, a heading, the question, the lead, a status line or code."""

    text: str
    kind: Literal["", "heading", "question", "lead", "status", "code"] = ""


@dataclass(frozen=True)
class _Table:
    """Rows of cells; `right` says which columns are numbers."""

    columns: list[str]
    rows: list[list[str]]
    right: list[bool]


@dataclass(frozen=True)
class _Picture:
    title: str
    file: str
    png: bytes


_Part = _Text | _Table | _Picture


def _pictures(figures: Mapping[str, Figure | None]) -> list[_Picture]:
    pictures: list[_Picture] = []
    for title, figure in figures.items():
        if figure is None:
            continue
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "figure"
        if any(picture.file == f"{stem}.png" for picture in pictures):
            stem = f"{stem}-{len(pictures) + 1}"
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, facecolor="white")
        pictures.append(_Picture(title, f"{stem}.png", out.getvalue()))
    return pictures


def _parts(question: str, trials: Sequence[Trial], answer: Answer, pictures: Sequence[_Picture]) -> list[_Part]:
    parts: list[_Part] = [_Text(question, "question")]
    parts += [_Text(sentence, "" if place else "lead") for place, sentence in enumerate(answer.sentences)]
    parts.append(_Text(_status(trials), "status"))
    for title, rows in answer.tables.items():
        parts += [_Text(title, "heading"), _rows_table(rows)]
    if pictures:
        parts += [_Text("Figures", "heading"), *pictures]
    if answer.recipe_yaml is not None:
        parts += [_Text("The winner's recipe", "heading"), _Text(_utf8(answer.recipe_yaml).strip(), "code")]
    parts.append(_Text("Trials", "heading"))
    constant = [option for option in options_of(trials) if option not in differing(trials)]
    if constant and len(trials) > 1:
        same = "; ".join(f"{option} = {cell(trials[0].setting[option])}" for option in constant)
        parts.append(_Text(f"The same in all: {same}.", "status"))
    files = FILES if answer.recipe_yaml is None else [*FILES, {"file": RECIPE, "what": "the winner's recipe"}]
    return [*parts, _trials(trials), _Text("Files", "heading"), _rows_table(files)]


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


def _trials(trials: Sequence[Trial]) -> _Part:
    if not trials:
        return _Text("None yet.")
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
    numeric = [all(_is_numeric(trial.setting.get(option)) for trial in trials) for option in options]
    known = ["seed", "state", "steps", "pairs", "FLOPs", "loss", "accuracy", "time"]
    columns = ["trial", *(short[option] for option in options), *known, *(["error"] if failed else [])]
    right = [False, *numeric, True, False, *[True] * 6, *([False] if failed else [])]
    return _Table(columns, rows, right)


def _rows_table(rows: Sequence[Mapping[str, Any]]) -> _Part:
    if not rows:
        return _Text("Nothing yet.")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    right = [all(_is_numeric(row.get(column)) for row in rows) for column in columns]
    return _Table(columns, [[cell(row.get(column)) for column in columns] for row in rows], right)


def _is_numeric(value: Any) -> bool:
    value = plain(value)
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


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


def _one_line(text: str) -> str:
    """Printable, on one line: a newline would end a table's row."""
    return " ".join("".join(c if c.isprintable() else " " for c in _utf8(text)).split())


def _markdown(title: str, parts: Sequence[_Part]) -> str:
    blocks = [f"# {_md(title)}"]
    for part in parts:
        match part:
            case _Text(text, "heading"):
                blocks.append(f"## {_md(text)}")
            case _Text(text, "code"):
                # A fence longer than any in the text cannot be closed by it.
                fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
                blocks.append(f"{fence}yaml\n{text}\n{fence}")
            case _Text(text, kind):
                # Only at its start does a paragraph turn into a heading or a list.
                escaped = re.sub(r"^(\d*)([#+\-.)])(?=[\s#-]|$)", r"\1\\\2", _md(text))
                blocks.append(f"**{escaped}**" if kind == "lead" else escaped)
            case _Table(columns, rows, right):
                lines = [[_md(text) for text in row] for row in [columns, *rows]]
                lines.insert(1, ["---:" if end else "---" for end in right])
                blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case _Picture(name, file, _):
                blocks.append(f"![{_md(name)}]({file})")
    return "\n\n".join(blocks) + "\n"


def _md(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", _one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _page(title: str, parts: Sequence[_Part]) -> str:
    body = [f"<h1>{_esc(title)}</h1>"]
    for part in parts:
        match part:
            case _Text(text, "heading"):
                body.append(f"<h2>{_esc(text)}</h2>")
            case _Text(text, "code"):
                body.append(f'<pre tabindex="0">{html.escape(text)}</pre>')
            case _Text(text, kind):
                body.append(f'<p class="{kind}">{_esc(text)}</p>' if kind else f"<p>{_esc(text)}</p>")
            case _Table(columns, rows, right):
                head, *lines = [
                    _html_row(tag, row, right) for tag, row in [("th", columns), *(("td", r) for r in rows)]
                ]
                body.append('<div class="wide" tabindex="0"><table>')
                body += [f"<thead>{head}</thead>", "<tbody>", *lines, "</tbody></table></div>"]
            case _Picture(name, _, png):
                body.append(f'<img alt="{_esc(name)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">')
    return f"{_HEAD}<title>{_esc(title)}</title>\n{_STYLE}</head>\n<body>\n{chr(10).join(body)}\n</body>\n</html>\n"


def _html_row(tag: str, texts: Sequence[str], right: Sequence[bool]) -> str:
    sides = [' class="number"' if end else "" for end in right]
    return f"<tr>{''.join(f'<{tag}{side}>{_esc(text)}</{tag}>' for text, side in zip(texts, sides, strict=True))}</tr>"


def _esc(text: str) -> str:
    return html.escape(_one_line(text))


# The policy makes the browser keep the promise that nothing is fetched.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
"""

_STYLE = """<style>
:root { color-scheme: light dark; --ground: #fff; --ink: #17201b; --quiet: #58645d; --line: #dfe5e1; --wash: #f4f7f5; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #141414; --ink: #e5ebe7; --quiet: #9ba8a1; --line: #2f3532; --wash: #1d201e; }
  img { filter: invert(.92) hue-rotate(180deg); }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 2.5rem 1.25rem 4rem; }
body { background: var(--ground); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.9rem; line-height: 1.2; text-wrap: balance; }
h2 { margin: 2.5rem 0 .75rem; font-size: 1.15rem; }
p { max-width: 46rem; margin: .6rem 0; overflow-wrap: anywhere; }
.question, .status { color: var(--quiet); }
.status { font-size: .9rem; }
.lead { margin-top: 1.25rem; font-size: 1.2rem; font-weight: 600; line-height: 1.4; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th, td:not(:last-child) { white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; }
td:last-child:not(.number) { min-width: 10rem; overflow-wrap: anywhere; }
tr > :last-child { padding-right: 0; }
.number { text-align: right; }
img { display: block; width: 100%; max-width: 46rem; margin: 0 0 1.5rem; }
pre { padding: 1rem; overflow-x: auto; border-radius: .5rem; background: var(--wash); font-size: .85rem; }
</style>
"""
