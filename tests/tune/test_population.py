"""Who goes on as whom, with which learning rate, and in which order."""

import math
import random
from collections import Counter

import pytest
from ray import tune
from ray.tune.search import Searcher

from orchestrator.config import ConfigError
from orchestrator.tune.population import Population, check_rounds, perturbed, round_end, takeovers
from orchestrator.tune.space import between

LR = "optim.lr"
SPACE = {LR: between(1e-4, 1e-2)}
RATES = [1e-3, 1e-4, 3e-4, 3e-3, 1e-2]
NAN = math.nan


def population(rounds: int = 3, seed: int = 0) -> Population:
    return Population([{LR: rate} for rate in RATES], SPACE, rounds, seed)


def end(search: Population, trial: str, accuracy: float, **rest) -> None:
    search.on_trial_complete(trial, {"accuracy": accuracy, "loss": 1.0, "finished": True, **rest})


def run(search: Population, trials, accuracy=lambda spec: -abs(math.log(spec["setting"][LR] / 3e-3))) -> list[dict]:
    specs = []
    for number in trials:
        specs.append(search.suggest(f"t{number}"))
        end(search, f"t{number}", accuracy(specs[-1]))
    return specs


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.5, 0.1, 0.9], {1: 2}),
        ([0.1, 0.5, 0.9], {1: 2}),  # The reference is the worst, and stays; the next one goes.
        ([0.9, 0.5, 0.1, 0.3], {2: 0}),  # It may be the best.
        ([0.5, NAN, 0.9, 0.1], {1: 2}),  # A failure is worse than any.
        ([NAN, 0.2, 0.9, 0.1], {0: 2}),  # Of the reference too.
        ([NAN, NAN, 0.9, NAN], {0: 2, 1: 2, 3: 2}),
        ([NAN, NAN, NAN], {}),
        ([0.5, 0.5, 0.5], {2: 0}),
    ],
)
def test_the_worst_go_on_as_the_best(scores, expected):
    assert takeovers(scores, random.Random(0)) == expected


def test_a_quarter_of_the_population_goes_on_as_any_of_the_best_quarter():
    scores = [number / 10 for number in range(1, 9)]
    found = [takeovers(scores, random.Random(seed)) for seed in range(200)]
    assert {tuple(one) for one in found} == {(1, 2)}
    donors = Counter(donor for one in found for donor in one.values())
    assert set(donors) == {6, 7} and min(donors.values()) > 150


def test_a_rate_moves_by_a_fifth_and_stays_in_its_range():
    setting = {LR: 1e-3, "other": "kept"}
    moved = [perturbed(setting, SPACE, random.Random(seed)) for seed in range(50)]
    assert Counter(one[LR] for one in moved).keys() == {8e-4, 1.2e-3}
    assert all(one["other"] == "kept" for one in moved) and setting[LR] == 1e-3
    # At an end it can only go back; near it, it stops there; from beyond, it comes in.
    for rate, found in (
        (1e-4, {1.2e-4}), (1e-2, {8e-3}), (1.1e-4, {1e-4, 1.32e-4}), (9e-3, {7.2e-3, 1e-2}), (0.5, {1e-2}),
    ):  # fmt: skip
        assert {perturbed({LR: rate}, SPACE, random.Random(seed))[LR] for seed in range(50)} == found


def test_rounds_cover_every_step_once():
    ends = [round_end(10, number, 4) for number in range(4)]
    assert ends == [2, 5, 7, 10] and round_end(7, 0, 1) == 7
    check_rounds(4, 4)
    with pytest.raises(ConfigError, match="--rounds 4: more than the 3 optimiser steps"):
        check_rounds(4, 3)


