"""What a report says of a study: each file's content, hostile text, an unfinished study, the same bytes twice."""

from __future__ import annotations

import csv
import html.parser
import io
import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from PIL import Image

from orchestrator import storage
from orchestrator.tune import plots
from orchestrator.tune.report import Answer, write_report
from orchestrator.tune.trial import Trial

T, W = "model.init_temperature", "model.vision.width"
HOSTILE = '<script src="https://evil.example/x.js">alert(1)</script>'


def study() -> list[Trial]:
    """Six done, one stopped, two failed, one running."""
    trials = [
        Trial(
            f"t{temperature}-s{seed}", {T: temperature, W: 256, "train.batch_size": 512}, seed, "done", 1000, 512_000,
            3.2e15, 2.5 + temperature + seed / 100, 0.4 - temperature + seed / 100, 4000.0,
            [(step, 6 - step / 400, 1 / temperature + step / 100) for step in (1, 500, 1000)], "s3://b/x",
        )
        for temperature in (0.01, 0.07, 0.2) for seed in (0, 1)
    ]  # fmt: skip
    return [
        Trial("young", {T: 0.05, W: 256, "train.batch_size": 512}, state="running", step=10,
              path=[(10, math.nan, 14.0)]),
        Trial("broken", {T: 1.0, W: 256, "train.batch_size": 512}, state="failed", loss=0.1, accuracy=0.99,
              error="\n\x1b[36mray::run()\x1b[39m CUDA | out of memory\nTraceback"),
        Trial(f"{HOSTILE}`|[x](javascript:1)", {T: 1.0, W: 256, "train.batch_size": 512, "note": f"$\\bad$\n{HOSTILE}"},
              state="failed", error=f"{HOSTILE} \udc80"),
        *trials,
        Trial("early", {T: 0.5, W: 256, "train.batch_size": 512}, 0, "stopped", 200, 102_400, 6.4e14, 4.1234, math.nan,
              800.0, [(200, 4.1, 2.0)]),
    ]  # fmt: skip


ANSWER = Answer(
    "Which temperature?",
    ["0.01 is best.", "- It is <b>not</b> close: *3* points"],
    "model:\n  init_temperature: 0.01\n",
    {"By temperature": [{T: 0.01, "accuracy": 0.395, "seeds": 2}, {T: 0.07, "accuracy": math.nan, "a|b": "x"}]},
)


def write(uri: str, trials: list[Trial] | None = None, answer: Answer = ANSWER) -> dict[str, bytes]:
    trials = study() if trials is None else trials
    figures = {
        "Loss against compute": plots.loss_against_compute(trials),
        "Accuracy/../../temperature": plots.accuracy_against(trials, T),
        "Nothing": plots.iso_flop([], W),
    }
    write_report(uri, "Which initial temperature is best?", trials, answer, figures)
    return {one.rsplit("/", 1)[1]: storage.read_bytes(one) for one in storage.list_dir(uri)}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, bytes]:
    return write(f"file://{tmp_path_factory.mktemp('report')}/r")


