"""A population's study as a user runs it: killed in the middle, gone on with, and a real takeover in its records."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pandas
import pytest
import yaml
from ray_cluster import REPOSITORY, wait_until
from shapes import write_data

from orchestrator.config import OptimConfig
from orchestrator.train.optim import learning_rate

COMMAND = [sys.executable, str(REPOSITORY / "jobs/tune.py")]
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
ENVIRONMENT.pop("RAY_ADDRESS", None)
EPOCHS, STEPS, WARMUP, EVERY = 2, 20, 4, 2  # 480 pairs in steps of 48
TRACED = "trace/*.jsonl"


def records(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def traced(run) -> dict[int, list[tuple]]:
    """The samples that each step of a run's own trained on, as (epoch, shard, index)."""
    lines = [line for file in run.glob(TRACED) for line in file.read_text().splitlines()]
    return {line["step"]: [tuple(one) for one in line["samples"]] for line in map(json.loads, lines)}


def test_a_killed_population_goes_on_and_its_worst_member_takes_over_the_best(tmp_path):
    recipe = write_data(str(tmp_path / "data"))
    recipe["train"].update(
        num_workers=1, epochs=EPOCHS, checkpoint_every=5, keep_checkpoints=1, log_every=EVERY, trace=True,
        cpus_per_worker=0.3,
    )  # fmt: skip
    recipe["data"]["cpus_per_reader"] = 0.3  # room for three members side by side
    # A rate of almost nothing learns nothing: it is the worst in any round.
    recipe["optim"] = {"lr": 2e-3, "warmup_steps": WARMUP}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    study = tmp_path / "data/runs/tune-options"
    asked = ["--study", "options", "--search", "population", "--vary", "optim.lr=1e-7..5e-3", "--base", str(file)]
    asked += ["--trials", "3", "--rounds", "2"]
    log = tmp_path / "first.log"
    with log.open("wb") as out:
        first = subprocess.Popen(COMMAND + asked, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True)
    try:

        def taken_over():
            assert first.poll() is None, log.read_text()[-4000:]
            return len(list((study / "trials").glob("*-round2-*/parent.json"))) == 3

        wait_until(taken_over, "the second round")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    finished = list((study / "trials").glob("*-round1-*/zero_shot.json"))
    assert len(finished) == 3
    finished_at = [file.stat().st_mtime_ns for file in finished]

    resumed = subprocess.run([*COMMAND, "--resume", str(study)], env=ENVIRONMENT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stdout[-5000:] + resumed.stderr[-3000:]
    assert [file.stat().st_mtime_ns for file in finished] == finished_at
    table = pandas.read_parquet(study / "report/trials.parquet").sort_values("name").set_index("name")
    assert list(table["state"]) == ["done"] * 6 and set(table["seed"]) == {0}
    assert len(list((study / "trials").iterdir())) == 6
    early, late = table[table["parent"] == ""], table[table["parent"] != ""]
    assert set(early["step"]) == {STEPS // 2} and set(late["step"]) == {STEPS}
    # What a round has cost is its own part of the run.
    assert set(table["samples"]) == {480} and table["flops"].nunique() == 1

    # The worst but for the reference takes over the best, with a rate a fifth above or below; others go on alone.
    reference, *others = early.index
    best = early["accuracy"].idxmax()
    worst = early.loc[[name for name in others[::-1] if name != best], "accuracy"].idxmin()  # the last of equals
    for name, row in late.iterrows():
        parent = row["parent"]
        (before,) = (old for old in early.index if old[:3] == name[:3])
        assert parent == (best if before == worst else before)
        ratio = row["optim.lr"] / early.loc[parent, "optim.lr"]
        assert ratio == (pytest.approx(0.8) if ratio < 1 else pytest.approx(1.2)) if before == worst else ratio == 1
        run, donor = study / "trials" / name, study / "trials" / parent
        assert json.loads((run / "parent.json").read_text()) == {
            "format": 1, "parent": str(donor), "step": STEPS // 2, "samples": 480,
        }  # fmt: skip
        # Its records are the donor's up to there, then its own, with its rate at that place of the one schedule.
        mine, theirs = records(run), records(donor)
        assert mine[: len(theirs)] == theirs and [one["step"] for one in mine] == [*range(EVERY, STEPS + 1, EVERY)]
        for record in mine:
            rate = (row if record["step"] > STEPS // 2 else early.loc[parent])["optim.lr"]
            expected = learning_rate(record["step"] - 1, STEPS, OptimConfig(lr=rate, warmup_steps=WARMUP))
            assert record["lr"] == pytest.approx(expected)
        # Both together trained on each sample of each epoch once.
        steps = {**traced(donor), **traced(run)}
        assert sorted(steps) == [*range(1, STEPS + 1)] and not traced(donor).keys() & traced(run).keys()
        samples = [sample for step in steps.values() for sample in step]
        assert len(samples) == len(set(samples)) == 480 * EPOCHS
    assert reference[:3] == "000"

    winner = late["accuracy"].idxmax()
    report = (study / "report/report.md").read_text()
    assert f"Best: {winner}" in report and "Takeovers: 1;" in report and "The winner's learning rate" in report
    text = (study / "report/recipe.yaml").read_text()
    assert text.startswith("# The winner's optim.lr changed on its way: ")
    assert yaml.safe_load(text)["optim"]["lr"] == table.loc[winner, "optim.lr"]


def test_more_rounds_than_steps_are_refused_before_any_trial(tmp_path):
    recipe = write_data(str(tmp_path / "data"))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    asked = ["--study", "options", "--search", "population", "--vary", "optim.lr=1e-4..1e-2", "--base", str(file)]
    done = subprocess.run(
        [*COMMAND, *asked, "--trials", "3", "--train.max_steps", "3"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: --rounds 4: more than the 3 optimiser steps of a run")
    # Nothing is left that the next try, with fewer rounds, would take for a study.
    assert not list((tmp_path / "data/runs").glob("*/*"))
