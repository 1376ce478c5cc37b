"""A study as a user runs it: killed in the middle and gone on with."""

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

COMMAND = [sys.executable, str(REPOSITORY / "jobs/tune.py")]
ENVIRONMENT = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
ENVIRONMENT.pop("RAY_ADDRESS", None)


def records(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def kill_when(asked: list[str], log, there_is, what: str) -> None:
    """Start a study and kill its driver, and all that it has started, as soon as there is something.

    `there_is` is told what the study has printed so far.
    """
    with log.open("wb") as out:
        driver = subprocess.Popen(COMMAND + asked, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True)

    def far_enough():
        assert driver.poll() is None, log.read_text()[-4000:]
        return there_is(log.read_text())

    try:
        wait_until(far_enough, what)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()


def test_a_killed_study_goes_on_where_it_was(tmp_path):
    recipe = write_data(str(tmp_path / "data"))
    recipe["train"].update(num_workers=1, epochs=4, checkpoint_every=10)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    study = tmp_path / "data/runs/temperatures"
    started = ["--study", "temperature", "--base", str(file), "--trials", "4", "--at_once", "1"]
    started += ["--name", "temperatures"]

    def one_done_another_on_its_way(printed):
        # What a trial reports reaches Tune's own records a moment later than the run's folder.
        return "[1/4]" in printed and list((study / "trials").glob("001-*/checkpoints/*/complete.json"))

    kill_when(started, tmp_path / "first.log", one_done_another_on_its_way, "the second trial's first checkpoint")
    (done,) = (run for run in (study / "trials").iterdir() if (run / "final/config.json").exists())
    (cut_off,) = (study / "trials").glob("001-*")
    assert done != cut_off
    finished_at, before = (done / "final/config.json").stat().st_mtime_ns, records(cut_off)

    # What there is can be reported without going on.
    so_far = subprocess.run(
        [*COMMAND, "--resume", str(study), "--only_report"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert so_far.returncode == 0, so_far.stdout[-5000:] + so_far.stderr[-3000:]
    assert sorted(pandas.read_parquet(study / "report/trials.parquet")["state"]) == ["done", "running"]
    assert "Unfinished" in (study / "report/report.md").read_text()

    resumed = subprocess.run([*COMMAND, "--resume", str(study)], env=ENVIRONMENT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stdout[-5000:] + resumed.stderr[-3000:]
    assert (done / "final/config.json").stat().st_mtime_ns == finished_at
    # Lines of steps before the checkpoint are those of the first attempt, with its times.
    assert before and records(cut_off)[: len(before)] == before
    table = pandas.read_parquet(study / "report/trials.parquet")
    assert sorted(table["state"]) == ["done"] * 4
    assert set(table["step"]) == {480 * 4 // 48} and table["accuracy"].between(0.05, 1).all()
    # Two settings in two seeds each, or three settings: every trial another run, all on the same data.
    assert table["name"].nunique() == 4
    shared = (study / "manifest.json").read_bytes()
    assert all((run / "manifest.json").read_bytes() == shared for run in (study / "trials").iterdir())
    fixed = table[~table["optim.learn_temperature"].astype(bool)]["name"]
    for name in table["name"]:
        scales = {round(record["logit_scale"], 4) for record in records(study / "trials" / name)}
        assert (len(scales) == 1) == (name in set(fixed))
    report = (study / "report/report.md").read_text()
    assert "Best: temperature" in report and "seeds" in report
    best = yaml.safe_load((study / "report/recipe.yaml").read_text())
    assert best["model"]["init_temperature"] in set(table["model.init_temperature"])
    assert "Best: temperature" in resumed.stdout and "report.md" in resumed.stdout

    again = subprocess.run(COMMAND + started, env=ENVIRONMENT, capture_output=True, text=True)
    assert again.returncode != 0 and "holds a study already" in again.stderr


def test_trials_that_fall_behind_are_stopped(tmp_path):
    recipe = write_data(str(tmp_path / "data"))
    recipe["train"].update(num_workers=1, epochs=6, log_every=1)
    recipe["model"]["image_size"] = 64  # else a trial can end before Tune has heard of its first steps
    # The second setting holds the temperature where nothing is learned; the first learns it.
    recipe["model"]["init_temperature"] = 0.5
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    asked = ["--trials", "4", "--at_once", "1", "--stop_early", "--base", str(file)]
    done = subprocess.run([*COMMAND, *asked], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    table = pandas.read_parquet(tmp_path / "data/runs/tune-temperature/report/trials.parquet").set_index("name")
    assert table.loc["000-0", "state"] == "done" and table.loc["001-0", "state"] == "stopped"
    assert 60 // 9 <= table.loc["001-0", "step"] < 60 and table.loc["001-0", "flops"] < table.loc["000-0", "flops"]


def test_a_scaling_study_ends_in_a_recipe_that_runs(tmp_path):
    recipe = write_data(str(tmp_path / "data"))
    recipe["model"]["vision"] = {"kind": "vit", "layers": [2], "width": 64, "patch_size": 8, "heads": 2}
    recipe["train"].update(num_workers=1, epochs=2, log_every=2)
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    asked = ["--study", "scaling", "--compute", "1,2", "--trials", "4", "--base", str(file)]
    done = subprocess.run([*COMMAND, *asked], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    report = tmp_path / "data/runs/tune-scaling/report"
    table = pandas.read_parquet(report / "trials.parquet").sort_values("name")
    assert list(table["state"]) == ["done"] * 4 and set(table["samples"]) == {960}
    # Two models of each budget, whose training took as many operations to 3%.
    first, second, third, fourth = table["flops"]
    assert second / first == pytest.approx(1, rel=0.03) and fourth / third == pytest.approx(1, rel=0.03)
    assert third / first == pytest.approx(2, rel=0.05)
    text = (report / "report.md").read_text()
    assert "Budget 1:" in text and "Budget 2:" in text
    # Two budgets are no law, and that is said.
    assert "Best of each budget: loss: no power law, 2 distinct amounts of compute are fewer than 3" in text

    pretrain = [sys.executable, str(REPOSITORY / "jobs/pretrain.py"), "--config", str(report / "recipe.yaml")]
    run = subprocess.run(
        [*pretrain, "--train.max_steps", "3"], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-3000:]
    assert (tmp_path / "data/runs/shapes-x4/final/config.json").exists()


def test_optuna_s_study_of_options_goes_on_after_a_kill(tmp_path):
    recipe = write_data(str(tmp_path / "data"))
    recipe["train"].update(num_workers=1, epochs=1, log_every=2)
    recipe["data"]["cpus_per_reader"] = 0.4  # room for two trials side by side
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    study = tmp_path / "data/runs/tune-options"
    asked = ["--study", "options", "--search", "optuna", "--trials", "4", "--at_once", "2", "--base", str(file)]
    asked += ["--vary", "optim.lr=1e-4..1e-2", "--vary", "model.vision.layers=[1,1,1,1],[2,1,1,1]"]

    def one_done_and_tune_knows_it(printed):
        return "[1/4]" in printed and list((study / "trials").glob("002-*/config.yaml"))

    kill_when(asked, tmp_path / "first.log", one_done_and_tune_knows_it, "the third trial")
    finished = list((study / "trials").glob("*/zero_shot.json"))
    assert finished
    finished_at = [file.stat().st_mtime_ns for file in finished]

    resumed = subprocess.run([*COMMAND, "--resume", str(study)], env=ENVIRONMENT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stdout[-5000:] + resumed.stderr[-3000:]
    assert [file.stat().st_mtime_ns for file in finished] == finished_at
    table = pandas.read_parquet(study / "report/trials.parquet").sort_values("name").set_index("name")
    assert list(table["state"]) == ["done"] * 4 and set(table["seed"]) == {0, 1}
    # The base's own setting, two of Optuna's, and another seed of one of them; each ran with what the table says.
    assert table["optim.lr"].iloc[0] == 2e-3
    assert table[["optim.lr", "model.vision.layers"]].drop_duplicates().shape[0] == 3
    for run in (study / "trials").iterdir():
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["optim"]["lr"] == table.loc[run.name, "optim.lr"]
        assert json.dumps(config["model"]["vision"]["layers"]) == table.loc[run.name, "model.vision.layers"]
        # Ten steps of warm-up end at the peak.
        assert records(run)[-1]["lr"] == pytest.approx(table.loc[run.name, "optim.lr"])
    best = yaml.safe_load((study / "report/recipe.yaml").read_text())
    assert best["optim"]["lr"] in set(table["optim.lr"]) and best["run"]["name"] == "shapes-options"
    report = (study / "report/report.md").read_text()
    assert "Best: lr=" in report and "Pareto front, accuracy against operations" in report


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--trials", "2"], "--trials 2"),
        (["--study", "scaling", "--compute", "0.0001"], "smallest"),
        (["--study", "scaling", "--compute", "one"], "--compute one"),
        (["--model.init_temprature", "0.1"], "init_temperature"),
        (["--study", "options"], "--vary"),
        (["--resume", "nowhere/at-all"], "nowhere/at-all"),
        (["--resume", "nowhere", "--train.epochs", "3"], "--train.epochs"),
    ],
)
def test_bad_input_is_named_before_anything_starts(arguments, named, tmp_path):
    data = ["--data.train", str(tmp_path / "none.tar")] if "--resume" not in arguments else []
    done = subprocess.run(
        [*COMMAND, *arguments, *data], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stderr.startswith("error: ") and named in done.stderr and "Traceback" not in done.stderr
