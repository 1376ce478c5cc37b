"""Which trial comes next."""

import itertools
import math
from statistics import fmean

import pytest
from ray import tune
from ray.tune.search import Searcher

from orchestrator.tune.search import OptunaThenSeeds, SettingsThenSeeds, searched
from orchestrator.tune.space import between, draws

SETTINGS = [{"x": number} for number in range(4)]


def end(search: SettingsThenSeeds, trial: str, accuracy: float, **rest) -> None:
    search.on_trial_complete(trial, {"accuracy": accuracy, "loss": 1.0, "finished": True} | rest)


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


def test_every_groups_best_comes_before_a_second():
    search = SettingsThenSeeds(SETTINGS, trials=6, group=lambda setting: setting["x"] // 2)
    for number, accuracy in enumerate((0.8, 0.9, 0.2, 0.1)):
        search.suggest(f"t{number}")
        end(search, f"t{number}", accuracy)
    assert [search.suggest(f"t{number}")["setting"]["x"] for number in range(4, 6)] == [1, 2]


def test_a_setting_without_effect_gets_no_seeds():
    """The second's run is the reference's; the third only scores as much."""
    search = SettingsThenSeeds(SETTINGS, trials=8)
    for number, (accuracy, loss) in enumerate(((0.5, 2.0), (0.5, 2.0), (0.5, 1.9), (0.1, 3.0))):
        search.suggest(f"t{number}")
        end(search, f"t{number}", accuracy, loss=loss)
    assert [search.suggest(f"t{number}")["setting"]["x"] for number in range(4, 8)] == [0, 2, 0, 2]


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


SPACE = {"x": between(1e-4, 1e-1), "y": between(0.0, 1.0), "kind": tune.choice([[1], [2]])}
OWN = {"x": 1e-4, "y": 0.9, "kind": [2]}


def optuna_search(trials: int, seed: int = 0, own: dict = OWN, space: dict = SPACE) -> OptunaThenSeeds:
    return OptunaThenSeeds(space, dict, [own], trials, seed)


def accuracy_of(setting: dict) -> float:
    return 1 - abs(math.log10(setting["x"]) + 2) / 3 - abs(setting["y"] - 0.3) - 0.1 * (setting["kind"] == [1])


def run(search: OptunaThenSeeds, trials, objective=accuracy_of, flops=lambda setting: 1.0) -> list[dict]:
    specs = []
    for number in trials:
        specs.append(search.suggest(f"t{number}"))
        setting = specs[-1]["setting"]
        end(search, f"t{number}", objective(setting), flops=flops(setting))
    return specs


def test_optuna_is_told_what_came_of_its_points_and_finds_better_ones():
    """The same number of random draws is worse, and most of what it proposes late is better than most of them."""
    best, late, drawn = [], [], []
    for seed in range(8):
        points = [one["setting"] for one in run(optuna_search(45, seed), range(30))]
        best.append(max(map(accuracy_of, points)))
        late.append(fmean(map(accuracy_of, points[15:])))
        random = list(map(accuracy_of, itertools.islice(draws(SPACE, seed), 30)))
        drawn.append((max(random), fmean(random)))
    assert fmean(best) > fmean(one for one, _ in drawn)
    assert all(mine > random + 0.1 for mine, (_, random) in zip(late, drawn, strict=True))


def test_of_equal_accuracy_optuna_seeks_the_cheaper():
    specs = run(optuna_search(60), range(40), lambda setting: 0.5, lambda setting: 1 + setting["y"])
    assert fmean(one["setting"]["y"] for one in specs[20:]) < 0.35


def test_the_reference_comes_first_and_seeds_last():
    trials = 12
    search = optuna_search(trials, seed=7)
    specs = run(search, range(trials))
    assert search.suggest("more") == Searcher.FINISHED
    assert specs[0]["setting"] == OWN and specs[0]["name"].startswith("000-")
    assert len({str(one["setting"]) for one in specs}) == searched(trials) == 8
    assert [one["seed"] for one in specs[:8]] == [7] * 8 and {one["seed"] for one in specs[8:]} == {8, 9}
    ranked = sorted((one["setting"] for one in specs[1:8]), key=accuracy_of)
    assert {str(one["setting"]) for one in specs[8:]} == {str(one) for one in (OWN, *ranked[-2:])}
    assert len({one["name"] for one in specs}) == trials


def test_a_reference_outside_the_space_is_tried_all_the_same():
    own = {**OWN, "x": 0.5}
    specs = run(optuna_search(9, own=own), range(6))
    assert specs[0]["setting"] == own and all(one["setting"]["x"] <= 0.1 for one in specs[1:])
    both = run(OptunaThenSeeds(SPACE, dict, [OWN, own], trials=9), range(6))
    assert [one["setting"] for one in both[:2]] == [own, OWN] and len({str(one["setting"]) for one in both}) == 6


def test_a_point_that_was_proposed_twice_is_another_seed():
    specs = run(
        optuna_search(9, own={"kind": "a"}, space={"kind": tune.choice(["a", "b"])}), range(9), lambda setting: 0.5
    )
    assert {one["setting"]["kind"] for one in specs} == {"a", "b"}
    assert len({one["name"] for one in specs}) == 9 and {one["name"][:3] for one in specs} == {"000", "001"}


@pytest.mark.parametrize("seed", range(8))
def test_of_few_choices_all_are_tried_before_one_comes_again(seed):
    search = optuna_search(6, seed, own={"kind": "a"}, space={"kind": tune.choice(["a", "b", "c", "d"])})
    assert sorted(one["setting"]["kind"] for one in run(search, range(4), lambda setting: 0.5)) == ["a", "b", "c", "d"]


def test_optuna_goes_on_from_what_was_saved(tmp_path):
    search, other, forgetful = optuna_search(30), optuna_search(30), optuna_search(30)
    before = run(search, range(15))
    search.save(str(tmp_path / "state"))
    other.restore(str(tmp_path / "state"))
    after = run(search, range(15, 30))
    assert run(other, range(15, 30)) == after
    assert other.suggest("more") == Searcher.FINISHED
    names = [one["name"] for one in before]
    assert not set(names) & {one["name"] for one in after}
    # Without what it was told it would go another way.
    run(forgetful, range(15), lambda setting: 0.5)
    assert run(forgetful, range(15, 30)) != after


def test_another_point_in_a_forgotten_trial_s_place_has_another_name():
    search, other = optuna_search(30), optuna_search(30)
    for one, accuracy in ((search, 0.0), (other, 1.0)):  # a trial that was made again may score otherwise
        run(one, range(12))
        one.suggest("t12")
        end(one, "t12", accuracy, flops=1.0)
    one, another = search.suggest("t13"), other.suggest("t13")
    assert one["setting"] != another["setting"]
    assert one["name"] != another["name"] and one["name"][:3] == another["name"][:3] == "013"


def test_points_that_failed_are_not_proposed_again_and_again():
    """Trials of a large x diverge."""
    search = optuna_search(60)
    specs = []
    for number in range(40):
        specs.append(search.suggest(f"t{number}"))
        if specs[-1]["setting"]["x"] > 3e-3:
            search.on_trial_complete(f"t{number}", {"finished": True, "error": "diverged", "loss": math.nan})
        else:
            end(search, f"t{number}", 0.5, flops=1.0)
    search.on_trial_complete("t39", None, error=True)  # a trial that was made again
    assert sum(one["setting"]["x"] > 3e-3 for one in specs[20:]) < 5
