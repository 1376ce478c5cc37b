"""What a scaling study tries, and what it says."""

import copy
import math

import pytest
import yaml

from orchestrator import cli
from orchestrator.config import Config, ConfigError
from orchestrator.model.scaling import count_flops
from orchestrator.tune.scaling import BUDGET, DEPTH, WIDTH, Scaling
from orchestrator.tune.trial import Trial


@pytest.fixture(scope="module")
def base() -> Config:
    config = cli.parse(["--config", "demo", "--data.train", "shards/{0..3}.tar", "--train.max_steps", "100"], "")
    config.model.vocab_size = 1024
    return config


@pytest.fixture(scope="module")
def scaling(base) -> Scaling:
    return Scaling(base, 18, [1, 2, 4])


def model_of(base: Config, setting: dict):
    config = copy.deepcopy(base)
    for option, value in setting.items():
        *sections, key = option.split(".")
        place = config
        for section in sections:
            place = getattr(place, section)
        setattr(place, key, value)
    return config


def test_models_of_a_budget_have_equal_operations(base, scaling):
    settings = scaling.settings()
    groups = [scaling.group(setting) for setting in settings]
    assert sorted(set(groups)) == [1, 2, 4] and len(settings) == 9
    own = sum(vars(count_flops(base.model)).values())
    for setting, budget in zip(settings, groups, strict=True):
        config = model_of(base, setting)
        config.validate()
        assert sum(vars(count_flops(config.model)).values()) / own == pytest.approx(budget, rel=0.03)
    assert len({str(setting) for setting in settings}) == 9


def test_equal_compute_means_fewer_steps(base):
    settings = Scaling(base, 12, [1, 2, 4], "compute").settings()
    assert [setting["train.max_steps"] for setting in settings] == [100, 100, 50, 50, 25, 25]


def made(scaling: Scaling, base: Config, loss_of) -> list[Trial]:
    """Trials of every setting in two seeds, with losses that a function of compute and of the setting's place gives."""
    trials = []
    for place, setting in enumerate(scaling.settings()):
        flops = 3.0 * 25_600 * sum(vars(count_flops(model_of(base, setting).model)).values())
        for seed in (0, 1):
            loss = loss_of(flops, place) * (1 + 1e-4 * seed)
            fields = {
                "state": "done",
                "step": 100,
                "samples": 25_600,
                "flops": flops,
                "loss": loss,
                "accuracy": 1 / loss,
            }
            trials.append(Trial(f"{place:03d}-{seed}", setting, seed, **fields))
    return trials


def test_the_answer_finds_what_was_put_in(base, scaling):
    # The third of each budget is best; the best ones lie on a power law.
    trials = made(scaling, base, lambda flops, place: 40 * flops**-0.05 * (1.0 if place % 3 == 2 else 1.1))
    answer = scaling.answer(trials)
    names = [row["split"] for row in answer.tables["Models"]]
    for budget, best in zip((1, 2, 4), names[2::3], strict=True):
        (line,) = [one for one in answer.sentences if one.startswith(f"Budget {budget}:")]
        assert f"{best} is best" in line and "beyond the noise" in line
    (law,) = [one for one in answer.sentences if "loss =" in one]
    assert "C^-0.05" in law
    assert any("zero-shot error" in one for one in answer.sentences)
    assert {row["seeds"] for row in answer.tables["Models"]} == {2}


def test_the_recipe_is_the_next_budget_and_runs_as_it_is(base, scaling, tmp_path):
    trials = made(scaling, base, lambda flops, place: 40 * flops**-0.05 * (1.0 if place % 3 == 1 else 1.1))
    answer = scaling.answer(trials)
    file = tmp_path / "recipe.yaml"
    file.write_text(answer.recipe_yaml)
    config = cli.parse(["--config", str(file)], "")
    config.validate()
    own = sum(vars(count_flops(base.model)).values())
    assert sum(vars(count_flops(config.model)).values()) / own == pytest.approx(8, rel=0.03)
    saved = yaml.safe_load(answer.recipe_yaml)
    assert saved["run"]["name"] == "demo-x8" and saved["optim"] == vars(base.optim)


