"""The evaluation as a user runs it, on a Ray of its own; killed and started again; its figures against oracles."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from evaluation_sets import (
    write_classes,
    write_multilabel,
    write_names,
    write_retrieval,
    write_seen,
    write_split,
    write_textures,
)
from PIL import Image
from ray_cluster import REPOSITORY, wait_until
from scipy import stats
from shapes import NAMES, TEMPLATES, pairs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, top_k_accuracy_score
from sklearn.multiclass import OneVsRestClassifier
from tiny import save_tiny

from orchestrator.evaluate.metrics import mean_average_precision_11
from orchestrator.inference import Embedder, export_model

ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(REPOSITORY)}
ENVIRONMENT.pop("RAY_ADDRESS", None)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / "jobs/evaluate.py"), *map(str, arguments)]


def job(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), env=ENVIRONMENT, capture_output=True, text=True, check=False)


def write_people(path):
    """Two people on 24 pictures, two of each class: one is always right, one of the second half does not know."""
    lines = ["person,picture,answer"]
    for number in range(24):
        name = NAMES[number % 12]
        lines += [f"sure,s{number:07d},{name}", f"doubting,s{number:07d},{name if number < 12 else ''}"]
    path.write_text("\n".join(lines))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A model's evaluation on good sets of every kind and on a bad one, made once."""
    work = tmp_path_factory.mktemp("evaluate")
    save_tiny(str(work / "model"), "vit")
    write_classes(str(work / "sets/shapes"), test=60, train=120)
    write_classes(str(work / "sets/other"), test=36, seed=9)
    write_multilabel(str(work / "sets/many"), train=60)
    write_retrieval(str(work / "sets/captions"))
    write_textures(str(work / "sets/textures"))
    write_seen(str(work / "training"))
    write_people(work / "people.csv")
    write_names(str(work / "sets/broken"))
    write_split(str(work / "sets/broken"), "test", [{"jpg": pairs(1, 1)[0][0], "cls": b"99"}], shards=1)
    done = job(
        "--model", work / "model", "--datasets", work / "sets/*", "--shots", 1, 2, "--repeats", 2,
        "--shift", "shapes=other", "--overlap", work / "training/*.tar",
        "--humans", f"other={work}/people.csv",
    )  # fmt: skip
    return work, done, json.loads((work / "eval/result.json").read_text())


def test_one_bad_set_fails_alone_and_is_named(evaluated):
    _, done, result = evaluated
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert list(result["failed"]) == ["broken"] and sorted(result["sets"]) == [
        "captions", "many", "other", "shapes", "textures",
    ]  # fmt: skip
    assert re.search(r"error: broken failed: evaluation set broken: \S+/0\.tar sample 0 .*label 99 is not", done.stderr)
    assert re.search(r"^shapes: zero-shot [\d.]+% accuracy, probe [\d.]+%", done.stdout, re.MULTILINE), done.stdout


def scores(work, samples, templates):
    """What the model makes of a set, without any of the evaluation's code."""
    embedder = Embedder(str(work / "model"))
    pixels = np.stack([embedder.transform.evaluate(image) for image, _, _ in samples])
    rows = []
    for name in NAMES:
        mean = embedder.embed_texts([template.replace("{c}", name) for template in templates]).mean(dim=0)
        rows.append(mean / mean.norm())
    return (embedder.embed_images(pixels) @ torch.stack(rows).T).numpy().astype(np.float64), pixels


def test_zero_shot_of_three_wordings_is_scikit_learns_with_scipys_intervals(evaluated):
    work, _, result = evaluated
    samples = pairs(60, seed=3)
    label = [one[2] for one in samples]
    for wording, templates in (("bare name", ["{c}"]), ("one template", TEMPLATES[:1]), ("ensemble", TEMPLATES)):
        expected, _ = scores(work, samples, templates)
        found = result["sets"]["shapes"]["zero_shot"]["wordings"][wording]
        for depth in (1, 5):
            share = top_k_accuracy_score(label, expected, k=depth, labels=range(12))
            assert found[f"top{depth}"]["value"] == pytest.approx(share)
            ends = stats.binomtest(round(60 * share), 60).proportion_ci(method="exact")
            assert found[f"top{depth}"]["interval"] == pytest.approx([ends.low, ends.high])
    answers = pq.read_table(work / "eval/predictions/shapes.parquet").to_pydict()
    by_key = dict(zip(answers["key"], answers["ensemble: classes"], strict=True))
    assert [by_key[f"s{number:07d}"] for number in range(60)] == np.argsort(-expected, axis=1)[:, :5].tolist()


