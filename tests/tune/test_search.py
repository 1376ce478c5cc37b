"""Which trial comes next."""

import math

import pytest
from ray.tune.search import Searcher

from orchestrator.tune.search import SettingsThenSeeds

SETTINGS = [{"x": number} for number in range(4)]


def end(search: SettingsThenSeeds, trial: str, accuracy: float, **rest) -> None:
    search.on_trial_complete(trial, {"accuracy": accuracy, "loss": 1.0, "finished": True, **rest})


def test_every_setting_once_then_seeds_of_the_best_and_the_reference():
    search = SettingsThenSeeds(SETTINGS, trials=10, seed=7)
    first = [search.suggest(f"t{number}") for number in range(4)]
    assert [one["setting"] for one in first] == SETTINGS and {one["seed"] for one in first} == {7}
    # The contenders are not known while one is on its way.
    for number, accuracy in enumerate((0.1, 0.5, 0.2)):
        end(search, f"t{number}", accuracy)
    assert search.suggest("t4") is None
    end(search, "t3", 0.4)
    rest = []
    for number in range(4, 10):
        rest.append(search.suggest(f"t{number}"))
        end(search, f"t{number}", (0.1, 0.5, 0.2, 0.4)[rest[-1]["setting"]["x"]])
    assert sorted(one["setting"]["x"] for one in rest) == [0, 0, 1, 1, 3, 3]
    assert sorted(one["seed"] for one in rest) == [8, 8, 8, 9, 9, 9]
    assert len({one["name"] for one in first + rest}) == 10
    assert search.suggest("t10") == Searcher.FINISHED


def test_failed_trials_are_no_contenders_and_do_not_hold_up_the_rest():
    search = SettingsThenSeeds(SETTINGS, trials=7)
    for number in range(4):
        search.suggest(f"t{number}")
    search.on_trial_complete("t0", None, error=True)
    end(search, "t1", math.nan, error="diverged")
    end(search, "t2", 0.3)
    end(search, "t3", 0.2)
    assert {search.suggest(f"t{number}")["setting"]["x"] for number in range(4, 7)} == {0, 2, 3}


def test_without_accuracy_the_smaller_loss_is_better():
    search = SettingsThenSeeds(SETTINGS[:3], trials=5, contenders=1)
    for number, loss in enumerate((3.0, 1.0, 2.0)):
        search.suggest(f"t{number}")
        end(search, f"t{number}", math.nan, loss=loss)
    assert {search.suggest("t3")["setting"]["x"], search.suggest("t4")["setting"]["x"]} == {0, 1}


def test_groups_have_contenders_of_their_own():
    """The second group is worse in all, and gets as many seeds."""
    search = SettingsThenSeeds(SETTINGS, trials=8, group=lambda setting: setting["x"] // 2, contenders=1)
    for number, accuracy in enumerate((0.8, 0.9, 0.2, 0.1)):
        search.suggest(f"t{number}")
        end(search, f"t{number}", accuracy)
    more = [search.suggest(f"t{number}")["setting"]["x"] for number in range(4, 8)]
    assert sorted(more) == [0, 1, 1, 2]  # the best of each group, and its reference; never 3


def test_it_goes_on_from_what_was_saved(tmp_path):
    search = SettingsThenSeeds(SETTINGS, trials=6)
    for number in range(4):
        search.suggest(f"t{number}")
        end(search, f"t{number}", number / 10)
    search.save(str(tmp_path / "state"))
    other = SettingsThenSeeds(SETTINGS, trials=6)
    other.restore(str(tmp_path / "state"))
    assert other.suggest("t4") == search.suggest("t4") and other.suggest("t5") == search.suggest("t5")
    assert other.suggest("t6") == Searcher.FINISHED


def test_bad_input():
    with pytest.raises(ValueError, match="3 trials are fewer than the 4 settings"):
        SettingsThenSeeds(SETTINGS, trials=3)
    with pytest.raises(ValueError, match="at least one setting"):
        SettingsThenSeeds([], trials=3)
