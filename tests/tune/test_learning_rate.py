"""What a population's study tries, and what it says of the winner's way."""

import dataclasses
import math

import pytest
import yaml

from orchestrator import cli
from orchestrator.config import Config, ConfigError
from orchestrator.tune.learning_rate import LR, LearningRate
from orchestrator.tune.plan import make_plan
from orchestrator.tune.report import write_report
from orchestrator.tune.study import Study
from orchestrator.tune.trial import Trial

VARY = ["optim.lr=1e-4..1e-2"]


@pytest.fixture
def base() -> Config:
    return cli.parse(["--config", "demo", "--data.train", "shards/{0..3}.tar", "--optim.lr", "0.001"], "")


def trial(member: int, number: int, rate: float, accuracy: float, parent: str = "", **rest) -> Trial:
    name = f"{member:03d}-round{number}-abc"
    fields = {"state": "done", "loss": 1 / accuracy, "accuracy": accuracy, "flops": 1e9, "step": 10 * number, **rest}
    return Trial(name, {LR: rate}, 0, parent=parent, run=f"trials/{name}", **fields)


def study() -> list[Trial]:
    """Member 1 goes on as member 2 after the first round, and wins; the base's own is the best of the first."""
    return [
        trial(0, 1, 1e-3, 0.5),
        trial(1, 1, 1e-4, 0.1),
        trial(2, 1, 1e-2, 0.4),
        trial(0, 2, 1e-3, 0.55, "000-round1-abc"),
        trial(1, 2, 8e-3, 0.6, "002-round1-abc"),
        trial(2, 2, 1e-2, 0.5, "002-round1-abc"),
    ]


def test_members_begin_with_the_base_s_rate_and_the_whole_range(base):
    plan = make_plan(Study("options", "runs/any", base), LearningRate(base, 4, 5, VARY), "population", 4, 5)
    specs = [plan.search.suggest(str(number)) for number in range(4)]
    assert [one["setting"][LR] for one in specs] == [1e-3, 1e-4, 1e-3, 1e-2] and plan.trials == 20
    assert len({one["name"] for one in specs}) == 4
    assert {one[LR] for one in plan.examples} == {1e-4, 1e-3, 1e-2}


def test_the_winner_s_way_is_told(base):
    said = LearningRate(base, 3, 2, VARY).answer(study())
    assert said.sentences[0] == (
        "Best: 001-round2-abc, accuracy 0.6000 after 20 steps, with the learning rate's peak at "
        "0.01 to step 10, 0.008 to step 20."
    )
    assert said.sentences[1] == "Over the base's own, optim.lr=0.001 to the end: +0.0500."
    assert said.sentences[2].startswith("Takeovers: 1; in each")
    rows = said.tables["The winner's learning rate"]
    assert [(row["trial"], row["from step"], row["to step"], row["peak learning rate"]) for row in rows] == [
        ("002-round1-abc", 0, 10, 1e-2),
        ("001-round2-abc", 10, 20, 8e-3),
    ]
    assert said.tables["Takeovers"] == [
        {
            "trial": "001-round2-abc", "took over": "002-round1-abc", "at step": 10, "its learning rate": 1e-2,
            "then": 8e-3,
        }
    ]  # fmt: skip


def test_of_equals_the_first_member_is_the_best_whichever_ended_first(base):
    equals = [trial(member, 2, 10.0**-member, 0.5) for member in (2, 0, 1)]
    said = LearningRate(base, 3, 2, VARY).answer(equals)
    assert "Best: 000-round2-abc" in said.sentences[0] and "none did better" in said.sentences[1]


def test_the_recipe_says_that_the_winner_s_rate_changed(base, tmp_path):
    text = LearningRate(base, 3, 2, VARY).answer(study()).recipe_yaml
    notes = [line for line in text.splitlines() if line.startswith("#")]
    assert "0.01 to step 10, 0.008 to step 20" in notes[0] and "trials/001-round2-abc/final" in notes[-1]
    # Rounds of one rate are told as one.
    longer = [*study(), trial(1, 3, 8e-3, 0.7, "001-round2-abc")]
    assert "0.01 to step 10, 0.008 to step 30." in LearningRate(base, 3, 3, VARY).answer(longer).sentences[0]
    (tmp_path / "recipe.yaml").write_text(text)
    config = cli.parse(["--config", str(tmp_path / "recipe.yaml")], "")
    assert config.optim.lr == 8e-3 and config.run.name == "demo-population"
    changed = {key for key, value in yaml.safe_load(text).items() if value != base.as_dict()[key]}
    assert changed == {"run", "optim"}


def test_unfinished_studies_have_an_answer(base):
    question = LearningRate(base, 3, 2, VARY)
    assert "nothing to say" in question.answer([]).sentences[0]
    running = [dataclasses.replace(one, state="running") if one.step == 20 else one for one in study()]
    said = question.answer(running)
    assert "000-round1-abc" in said.sentences[0] and "none did better" in said.sentences[1]
    failed = [trial(0, 1, 1e-3, 0.5, state="failed"), *study()[1:3]]
    said = question.answer(failed)
    assert "nothing to hold it against" in said.sentences[1] and "1 of 3 rounds" in said.sentences[-1]
    # After its failure the reference's place is taken by another line, which is no reference.
    other = [*failed, trial(0, 2, 1e-3, 0.7, "002-round1-abc")]
    assert "nothing to hold it against" in question.answer(other).sentences[1]
    blind = question.answer([dataclasses.replace(one, accuracy=math.nan) for one in study()])
    assert "001-round2-abc, loss 1.6667" in blind.sentences[0]


def test_the_picture_shows_each_member_s_rates_and_rings_takeovers(base, tmp_path):
    question = LearningRate(base, 3, 2, VARY)
    figures = question.figures(study())
    (axes,) = figures["The learning rates of all members"].axes
    lines = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert lines["member 1"] == [(0, 1e-4), (10, 1e-4), (10, 8e-3), (20, 8e-3)]
    rings = [line for line in axes.lines if line.get_markersize() == 12]
    assert [list(map(tuple, ring.get_xydata())) for ring in rings] == [[(10, 8e-3)]]
    assert not any(question.figures([]).values())
    write_report(str(tmp_path), question.title, study(), question.answer(study()), figures)
    assert "002-round1-abc" in (tmp_path / "trials.csv").read_text().splitlines()[1]
    assert (tmp_path / "report.md").read_text().count("## Takeovers") == 1


@pytest.mark.parametrize(
    ("members", "rounds", "vary", "named"),
    [
        (2, 4, VARY, "--trials 2: a population needs at least 3"),
        (4, 1, VARY, "--rounds 1: at least 2"),
        (4, 4, ["optim.lr=1e-4,1e-3"], "vary a range of the learning rate alone"),
        (4, 4, [*VARY, "train.global_batch=64..128"], "train.global_batch as --vary gives it cannot change"),
        (4, 4, [], "--vary: name what"),
    ],
)
def test_bad_input(base, members, rounds, vary, named):
    with pytest.raises(ConfigError) as caught:
        LearningRate(base, members, rounds, vary)
    assert named in str(caught.value) and "\n" not in str(caught.value)
