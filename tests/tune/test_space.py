"""Domains, grids and draws."""

import itertools
import math

import pytest
from ray import tune

from orchestrator.tune.space import between, contains, corners, draws, grid, values


@pytest.mark.parametrize(
    ("low", "high", "three"),
    [
        (1e-4, 1e-2, [1e-4, 1e-3, 1e-2]),  # by the logarithm
        (0.1, 0.5, [0.1, 0.3, 0.5]),  # spans less than a factor of 10
        (0.0, 0.3, [0.0, 0.15, 0.3]),  # has no logarithm
        (-5.0, 100.0, [-5.0, 47.5, 100.0]),
        (1, 100, [1, 10, 100]),
        (2, 6, [2, 4, 6]),
        (1, 2, [1, 2]),
    ],
)
def test_a_range_in_even_steps(low, high, three):
    found = values(between(low, high), 3)
    assert found == pytest.approx(three) and found[0] == low and found[-1] == high
    assert {type(value) for value in found} == {type(low)}
    drawn = [point["x"] for point in itertools.islice(draws({"x": between(low, high)}, 0), 300)]
    assert all(low <= value <= high and type(value) is type(low) for value in drawn)
    # Half of the draws lie below the middle of the steps.
    assert len(three) == 2 or sum(value <= three[1] for value in drawn) / 300 == pytest.approx(0.5, abs=0.13)
    if high == 6:
        assert {low, high} <= set(drawn)


def test_a_grid_is_as_fine_as_it_may_be():
    space = {"a": between(1e-3, 1e-1), "b": tune.choice([[1], [2]])}
    points = grid(space, 9)
    assert len(points) == 8 and len({str(point) for point in points}) == 8
    assert sorted({point["a"] for point in points}) == pytest.approx(
        [1e-3, 10 ** (-7 / 3), 10 ** (-5 / 3), 1e-1], rel=1e-3
    )
    assert len(grid(space, 1)) == 6  # and never coarser than three numbers of a range
    assert grid({"b": tune.choice([3, 4])}, 100) == [{"b": 3}, {"b": 4}]
    assert len(grid({"n": between(1, 4)}, 100)) == 4  # whole numbers are used up


def test_draws_are_the_same_for_the_same_seed():
    space = {"a": between(0.0, 1.0), "b": tune.choice(["x", "y"])}
    first, again, other = (list(itertools.islice(draws(space, seed), 20)) for seed in (1, 1, 2))
    assert first == again != other and len({point["a"] for point in first}) == 20


def test_corners_are_few_enough():
    assert len(corners({"a": between(0.0, 1.0), "b": tune.choice([1, 2, 3])})) == 6
    assert len(corners({str(number): between(0.0, 1.0) for number in range(20)})) == 1000


def test_what_a_space_contains():
    space = {"a": between(1, 4), "b": tune.choice([[1], [2]]), "c": between(0.5, 1.0)}
    assert contains(space, {"a": 4, "b": [2], "c": 0.5})
    assert not contains(space, {"a": 5, "b": [2], "c": 0.5})
    assert not contains(space, {"a": 4, "b": [3], "c": 0.5})
    assert not contains(space, {"a": 4, "b": [1], "c": math.nextafter(1.0, 2)})
