"""Tensors that may be sharded over the workers (FSDP2's).

Their module loads a computer algebra system, which a run without them need not wait for whenever it starts.
"""

from __future__ import annotations

import sys

from torch import Tensor


def is_sharded(tensor: object) -> bool:
    """Whether this worker holds only its part of a tensor."""
    module = sys.modules.get("torch.distributed.tensor")  # loaded by whoever has made such a tensor
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every worker, which all have to ask for it; one that is not sharded as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sharded_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This worker's part of a whole tensor, where `like` is sharded; else the tensor as it is."""
    if like is None or not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]
