"""How workers share gradients: DistributedDataParallel, or weights sharded over them (FSDP2)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from orchestrator.model.clip import CLIP
from orchestrator.model.resnet import Bottleneck
from orchestrator.model.transformer import ResidualAttentionBlock


@dataclass
class Shared:
    """A model whose gradients are shared.

    Parameters
    ----------
    towers : call this instead of the model
    accumulating : a context in which backward passes add up and nothing is shared yet
    finish : to be called after the last backward pass of a step
    """

    towers: nn.Module
    accumulating: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    finish: Callable[[], None] = lambda: None


def share_gradients(model: CLIP, kind: Literal["ddp", "fsdp"], device: torch.device, world_size: int) -> Shared:
    """Have the workers' gradients averaged in the backward pass.

    Parameters
    ----------
    model : on its device; `fsdp` shards its parameters in place
    kind : ddp (each worker holds the whole model) or fsdp (each holds a part of every block)
    device : of this worker
    world_size : workers

    Source: Zhao et al. 2023, PyTorch FSDP; torchtitan's use of `fully_shard`.
    """
    if world_size == 1:
        return Shared(model)
    if kind == "ddp":
        towers = nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
        return Shared(towers, towers.no_sync)
    from torch.distributed.fsdp import FSDPModule, fully_shard  # takes most of a second, as in sharded.py

    mesh = init_device_mesh(device.type, (world_size,))
    for module in model.modules():
        if isinstance(module, ResidualAttentionBlock | Bottleneck):
            fully_shard(module, mesh=mesh)
    # A scalar cannot be cut: each worker keeps it, and its gradient is averaged by hand.
    scalars = [parameter for parameter in model.parameters() if parameter.ndim == 0]
    fully_shard(model, mesh=mesh, ignored_params=set(scalars))

    @contextlib.contextmanager
    def accumulating() -> Iterator[None]:
        assert isinstance(model, FSDPModule)
        model.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            model.set_requires_gradient_sync(True)

    def finish() -> None:
        for scalar in (scalar for scalar in scalars if scalar.requires_grad):
            dist.all_reduce(scalar.grad, dist.ReduceOp.SUM, group=mesh.get_group())
            scalar.grad.div_(world_size)  # type: ignore[union-attr]

    return Shared(model, accumulating, finish)
