"""Scaling laws, of errors made with a known exponent."""

from __future__ import annotations

import pytest

from orchestrator.evaluate.scaling_law import scaling_law

COMPUTE = {"a": 1e9, "b": 4e9, "c": 2e10, "d": 4.4e10}


def errors(height, exponent):
    return {model: height * x**-exponent for model, x in COMPUTE.items()}


def test_exponents_of_the_mean_and_of_each_set_are_those_put_in():
    found = scaling_law(COMPUTE, {"easy": errors(8, 0.2), "hard": errors(16, 0.2), "flat": errors(9, 0.05)})
    assert found.panels["easy"].exponent == pytest.approx(0.2) and found.panels["flat"].exponent == pytest.approx(0.05)
    alone = scaling_law(COMPUTE, {"easy": errors(8, 0.2), "hard": errors(16, 0.2)}).mean
    assert alone.exponent == pytest.approx(0.2) and alone.coefficient == pytest.approx(12)
    assert 0.05 < found.mean.exponent < 0.2


def test_a_set_that_does_not_improve_says_so():
    found = scaling_law(COMPUTE, {"worse": dict(zip(COMPUTE, (0.3, 0.31, 0.4, 0.5), strict=True))})
    assert "does not fall" in found.panels["worse"].reason


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ({}, "no set"),
        ({"x": {"a": 0.5}}, "set x: not measured for b"),
        ({"x": {**errors(8, 0.2), "c": 0.0}}, "set x: error 0.0 of c"),
    ],
)
def test_bad_input_is_named(error, message):
    with pytest.raises(ValueError, match=message):
        scaling_law(COMPUTE, error)
