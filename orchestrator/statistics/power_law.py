"""Power laws of loss or error against compute, and how far the points carry them.

    y = a x^-b    or    y = e + a x^-b

x is the compute of a run, y its loss or error, b the exponent, e the irreducible term: what no compute takes away.

Shapes: N points, G budgets (distinct x), S resamples.

Sources: Hoffmann et al. 2022, appendix D.3 (least squares of log y); Hurvich & Tsai 1989 (corrected Akaike criterion);
Efron & Tibshirani 1993 (bootstrap); Efron 2014 (resamples that choose their own form).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.special import fdtri, ndtri, stdtrit

from orchestrator.statistics.intervals import LEVEL, Interval

TAILS = (1 - LEVEL) / 2, (1 + LEVEL) / 2
MIN_BUDGETS, MIN_SPAN = 3, 2.0
# One budget more than the bent curve has parameters, and as many points as its corrected criterion is defined for.
BENT_BUDGETS, BENT_POINTS = 4, 6
# Differences of log y below this are arithmetic, not evidence.
ROUNDING = 1e-7
# Irreducible terms to start from, as shares of the smallest y.
STARTS = (0.5, 0.95)

NO_INTERVAL: Interval = (math.nan, math.nan)


class Prediction(NamedTuple):
    """y, and the ends of its 95% interval; each of the shape of the x that was asked for."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class PowerLaw:
    """What the points say.

    Parameters
    ----------
    points, budgets : N and G
    reason : why there is no power law; then the numbers below are NaN. Empty: there is one
    coefficient, exponent : a and b; b is above 0
    irreducible : e; 0: the points do not support one, which is not to say that there is none
    exponent_interval, irreducible_interval : 95% bootstrap intervals
    noise : standard deviation of log y about the curve: a relative one
    """

    points: int
    budgets: int
    reason: str = ""
    coefficient: float = math.nan
    exponent: float = math.nan
    irreducible: float = math.nan
    exponent_interval: Interval = NO_INTERVAL
    irreducible_interval: Interval = NO_INTERVAL
    noise: float = math.nan
    # log a, b, log e, and a new run's distance from the curve in log y. The first is the fit, the others its resamples.
    curves_S4: np.ndarray = field(default_factory=lambda: np.empty((0, 4)), repr=False, compare=False)

    def predict(self, x: ArrayLike, new_run: bool = False) -> Prediction:
        """The curve at x.

        Parameters
        ----------
        x : compute, above 0, of any shape
        new_run : the interval is that of a new run, noise included, and not of the curve alone

        Returns
        -------
        y and its 95% interval; NaN where there is no power law
        """
        if self.reason:
            return Prediction(*np.full((3, *np.shape(x)), math.nan))
        *curve, run = self.curves_S4.T.reshape(4, -1, *[1] * np.ndim(x))
        log_y_S = _log_curve(curve, np.log(x)) + (run if new_run else 0)
        return Prediction(np.exp(log_y_S[0]), *np.exp(np.quantile(log_y_S[1:], TAILS, axis=0)))

    def sentence(self, y: str = "loss", x: str = "C") -> str:
        """A line of a report, with the names that y and x have there."""
        if self.reason:
            return f"{y}: no power law, {self.reason}"
        start, intervals = "", "exponent {:.2g} to {:.2g}".format(*self.exponent_interval)
        if self.irreducible:
            start = f"{self.irreducible:.3g} + "
            intervals += ", irreducible {:.3g} to {:.3g}".format(*self.irreducible_interval)
        return f"{y} = {start}{self.coefficient:.3g} {x}^-{self.exponent:.2g} ({intervals}, {LEVEL:.0%})"

    __str__ = sentence