def test_each_round_begins_once_the_one_before_has_ended():
    search = population()
    first = [search.suggest(f"t{number}") for number in range(5)]
    assert [one["setting"][LR] for one in first] == RATES and {one["seed"] for one in first} == {0}
    assert {(one["parent"], one["round"], one["rounds"]) for one in first} == {("", 0, 3)}
    for number, accuracy in ((0, 0.3), (4, 0.1), (3, 0.9), (1, 0.5)):
        end(search, f"t{number}", accuracy)
        assert search.suggest("t5") is None
    end(search, "t2", 0.6)
    second = [search.suggest(f"t{number}") for number in range(5, 10)]
    # All but the worst go on from themselves as they were; that one from the best, with another rate.
    assert [one["parent"] for one in second] == [first[place]["name"] for place in (0, 1, 2, 3, 3)]
    assert [one["setting"] for one in second[:4]] == [one["setting"] for one in first[:4]]
    assert second[4]["setting"][LR] in (2.4e-3, 3.6e-3) and {one["round"] for one in second} == {1}
    assert search.suggest("t10") is None


def test_it_ends_with_the_last_round_and_finds_the_better_rates():
    specs = run(population(rounds=6), range(30))
    assert len({one["name"] for one in specs}) == 30
    assert all(one["setting"][LR] == 1e-3 for one in specs[::5])  # the reference
    assert [one["round"] for one in specs] == [number // 5 for number in range(30)]
    assert min(abs(math.log(one["setting"][LR] / 3e-3)) for one in specs[-5:]) < 0.01
    late, early = ([one["setting"][LR] for one in part] for part in (specs[-4:], specs[1:5]))
    assert max(late) / min(late) < 4 < max(early) / min(early)
    search = population(rounds=1)
    run(search, range(5))
    assert search.suggest("more") == Searcher.FINISHED


def test_what_failed_takes_over_and_where_all_failed_it_ends():
    search = population()
    specs = [search.suggest(f"t{number}") for number in range(5)]
    for number in range(5):
        result = {"finished": True, "error": "diverged", "loss": NAN, "accuracy": NAN}
        search.on_trial_complete(f"t{number}", None if number == 1 else result, error=number == 1)
    assert search.suggest("t5") == Searcher.FINISHED
    end(search, "t2", NAN, loss=2.0)  # without evaluation sets the loss decides
    assert {search.suggest(f"t{number}")["parent"] for number in range(5, 10)} == {specs[2]["name"]}


def test_a_population_goes_on_from_what_was_saved(tmp_path):
    search, other = population(), population()
    before = run(search, range(7))
    search.save(str(tmp_path / "state"))
    other.restore(str(tmp_path / "state"))
    after = run(search, range(7, 15))
    assert run(other, range(7, 15)) == after and other.suggest("more") == Searcher.FINISHED
    assert not {one["name"] for one in before} & {one["name"] for one in after}
    # What it has forgotten it proposes again alike, as long as the scores are the same.
    assert run(population(), range(15)) == before + after


def test_another_line_has_another_folder():
    """Rounds that were made again may have other scores; what they lead to must not go on in the old folders."""
    one, other = run(population(), range(10)), run(population(), range(10), lambda spec: -spec["setting"][LR])
    assert [spec["name"] for spec in one[:5]] == [spec["name"] for spec in other[:5]]
    for a, b in zip(one[5:], other[5:], strict=True):
        assert (a["name"] == b["name"]) == ((a["setting"], a["parent"]) == (b["setting"], b["parent"]))
    assert one[5:] != other[5:]
    names = [population()._spec(1, 0, {LR: rate}, parent)["name"] for rate in (1, 2) for parent in ("a", "b")]
    assert len(set(names)) == 4


def test_a_trial_that_is_made_again_does_not_change_what_was_planned():
    search = population()
    run(search, range(6))
    planned = [search.suggest(f"t{number}") for number in range(6, 10)]
    end(search, "t0", 99.0)
    assert [search._planned[number] for number in range(6, 10)] == planned


def test_bad_input():
    with pytest.raises(ValueError, match="2 members in 3 rounds"):
        Population([{LR: 1e-3}] * 2, {LR: tune.uniform(0.1, 1)}, 3)
    with pytest.raises(ValueError, match="in 0 rounds"):
        population(0)
