"""Several smooth convex functions minimised side by side by L-BFGS.

Shapes: S functions, A of them still active, P parameters of each.

Source: Nocedal & Wright 2006, algorithms 3.1 (backtracking) and 7.4 (two loops).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MEMORY = 6
SUFFICIENT, BACKTRACKS = 1e-4, 25


class Minimum(NamedTuple):
    """Where each function ended: parameters (S, P), values (S,), iterations (S,), and whether it converged (S,)."""

    at_SP: Tensor
    value_S: Tensor
    iterations_S: Tensor
    converged_S: Tensor


def minimize(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    start_SP: Tensor,
    inverse_SP: Tensor,
    iterations: int,
    tolerance: float,
) -> Minimum:
    """Minimise; a function that has converged costs no more.

    Parameters
    ----------
    function : parameters (A, P) and places (A,) of the active functions -> values (A,) in float64, gradients (A, P)
    start_SP : to begin at
    inverse_SP : a diagonal near the inverse Hessian, above 0
    iterations : at most
    tolerance : of value - minimum, as a share of the value, by the estimate g^T H^-1 g / 2, twice in a row
    """
    at, value, iterations_S = start_SP.clone(), None, torch.zeros(len(start_SP), dtype=torch.long)
    converged_S = torch.zeros(len(start_SP), dtype=torch.bool)
    place = torch.arange(len(at), device=at.device)
    value, gradient = function(at, place)
    out_at, out_value = at.clone(), value.clone()
    history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
    was_near = torch.zeros(len(at), dtype=torch.bool, device=at.device)
    inverse = inverse_SP
    for iteration in range(iterations + 1):
        direction = _direction(gradient, history, inverse)
        slope = _dot(gradient, direction)
        near = -slope / 2 <= tolerance * value
        stop = near & was_near
        was_near = near
        stuck = torch.zeros_like(stop)
        if iteration < iterations and not bool(stop.all()):
            moved, new_value, new_gradient, accepted = _search(function, at, value, slope, direction, place)
            # No step lowers it: what is left is below the arithmetic's precision.
            stuck = ~accepted
            change, bend = moved - at, new_gradient - gradient
            curvature = _dot(change, bend)
            inverse_curvature = torch.where(curvature > 0, 1 / curvature, 0.0)
            keep = ~stop & accepted
            at = torch.where(keep[:, None], moved, at)
            value, gradient = torch.where(keep, new_value, value), torch.where(keep[:, None], new_gradient, gradient)
            history.append((change, bend, inverse_curvature))
            iterations_S[place[keep].cpu()] = iteration + 1
        else:
            stop = torch.ones_like(stop) if iteration == iterations else stop
        end = stop | stuck
        if bool(end.any()):
            ended = place[end]
            out_at[ended], out_value[ended] = at[end], value[end]
            converged_S[ended.cpu()] = (near | stuck)[end].cpu()
            on = ~end
            at, value, gradient, place, was_near, inverse = (
                part[on] for part in (at, value, gradient, place, was_near, inverse)
            )
            history = deque((tuple(part[on] for part in one) for one in history), maxlen=MEMORY)  # type: ignore[misc]
        if not len(place):
            break
    return Minimum(out_at, out_value, iterations_S, converged_S)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1, dtype=torch.float64)


def _direction(gradient: Tensor, history: deque[tuple[Tensor, Tensor, Tensor]], inverse: Tensor) -> Tensor:
    q, shares = gradient, []
    for change, bend, inverse_curvature in reversed(history):
        share = (inverse_curvature * _dot(change, q)).to(q.dtype)[:, None]
        shares.append(share)
        q = q - share * bend
    q = q * inverse
    if history:
        change, bend, inverse_curvature = history[-1]
        scale = 1 / (inverse_curvature * _dot(bend, bend * inverse))
        q = q * torch.where(inverse_curvature > 0, scale, 1.0).to(q.dtype)[:, None]
    for (change, bend, inverse_curvature), share in zip(history, reversed(shares), strict=True):
        q = q + (share - (inverse_curvature * _dot(bend, q)).to(q.dtype)[:, None]) * change
    return -q


def _search(
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    at: Tensor,
    value: Tensor,
    slope: Tensor,
    direction: Tensor,
    place: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first step of 1, then shorter ones, that lowers each function enough."""
    step = torch.ones_like(value)
    moved = at + direction
    new_value, new_gradient = function(moved, place)
    for _ in range(BACKTRACKS):
        failed = ~(new_value <= value + SUFFICIENT * step * slope)
        if not bool(failed.any()):
            break
        # The lowest point of the parabola through what is known, within bounds.
        least = -slope * step**2 / (2 * (new_value - value - step * slope))
        shorter = torch.minimum(torch.maximum(least.nan_to_num(0), 0.1 * step), 0.5 * step)[failed]
        step[failed] = shorter
        moved[failed] = at[failed] + shorter.to(at.dtype)[:, None] * direction[failed]
        new_value[failed], new_gradient[failed] = function(moved[failed], place[failed])
    accepted = new_value <= value + SUFFICIENT * step * slope
    return moved, new_value, new_gradient, accepted
