"""One optimiser step: a batch in, weights changed, what happened out.

Shapes: B pairs of this worker, R image side, T tokens, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from orchestrator.config import Config
from orchestrator.data.batch import IMAGE, TOKENS, Columns, count, take
from orchestrator.data.images import ImageTransform
from orchestrator.model.clip import CLIP
from orchestrator.model.pixels import normalize_pixels
from orchestrator.objectives import cached_backward, info_nce, sigmoid_loss
from orchestrator.train.parallel import Shared
from orchestrator.train.sharded import whole


@dataclass
class Outcome:
    """What a step did; the same on every worker.

    Parameters
    ----------
    loss : over the global batch
    grad_norm : L2 norm of all gradients, before clipping
    """

    loss: float
    grad_norm: float

    @property
    def finite(self) -> bool:
        """Whether both are; if not, the weights were left alone."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Step:
    """Forward, objective, backward, clipping, update.

    Parameters
    ----------
    model : the model itself
    shared : how it is called, and how its gradients are shared
    optimizer : of its parameters
    config : of the run
    transform : how pixels are normalised
    device : that trains
    workers : process group of all workers; None: this process is alone
    """

    def __init__(
        self,
        model: CLIP,
        shared: Shared,
        optimizer: torch.optim.Optimizer,
        config: Config,
        transform: ImageTransform,
        device: torch.device,
        workers: dist.ProcessGroup | None,
    ):
        self._model, self._shared, self._optimizer = model, shared, optimizer
        self._config, self._transform, self._device, self._workers = config, transform, device, workers
        self._autocast = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=uses_bf16(config.train.precision, device)
        )

    def __call__(self, batch: Columns, learning_rate: float, chunks: int = 1, halved: bool = False) -> Outcome:
        """Train on this worker's part of the global batch.

        Parameters
        ----------
        batch : not empty
        learning_rate : of this step
        chunks : parts in which it passes through the towers; the same on all workers
        halved : whether pictures are brought to half their side first; the same on all workers
        """
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad(set_to_none=True)
        parts = list(_parts(batch, chunks))
        embed = partial(self._embed, halved=halved)
        loss = cached_backward(embed, parts, self._objective, self._shared.accumulating, self._model)
        self._shared.finish()
        grad_norm = self._grad_norm()
        outcome = Outcome(float(loss), float(grad_norm))
        limit = self._config.optim.max_grad_norm
        if outcome.finite:
            if limit and outcome.grad_norm > limit:
                torch.nn.utils.clip_grads_with_norm_(self._model.parameters(), limit, grad_norm)
            self._optimizer.step()
            self._model.clamp_logit_scale()
        return outcome

    def _embed(self, chunk: Columns, halved: bool) -> Any:
        # The batch is held until the loss is read: memory that is still being copied from is not given away.
        image_B3RR, tokens_BT = (
            torch.from_numpy(chunk[name]).to(self._device, non_blocking=True) for name in (IMAGE, TOKENS)
        )
        pixels_B3RR = normalize_pixels(image_B3RR, self._transform.mean, self._transform.std)
        if halved:
            pixels_B3RR = F.avg_pool2d(pixels_B3RR, 2)
        with self._autocast:
            return self._shared.towers(pixels_B3RR, tokens_BT)

    def _objective(self, image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        image_BD, text_BD = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (image_BD, text_BD))
        if bias is None:
            return info_nce(image_BD, text_BD, scale, self._workers)
        return sigmoid_loss(image_BD, text_BD, scale, bias, self._workers)

    def _grad_norm(self) -> Tensor:
        norm = torch.nn.utils.get_total_norm([p.grad for p in self._model.parameters() if p.grad is not None])
        return whole(norm)

    def param_norm(self) -> float:
        """L2 norm of all weights."""
        norm = torch.nn.utils.get_total_norm([p.detach() for p in self._model.parameters()])
        return float(whole(norm))


def page_locked(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that a GPU copies from by itself, while the CPU goes on; where there is none, an ordinary one."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(shape, dtype=kind, pin_memory=torch.cuda.is_available()).numpy()


def _parts(batch: Columns, number: int) -> Iterator[Columns]:
    size = count([batch])
    for part in range(number):
        yield take(batch, size * part // number, size * (part + 1) // number)


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether `TrainConfig.precision` means bf16 autocast on this device."""
    if precision != "auto":
        return precision != "fp32"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    # Without AMX, Intel's bf16 instructions have half the rate of its fp32 ones; AMD's have twice.
    fast_avx512 = capabilities.get("avx512_bf16") and not str(capabilities.get("cpu_name")).startswith("Intel")
    return bool(capabilities.get("amx_bf16") or fast_avx512)
