"""The losses written from their definitions, and what the tests of both need."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

FEATURES, EMBED = 7, 5


def naive_info_nce(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    """Pair by pair."""
    total = 0.0
    for i in range(len(image)):
        image_logits = torch.stack([scale * (image[i] * text[j]).sum() for j in range(len(text))])
        text_logits = torch.stack([scale * (text[i] * image[j]).sum() for j in range(len(image))])
        total = total - (image_logits[i] - image_logits.logsumexp(0)) - (text_logits[i] - text_logits.logsumexp(0))
    return total / (2 * len(image))


def naive_sigmoid(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Pair by pair."""
    total = 0.0
    for i in range(len(image)):
        for j in range(len(text)):
            label = 1 if i == j else -1
            total = total - F.logsigmoid(label * (scale * (image[i] * text[j]).sum() + bias))
    return total / len(image)


class TwoLinears(nn.Module):
    """The smallest dual encoder: enough to have parameters whose gradients can be compared."""

    def __init__(self, log_scale: float = 2.0, bias: bool = False, dropout: float = 0.0, batch_norm: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(FEATURES, EMBED), nn.Dropout(dropout))
        if batch_norm:
            self.image.append(nn.BatchNorm1d(EMBED))
        self.text = nn.Linear(FEATURES, EMBED)
        self.log_scale = nn.Parameter(torch.tensor(log_scale))
        self.bias = nn.Parameter(torch.tensor(-3.0)) if bias else None

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, ...]:
        embeddings = F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)
        return *embeddings, self.log_scale.exp(), *(() if self.bias is None else (self.bias,))


def features(pairs: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Of pictures and texts, each resembling its other."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(pairs, FEATURES, generator=generator, dtype=torch.float64)
    text = image + torch.randn(pairs, FEATURES, generator=generator, dtype=torch.float64)
    return image.to(dtype), text.to(dtype)


def embeddings(pairs: int, size: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Of unit length; a picture is nearer to many a wrong text than to its own, so that losses are not near 0."""
    generator = torch.Generator().manual_seed(2)
    image = F.normalize(torch.randn(pairs, size, generator=generator, dtype=torch.float64), dim=-1)
    noise = torch.randn(pairs, size, generator=generator, dtype=torch.float64)
    text = F.normalize(image + noise, dim=-1)
    return image.to(dtype), text.to(dtype)


def value_and_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The loss, then its gradient with respect to each input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_equal(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each within `tolerance` of its norm, or both as good as 0, and of one shape."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert torch.isfinite(one).all()
        distance = torch.linalg.vector_norm(one.double() - other.double())
        assert distance <= tolerance * torch.linalg.vector_norm(other.double()) + 1e-14, (one, other)


class LargestTensor(TorchDispatchMode):
    """How many numbers the largest tensor has that any operation makes, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.numel())
        return out
