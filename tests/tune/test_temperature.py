"""What a temperature study tries, and what it says."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from orchestrator import cli
from orchestrator.config import Config, ConfigError, ModelConfig
from orchestrator.tune import temperature
from orchestrator.tune.comparison import margin
from orchestrator.tune.temperature import CLAMP, INITIAL, LEARNED, Temperature
from orchestrator.tune.trial import Trial


@pytest.mark.parametrize("trials", [4, 5, 8, 12, 30])
@pytest.mark.parametrize("objective", ["contrastive", "sigmoid"])
def test_settings(trials, objective):
    model = ModelConfig(objective=objective)
    found = temperature.settings(model, trials)
    assert found[0] == {INITIAL: 0.07, LEARNED: True, CLAMP: 100.0}
    assert found[1] == {**found[0], LEARNED: False}
    assert len(found) == len({tuple(sorted(one.items())) for one in found})
    assert 2 <= len(found) <= math.ceil(trials / 2)
    assert all(1 / one[INITIAL] <= one[CLAMP] for one in found)
    if trials >= 12:
        starts = [one[INITIAL] for one in found]
        assert objective == "sigmoid" or (min(starts) < 0.07 / 3 and max(starts) > 0.07 * 3)
        assert any(one[CLAMP] != 100 for one in found)


def test_too_few_trials():
    with pytest.raises(ConfigError, match="--trials 3"):
        temperature.settings(ModelConfig(), 3)


def trial(start: float, learned: bool, seed: int, accuracy: float, **rest) -> Trial:
    setting = {INITIAL: start, LEARNED: learned, CLAMP: 100.0}
    place = {(0.07, True): 0, (0.07, False): 1, (0.02, True): 2}[start, learned]
    fields = {"state": "done", "loss": 2.0, "accuracy": accuracy, "path": [(1, 3.0, 14.0), (2, 2.0, 20.0)], **rest}
    return Trial(f"{place:03d}-{seed}", setting, seed, **fields)


def test_a_clear_winner_is_named_with_its_margin():
    default = [trial(0.07, True, seed, 0.40 + seed / 1000) for seed in range(3)]
    better = [trial(0.02, True, seed, 0.50 + seed / 1000) for seed in range(3)]
    fixed = [trial(0.07, False, 0, 0.2)]
    said = temperature.answer([*better, *fixed, *default], Config())
    assert "learned from 0.02" in said.sentences[0] and "0.5010" in said.sentences[0]
    assert "+0.1000" in said.sentences[1] and "beyond the noise" in said.sentences[1]
    assert any("Learning the temperature against fixing it: +0.3010" in one for one in said.sentences)
    (rows,) = said.tables.values()
    assert [row["seeds"] for row in rows] == [3, 3, 1] and rows[0]["logit scale at the end"] == 20.0


def test_the_recipe_is_the_winner(tmp_path):
    base = Config()
    base.run.name, base.train.epochs = "mine", 3
    trials = [trial(0.07, True, 0, 0.4), trial(0.02, True, 0, 0.5), trial(0.07, False, 0, 0.3)]
    file = tmp_path / "recipe.yaml"
    file.write_text(temperature.answer(trials, base).recipe_yaml)
    config = cli.parse(["--config", str(file)], "")
    assert config.model.init_temperature == 0.02 and config.optim.learn_temperature
    assert (config.run.name, config.train.epochs) == ("mine-temperature", 3)
    assert base.model.init_temperature == 0.07


def test_a_setting_that_changed_nothing_is_no_winner():
    """Its only seed is the lucky one of the default's three."""
    default = [trial(0.07, True, seed, 0.40 - seed / 10) for seed in range(3)]
    twin = Trial("005-0", {**default[0].setting, CLAMP: 1000.0}, 0, "done", loss=2.0, accuracy=0.40)
    said = temperature.answer([twin, *default], Config())
    assert "at most 100," in said.sentences[0] and "That is the default" in said.sentences[1]
    assert any("at most 1000" in one and "had no effect" in one for one in said.sentences)
    assert len(said.tables["Settings"]) == 2
    other = dataclasses.replace(twin, loss=1.9)
    assert "at most 1000" in temperature.answer([other, *default], Config()).sentences[0]


def test_runs_without_accuracy_are_compared_by_their_loss():
    default = trial(0.07, True, 0, float("nan"), loss=2.0)
    twin = dataclasses.replace(default, name="005-0", setting={**default.setting, CLAMP: 1000.0}, accuracy=-math.nan)
    assert any("had no effect" in one for one in temperature.answer([default, twin], Config()).sentences)
    other = dataclasses.replace(twin, loss=1.9)
    assert not any("had no effect" in one for one in temperature.answer([default, other], Config()).sentences)


def test_nothing_stands_in_for_a_default_that_failed():
    said = temperature.answer([trial(0.07, False, 0, 0.3), trial(0.02, True, 0, 0.4)], Config())
    assert "The default has not ended" in said.sentences[1]


def test_learned_and_fixed_settings_both_get_seeds():
    study = Temperature(Config(), 12)
    assert [study.group(one) for one in study.settings()[:2]] == [True, False]
    assert study.references() == study.settings()[:2]


def test_the_margin_is_welchs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.50, 0.02, 4), rng.normal(0.48, 0.05, 6)
    ours = margin(
        [trial(0.02, True, n, x) for n, x in enumerate(a)], [trial(0.07, True, n, x) for n, x in enumerate(b)]
    )
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert f"{a.mean() - b.mean():+.4f} (95% interval {low:+.4f} to {high:+.4f}, 4 and 6 seeds)" in ours
    assert "within the noise" in ours


def test_single_seeds_give_no_interval():
    said = margin([trial(0.02, True, 0, 0.5)], [trial(0.07, True, 0, 0.4)])
    assert "+0.1000" in said and "no interval" in said


def test_failed_and_unfinished_trials():
    assert "nothing to say" in temperature.answer([], Config()).sentences[0]
    some = [
        trial(0.07, True, 0, 0.4),
        trial(0.02, True, 0, math.nan, state="failed", loss=math.nan, error="diverged"),
        trial(0.07, False, 0, math.nan, state="running"),
    ]
    said = temperature.answer(some, Config())
    assert "That is the default" in said.sentences[1] and "1 of 3 trials failed" in said.sentences[-1]
