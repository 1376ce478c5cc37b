"""A study's command line, and what is kept of it."""

import json

import pytest

from orchestrator import cli, storage
from orchestrator.config import ConfigError
from orchestrator.tune import command

OPTIONS = ["--study", "options", "--vary", "optim.lr=1e-4..1e-2"]

POPULATION = [*OPTIONS, "--search", "population"]


def parse(tmp_path, *words: str) -> command.Asked:
    data = ["--data.train", "shards/{0..3}.tar", "--optim.lr", "7e-4", "--run.storage_path", str(tmp_path)]
    return command.parse([*words, *data], "")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--vary", "optim.lr=1,2"], "--vary optim.lr=1,2: for --study options alone"),
        (["--study", "options"], "--vary: name what"),
        (["--study", "options", "--vary", "optim.learning_rate=1,2"], "optim.learning_rate: no such option"),
        ([*OPTIONS, "--search", "settings"], "--search settings"),
        ([*OPTIONS, "--search", "grid", "--trials", "3"], "--trials 3: the grid has 4 settings"),
        ([*OPTIONS, "--trials", "1"], "--trials 1"),
        (["--search", "random", "--trials", "3"], "--trials 3"),
        (["--search", "population"], "--search population: for --study options --vary optim.lr=1e-4..1e-2 alone"),
        ([*OPTIONS, "--rounds", "3"], "--rounds 3: for --search population alone"),
        ([*POPULATION, "--stop_early"], "--stop_early: in a population"),
        ([*POPULATION, "--rounds", "1"], "--rounds 1: at least 2"),
        ([*POPULATION, "--rounds", "0"], "--rounds 0: at least 2"),
        ([*POPULATION, "--trials", "2"], "--trials 2: a population needs"),
        ([*POPULATION, "--vary", "optim.weight_decay=0.1..1"], "optim.weight_decay as --vary gives it"),
        (["--study", "options", "--search", "population", "--vary", "optim.lr=0..1e-2"], "optim.lr=0.0: above 0"),
        (["--study", "scaling", "--search", "optuna", "--compute", "1,2", "--trials", "3"], "--trials 3"),
    ],
)
def test_what_cannot_be_asked_is_named(words, named, tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse(tmp_path, *words).plan()
    assert named in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "search"),
    [
        (OPTIONS, "optuna"),
        ([*OPTIONS, "--search", "grid"], "grid"),
        ([], "settings"),
        (["--search", "random"], "random"),
        ([*POPULATION, "--rounds", "3"], "population"),
    ],
)
def test_a_study_goes_on_as_it_was_asked_for(words, search, tmp_path):
    words = words if "population" in words else [*words, "--stop_early"]
    asked = parse(tmp_path, *words, "--trials", "9", "--name", "mine")
    assert asked.search == search
    with pytest.raises(ConfigError, match="there is no study"):
        command.parse(["--resume", f"{tmp_path}/mine"], "")
    storage.write_bytes(f"{tmp_path}/mine/config.yaml", cli.to_yaml(asked.study.base).encode())
    storage.write_bytes(f"{tmp_path}/mine/study.json", asked.to_json())
    again = command.parse(["--resume", f"{tmp_path}/mine"], "")
    assert again == asked
    first, second = ([asked.plan().search.suggest(str(place)) for place in range(5)] for asked in (asked, again))
    assert first[0] == second[0] and first[0]["setting"]
    with pytest.raises(ConfigError, match="leave out --trials"):
        command.parse(["--resume", f"{tmp_path}/mine", "--trials", "12"], "")
    with pytest.raises(ConfigError, match="leave out --vary"):
        command.parse(["--resume", f"{tmp_path}/mine", "--vary", "optim.lr=1,2"], "")


def test_a_study_of_before_there_were_searches_goes_on(tmp_path):
    asked = parse(tmp_path, "--name", "old")
    saved = json.loads(asked.to_json())
    storage.write_bytes(f"{tmp_path}/old/config.yaml", cli.to_yaml(asked.study.base).encode())
    kept = {key: value for key, value in saved.items() if key not in ("search", "vary")}
    storage.write_bytes(f"{tmp_path}/old/study.json", json.dumps(kept).encode())
    assert command.parse(["--resume", f"{tmp_path}/old"], "") == asked
