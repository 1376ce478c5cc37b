"""The sigmoid loss in tiles, over one process or several, equals its definition on the concatenated batch."""

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
    naive_sigmoid,
    value_and_gradients,
)
from processes import run
from torch import nn

from orchestrator.objectives import sigmoid_loss

PAIRS = 12
PRECISE = {torch.float64: 1e-10, torch.float32: 1e-5}


def through_ddp(rank, sizes, dtype, tile):
    start = sum(sizes[:rank])
    image, text = (part[start : start + sizes[rank]] for part in features(sum(sizes), dtype))
    model = nn.parallel.DistributedDataParallel(TwoLinears(math.log(10), bias=True).to(dtype))
    loss = sigmoid_loss(*model(image, text), dist.group.WORLD, tile=tile)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def several(rank, sizes, cases):
    return [through_ddp(rank, sizes, dtype, tile) for dtype, tile in cases]


@pytest.mark.parametrize("sizes", [[12], [7, 5], [5, 7, 0]], ids=str)
def test_value_and_gradients_equal_one_process_on_the_whole_batch(sizes):
    cases = [(torch.float64, 5), (torch.float64, 2048), (torch.float32, 5)]
    model = TwoLinears(math.log(10), bias=True).double()
    loss = naive_sigmoid(*model(*features(PAIRS)))
    loss.backward()
    expected = [loss.detach(), *(p.grad for p in model.parameters())]
    for results in run(len(sizes), several, sizes, cases):
        for (dtype, _), found in zip(cases, results, strict=True):
            assert_equal(found, expected, PRECISE[dtype])


@pytest.mark.parametrize("dtype", PRECISE)
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, 5.0)])
@pytest.mark.parametrize("tile", [1, 8, 23, 64])
def test_tiles_of_any_size(tile, scale, bias, dtype):
    inputs = (*embeddings(23, 6), torch.tensor(scale).double(), torch.tensor(bias).double())
    expected = value_and_gradients(naive_sigmoid, *inputs)
    found = value_and_gradients(lambda *x: sigmoid_loss(*x, tile=tile), *(x.to(dtype) for x in inputs))
    assert_equal(found, expected, PRECISE[dtype])
    assert_equal([sigmoid_loss(*inputs, tile=tile)], expected[:1], 1e-10)


def test_the_similarity_matrix_is_never_whole():
    pairs, size, tile = 600, 4, 32
    inputs = (*embeddings(pairs, size), torch.tensor(10.0).double(), torch.tensor(-10.0).double())
    with LargestTensor() as largest:
        value_and_gradients(lambda *x: sigmoid_loss(*x, tile=tile), *inputs)
    assert largest.numel == max(pairs * size, tile * tile)


def test_a_second_derivative_is_an_error():
    image, text = (x.requires_grad_() for x in embeddings(9, 4))
    with pytest.raises(RuntimeError, match="differentiated once"):
        loss = sigmoid_loss(image, text, torch.tensor(10.0), torch.tensor(-10.0))
        torch.autograd.grad(loss, image, create_graph=True)


def test_different_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"\(3, 5\), \(4, 5\)"):
        sigmoid_loss(torch.ones(3, 5), torch.ones(4, 5), torch.tensor(1.0), torch.tensor(0.0))
