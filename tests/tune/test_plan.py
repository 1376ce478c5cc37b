"""Every study with every search: what it tries first, how much, and that it can be run."""

import itertools

import pytest

from orchestrator import cli
from orchestrator.config import Config, ConfigError
from orchestrator.model.scaling import count_flops
from orchestrator.tune.options import Options
from orchestrator.tune.plan import make_plan
from orchestrator.tune.recipe import configured
from orchestrator.tune.scaling import Scaling
from orchestrator.tune.study import Study
from orchestrator.tune.temperature import CLAMP, INITIAL, LEARNED, Temperature

VARY = ["optim.lr=1e-4..1e-2", "train.global_batch=128,256"]


@pytest.fixture(scope="module")
def base() -> Config:
    config = cli.parse(
        ["--config", "demo", "--data.train", "shards/{0..3}.tar", "--train.max_steps", "100", "--optim.lr", "7e-4"], ""
    )
    config.model.vocab_size = 1024
    return config


@pytest.fixture(scope="module")
def scaling(base) -> Scaling:
    return Scaling(base, 18, [1, 2])


def proposed(base: Config, question, method: str, trials: int) -> list[dict]:
    """The specs of all trials, which all end alike."""
    search = make_plan(Study("any", "runs/any", base), question, method, trials).search
    specs = []
    for number in range(trials):
        specs.append(search.suggest(str(number)))
        search.on_trial_complete(str(number), {"accuracy": 0.5, "loss": 1.0, "flops": 1.0, "finished": True})
    return specs


@pytest.mark.parametrize("method", ["random", "optuna"])
def test_two_thirds_are_settings_the_base_first(base, method):
    specs = proposed(base, Options(base, 12, VARY), method, 12)
    assert specs[0]["setting"] == {"optim.lr": base.optim.lr, "train.global_batch": base.train.global_batch}
    distinct = {str(one["setting"]) for one in specs}
    assert len(distinct) == 8 and len({one["name"] for one in specs}) == 12
    rates = [one["setting"]["optim.lr"] for one in specs[1:8]]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates) and len(set(rates)) == 7


def test_a_grid_is_covered_and_what_is_left_are_seeds(base):
    specs = proposed(base, Options(base, 20, VARY), "grid", 20)
    grid = {(one["setting"]["optim.lr"], one["setting"]["train.global_batch"]) for one in specs[1:13]}
    rates = sorted({rate for rate, _ in grid})
    assert len(rates) == 6 and rates[0] == 1e-4 and rates[-1] == 1e-2
    assert grid == {(rate, batch) for rate in rates for batch in (128, 256)}
    assert len({str(one["setting"]) for one in specs}) == 13


def test_a_grid_that_is_too_large_says_how_large_it_is(base):
    make_plan(Study("any", "runs/any", base), Options(base, 7, VARY), "grid", 7)
    with pytest.raises(ConfigError, match="--trials 6: the grid has 7 settings"):
        make_plan(Study("any", "runs/any", base), Options(base, 6, VARY), "grid", 6)


def test_a_small_space_is_drawn_whole(base):
    specs = proposed(base, Options(base, 12, ["train.global_batch=128,256"]), "random", 12)
    assert len({str(one["setting"]) for one in specs}) <= 3


@pytest.mark.parametrize("method", ["grid", "random", "optuna"])
def test_temperatures(base, method):
    specs = proposed(base, Temperature(base, 24), method, 24)
    own = base.model
    assert specs[0]["setting"] == {INITIAL: own.init_temperature, LEARNED: True, CLAMP: own.max_logit_scale}
    settings = [one["setting"] for one in specs]
    assert all(0.01 <= one[INITIAL] <= 0.5 for one in settings)
    assert {one[LEARNED] for one in settings} == {True, False}
    assert {one[CLAMP] for one in settings} == {100.0, 1000.0}


@pytest.mark.parametrize("method", ["grid", "random", "optuna"])
def test_models_of_every_budget(base, scaling, method):
    specs = proposed(base, scaling, method, 18)
    balanced = [setting for setting in scaling.settings() if "balanced" in scaling._words(setting)]
    assert sorted(map(str, balanced)) == sorted(str(one["setting"]) for one in specs[:2])
    operations = count_flops(base.model).total
    distinct = {str(one["setting"]): one["setting"] for one in specs}
    assert len(distinct) > 4
    for setting in distinct.values():
        reached = count_flops(configured(base, setting).model).total / operations
        assert reached == pytest.approx(scaling.group(setting), rel=0.03)
    assert {scaling.group(setting) for setting in distinct.values()} == {1, 2}


@pytest.mark.parametrize(
    ("method", "vary", "named"),
    [
        *itertools.product(
            ("grid", "random", "optuna"),
            ("train.global_batch=1,128",),
            ("train.global_batch=1: at least 2",),
        ),
        *itertools.product(
            ("grid", "random", "optuna"),
            ("model.init_temperature=0.001..0.1",),
            ("its inverse must not exceed",),
        ),
        # Whole numbers between the ends that the heads do not divide.
        *itertools.product(("grid", "random", "optuna"), ("model.text.width=32..64",), ("model.text.heads",)),
        ("grid", "optim.beta2=0.9..1.0", "optim.beta2=1.0"),
        ("optuna", "optim.beta2=0.9..1.0", "optim.beta2=1.0"),
    ],
)
def test_a_value_that_a_run_cannot_take_is_named_before_any_trial(base, method, vary, named):
    with pytest.raises(ConfigError) as caught:
        make_plan(Study("any", "runs/any", base), Options(base, 30, [vary]), method, 30)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_options_have_no_settings_of_their_own(base):
    with pytest.raises(ConfigError, match="--search settings"):
        make_plan(Study("any", "runs/any", base), Options(base, 9, VARY), "settings", 9)
