"""InfoNCE in tiles, over one process or several, equals its definition on the concatenated batch."""

import math

import pytest
import torch
import torch.distributed as dist
from objectives.naive import (
    LargestTensor,
    TwoLinears,
    assert_equal,
    embeddings,
    features,
    naive_info_nce,
    value_and_gradients,
)
from processes import run
from torch import nn

from orchestrator.objectives import info_nce

PAIRS = 12
PRECISE = {torch.float64: 1e-10, torch.float32: 1e-5}


def through_ddp(rank, sizes, dtype, tile):
    """The loss and the parameters' gradients of one step, then the loss without gradients."""
    start = sum(sizes[:rank])
    image, text = (part[start : start + sizes[rank]] for part in features(sum(sizes), dtype))
    model = nn.parallel.DistributedDataParallel(TwoLinears(math.log(100)).to(dtype))
    loss = info_nce(*model(image, text), dist.group.WORLD, tile=tile)
    loss.backward()
    with torch.no_grad():
        alone = info_nce(*model.module(image, text), dist.group.WORLD, tile=tile)
    return [loss.detach(), *(p.grad for p in model.parameters())], alone


def several(rank, sizes, cases):
    return [through_ddp(rank, sizes, dtype, tile) for dtype, tile in cases]


@pytest.mark.parametrize("sizes", [[12], [6, 6], [7, 5], [1, 11], [4, 4, 4], [5, 7, 0]], ids=str)
def test_value_and_gradients_equal_one_process_on_the_whole_batch(sizes):
    cases = [(torch.float64, 5), (torch.float64, 2048), (torch.float32, 5)]
    model = TwoLinears(math.log(100)).double()
    loss = naive_info_nce(*model(*features(PAIRS)))
    loss.backward()
    expected = [loss.detach(), *(p.grad for p in model.parameters())]
    for results in run(len(sizes), several, sizes, cases):
        for (dtype, _), (found, alone) in zip(cases, results, strict=True):
            assert_equal(found, expected, PRECISE[dtype])
            assert_equal([alone], expected[:1], PRECISE[dtype])


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("tile", [1, 8, 20, 23, 64])
def test_tiles_of_any_size(tile, scale, dtype):
    image, text = embeddings(23, 6)
    expected = value_and_gradients(naive_info_nce, image, text, torch.tensor(scale).double())
    inputs = (x.to(dtype) for x in (image, text, torch.tensor(scale)))
    found = value_and_gradients(lambda *x: info_nce(*x, tile=tile), *inputs)
    assert_equal(found, expected, PRECISE[dtype])


def test_float32_is_as_exact_as_the_whole_matrix():
    """At a scale of 100, with pairs that are far apart or not at all."""
    image, text = embeddings(200, 64)
    text[::3] *= -1

    def whole(image, text, scale):
        logits, target = scale * image @ text.T, torch.arange(len(image))
        cross_entropy = nn.functional.cross_entropy
        return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2

    inputs = (image, text, torch.tensor(100.0, dtype=torch.float64))
    exact = value_and_gradients(whole, *inputs)
    theirs = value_and_gradients(whole, *(x.float() for x in inputs))
    ours = value_and_gradients(lambda *x: info_nce(*x, tile=48), *(x.float() for x in inputs))
    for reference, one, other in zip(exact, ours, theirs, strict=True):
        norm = torch.linalg.vector_norm(reference)
        assert (
            torch.linalg.vector_norm(one - reference) <= 2 * torch.linalg.vector_norm(other - reference) + 1e-6 * norm
        )


@pytest.mark.parametrize("length", [1e-3, 30.0])
def test_embeddings_that_are_not_of_unit_length(length):
    """Logits of up to 90,000, whose exponentials no float holds."""
    image, text = (length * x for x in embeddings(23, 6))
    inputs = (image, text, torch.tensor(100.0, dtype=torch.float64))
    found = value_and_gradients(lambda *x: info_nce(*x, tile=8), *inputs)
    assert_equal(found, value_and_gradients(naive_info_nce, *inputs), 1e-10)
    single = value_and_gradients(lambda *x: info_nce(*x, tile=8), *(x.float() for x in inputs))
    assert all(torch.isfinite(x).all() for x in single)


def test_the_similarity_matrix_is_never_whole():
    pairs, size, tile = 600, 4, 32
    image, text = embeddings(pairs, size)
    with LargestTensor() as largest:
        value_and_gradients(lambda *x: info_nce(*x, tile=tile), image, text, torch.tensor(10.0).double())
    assert largest.numel == max(pairs * size, tile * tile)
    with LargestTensor() as largest:
        value_and_gradients(lambda *x: info_nce(*x, tile=pairs), image, text, torch.tensor(10.0).double())
    assert largest.numel == pairs * pairs  # The measure sees what it is to see.


def test_gradients_can_be_asked_twice_and_are_scaled():
    image, text = (x.requires_grad_() for x in embeddings(9, 4))
    loss = info_nce(image, text, torch.tensor(10.0))
    (once,) = torch.autograd.grad(loss, image, retain_graph=True)
    (again,) = torch.autograd.grad(3 * loss, image)
    torch.testing.assert_close(again, 3 * once)


def test_only_what_needs_a_gradient_gets_one():
    image, text = embeddings(9, 4)
    scale = torch.tensor([10.0], requires_grad=True)  # float32 and with a dimension, beside float64
    info_nce(image, text, scale).backward()
    assert scale.grad.shape == (1,) and scale.grad.dtype == torch.float32
    assert not info_nce(image, text, scale.detach()).requires_grad


def test_a_second_derivative_is_an_error():
    image, text = (x.requires_grad_() for x in embeddings(9, 4))
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(info_nce(image, text, torch.tensor(10.0)), image, create_graph=True)


def test_autocast_does_not_round_similarities():
    image, text = embeddings(9, 4, torch.float32)
    plain = info_nce(image, text, torch.tensor(10.0))
    with torch.autocast("cpu", torch.bfloat16):
        assert info_nce(image, text, torch.tensor(10.0)) == plain


def test_not_a_number_shows():
    image, text = embeddings(9, 4)
    image[3] = torch.nan
    assert info_nce(image, text, torch.tensor(10.0), tile=4).isnan()


def test_what_does_not_fit_is_an_error():
    scale = torch.tensor(1.0)
    with pytest.raises(ValueError, match=r"\(3, 5\), \(4, 5\)"):
        info_nce(torch.ones(3, 5), torch.ones(4, 5), scale)
    with pytest.raises(ValueError, match=r"float32 or float64, not torch\.bfloat16"):
        info_nce(torch.ones(3, 5).bfloat16(), torch.ones(3, 5), scale)
    with pytest.raises(ValueError, match="no pairs"):
        info_nce(torch.ones(0, 5), torch.ones(0, 5), scale)
    with pytest.raises(ValueError, match="tile is 0"):
        info_nce(torch.ones(3, 5), torch.ones(3, 5), scale, tile=0)
