"""A model's and an optimiser's tensors, as checkpoints hold them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.train.sharded import sharded_like, whole


def snapshot_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the model's and the optimiser's tensors, whole and on the CPU.

    Where they are sharded over workers, all workers must call this together.
    """
    weights = {name: _copy(tensor) for name, tensor in model.state_dict().items()}
    moments = {
        f"{key}.{name}": _copy(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    for number, group in enumerate(optimizer.param_groups):
        if "step" in group:
            moments[f"group_step.{number}"] = torch.tensor(group["step"])
    return weights, moments


def restore_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, weights: dict[str, Tensor], moments: dict[str, Tensor]
) -> None:
    """Put back what `snapshot_tensors` copied, sharded as the model is now.

    Raises
    ------
    RuntimeError : the checkpoint belongs to another architecture; torch names the tensors
    """
    here = model.state_dict()
    model.load_state_dict({name: sharded_like(tensor, here.get(name)) for name, tensor in weights.items()})
    parameters = dict(model.named_parameters())
    for full_name, tensor in moments.items():
        key, _, name = full_name.partition(".")
        if key == "group_step":
            optimizer.param_groups[int(name)]["step"] = int(tensor)
        else:
            parameter = parameters[name]
            optimizer.state[parameter][key] = (
                # A moment lies in memory as its parameter does (channels last, say): fused kernels take it for granted.
                torch.empty_like(parameter, dtype=tensor.dtype).copy_(sharded_like(tensor, parameter))
                if tensor.shape == parameter.shape and tensor.ndim
                else tensor.to(parameter.device, copy=True)
            )


def _copy(tensor: Tensor) -> Tensor:
    return torch.as_tensor(whole(tensor)).detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
