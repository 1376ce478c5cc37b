"""AdamW with less memory: bf16 weights and bf16 moments, rounded stochastically.

Rounding to nearest would lose every update smaller than half of a weight's last bit, which is most of them: bf16 has 8
bits. Rounded up or down with the right odds, a weight is right on average. torchao's optimisers do the same, but draw
from the process's own random numbers (replicas then drift apart, and a continued run differs from an unbroken one) and
need a compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW, computed in fp32, its moments kept in bf16; fp32 weights are exact, bf16 ones rounded stochastically.

    Every replica that has seen the same gradients rounds alike, and so does a run that was continued: the random
    numbers depend on `seed` and the step alone.

    Parameters
    ----------
    params : parameters or groups of them, in fp32 or bf16
    lr, betas, eps, weight_decay : as AdamW's
    seed : of the rounding

    Source: Loshchilov & Hutter 2017; Dhariwal et al. 2020 (half-precision statistics), as Radford et al. 2021,
    section 2.5, used them.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            group["step"] += 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                device = parameter.device
                if device not in generators:
                    generators[device] = torch.Generator(device).manual_seed(
                        (self._seed * 1_000_003 + group["step"]) % 2**63
                    )
                self._update(parameter, group, generators[device])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore. torch has given the moments their parameter's dtype, which loses nothing; here they turn back."""
        super().load_state_dict(state_dict)
        for state in self.state.values():
            for name, moment in state.items():
                state[name] = moment.to(torch.bfloat16)

    def _update(self, parameter: Tensor, group: dict[str, Any], generator: torch.Generator) -> None:
        beta1, beta2 = group["betas"]
        state, gradient = self.state[parameter], parameter.grad.float()  # type: ignore[union-attr]
        if not state:
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        mean = state["exp_avg"].float().lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        deviation = (square / (1 - beta2 ** group["step"])).sqrt_().add_(group["eps"])
        weight = parameter.float() * (1 - group["lr"] * group["weight_decay"])
        weight.addcdiv_(mean, deviation, value=-group["lr"] / (1 - beta1 ** group["step"]))
        # With beta1 = 0.9 the mean moves by a tenth of itself at a step, far more than its last bit: nearest will do.
        state["exp_avg"].copy_(mean)
        for kept, exact in ((parameter, weight), (state["exp_avg_sq"], square)):
            kept.copy_(round_stochastically(exact, generator) if kept.dtype == torch.bfloat16 else exact)


def round_stochastically(exact: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 -> bf16, up or down with odds that make the result right on average.

    bf16 is the upper half of an fp32's bits. Adding a random lower half carries into the upper one with a probability
    of the lower half's share, for either sign.
    """
    count = exact.numel()
    # A drawn number serves two values: on a CPU, drawing is most of the work.
    drawn = torch.randint(
        -(1 << 31), 1 << 31, ((count + 1) // 2,), dtype=torch.int32, device=exact.device, generator=generator
    )
    noise = (drawn.view(torch.int16)[:count].to(torch.int32) & 0xFFFF).view(exact.shape)
    return ((exact.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)