def test_zero_shot_scores_are_those_of_transformers_pipeline(evaluated, tmp_path):
    from transformers import pipeline

    work, _, _ = evaluated
    export_model(str(work / "model"), str(tmp_path / "theirs"), "hugging_face")
    theirs = pipeline("zero-shot-image-classification", model=str(tmp_path / "theirs"), device="cpu")
    answers = pq.read_table(work / "eval/predictions/shapes.parquet").to_pydict()
    scale = Embedder(str(work / "model")).logit_scale
    rows = dict(
        zip(answers["key"], zip(answers["bare name: classes"], answers["bare name: scores"], strict=True), strict=True)
    )
    for number, (image, _, _) in enumerate(pairs(60, seed=3)[:6]):
        expected = theirs(Image.open(io.BytesIO(image)), candidate_labels=NAMES, hypothesis_template="{}")
        probability = {one["label"]: one["score"] for one in expected}
        classes, cosine = rows[f"s{number:07d}"]
        # All classes are not kept; the ratio of two probabilities tells the difference of their logits.
        for place, other in zip(classes[1:], cosine[1:], strict=True):
            ratio = probability[NAMES[classes[0]]] / probability[NAMES[place]]
            assert np.log(ratio) == pytest.approx(scale * (cosine[0] - other), abs=2e-2)


def test_the_probe_is_scikit_learns(evaluated):
    work, _, result = evaluated
    embedder = Embedder(str(work / "model"))

    def features(samples):
        pixels = np.stack([embedder.transform.evaluate(image) for image, _, _ in samples])
        return embedder.embed_images_with_features(pixels)[1].numpy(), np.array([one[2] for one in samples])

    found = result["sets"]["shapes"]["probe"]
    theirs = LogisticRegression(C=found["strength"], max_iter=20000, tol=1e-8).fit(*features(pairs(120, seed=103)))
    # Of a model that has learned nothing, the weakest regularisation was chosen: neither side comes to its end there.
    assert found["score"]["value"] == pytest.approx(theirs.score(*features(pairs(60, seed=3))), abs=0.1)
    few = result["sets"]["shapes"]["few_shot"]
    assert few["shots"] == [1, 2] and np.shape(few["scores"]) == (2, 2)