def fit_power_law(x: ArrayLike, y: ArrayLike, resamples: int = 400, seed: int = 0) -> PowerLaw:
    """Least squares of log y, with an irreducible term where the points support one.

    The term is kept where the corrected Akaike criterion of the log residuals prefers it, on at least 6 points of 4
    budgets. A resample draws the residuals of the fit with the term, where the points allow one, and makes the choice
    anew, so that the intervals know that the form is in doubt. Residuals are stretched for the degrees of freedom that
    the fit took, and to Student's distance for a few points.

    Where budgets scatter about the curve by more than their repeats explain (F test, 5%), the repeats do not tell the
    noise: each budget then counts as one point, the geometric mean of its repeats.

    On made curves the intervals held the truth in about 95 of 100 draws of a pure power law, in 85 to 90 of one with
    a clear irreducible term, and in about 75 where a fifth of the draws missed the term.

    Parameters
    ----------
    x : (N,) compute of each run, in any unit; the same x twice is a repeat
    y : (N,) its loss or error, which more compute should lower
    resamples, seed : of the bootstrap

    Returns
    -------
    the power law, or why there is none: too few budgets, too narrow a span, no fall, or a fall within the noise

    Raises
    ------
    ValueError : x or y is not finite and above 0, or they differ in shape
    """
    x_N, y_N = _checked(x, y)
    points, budgets = x_N.size, np.unique(x_N).size
    if budgets < MIN_BUDGETS:
        return PowerLaw(points, budgets, f"{budgets} distinct amounts of compute are fewer than {MIN_BUDGETS}")
    if (span := x_N[-1] / x_N[0]) < MIN_SPAN:
        return PowerLaw(points, budgets, f"compute spans a factor of only {span:.3g}, less than {MIN_SPAN:g}")
    # About its mean, the exponent and the coefficient of the curve are nearly independent.
    centre = np.log(x_N).mean()
    u_N, v_N = _one_point_a_budget_if_they_scatter(np.log(x_N) - centre, np.log(y_N))
    curve = _fit(u_N, v_N)
    if curve[1] * math.log(span) < ROUNDING:
        return PowerLaw(points, budgets, f"it does not fall as compute grows (exponent {curve[1]:.2g})")
    freedom = v_N.size - _parameters(curve)
    noise = math.sqrt(_squares(curve, u_N, v_N) / freedom)

    rng = np.random.default_rng(seed)
    drawn_SN = _resample(u_N, v_N, _bent(u_N, v_N), resamples, rng)
    curves_S3 = np.array([curve] + [_fit(u_N, v_N) for v_N in drawn_SN])
    low, high = np.quantile(curves_S3[1:, 1], TAILS).tolist()
    if low <= 0:
        reason = f"its fall is within its noise (exponent {low:.2g} to {high:.2g}, {LEVEL:.0%})"
        return PowerLaw(points, budgets, reason)
    curves_S3[:, 0] += curves_S3[:, 1] * centre
    runs_S = np.append(0, rng.standard_normal(resamples)) * noise * _student(freedom)
    # A step's exponent is so large that its coefficient overflows; the logarithm predicts all the same.
    with np.errstate(over="ignore"):
        coefficient = float(np.exp(curves_S3[0, 0]))
    irreducible, *irreducible_S = np.exp(curves_S3[:, 2]).tolist()
    least, most = np.quantile(irreducible_S, TAILS).tolist()
    return PowerLaw(
        points,
        budgets,
        coefficient=coefficient,
        exponent=float(curve[1]),
        irreducible=irreducible,
        exponent_interval=(low, high),
        irreducible_interval=(least, most),
        noise=noise,
        curves_S4=np.column_stack([curves_S3, runs_S]),
    )


@dataclass(frozen=True)
class Extrapolation:
    """A budget that was held out, as the smaller ones foretell it.

    Parameters
    ----------
    law : of the smaller budgets; where it has a reason, predicted, interval and error are NaN
    x, runs : the held-out budget and the number of its points
    measured : their mean
    predicted, interval : the curve there, and the 95% interval of one run there
    error : predicted / measured - 1
    """

    law: PowerLaw
    x: float
    runs: int
    measured: float
    predicted: float
    interval: Interval
    error: float

    def sentence(self, y: str = "loss", x: str = "C") -> str:
        """A line of a report, with the names that y and x have there."""
        if self.law.reason:
            return self.law.sentence(y, x)
        low, high = self.interval
        return (
            f"{y} at {x} = {self.x:.3g}: {self.predicted:.3g} predicted ({low:.3g} to {high:.3g}, {LEVEL:.0%}), "
            f"{self.measured:.3g} measured, error {self.error:+.1%}"
        )

    __str__ = sentence


def extrapolate(x: ArrayLike, y: ArrayLike, resamples: int = 400, seed: int = 0) -> Extrapolation:
    """Fits all budgets but the largest and predicts that one.

    Parameters and errors are those of fit_power_law; no point at all is a ValueError too.
    """
    x_N, y_N = _checked(x, y)
    if not x_N.size:
        raise ValueError("no points: nothing to hold out")
    held = x_N == x_N[-1]
    law = fit_power_law(x_N[~held], y_N[~held], resamples, seed)
    value, low, high = map(float, law.predict(x_N[-1], new_run=True))
    measured = float(y_N[held].mean())
    return Extrapolation(law, float(x_N[-1]), int(held.sum()), measured, value, (low, high), value / measured - 1)


