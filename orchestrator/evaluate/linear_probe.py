"""Multinomial logistic regression on frozen features.

    mean of -log p(label | features)  +  |W|^2 / (2 C N)

is what scikit-learn's LogisticRegression(C) minimises; with two classes, where it has one vector of weights for both,
the penalty counts twice. The intercept is not penalised.

Shapes: N samples, D features, R their principal directions, K classes, S strengths.

Source: Radford et al. 2021, section A.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from orchestrator.evaluate.lbfgs import minimize

ITERATIONS = 1000
TOLERANCE = 1e-6
# Logits held at once: tens of megabytes.
CHUNK = 1 << 21


@dataclass(frozen=True)
class LinearProbe:
    """A fitted classifier.

    Parameters
    ----------
    weight_KD, bias_K : logits are features @ weight.T + bias, on the device of training
    class_K : the label of each row
    strength : C
    loss : the objective, penalty included
    iterations, converged : of the solver
    """

    weight_KD: Tensor
    bias_K: Tensor
    class_K: Tensor
    strength: float
    loss: float
    iterations: int
    converged: bool

    def scores(self, features_ND: Tensor | np.ndarray) -> np.ndarray:
        """Logits (N, K), float64 or float32 as in training."""
        features_ND = torch.as_tensor(features_ND).to(self.weight_KD)
        return (features_ND @ self.weight_KD.T + self.bias_K).cpu().numpy()

    def accuracy(self, features_ND: Tensor | np.ndarray, label_N: Tensor | np.ndarray) -> float:
        """The share of samples that get their label."""
        best_N = self.class_K.cpu().numpy()[self.scores(features_ND).argmax(axis=1)]
        return float((best_N == np.asarray(label_N)).mean())


class Directions:
    """Features centred and turned to their principal directions.

    This leaves the objective as it is, and there the Hessian is nearly diagonal: a starting point for L-BFGS that takes
    a fraction of the iterations. Where there are fewer samples than features, it is the space of the samples that is
    searched: the optimum lies there.

    Parameters
    ----------
    features_ND : float
    label : of each sample, a row each
    dtype : of the features as they are fitted
    device : torch device

    Raises
    ------
    ValueError : shapes that do not match, a feature that is not finite
    """

    def __init__(self, features_ND: Tensor | np.ndarray, label: Tensor, dtype: torch.dtype, device: str | torch.device):
        features_ND = torch.as_tensor(features_ND).to(device)
        if features_ND.ndim != 2 or label.shape[:1] != features_ND.shape[:1]:
            raise ValueError(
                f"features {tuple(features_ND.shape)}, labels {tuple(label.shape)}: a row and a label each"
            )
        bad = (~features_ND.isfinite().all(dim=1)).nonzero()
        if len(bad):
            raise ValueError(f"features of sample {int(bad[0])} are not finite: the model's weights may not be")
        exact_ND = features_ND.double()
        self._mean_D = exact_ND.mean(dim=0)
        centred_ND = exact_ND - self._mean_D
        if len(centred_ND) > centred_ND.shape[1]:
            variance_R, self._basis_DR = torch.linalg.eigh(centred_ND.T @ centred_ND / len(centred_ND))
        else:
            _, singular_R, basis_RD = torch.linalg.svd(centred_ND, full_matrices=False)
            variance_R, self._basis_DR = singular_R**2 / len(centred_ND), basis_RD.T
        self.variance_R = variance_R.clamp(min=0)
        self.x_NR = (centred_ND @ self._basis_DR).to(dtype)

    def turn(self, weight_KD: Tensor, bias_K: Tensor) -> Tensor:
        """A probe's weights in these directions, its bias in the last column: (K, R + 1), float64."""
        weight_KD = weight_KD.double()
        return torch.cat([weight_KD @ self._basis_DR, (bias_K.double() + weight_KD @ self._mean_D)[:, None]], dim=1)

    def turn_back(self, at_KP: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (K, D) and bias (K,) on the features as they came, of (K, R + 1)."""
        at_KP = at_KP.double()
        weight_KD = at_KP[:, :-1] @ self._basis_DR.T
        dtype = self.x_NR.dtype
        return weight_KD.to(dtype).contiguous(), (at_KP[:, -1] - weight_KD @ self._mean_D).to(dtype)


class Probes:
    """A training set, made ready to be fitted at several strengths.

    Parameters
    ----------
    features_ND : float
    label_N : whole numbers; the labels that occur are the classes
    dtype : float32 gives losses to about 1e-5 of themselves beside float64, in half the time or less
    device : torch device

    Raises
    ------
    ValueError : shapes that do not match, a feature that is not finite, fewer than two classes
    """

    def __init__(
        self,
        features_ND: Tensor | np.ndarray,
        label_N: Tensor | np.ndarray,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        label_N = torch.as_tensor(label_N).to(device)
        if label_N.ndim != 1:
            raise ValueError(f"labels {tuple(label_N.shape)}: one a sample")
        directions = Directions(features_ND, label_N, dtype, device)
        self.class_K, self._label_N1 = label_N.unique(return_inverse=True)
        self._label_N1 = self._label_N1[:, None]
        if len(self.class_K) < 2:
            raise ValueError(f"{len(self.class_K)} class among {len(label_N)} labels: a probe needs at least two")
        self._directions, self._x_NR = directions, directions.x_NR

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
        strengths : C of each, above 0; larger is weaker regularisation
        start : a probe of the same set to begin from; None: zeros
        iterations : at most
        tolerance : of the loss, relative
        """
        if not strengths or min(strengths) <= 0:
            raise ValueError(f"strengths {list(strengths)}: at least one, all above 0")
        x_NR, classes = self._x_NR, len(self.class_K)
        samples, rank = x_NR.shape
        strength_S = torch.tensor(strengths, dtype=torch.float64, device=x_NR.device)
        penalty_S = (2 if classes == 2 else 1) / (strength_S * samples)
        begin = torch.zeros(rank + 1, classes, dtype=torch.float64, device=x_NR.device)
        if start is not None:
            begin = self._directions.turn(start.weight_KD, start.bias_K).T
        # At equal chances of all classes the curvature of a class is (K - 1) / K^2 times the variance of the features.
        curvature = (classes - 1) / classes**2
        hessian_SR = curvature * self._directions.variance_R + penalty_S[:, None]
        hessian_SP = torch.cat([hessian_SR, torch.full_like(hessian_SR[:, :1], curvature)], dim=1)
        inverse_SP = (1 / hessian_SP)[..., None].expand(-1, -1, classes).flatten(1).to(x_NR.dtype)
        start_SP = begin.flatten().to(x_NR.dtype).repeat(len(strengths), 1)
        found = minimize(
            lambda at, place: self._objective(at, penalty_S[place]), start_SP, inverse_SP, iterations, tolerance
        )
        return [self._probe(strength, *one) for strength, *one in zip(strengths, *found, strict=True)]

    def _objective(self, at_SP: Tensor, penalty_S: Tensor) -> tuple[Tensor, Tensor]:
        x_NR, classes = self._x_NR, len(self.class_K)
        samples, rank = x_NR.shape
        at_SPK = at_SP.unflatten(1, (rank + 1, classes))
        weight_SRK, bias_S1K = at_SPK[:, :rank], at_SPK[:, rank:]
        value_S = penalty_S / 2 * weight_SRK.square().sum(dim=(1, 2), dtype=torch.float64)
        gradient_SPK = torch.zeros_like(at_SPK)
        step = max(1, CHUNK // (len(at_SP) * classes))
        for start in range(0, samples, step):
            x, label = x_NR[start : start + step], self._label_N1[start : start + step].expand(len(at_SP), -1, -1)
            logits = torch.matmul(x, weight_SRK).add_(bias_S1K)
            # Relative to the true class, so that small losses keep their digits: log1p of what the others have.
            logits.sub_(logits.gather(2, label))
            highest = logits.amax(dim=2, keepdim=True)
            others = logits.sub_(highest).exp_().scatter_(2, label, 0)
            sum_others = others.sum(dim=2, keepdim=True)
            own = torch.exp(-highest)
            value_S += (highest + torch.log1p(sum_others + torch.expm1(-highest))).sum(
                dim=(1, 2), dtype=torch.float64
            ) / samples
            total = (sum_others + own).mul_(samples)
            error = others.div_(total).scatter_(2, label, -sum_others / total)
            gradient_SPK[:, :rank] += torch.matmul(x.T, error)
            gradient_SPK[:, rank] += error.sum(dim=1)
        gradient_SPK[:, :rank] += penalty_S.to(at_SP.dtype)[:, None, None] * weight_SRK
        return value_S, gradient_SPK.flatten(1)

    def _probe(
        self, strength: float, at_P: Tensor, value: Tensor, iterations: Tensor, converged: Tensor
    ) -> LinearProbe:
        weight_KD, bias_K = self._directions.turn_back(at_P.unflatten(0, (-1, len(self.class_K))).T)
        return LinearProbe(
            weight_KD, bias_K, self.class_K, strength, float(value), int(iterations), bool(converged)
        )  # fmt: skip