def test_retrieval_and_many_labels_against_loops(evaluated):
    work, _, result = evaluated
    embedder = Embedder(str(work / "model"))
    samples = pairs(12, seed=6)
    image = embedder.embed_images(np.stack([embedder.transform.evaluate(one[0]) for one in samples])).numpy()
    texts = [t for n, one in enumerate(samples) for t in (f"a {NAMES[one[2]]} of {n}", f"number {n}, {NAMES[one[2]]}")]
    text = embedder.embed_texts(texts).numpy()
    found = result["sets"]["captions"]["retrieval"]
    for depth in (1, 5):
        there = [any(t // 2 == i for t in np.argsort(-(text @ image[i]))[:depth]) for i in range(12)]
        back = [t // 2 in np.argsort(-(image @ text[t]))[:depth] for t in range(24)]
        assert found["picture to text"][f"recall@{depth}"]["value"] == pytest.approx(np.mean(there))
        assert found["text to picture"][f"recall@{depth}"]["value"] == pytest.approx(np.mean(back))
    many = result["sets"]["many"]["zero_shot"]
    assert many["metric"] == "11-point mAP" and 0.2 < many["wordings"]["ensemble"]["score"]["value"] <= 1
    samples = pairs(24, seed=5)
    names = ["red", "green", "blue", "yellow", "circle", "square", "cross"]
    image = embedder.embed_images(np.stack([embedder.transform.evaluate(one[0]) for one in samples])).numpy()
    truth = np.array([[name in NAMES[one[2]] for name in names] for one in samples])
    near = average_precision_score(truth, image @ embedder.embed_texts(names).numpy().T)
    assert many["wordings"]["ensemble"]["score"]["value"] == pytest.approx(near, abs=0.12)


def test_the_probe_of_many_labels_is_scikit_learns(evaluated):
    work, _, result = evaluated
    embedder = Embedder(str(work / "model"))
    names = ["red", "green", "blue", "yellow", "circle", "square", "cross"]

    def features(samples):
        pixels = np.stack([embedder.transform.evaluate(image) for image, _, _ in samples])
        truth = np.array([[int(name in NAMES[one[2]]) for name in names] for one in samples])
        return embedder.embed_images_with_features(pixels)[1].numpy(), truth

    found = result["sets"]["many"]["probe"]
    one = LogisticRegression(C=found["strength"], solver="newton-cholesky", tol=1e-8)
    x_ND, truth = features(pairs(24, seed=5))
    decided = OneVsRestClassifier(one).fit(*features(pairs(60, seed=105))).decision_function(x_ND)
    expected = mean_average_precision_11(decided, truth)
    assert found["metric"] == "11-point mAP" and found["score"]["value"] == pytest.approx(expected, abs=0.05)
    assert found["training samples"] == 60 and "few_shot" not in result["sets"]["many"]


def test_another_librarys_encoder_is_measured_beside_the_model(evaluated, tmp_path):
    work, _, _ = evaluated
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    vit = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8)).eval()
    processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
    for one in (vit, processor):
        one.save_pretrained(tmp_path / "vit")
    done = job(
        "--model", work / "model", "--features", tmp_path / "vit", "--datasets", work / "sets/{shapes,captions}",
        "--shots", 1, 2, "--repeats", 2, "--out", tmp_path / "eval", "--cache", work / "eval/features",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads((tmp_path / "eval/encoders/vit/result.json").read_text())
    assert list(found["sets"]) == ["shapes"] and "zero_shot" not in found["sets"]["shapes"]

    def features(samples):
        pixels = processor([Image.open(io.BytesIO(image)) for image, _, _ in samples], return_tensors="pt")
        with torch.no_grad():
            return vit(**pixels).pooler_output.numpy(), [one[2] for one in samples]

    probe = found["sets"]["shapes"]["probe"]
    theirs = LogisticRegression(C=probe["strength"], max_iter=20000, tol=1e-8).fit(*features(pairs(120, seed=103)))
    assert probe["score"]["value"] == pytest.approx(theirs.score(*features(pairs(60, seed=3))), abs=0.1)
    assert found["sets"]["shapes"]["few_shot"]["shots"] == [1, 2]
    rows = list(csv.DictReader((tmp_path / "eval/comparison/scores.csv").open()))
    (row,) = [row for row in rows if (row["set"], row["score"]) == ("shapes", "probe")]
    assert float(row["vit"]) == probe["score"]["value"]
    assert "few-shot" in (tmp_path / "eval/encoders/vit/report.md").read_text().lower()
    # Ray Data's own lines would bury the job's.
    assert not re.search("streaming_executor|INFO|WARNING", done.stdout + done.stderr), done.stderr


def test_the_shift_counts_both_sets(evaluated):
    work, _, result = evaluated
    found = result["shifts"]["shapes to other"]
    for side, samples in (("standard", pairs(60, seed=3)), ("shifted", pairs(36, seed=9))):
        expected, _ = scores(work, samples, TEMPLATES)
        hits = int((expected.argmax(axis=1) == [one[2] for one in samples]).sum())
        assert found[side] == {"hits": hits, "samples": len(samples)} and found["classes"] == 12


def test_what_training_has_seen_of_a_set_is_told_apart(evaluated):
    work, done, result = evaluated
    found = result["overlap"]["sets"]["textures"]
    answers = pq.read_table(work / "eval/predictions/textures.parquet").to_pydict()
    right = np.array([best[0] for best in answers["ensemble: classes"]]) == answers["label"]
    seen = np.array([int(key[1:]) % 3 == 0 for key in answers["key"]])
    assert found["share"] == pytest.approx(1 / 3) and found["seen"] == seen.sum() == 10
    assert (found["all"], found["overlap"], found["clean"]) == pytest.approx(
        (right.mean(), right[seen].mean(), right[~seen].mean())
    )
    expected = stats.binomtest(int(right[seen].sum()), 10, right[~seen].mean())
    assert found["different"] == pytest.approx(expected.pvalue)
    pairs = pq.read_table(found["pairs"]).to_pylist()
    assert {one["sample_key"] for one in pairs} == {f"s{number:07d}" for number in range(0, 30, 3)}
    assert {answers["key"][one["sample"]] for one in pairs} == {one["sample_key"] for one in pairs}
    assert result["overlap"]["training"] == {"shards": 2, "pictures": 50, "rejected": 0, "pairs": 10}
    assert "2 of 2 shards" in done.stdout and "training has seen 10 of 30 pictures" in done.stdout
    assert "Overlap with training" in (work / "eval/report.md").read_text()


def test_people_stand_beside_the_model(evaluated):
    work, _, result = evaluated
    found = result["humans"]["other"]
    assert (found["people"], found["pictures"]) == (2, 24)
    assert found["table"]["people"]["accuracy"] == 0.75 and found["table"]["people"]["accuracy_on_guesses"] == 1
    answers = pq.read_table(work / "eval/predictions/other.parquet").to_pydict()
    best = dict(zip(answers["key"], (one[0] for one in answers["ensemble: classes"]), strict=True))
    right = np.mean([best[f"s{number:07d}"] == number % 12 for number in range(24)])
    assert found["table"]["model"]["accuracy"] == pytest.approx(right)
    text = (work / "eval/report.md").read_text()
    assert "People and the model on other" in text and "the paper's people, one-shot, on Pets" in text
    assert len(list(csv.DictReader((work / "eval/human-classes.csv").open()))) == 12


def test_the_report_holds_its_figures_and_every_number(evaluated):
    work, _, result = evaluated
    page, text = (work / "eval/report.html").read_text(), (work / "eval/report.md").read_text()
    assert page.count("data:image/png;base64,") >= 3 and not re.search(r'(src|href)="(?!data:)', page)
    assert page.count("data:image/jpeg;base64,") == 3 and (work / "eval/pictures/shapes.jpg").exists()
    for words in ("broken", "label 99", "zero-shot is worth", "picture to text"):
        assert words in page and words in text
    rows = {row["set"]: row for row in csv.DictReader((work / "eval/scores.csv").open())}
    assert float(rows["shapes"]["probe"]) == result["sets"]["shapes"]["probe"]["score"]["value"]
    assert len(list(csv.DictReader((work / "eval/classes.csv").open()))) == 36
    assert len(list(csv.DictReader((work / "eval/few-shot.csv").open()))) == 2


def test_the_gate_and_a_second_run(evaluated, tmp_path):
    work, _, result = evaluated
    bounds = tmp_path / "bounds.yaml"
    bounds.write_text("shapes: {zero-shot: 0, probe: 1.0}\n")
    good = work / "sets/{shapes,other}"
    before = {path: path.stat().st_mtime_ns for path in (work / "eval").rglob("*.parquet")}
    done = job(
        "--model", work / "model", "--datasets", good, "--shots", 1, 2, "--repeats", 2, "--fail-below", bounds,
    )  # fmt: skip
    assert done.stdout.count(": measured before") == 2, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in (work / "eval").rglob("*.parquet")} == before
    probe = result["sets"]["shapes"]["probe"]["score"]["value"]
    assert done.returncode == 1 and f"shapes: probe {probe:.4f} is below 1" in done.stderr


def test_killed_in_the_middle_it_goes_on(tmp_path):
    save_tiny(str(tmp_path / "model"))
    write_classes(str(tmp_path / "sets/b-whole"), shards=1)
    write_classes(str(tmp_path / "sets/a-cut"), test=90, shards=3)
    # Whoever reads a pipe waits for whoever writes it: a shard whose storage does not answer. The other set, which is
    # read after it, ends all the same.
    last = tmp_path / "sets/a-cut/test/2.tar"
    last.rename(tmp_path / "2.tar")
    os.mkfifo(last)
    arguments = command("--model", tmp_path / "model", "--datasets", tmp_path / "sets/*", "--suite", "zero-shot")
    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    result, features = tmp_path / "eval/sets/b-whole.json", tmp_path / "eval/features"
    try:

        def one_is_done():
            assert first.poll() is None, (tmp_path / "log").read_text()
            return result.exists() and list(features.rglob("a-cut*/test/*.parquet"))

        wait_until(one_is_done, "the other set's result")
    finally:
        first.kill()
        first.wait()
    assert not list(features.rglob("a-cut*/test/complete.json"))
    kept = {path: path.stat().st_mtime_ns for path in [result, *features.rglob("b-whole*/**/*")]}
    last.unlink()
    (tmp_path / "2.tar").rename(last)
    again = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr[-3000:]
    assert "b-whole: measured before" in again.stdout and "a-cut: zero-shot" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert json.loads((tmp_path / "eval/result.json").read_text())["sets"]["a-cut"]["samples"] == 90
    assert not list((tmp_path / "eval").rglob("*.tmp"))