def test_the_front_leaves_out_what_costs_more_and_is_worse(base, scaling):
    """Of each budget the second is best and the others are worse than it; the largest budget brings nothing."""
    budgets = [scaling.group(setting) for setting in scaling.settings()]
    trials = made(
        scaling, base, lambda flops, place: (3 if place % 3 == 1 else 4) / min(budgets[place], 2) + 1e-18 * flops
    )
    answer = scaling.answer(trials)
    (front,) = [one for one in answer.sentences if one.startswith("Pareto front, accuracy against operations")]
    rows = [row for row in answer.tables["Models"] if row["on the Pareto front"] == "yes"]
    names = [row["split"] for row in answer.tables["Models"]]
    assert [row["budget"] for row in rows if row["split"] == names[1]] == [1, 2]
    assert all(row["budget"] < 4 for row in rows) and front.count("budget 2") == 1
    assert f"{len(rows)} of 9 settings" in front
    (axes,) = scaling.figures(trials)["Accuracy against compute"].axes
    assert len(axes.lines[1].get_xdata()) == len(rows)


def test_models_that_no_list_names_are_answered_for_as_well(base, scaling, tmp_path):
    """A search's models, of which an answer knows nothing but the trials' settings."""
    points = [*scaling.references(), *({BUDGET: budget, WIDTH: 0.0, DEPTH: 1.0} for budget in (1, 2, 4))]
    settings = [scaling.setting(point) for point in points]
    known = {str(setting): place for place, setting in enumerate(scaling.settings())}
    assert [known.get(str(setting)) for setting in settings[:3]] == [0, 3, 6]  # the balanced model of each budget
    trials = [
        Trial(f"{place:03d}-0", setting, 0, "done", flops=1e12 * scaling.group(setting), loss=2.0, accuracy=accuracy)
        for place, (setting, accuracy) in enumerate(zip(settings, (0.2, 0.3, 0.4, 0.3, 0.4, 0.5), strict=True))
    ]
    answer = Scaling(base, 18, [1, 2, 4]).answer(trials)
    best = [one for one in answer.sentences if one.startswith("Budget")]
    assert len(best) == 3 and all("is best, accuracy" in one and "over balanced: +0.1000" in one for one in best)
    # The next budget's model grows in depth, as the best ones have.
    file = tmp_path / "recipe.yaml"
    file.write_text(answer.recipe_yaml)
    model = cli.parse(["--config", str(file)], "").model
    deeper = sum(model.vision.layers) / sum(base.model.vision.layers)
    assert (
        deeper > 1.5 * max(model.vision.width / base.model.vision.width, model.image_size / base.model.image_size) ** 2
    )


def test_figures_are_drawn_and_unfinished_studies_have_an_answer(base, scaling):
    trials = made(scaling, base, lambda flops, place: 40 * flops**-0.05)
    assert all(figure is not None for figure in scaling.figures(trials).values())
    assert "nothing to say" in scaling.answer([]).sentences[0]
    assert not any(scaling.figures([]).values())
    some = [*trials[:3], Trial("003-0", scaling.settings()[3], state="failed", loss=math.nan, error="diverged")]
    answer = scaling.answer(some)
    assert answer.sentences[0].startswith("Budget 1:") and "1 of 4 trials failed" in " ".join(answer.sentences)


@pytest.mark.parametrize(
    ("trials", "budgets", "named"),
    [(5, [1, 2, 4], "--trials 5"), (12, [], "--compute"), (12, [1e-6], "--compute"), (12, [math.nan], "--compute")],
)
def test_bad_input(base, trials, budgets, named):
    with pytest.raises(ConfigError, match=named):
        Scaling(base, trials, budgets)
