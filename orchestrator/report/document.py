"""A report as parts, and its two renderings, so that they cannot say different things."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.figure import Figure

from orchestrator import storage
from orchestrator.report.drawing import DPI
from orchestrator.report.wording import cell, plain


@dataclass(frozen=True)
class Text:
    """A paragraph; or, by its kind, a heading, the question, the lead, a status line or code."""

    text: str
    kind: Literal["", "heading", "question", "lead", "status", "code"] = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells; `right` says which columns are numbers."""

    columns: list[str]
    rows: list[list[str]]
    right: list[bool]


@dataclass(frozen=True)
class Picture:
    """A figure, or what photographs are in: its title, the name of its file (.png, .jpg), and that file's bytes."""

    title: str
    file: str
    data: bytes
    photo: bool = False


Part = Text | Table | Picture


def draw(figures: Mapping[str, Figure | None]) -> list[Picture]:
    """Figures by title as pictures, each with a file name of its own; None is left out."""
    pictures: list[Picture] = []
    for title, figure in figures.items():
        if figure is None:
            continue
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:60] or "figure"
        if any(picture.file == f"{stem}.png" for picture in pictures):
            stem = f"{stem}-{len(pictures) + 1}"
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, facecolor="white")
        pictures.append(Picture(title, f"{stem}.png", out.getvalue()))
    return pictures


def rows_table(rows: Sequence[Mapping[str, Any]]) -> Part:
    """Rows, each a value by column, as a table; a column that is numbers alone stands to the right."""
    if not rows:
        return Text("Nothing yet.")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    right = [all(is_numeric(row.get(column)) for row in rows) for column in columns]
    return Table(columns, [[cell(row.get(column)) for column in columns] for row in rows], right)


def is_numeric(value: Any) -> bool:
    """Whether a value is a number, or missing."""
    value = plain(value)
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _one_line(text: str) -> str:
    """Printable, on one line: a newline would end a table's row."""
    return " ".join("".join(c if c.isprintable() else " " for c in utf8(text)).split())


def write_document(uri: str, title: str, parts: Sequence[Part]) -> None:
    """Write `report.html`, the pictures' files and, last, `report.md`.

    Parameters
    ----------
    uri : of the folder
    title : of the report
    parts : what it says

    Raises
    ------
    StorageError : the folder cannot be written
    """
    for part in parts:
        if isinstance(part, Picture):
            storage.write_bytes(storage.join(uri, part.file), part.data)
    storage.write_bytes(storage.join(uri, "report.html"), page(title, parts).encode())
    storage.write_bytes(storage.join(uri, "report.md"), markdown(title, parts).encode())


def markdown(title: str, parts: Sequence[Part]) -> str:
    """The report as Markdown, which names its pictures' files."""
    blocks = [f"# {_md(title)}"]
    for part in parts:
        match part:
            case Text(text, "heading"):
                blocks.append(f"## {_md(text)}")
            case Text(text, "code"):
                # A fence longer than any in the text cannot be closed by it.
                fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
                blocks.append(f"{fence}yaml\n{text}\n{fence}")
            case Text(text, kind):
                # Only at its start does a paragraph turn into a heading or a list.
                escaped = re.sub(r"^(\d*)([#+\-.)])(?=[\s#-]|$)", r"\1\\\2", _md(text))
                blocks.append(f"**{escaped}**" if kind == "lead" else escaped)
            case Table(columns, rows, right):
                lines = [[_md(text) for text in row] for row in [columns, *rows]]
                lines.insert(1, ["---:" if end else "---" for end in right])
                blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
            case Picture(name, file, _, _):
                blocks.append(f"![{_md(name)}]({file})")
    return "\n\n".join(blocks) + "\n"


def _md(text: str) -> str:
    """Text that Markdown shows as it is."""
    escaped = re.sub(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w))", r"\\\1", _one_line(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def page(title: str, parts: Sequence[Part]) -> str:
    """The report as one page of HTML that holds its pictures and asks nothing of the network."""
    body = [f"<h1>{_esc(title)}</h1>"]
    for part in parts:
        match part:
            case Text(text, "heading"):
                body.append(f"<h2>{_esc(text)}</h2>")
            case Text(text, "code"):
                body.append(f'<pre tabindex="0">{html.escape(text)}</pre>')
            case Text(text, kind):
                body.append(f'<p class="{kind}">{_esc(text)}</p>' if kind else f"<p>{_esc(text)}</p>")
            case Table(columns, rows, right):
                head, *lines = [
                    _html_row(tag, row, right) for tag, row in [("th", columns), *(("td", r) for r in rows)]
                ]
                body.append('<div class="wide" tabindex="0"><table>')
                body += [f"<thead>{head}</thead>", "<tbody>", *lines, "</tbody></table></div>"]
            case Picture(name, file, data, photo):
                coding = "jpeg" if file.endswith(".jpg") else "png"
                source = f"data:image/{coding};base64,{base64.b64encode(data).decode()}"
                body.append(f'<img{" class=photo" if photo else ""} alt="{_esc(name)}" src="{source}">')
    return f"{_HEAD}<title>{_esc(title)}</title>\n{_STYLE}</head>\n<body>\n{chr(10).join(body)}\n</body>\n</html>\n"


def _html_row(tag: str, texts: Sequence[str], right: Sequence[bool]) -> str:
    sides = [' class="number"' if end else "" for end in right]
    return f"<tr>{''.join(f'<{tag}{side}>{_esc(text)}</{tag}>' for text, side in zip(texts, sides, strict=True))}</tr>"


def _esc(text: str) -> str:
    return html.escape(_one_line(text))


def utf8(text: str) -> str:
    """Without the lone surrogates that undecodable bytes of a program's output become."""
    return text.encode("utf-8", "replace").decode()


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
  img:not(.photo) { filter: invert(.92) hue-rotate(180deg); }
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
