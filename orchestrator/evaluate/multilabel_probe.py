"""Logistic regression of each class for itself, on frozen features: sets whose pictures hold several classes at once.

    mean of log(1 + exp(-y (w . features + b)))  +  |w|^2 / (2 C N),   y = 1 where the class is there, -1 elsewhere

is what scikit-learn's OneVsRestClassifier(LogisticRegression(C)) minimises for each class. The intercept is not
penalised.

Shapes: N samples, D features, R their principal directions, K classes, T of them that can be told, S strengths,
A functions (a strength and a class) that are still being minimised, P = R + 1 parameters.

Source: Radford et al. 2021, section A.3; VOC2007 is its set of this kind.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from orchestrator.evaluate.lbfgs import minimize
from orchestrator.evaluate.linear_probe import CHUNK, ITERATIONS, TOLERANCE, Directions, LinearProbe


class MultiLabelProbes:
    """A training set of several labels a sample, made ready to be fitted at several strengths.

    A class that all training samples have, or none, cannot be told by features: it gets no weights, and the logarithm
    of its odds, half a sample of either kind added, as its score.

    Parameters
    ----------
    features_ND : float
    label_NK : 0 and 1
    dtype : as for `linear_probe.Probes`
    device : torch device

    Raises
    ------
    ValueError : shapes that do not match, other labels, a feature that is not finite, no class that can be told
    """

    def __init__(
        self,
        features_ND: Tensor | np.ndarray,
        label_NK: Tensor | np.ndarray,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        label_NK = torch.as_tensor(label_NK).to(device)
        if label_NK.ndim != 2 or not bool(((label_NK == 0) | (label_NK == 1)).all()):
            raise ValueError(f"labels {tuple(label_NK.shape)}: a 0 or a 1 for each sample and class")
        self._directions = Directions(features_ND, label_NK, dtype, device)
        samples = len(label_NK)
        count_K = label_NK.sum(dim=0).double()
        self._odds_K = torch.log((count_K + 0.5) / (samples - count_K + 0.5))
        self._told_T = ((count_K > 0) & (count_K < samples)).nonzero()[:, 0]
        if not len(self._told_T):
            raise ValueError(f"each of {label_NK.shape[1]} classes is in all or in none of {samples} training samples")
        self._sign_NT = (2 * label_NK[:, self._told_T] - 1).to(dtype)

    def fit(
        self,
        strengths: Sequence[float],
        start: LinearProbe | None = None,
        iterations: int = ITERATIONS,
        tolerance: float = TOLERANCE,
    ) -> list[LinearProbe]:
        """Fit side by side.

        Parameters
        ----------
        strengths : C of each, above 0, the same for all classes; larger is weaker regularisation
        start : a probe of the same set to begin from; None: no weights
        iterations : at most
        tolerance : of each class's loss, relative

        Returns
        -------
        probes of all K classes; `loss` is the mean over the classes that can be told, `iterations` the most of any
        """
        if not strengths or min(strengths) <= 0:
            raise ValueError(f"strengths {list(strengths)}: at least one, all above 0")
        x_NR, told = self._directions.x_NR, len(self._told_T)
        samples, rank = x_NR.shape
        strength_S = torch.tensor(strengths, dtype=torch.float64, device=x_NR.device)
        penalty_A = (1 / (strength_S * samples)).repeat_interleave(told)
        if start is None:
            begin_TP = torch.zeros(told, rank + 1, dtype=torch.float64, device=x_NR.device)
            begin_TP[:, rank] = self._odds_K[self._told_T]
        else:
            begin_TP = self._directions.turn(start.weight_KD[self._told_T], start.bias_K[self._told_T])
        # Without weights a class's curvature is p (1 - p) times the variance of the features, p its share.
        share_T = torch.sigmoid(self._odds_K[self._told_T])
        curvature_A = (share_T * (1 - share_T)).repeat(len(strengths))
        hessian_AR = curvature_A[:, None] * self._directions.variance_R + penalty_A[:, None]
        inverse_AP = 1 / torch.cat([hessian_AR, curvature_A[:, None]], dim=1)
        found = minimize(
            lambda at_AP, place_A: self._objective(at_AP, penalty_A[place_A], place_A % told),
            begin_TP.to(x_NR.dtype).repeat(len(strengths), 1), inverse_AP.to(x_NR.dtype), iterations, tolerance,
        )  # fmt: skip
        parts = (part.unflatten(0, (len(strengths), told)) for part in found)
        return [self._probe(strength, *one) for strength, *one in zip(strengths, *parts, strict=True)]

    def _objective(self, at_AP: Tensor, penalty_A: Tensor, class_A: Tensor) -> tuple[Tensor, Tensor]:
        x_NR = self._directions.x_NR
        samples, rank = x_NR.shape
        weight_AR = at_AP[:, :rank]
        value_A = penalty_A / 2 * weight_AR.square().sum(dim=1, dtype=torch.float64)
        gradient_AP = torch.zeros_like(at_AP)
        step = max(1, CHUNK // len(at_AP))
        for start in range(0, samples, step):
            x, sign_NA = x_NR[start : start + step], self._sign_NT[start : start + step, class_A]
            margin_NA = torch.addmm(at_AP[:, rank], x, weight_AR.T) * sign_NA
            value_A += F.softplus(-margin_NA).sum(dim=0, dtype=torch.float64) / samples
            error_NA = -sign_NA * torch.sigmoid(-margin_NA) / samples
            gradient_AP[:, :rank] += error_NA.T @ x
            gradient_AP[:, rank] += error_NA.sum(dim=0)
        gradient_AP[:, :rank] += penalty_A.to(at_AP.dtype)[:, None] * weight_AR
        return value_A, gradient_AP

    def _probe(
        self, strength: float, at_TP: Tensor, value_T: Tensor, iterations_T: Tensor, converged_T: Tensor
    ) -> LinearProbe:
        weight_TD, bias_T = self._directions.turn_back(at_TP)
        bias_K = self._odds_K.to(bias_T.dtype, copy=True)
        bias_K[self._told_T] = bias_T
        weight_KD = weight_TD.new_zeros(len(bias_K), weight_TD.shape[1])
        weight_KD[self._told_T] = weight_TD
        return LinearProbe(
            weight_KD, bias_K, torch.arange(len(bias_K), device=bias_K.device), strength,
            float(value_T.mean()), int(iterations_T.max()), bool(converged_T.all()),
        )  # fmt: skip
