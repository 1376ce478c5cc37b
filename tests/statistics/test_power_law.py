"""Power laws, against curves whose exponent, irreducible term and noise are known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from orchestrator.statistics.power_law import extrapolate, fit_power_law

SEEDS = range(40)
# What a 95% interval reaches in nearly all draws of 40; an interval half as wide reaches about 27.
ENOUGH = 34


def budgets(count, repeats=1):
    return np.repeat(np.geomspace(1e15, 1e18, count), repeats)


def curve(x, coefficient=300.0, exponent=0.15, irreducible=0.0):
    return irreducible + coefficient * x**-exponent


def noisy(y, noise, seed):
    return y * np.exp(np.random.default_rng(seed).normal(0, noise, y.shape))


def holds(interval, truth):
    low, high = interval
    return low <= truth <= high


@pytest.mark.parametrize("noise", [0, 0.02])
def test_without_irreducible_term_it_is_numpys_line_through_the_logarithms(noise):
    x = budgets(5)
    y = noisy(curve(x), noise, seed=0)
    slope, height = np.polyfit(np.log(x), np.log(y), 1)
    law = fit_power_law(x, y)
    assert law.exponent == pytest.approx(-slope, rel=1e-9)
    assert law.coefficient == pytest.approx(math.exp(height), rel=1e-9)
    assert law.irreducible == 0 and not law.reason
    assert law.predict(x).value == pytest.approx(np.exp(height + slope * np.log(x)))
    if not noise:
        assert law.exponent == pytest.approx(0.15) and law.coefficient == pytest.approx(300)


def test_a_curve_without_noise_is_found_whole():
    x = budgets(8)
    law = fit_power_law(x, curve(x, irreducible=1.5), resamples=20)
    assert law.exponent == pytest.approx(0.15, rel=1e-4)
    assert law.coefficient == pytest.approx(300, rel=1e-3)
    assert law.irreducible == pytest.approx(1.5, rel=1e-4)
    assert law.irreducible_interval == pytest.approx((1.5, 1.5), rel=1e-4)
    assert (law.points, law.budgets) == (8, 8)


def test_the_unit_of_compute_changes_only_the_coefficient():
    x = budgets(6, repeats=2)
    y = noisy(curve(x, irreducible=1.5), 0.003, seed=0)
    law, other = (fit_power_law(x / unit, y, resamples=20) for unit in (1, 1e15))
    assert other.exponent == pytest.approx(law.exponent)
    assert other.irreducible_interval == pytest.approx(law.irreducible_interval)
    assert other.coefficient == pytest.approx(law.coefficient * 1e15**-law.exponent)


@pytest.mark.parametrize(("count", "repeats"), [(5, 1), (3, 4)])
def test_intervals_of_a_pure_power_law_hold_the_truth(count, repeats):
    x, far = budgets(count, repeats), 1e20
    exponents, predictions, widths = 0, 0, []
    for seed in SEEDS:
        y = noisy(curve(x), 0.03, seed)
        law = fit_power_law(x, y, resamples=150)
        exponents += holds(law.exponent_interval, 0.15)
        _, low, high = law.predict(far)
        predictions += low <= curve(far) <= high
        # The interval that the theory of a straight line gives.
        line = stats.linregress(np.log(x), np.log(y))
        theory = 2 * stats.t.ppf(0.975, x.size - 2) * line.stderr
        widths.append(np.ptp(law.exponent_interval) / theory)
    assert exponents >= ENOUGH and predictions >= ENOUGH
    assert 0.7 < np.median(widths) < 1.4


def test_intervals_of_a_bent_curve_hold_the_truth():
    x, far = budgets(8, repeats=3), 1e19
    truth = curve(x, irreducible=1.5)
    kept = exponents = irreducible = predictions = 0
    widths = []
    for seed in SEEDS:
        law = fit_power_law(x, noisy(truth, 0.005, seed), resamples=50)
        kept += law.irreducible > 0
        exponents += holds(law.exponent_interval, 0.15)
        irreducible += holds(law.irreducible_interval, 1.5)
        _, low, high = law.predict(far)
        predictions += low <= curve(far, irreducible=1.5) <= high
        widths.append(np.ptp(law.irreducible_interval))
    assert kept >= ENOUGH
    assert min(exponents, irreducible, predictions) >= ENOUGH
    assert np.median(widths) < 0.3


def test_a_pure_power_law_mostly_gets_no_irreducible_term():
    x = budgets(6, repeats=3)
    laws = [fit_power_law(x, noisy(curve(x), 0.02, seed), resamples=3) for seed in SEEDS]
    assert sum(law.irreducible == 0 for law in laws) >= ENOUGH


def test_repeats_that_agree_do_not_hide_that_budgets_scatter():
    x = budgets(5, repeats=4)
    held = 0
    for seed in SEEDS:
        scatter = np.repeat(noisy(np.ones(5), 0.05, seed), 4)
        held += holds(fit_power_law(x, noisy(curve(x) * scatter, 0.002, seed), resamples=100).exponent_interval, 0.15)
    assert held >= ENOUGH


@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([], [], "0 distinct amounts of compute are fewer than 3"),
        ([1, 1, 4, 4], [3, 3.1, 2, 2.1], "2 distinct amounts of compute are fewer than 3"),
        ([10, 12, 15], [3, 2, 1], "compute spans a factor of only 1.5, less than 2"),
        ([1, 10, 100], [1, 1.2, 1.5], "it does not fall as compute grows (exponent -0.088)"),
        ([1, 10, 100, 1000], [2, 2, 2, 2], "it does not fall as compute grows"),
        ([1, 1, 10, 10, 100, 100], [2.0, 2.6, 2.5, 1.9, 1.9, 2.5], "its fall is within its noise (exponent -0."),
    ],
)
def test_why_there_is_no_power_law(x, y, reason):
    law = fit_power_law(x, y)
    assert law.reason.startswith(reason)
    assert math.isnan(law.exponent) and math.isnan(law.coefficient) and math.isnan(law.irreducible)
    assert (law.points, law.budgets) == (len(x), len(set(x)))
    assert str(law) == f"loss: no power law, {law.reason}"
    assert np.isnan(law.predict([1e3, 1e4])).all() and np.shape(law.predict([1e3, 1e4])) == (3, 2)


def test_noise_alone_is_seldom_a_power_law():
    x = budgets(3, repeats=3)
    laws = [fit_power_law(x, noisy(np.full(x.shape, 2.0), 0.02, seed), resamples=50) for seed in SEEDS]
    assert sum(bool(law.reason) for law in laws) >= ENOUGH
    assert any("within its noise" in law.reason for law in laws)


def test_a_step_is_fitted_without_overflow():
    x = budgets(8)
    law = fit_power_law(x, [5, 2, 2.01, 2, 2, 1.99, 2, 2], resamples=20)
    assert law.predict(x[-1]).value == pytest.approx(2, rel=0.01)
    steeper = fit_power_law(x, [5, 2, 2, 2, 2, 2, 2, 2], resamples=20)
    assert steeper.predict(x).value == pytest.approx([5] + [2] * 7, rel=0.01)


def test_the_same_seed_gives_the_same_law():
    x = budgets(6)
    y = noisy(curve(x), 0.03, seed=1)
    one, same, other = (fit_power_law(x, y, resamples=50, seed=seed) for seed in (0, 0, 1))
    assert one == same and np.array_equal(one.predict(1e20), same.predict(1e20))
    assert one.exponent == other.exponent and one.exponent_interval != other.exponent_interval
    shuffled = np.random.default_rng(2).permutation(6)
    assert fit_power_law(x[shuffled], y[shuffled], resamples=50) == one


def test_an_extrapolation_sees_only_the_smaller_budgets():
    x = budgets(8, repeats=2)
    y = curve(x, irreducible=1.5)
    exact = extrapolate(x, y, resamples=20)
    assert exact.error == pytest.approx(0, abs=1e-5)
    assert exact.measured == pytest.approx(y[-1]) and (exact.x, exact.runs) == (1e18, 2)
    assert exact.law.budgets == 7
    y[-2:] *= 1.3, 1.2
    higher = extrapolate(x[::-1], y[::-1], resamples=20)
    assert higher.predicted == pytest.approx(exact.predicted)
    assert higher.error == pytest.approx(1 / 1.25 - 1, abs=1e-5)
    assert "measured, error -20.0%" in str(higher) and "loss at C = 1e+18" in str(higher)


def test_the_interval_of_an_extrapolation_holds_a_new_run():
    x = budgets(6)
    found = [extrapolate(x, noisy(curve(x), 0.03, seed), resamples=200) for seed in SEEDS]
    assert sum(holds(one.interval, one.measured) for one in found) >= ENOUGH
    line = found[0].law.predict(1e18)
    assert line.low > found[0].interval[0] and line.high < found[0].interval[1]


def test_an_extrapolation_says_why_it_cannot():
    refused = extrapolate([1, 10, 100], [3, 2, 1])
    assert math.isnan(refused.predicted) and math.isnan(refused.error) and refused.measured == 1
    assert str(refused) == "loss: no power law, 2 distinct amounts of compute are fewer than 3"


def test_a_line_for_a_report():
    x = budgets(5)
    law = dataclasses.replace(fit_power_law(x, curve(x)), exponent_interval=(0.12, 0.16))
    assert law.sentence() == str(law) == "loss = 300 C^-0.15 (exponent 0.12 to 0.16, 95%)"
    bent = dataclasses.replace(law, irreducible=1.8, irreducible_interval=(1.71, 1.9))
    assert bent.sentence("error", "FLOPs") == (
        "error = 1.8 + 300 FLOPs^-0.15 (exponent 0.12 to 0.16, irreducible 1.71 to 1.9, 95%)"
    )


@pytest.mark.parametrize("call", [fit_power_law, extrapolate])
def test_bad_input_is_named(call):
    for bad in (0, -1, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"x\[1\]={float(bad)}: finite and above 0"):
            call([1, bad, 100], [3, 2, 1])
        with pytest.raises(ValueError, match=rf"y\[2\]={float(bad)}: finite and above 0"):
            call([1, 10, 100], [3, 2, bad])
    with pytest.raises(ValueError, match=r"x of shape \(3,\), y of shape \(2,\)"):
        call([1, 10, 100], [3, 2])
    with pytest.raises(ValueError, match=r"no points"):
        extrapolate([], [])
