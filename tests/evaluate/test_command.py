"""The command line, the gate, and several evaluations compared."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from evaluation_sets import write_classes, write_names

from orchestrator import storage
from orchestrator.config import ConfigError
from orchestrator.evaluate import measure
from orchestrator.evaluate.command import name_sets, parse
from orchestrator.evaluate.compare import read_results, write_comparison
from orchestrator.evaluate.gate import below, read_gate
from orchestrator.evaluate.plan import FORMAT
from orchestrator.evaluate.shift import known_pairs


def test_sets_are_named_as_briefly_as_tells_them_apart(tmp_path):
    for name in ("vtab/pets", "vtab/dtd", "own/pets"):
        (tmp_path / name).mkdir(parents=True)
    assert list(name_sets([f"{tmp_path}/vtab/*"])) == ["dtd", "pets"]
    found = name_sets([f"{tmp_path}/*/pets"])
    assert found == {name: f"{tmp_path}/{name}" for name in ("own/pets", "vtab/pets")}
    with pytest.raises(storage.NothingMatches, match="nothing\\*: matches no folder"):
        name_sets([f"{tmp_path}/nothing*"])


def test_folders_of_object_storage_match(s3):
    write_classes(s3.uri("wds/one"), test=2)
    write_classes(s3.uri("wds/other"), test=2)
    assert name_sets([s3.uri("wds/o*")]) == {"one": s3.uri("wds/one"), "other": s3.uri("wds/other")}


def test_imagenets_shifts_are_known():
    assert known_pairs(["wds_imagenet1k", "wds_imagenet-a", "pets"]) == [("wds_imagenet1k", "wds_imagenet-a")]
    assert known_pairs(["imagenet-a"]) == []


def test_results_go_beside_the_model_unless_told_otherwise(tmp_path):
    write_names(str(tmp_path / "set"))
    asked = parse(["--model", f"{tmp_path}/run/final", "--datasets", f"{tmp_path}/se*"], "")
    assert asked.out == f"{tmp_path}/run/eval" and asked.options.cache == f"{tmp_path}/run/eval/features"
    assert asked.options.datasets == {"set": f"{tmp_path}/set"} and asked.beside is None


def test_an_image_encoder_is_measured_alone_or_beside_a_model(tmp_path):
    write_names(str(tmp_path / "set"))
    sets = ["--datasets", f"{tmp_path}/set"]
    alone = parse(["--features", f"{tmp_path}/vit/", *sets], "")
    assert alone.options.model == f"{tmp_path}/vit" and alone.out == f"{tmp_path}/vit-eval" and alone.beside is None
    assert alone.options.parts == {"probe", "few-shot"}
    sets += ["--suite", "probe", "--placement", "vit-b-32"]
    both = parse(["--model", f"{tmp_path}/run/final", "--features", f"{tmp_path}/vit", *sets], "")
    assert both.options.placement.data == both.beside.placement.data == {"clip-on-ray/role": "data"}
    assert both.options.model == f"{tmp_path}/run/final" and both.options.parts == {"zero-shot", "probe"}
    assert both.beside.model == f"{tmp_path}/vit" and both.beside.parts == {"probe"}
    assert both.beside.out == f"{tmp_path}/run/eval/encoders/vit" and both.beside.cache == both.options.cache


BOUNDS = {"pets: 2": "pets: zero-shot: 2 is no bound", "cats: 0.5": "no set 'cats'; the sets are pets", "[": "not YAML"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "and --datasets are needed, or --compare"),
        (["--features", "e", "--datasets", "d", "--suite", "retrieval"], "has no words, and suite retrieval no probes"),
        (["--features", "e", "--datasets", "d", "--shift", "d=d"], "--shift: of zero-shot accuracy"),
        (["--model", "m", "--datasets", "d", "--shots", "0"], "at least 1"),
        (["--model", "hf://a/b", "--datasets", "d"], "name a folder for the results with --out"),
        (["--model", "m", "--datasets", "d", "--shift", "d"], "write standard=shifted"),
        (["--model", "m", "--datasets", "d", "--shift", "d=e"], "there is no set 'e'"),
        (["--model", "m", "--datasets", "d", "--templates", "TEMPLATES"], "has no {c}"),
        (["--model", "m", "--datasets", "d", "--humans", "e=answers.csv"], "write set=file, of one of the sets d"),
        (["--model", "m", "--datasets", "d", "--humans", "answers.csv"], "there is no file .*answers.csv"),
        (["--model", "m", "--datasets", "d", "--overlap", "s", "--suite", "retrieval"], "--overlap: beside zero-shot"),
        (["--compare", "one"], "at least two"),
        (["--compare", "one", "two", "--model", "m"], "leave --model, --features and --datasets out"),
        (["--compare", "one", "two"], "result.json: missing"),
    ],
)
def test_bad_command_lines_are_named(tmp_path, words, message):
    (tmp_path / "templates.txt").write_text("a photo\n")
    words = [str(tmp_path / "templates.txt") if word == "TEMPLATES" else word for word in words]
    with pytest.raises(ConfigError, match=message.replace("{", "\\{")):
        parse(words, "")


@pytest.mark.parametrize(("text", "message"), BOUNDS.items())
def test_a_bad_gate_is_named(tmp_path, text, message):
    (tmp_path / "bounds.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_gate(str(tmp_path / "bounds.yaml"), ["pets"])


def result(score, probe=None):
    interval = [score - 0.01, score + 0.01]
    one = {"score": {"value": score, "interval": interval}}
    found = {"zero_shot": {"metric": "accuracy", "wordings": {"ensemble": one}}}
    return found | ({"probe": {"score": {"value": probe, "interval": interval}}} if probe else {})


def test_the_gate_holds_scores_to_their_bounds(tmp_path):
    (tmp_path / "bounds.yaml").write_text("pets: 0.8\ncars: {probe: 0.5}\nbirds: 0.1\n")
    gate = read_gate(str(tmp_path / "bounds.yaml"), ["pets", "cars", "birds"])
    assert below(gate, {"pets": result(0.8), "cars": result(0.1, 0.6), "birds": result(0.3)}) == []
    lines = below(gate, {"pets": result(0.79), "cars": result(0.9)})
    assert lines == [
        "pets: zero-shot 0.7900 is below 0.8",
        "cars: probe was not measured; it must reach 0.5",
        "birds: zero-shot was not measured; it must reach 0.1",
    ]


def write_evaluation(folder, flops, error, right_N):
    """An evaluation whose answers to one set are right or not as given."""
    label_N = np.zeros(len(right_N), int)
    scores = np.where(np.asarray(right_N)[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
    table = measure.predictions([str(n) for n in range(len(right_N))], label_N, {"ensemble": scores})
    (folder / "predictions").mkdir(parents=True)
    import pyarrow.parquet as pq

    pq.write_table(table, folder / "predictions/pets.parquet")
    shifted = {"standard": {"hits": 700, "samples": 1000}, "shifted": {"hits": 500, "samples": 1000}, "classes": 2}
    content = {
        "format": FORMAT,
        "model": "m",
        "flops": flops,
        "sets": {"pets": result(1 - error)},
        "shifts": {"a to b": shifted},
    }
    (folder / "result.json").write_text(json.dumps(content))


def test_a_comparison_finds_the_law_and_the_difference_that_were_put_in(tmp_path):
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.5
    names = ("small", "middle", "large", "huge")
    for place, name in enumerate(names):
        flops = 1e9 * 4.0**place
        right = first | (np.arange(400) < 40 * place)
        write_evaluation(tmp_path / name / "eval", flops, 20 * flops**-0.2, right)
    results = read_results([str(tmp_path / name / "eval") for name in names])
    assert list(results) == list(names)
    write_comparison(str(tmp_path / "out"), results)
    text = (tmp_path / "out/report.md").read_text()
    assert "mean zero-shot error = 20 C^-0.2 (" in text
    rows = list(csv.DictReader((tmp_path / "out/differences.csv").open()))
    gained = (~first)[:120].sum() / 400
    assert rows[2]["model"] == "huge" and float(rows[2]["gain"]) == pytest.approx(gained)
    # Paired: pictures that both have right say nothing of the difference.
    reach = 1.96 * np.sqrt(gained * (1 - gained) / 400)
    assert float(rows[2]["low"]) == pytest.approx(gained - reach, abs=0.01)
    gains = list(csv.DictReader((tmp_path / "out/relative-robustness.csv").open()))
    assert [(row["model"], row["shift"], float(row["gain"])) for row in gains] == [
        (name, "a to b", 0.0) for name in names[1:]
    ]
    # Two shares of 1,000 pictures each.
    assert float(gains[0]["high"]) == pytest.approx(1.96 * np.sqrt(2 * 0.25 / 1000), abs=0.004)
    assert "0 baseline models" not in text and "Robustness" in text
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    scores = list(csv.DictReader((tmp_path / "out/scores.csv").open()))
    assert float(scores[0]["huge"]) == pytest.approx(1 - 20 * 64e9**-0.2)