def _checked(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """In order of x, so that the order of the points does not matter to the resamples."""
    x_N, y_N = np.asarray(x, float), np.asarray(y, float)
    if x_N.ndim != 1 or x_N.shape != y_N.shape:
        raise ValueError(f"x of shape {x_N.shape}, y of shape {y_N.shape}: one x and one y a point")
    for name, values in (("x", x_N), ("y", y_N)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            raise ValueError(f"{name}[{bad[0]}]={values[bad[0]]}: finite and above 0")
    order = np.argsort(x_N, kind="stable")
    return x_N[order], y_N[order]


def _log_curve(curve: Any, u: Any) -> np.ndarray:
    """log y at u = log x, of (log a, b, log e)."""
    coefficient, exponent, irreducible = curve
    return np.logaddexp(irreducible, coefficient - exponent * u)


def _parameters(curve: np.ndarray) -> int:
    return 2 + int(np.isfinite(curve[2]))


def _squares(curve: np.ndarray, u_N: np.ndarray, v_N: np.ndarray) -> float:
    return float(np.square(_log_curve(curve, u_N) - v_N).sum())


def _student(freedom: int) -> float:
    """How much further than a normal interval Student's reaches."""
    return float(stdtrit(freedom, TAILS[1]) / ndtri(TAILS[1]))


def _straight(u_N: np.ndarray, v_N: np.ndarray) -> np.ndarray:
    slope, height = np.polyfit(u_N, v_N, 1)
    return np.array([height, -slope, -math.inf])


def _bent(u_N: np.ndarray, v_N: np.ndarray) -> np.ndarray:
    """The better of several starts; the straight curve where the points are too few for another."""
    if np.unique(u_N).size < BENT_BUDGETS or v_N.size < BENT_POINTS:
        return _straight(u_N, v_N)

    def residuals(curve: np.ndarray) -> np.ndarray:
        return _log_curve(curve, u_N) - v_N

    def jacobian(curve: np.ndarray) -> np.ndarray:
        reducible_N = np.exp(curve[0] - curve[1] * u_N - _log_curve(curve, u_N))
        return np.stack([reducible_N, -u_N * reducible_N, 1 - reducible_N], axis=1)

    found = []
    for share in STARTS:
        floor = share * math.exp(v_N.min())
        start = [*_straight(u_N, np.log(np.exp(v_N) - floor))[:2], math.log(floor)]
        found.append(least_squares(residuals, start, jacobian, method="lm", xtol=1e-10, ftol=1e-10, gtol=1e-12))
    return min(found, key=lambda one: one.cost).x


def _fit(u_N: np.ndarray, v_N: np.ndarray) -> np.ndarray:
    """(log a, b, log e) of the form that the corrected Akaike criterion prefers; log e is -inf without the term."""

    def criterion(curve: np.ndarray) -> float:
        # The noise is a parameter too.
        n, k = v_N.size, _parameters(curve) + 1
        spread = max(_squares(curve, u_N, v_N) / n, ROUNDING**2)
        return n * math.log(spread) + 2 * k + 2 * k * (k + 1) / (n - k - 1)

    bent = _bent(u_N, v_N)
    return bent if _parameters(bent) == 2 else min(_straight(u_N, v_N), bent, key=criterion)


def _one_point_a_budget_if_they_scatter(u_N: np.ndarray, v_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The points, or the mean of each budget where even the bent curve lacks fit."""
    u_G, group_N, count_G = np.unique(u_N, return_inverse=True, return_counts=True)
    v_G = np.bincount(group_N, v_N) / count_G
    curve = _bent(u_N, v_N)
    between, within = u_G.size - _parameters(curve), v_N.size - u_G.size
    if not within:
        return u_N, v_N
    lack = np.sum(count_G * np.square(_log_curve(curve, u_G) - v_G)) / between
    repeats = np.square(v_N - v_G[group_N]).sum() / within
    return (u_G, v_G) if lack > max(repeats, ROUNDING**2) * fdtri(between, within, 0.95) else (u_N, v_N)


def _resample(
    u_N: np.ndarray, v_N: np.ndarray, curve: np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """(S, N) of log y."""
    fitted_N, freedom = _log_curve(curve, u_N), v_N.size - _parameters(curve)
    residuals_N = (v_N - fitted_N) * math.sqrt(v_N.size / freedom) * _student(freedom)
    return fitted_N + residuals_N[rng.integers(v_N.size, size=(resamples, v_N.size))]
