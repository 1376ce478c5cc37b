"""Ways to compute the same thing with less memory or time: the results must be the same."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from tiny import tiny_model

from orchestrator.model.clip import CLIP
from orchestrator.model.compiler import missing_for_compile
from orchestrator.objectives import info_nce

LENGTHS = ([5, 9, 3, 9], [4, 12, 3, 9], [7, 7, 2, 6])


def results(model: CLIP) -> dict[str, torch.Tensor]:
    """Losses, gradients and buffers of three training passes, each with its own longest caption."""
    model.train()
    found = {}
    for number, lengths in enumerate(LENGTHS):
        generator = torch.Generator().manual_seed(number)
        image = torch.randn(4, 3, 32, 32, generator=generator)
        tokens = torch.randint(1, 598, (4, 16), generator=generator)
        for row, length in enumerate(lengths):
            tokens[row, length - 1], tokens[row, length:] = 599, 0
        image_BD, text_BD, scale = model(image, tokens)
        loss = info_nce(image_BD, text_BD, scale)
        loss.backward()
        found[f"loss {number}"] = loss.detach()
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return found | {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_checkpointed_activations_change_no_bit(kind):
    """Batch-norm statistics among them: a block that runs twice must count its batch once."""
    plain = results(tiny_model(600, kind))
    model = tiny_model(600, kind)
    model.checkpoint_activations()
    saved = results(model)
    assert saved.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(saved[name], value), name


def test_checkpointed_activations_are_not_kept():
    def kept(model: CLIP) -> int:
        total = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model.encode_image(torch.randn(4, 3, 32, 32))
        return total

    for kind in ("resnet", "vit"):
        model = tiny_model(600, kind)
        before = kept(model)
        model.checkpoint_activations()
        assert kept(model) < 0.6 * before


@pytest.mark.skipif(bool(missing_for_compile()), reason=f"torch.compile needs {missing_for_compile()}")
@pytest.mark.parametrize(("kind", "recompute"), [("resnet", True), ("vit", False)])  # each compiles for a minute
def test_compiled_blocks_give_the_same(kind, recompute):
    plain = results(tiny_model(600, kind))
    model = tiny_model(600, kind)
    names = list(model.state_dict())
    if recompute:
        model.checkpoint_activations()
    model.compile_blocks()
    assert list(model.state_dict()) == names
    for name, value in results(model).items():
        # Batch norm over four positions magnifies the last bits; the floor is for gradients that should be 0.
        assert (value - plain[name]).abs().max() <= 1e-4 * plain[name].abs().max() + 1e-6, name


def test_what_does_not_compile_does_not_load_the_compiler():
    """Loading it takes a second, in every trainer, evaluation and serving process."""
    code = "import sys, orchestrator.inference; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