class Page(html.parser.HTMLParser):
    """The tags, their addresses, and the cells of each table of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.tables, self.words = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        assert not any(name.startswith("on") for name, _ in attributes)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data):
        self.words += data
        if self.tags[-1:] in (["td"], ["th"]) and data.strip():
            self.tables[-1][-1][-1] += data


def rows_of(markdown: str, heading: str) -> list[list[str]]:
    part = markdown.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in part.splitlines() if line.startswith("|")]
    return [[text.strip() for text in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_folder_holds_exactly_what_it_promises(report):
    assert sorted(report) == [
        "accuracy-temperature.png", "loss-against-compute.png", "paths.parquet", "recipe.yaml", "report.html",
        "report.md", "trials.csv", "trials.parquet",
    ]  # fmt: skip
    assert report["recipe.yaml"].decode() == ANSWER.recipe_yaml
    for name in ("accuracy-temperature.png", "loss-against-compute.png"):
        pixels = np.asarray(Image.open(io.BytesIO(report[name])).convert("L"))
        assert 0.005 < (pixels < 200).mean() < 0.5
        assert f"]({name})" in report["report.md"].decode()


def test_trials_by_accuracy_then_loss_and_failures_last(report):
    header, _, *rows = rows_of(report["report.md"].decode(), "Trials")
    assert header == [
        "trial", "init_temperature", "note", "seed", "state", "steps", "pairs", "FLOPs", "loss",
        "accuracy", "time", "error",
    ]  # fmt: skip
    names = [row[0] for row in rows]
    assert names[:8] == ["t0.01-s1", "t0.01-s0", "t0.07-s1", "t0.07-s0", "t0.2-s1", "t0.2-s0", "early", "young"]
    assert names[8] == "broken" and "script" in names[9]
    assert rows[0][1:] == ["0.01", "–", "1", "done", "1,000", "512,000", "3.20e15", "2.520", "40.0%", "1.1 h", ""]
    assert rows[6][8:10] == ["4.123", "–"]
    assert rows[7][8:10] == ["–", "–"]
    assert rows[8][-1] == r"ray::run() CUDA \| out of memory"
    assert {row[4] for row in rows[8:]} == {"failed"}


def test_page_says_what_the_markdown_says(report):
    page, markdown = Page(report["report.html"].decode()), report["report.md"].decode()
    trials = page.tables[1]
    expected = rows_of(markdown, "Trials")
    del expected[1]
    unescaped = [[html.unescape(re.sub(r"\\(.)", r"\1", text)) for text in row] for row in expected]
    assert trials == unescaped
    assert page.tables[0] == [[T, "accuracy", "seeds", "a|b"], ["0.01", "0.395", "2", "–"], ["0.07", "–", "–", "x"]]
    status = "Unfinished. 10 trials: 6 done, 1 stopped, 2 failed, 1 running. 1.98e16 FLOPs of training in 6.9 h"
    for text in (status, "Which initial temperature is best?", "0.01 is best.", "init_temperature: 0.01"):
        assert text in page.words
        assert text in markdown
    assert "The same in all: model.vision.width = 256; train.batch_size = 512." in markdown


def test_hostile_text_stays_text(report):
    page = Page(report["report.html"].decode())
    assert "script" not in page.tags and "b" not in page.tags
    assert page.addresses and all(address.startswith("data:") for address in page.addresses)
    assert "alert(1)" in page.words
    markdown = report["report.md"].decode()
    assert "<script" not in markdown and "<b>" not in markdown
    assert "\n\\- It is &lt;b&gt;not&lt;/b&gt; close: \\*3\\* points\n" in markdown
    assert "](javascript" not in markdown.replace("\\](", "")
    for row in rows_of(markdown, "Trials"):
        assert len(row) == 12


def test_page_of_plain_text_names_no_other_machine(tmp_path):
    trials = [trial for trial in study() if "evil" not in trial.name]
    page = write(f"{tmp_path}/r", trials)["report.html"].decode()
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"base64,[^\"]*", "", page))


def test_tables_for_machines_agree_and_say_null_where_nothing_is_known(report):
    table = pq.read_table(io.BytesIO(report["trials.parquet"])).to_pylist()
    rows = list(csv.DictReader(io.StringIO(report["trials.csv"].decode(), newline="")))
    assert len(table) == len(rows) == len(study())
    assert list(table[0]) == list(rows[0])
    for typed, text in zip(table, rows, strict=True):
        for column, value in typed.items():
            if value is None or isinstance(value, str):
                assert text[column] == (value or "")
            else:
                assert float(text[column]) == value
    by_name = {row["name"]: row for row in table}
    for trial in study():
        row = by_name[trial.name]
        assert (row[T], row["seed"], row["state"], row["flops"]) == (
            trial.setting[T],
            trial.seed,
            trial.state,
            trial.flops,
        )
        assert row["loss"] == (None if math.isnan(trial.loss) else trial.loss)
        assert row["note"] == trial.setting.get("note")
    assert "path" not in table[0]


def test_options_of_any_type_and_of_a_field_s_name(tmp_path):
    settings = [
        {"loss": "x", "layers": [2, 2], "big": True, "lr": 1, "kind": np.float32(0.5), "mixed": 1},
        {"loss": "y", "layers": [3], "big": False, "lr": 0.1, "kind": np.nan, "mixed": "auto"},
    ]
    files = write(f"{tmp_path}/r", [Trial(str(row), setting, loss=1.0 + row) for row, setting in enumerate(settings)])
    first, second = pq.read_table(io.BytesIO(files["trials.parquet"])).to_pylist()
    assert (first["loss"], first["setting.loss"]) == (1.0, "x")
    assert [(row["layers"], row["big"], row["lr"], row["kind"], row["mixed"]) for row in (first, second)] == [
        ("[2, 2]", True, 1.0, 0.5, "1"), ("[3]", False, 0.1, None, "auto"),
    ]  # fmt: skip


def test_paths_keep_a_measured_nan(report):
    points = pq.read_table(io.BytesIO(report["paths.parquet"])).to_pylist()
    assert len(points) == 6 * 3 + 1 + 1
    assert {"trial": "t0.07-s0", "step": 500, "loss": 4.75, "logit_scale": 1 / 0.07 + 5} in points
    (young,) = [point for point in points if point["trial"] == "young"]
    assert math.isnan(young["loss"]) and young["logit_scale"] == 14.0


def test_same_bytes_twice_and_the_markdown_last(tmp_path, monkeypatch, report):
    written = []
    real = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: (written.append(uri), real(uri, data)))
    again = write(f"{tmp_path}/r")
    assert {name: again[name] == report[name] for name in report} == dict.fromkeys(report, True)
    assert written[-1] == f"{tmp_path}/r/report.md"
    figure = plots.paths(study())
    for folder in ("a", "b"):
        write_report(f"{tmp_path}/{folder}", "q", study(), ANSWER, {"one": figure})
    assert storage.read_bytes(f"{tmp_path}/a/report.html") == storage.read_bytes(f"{tmp_path}/b/report.html")


def test_a_study_without_trials_and_a_winner_that_is_none_any_more(tmp_path):
    write(f"{tmp_path}/r")
    files = write(f"{tmp_path}/r", [], Answer("T", [], None, {"Empty": []}))
    assert "recipe.yaml" not in files
    assert "No trials yet." in files["report.md"].decode()
    assert "![" not in files["report.md"].decode() and "<img" not in files["report.html"].decode()
    assert pq.read_table(io.BytesIO(files["trials.parquet"])).num_rows == 0
    assert pq.read_table(io.BytesIO(files["paths.parquet"])).column_names == ["trial", "step", "loss", "logit_scale"]


def test_a_recipe_cannot_close_its_fence(tmp_path):
    files = write(f"{tmp_path}/r", [], Answer("T", [], "a: |\n  ```\n  </pre><i>\n", {}))
    assert "\n````yaml\na: |\n  ```\n  </pre><i>\n````\n" in files["report.md"].decode()
    assert "i" not in Page(files["report.html"].decode()).tags


ALL = {
    "compute": plots.loss_against_compute,
    "accuracy": lambda trials: plots.accuracy_against(trials, T),
    "paths": plots.paths,
    "loss paths": lambda trials: plots.paths(trials, "loss"),
    "iso": lambda trials: plots.iso_flop(trials, T),
    "parallel": lambda trials: plots.parallel_coordinates(trials, [T, W]),
}


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
def test_figures_draw_what_has_ended_and_nothing_else(draw):
    trials = study()
    figure = draw(trials)
    png(figure)
    assert draw([]) is None
    assert draw([trial for trial in trials if trial.state in ("running", "failed")]) is None
    assert draw([Trial("lost", {T: 0.1, W: 1}, state="done")]) is None
    ended = [trial for trial in trials if trial.state in ("done", "stopped")]
    assert png(figure) == png(draw(ended))


@pytest.mark.parametrize("draw", ALL.values(), ids=ALL)
def test_figures_survive_names_that_mean_something_to_matplotlib(draw):
    odd = [
        Trial(
            f"_$\\frac{row}$",
            {T: f"$\\x_{row}", W: [row]},
            row,
            "done",
            1,
            1,
            10.0**row,
            3.0,
            0.5,
            path=[(1, 3.0, 9.0)],
        )
        for row in range(1, 4)
    ]
    assert png(draw(odd))
    assert png(draw([odd[0]]))


def png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=50)
    return out.getvalue()


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_loss_against_compute_is_logarithmic_with_the_fit_over_what_was_measured():
    class Fit:
        def predict(self, x):
            self.x = x
            return 3 * x**-0.01, 2.9 * x**-0.01, 3.1 * x**-0.01

    fit = Fit()
    figure = plots.loss_against_compute(study(), fit, label=lambda trial: f"group {trial.seed}")
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert (fit.x.min(), fit.x.max()) == pytest.approx((6.4e14, 3.2e15))
    assert texts(figure) == ["interval of the fit", "fit", "group 0", "group 1", "stopped early"]
    assert "FLOPs" in axes.get_xlabel() and "nats" in axes.get_ylabel()
    marks = [line for line in axes.lines if line.get_linestyle() == "None" and len(line.get_xdata())]
    assert len(marks) == 7
    assert [line.get_xdata()[0] for line in marks if line.get_markerfacecolor() == "white"] == [6.4e14]


def test_accuracy_is_the_mean_over_seeds_with_a_series_for_each_other_setting():
    trials = [
        Trial(f"{kind}{value}{seed}", {T: value, "train.learn_scale": kind}, seed, "done",
              accuracy=value / 2 + seed / 10)
        for kind in (True, False) for value in (0.01, 0.1, 1.0) for seed in (0, 1)
    ]  # fmt: skip
    figure = plots.accuracy_against(trials, T)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert texts(figure) == ["learn_scale=false", "learn_scale=true"]
    first, second = axes.containers
    assert list(first.lines[0].get_ydata()) == pytest.approx([5.5, 10.0, 55.0])
    assert first.lines[0].get_marker() != second.lines[0].get_marker()
    low, high = first.lines[2][0].get_segments()[0][:, 1]
    assert (high - low) / 2 == pytest.approx(10 / math.sqrt(2))


def test_iso_flop_curves_are_the_budgets():
    trials = [
        Trial(f"{budget}{width}", {W: width}, 0, state, flops=budget * (1 + width / 1e4),
              loss=abs(width - best) / 100 + 2)
        for budget, best in ((1e15, 128), (4e15, 256))
        for width, state in ((64, "done"), (128, "done"), (256, "done"), (512, "stopped"))
    ]  # fmt: skip
    figure = plots.iso_flop(trials, W)
    assert texts(figure) == ["1e15 FLOPs", "4.1e15 FLOPs"]
    (axes,) = figure.axes
    curves = [line for line in axes.lines if len(line.get_xdata()) > 1]
    assert [list(curve.get_xdata()) for curve in curves] == [[64, 128, 256]] * 2
    assert [line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) == 1] == [128, 256]
    assert "channels" in axes.get_xlabel()


def test_best_trial_of_parallel_coordinates_is_the_most_accurate():
    figure = plots.parallel_coordinates(study(), [T, W])
    assert texts(figure) == ["best: t0.01-s1"]
    (best,) = [line for line in figure.axes[0].lines if line.get_linewidth() == 2.5]
    assert list(best.get_ydata()) == pytest.approx([0.0, 0.5, 1 - (2.52 - 2.51) / (4.1234 - 2.51), 1.0])


def test_too_many_groups_are_drawn_as_one():
    trials = [Trial(str(row), {T: row + 1.0}, state="done", flops=1e9 + row, loss=2.0) for row in range(20)]
    assert texts(plots.loss_against_compute(trials)) == []
    assert len(texts(plots.loss_against_compute(trials[:14]))) == 14
