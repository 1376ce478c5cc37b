"""Gradient caching equals the whole batch in one pass."""

import pytest
import torch
import torch.distributed as dist
from objectives.naive import TwoLinears, assert_equal, features, naive_info_nce
from processes import run
from torch import nn

from orchestrator.objectives import cached_backward, info_nce, sigmoid_loss


def chunked(batch, sizes):
    """(image, text) of each chunk."""
    return list(zip(*(part.split(sizes) for part in batch), strict=True))


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def in_one_graph(model, chunks, loss=info_nce):
    """Embed each chunk once and keep everything: what caching is to equal."""
    outputs = [model(*chunk) for chunk in chunks]
    scalars = outputs[0][2:]
    value = loss(*(torch.cat([output[side] for output in outputs]) for side in (0, 1)), *scalars)
    value.backward()
    return value.detach()


@pytest.mark.parametrize("sizes", [[12], [6, 6], [5, 5, 2], [1] * 12], ids=str)
@pytest.mark.parametrize(("bias", "loss"), [(False, info_nce), (True, sigmoid_loss), (False, naive_info_nce)])
def test_chunks_equal_the_whole_batch(sizes, bias, loss):
    batch = features(12)
    whole, cached = (TwoLinears(bias=bias).double() for _ in range(2))
    expected = loss(*whole(*batch))
    expected.backward()
    value = cached_backward(lambda chunk: cached(*chunk), chunked(batch, sizes), loss)
    assert not value.requires_grad
    assert_equal([value, *gradients(cached)], [expected.detach(), *gradients(whole)], 1e-10)


def test_gradients_add_up():
    batch = features(12)
    once, twice = (TwoLinears().double() for _ in range(2))
    cached_backward(lambda chunk: once(*chunk), chunked(batch, [7, 5]), info_nce)
    for _ in range(2):
        cached_backward(lambda chunk: twice(*chunk), chunked(batch, [7, 5]), info_nce)
    assert_equal(gradients(twice), [2 * grad for grad in gradients(once)], 1e-10)


def test_dropout_drops_the_same_both_times():
    chunks = chunked(features(12), [5, 5, 2])
    whole, cached = (TwoLinears(dropout=0.5).double() for _ in range(2))
    torch.manual_seed(3)
    expected = in_one_graph(whole, chunks)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    value = cached_backward(lambda chunk: cached(*chunk), chunks, info_nce)
    assert_equal([value, *gradients(cached)], [expected, *gradients(whole)], 1e-10)
    # What follows draws other numbers, the same as after one embedding.
    assert torch.equal(torch.get_rng_state(), after)


def test_random_numbers_go_on_from_the_first_pass():
    """Also where the second embedding draws more, as recomputed blocks do, and where the loss draws."""
    model = TwoLinears().double()

    def embed(chunk):
        torch.rand(3 if torch.is_grad_enabled() else 1)
        return model(*chunk)

    def loss(*outputs):
        torch.rand(1)
        return info_nce(*outputs)

    torch.manual_seed(3)
    cached_backward(embed, chunked(features(12), [5, 5, 2]), loss)
    found = torch.rand(1)
    torch.manual_seed(3)
    assert found == torch.rand(4)[3]


def test_batch_norm_counts_each_chunk_once():
    chunks = chunked(features(12), [5, 4, 3])
    whole, cached = (TwoLinears(batch_norm=True).double() for _ in range(2))
    expected = in_one_graph(whole, chunks)
    value = cached_backward(lambda chunk: cached(*chunk), chunks, info_nce, modules=cached)
    assert_equal([value, *gradients(cached)], [expected, *gradients(whole)], 1e-10)
    assert cached.image[-1].num_batches_tracked == 3
    for name, statistic in whole.named_buffers():
        torch.testing.assert_close(cached.get_buffer(name), statistic)


def test_autocast_rounds_the_same():
    """bf16 embeddings, the loss in float32, and autocast's memory of rounded weights around both passes."""
    chunks = chunked(features(12, torch.float32), [5, 5, 2])
    whole, cached = TwoLinears(), TwoLinears()

    def embed(model):
        def rounded(*chunk):
            image, text, scale = model(*chunk)
            return image.bfloat16(), text.bfloat16(), scale

        return rounded

    def loss(image, text, scale):
        assert image.dtype == torch.bfloat16
        return info_nce(image.float(), text.float(), scale)

    with torch.autocast("cpu", torch.bfloat16):
        expected = in_one_graph(embed(whole), chunks, loss)
        value = cached_backward(lambda chunk: embed(cached)(*chunk), chunks, loss)
    # Parameters' gradients add up in another order, in float32 of products in bf16.
    assert_equal([value, *gradients(cached)], [expected, *gradients(whole)], 1e-2)


def test_a_frozen_tower():
    chunks = chunked(features(12), [7, 5])
    whole, cached = (TwoLinears().double() for _ in range(2))
    for model in (whole, cached):
        model.image.requires_grad_(False)
    in_one_graph(whole, chunks)
    cached_backward(lambda chunk: cached(*chunk), chunks, info_nce)
    assert cached.image[0].weight.grad is None
    assert_equal([cached.text.weight.grad], [whole.text.weight.grad], 1e-10)


def test_a_scalar_that_the_loss_leaves_alone():
    chunks = chunked(features(12), [7, 5])
    model = TwoLinears(bias=True).double()
    cached_backward(lambda chunk: model(*chunk), chunks, lambda image, text, scale, _: info_nce(image, text, scale))
    assert model.bias.grad == 0


def test_activations_of_one_chunk_at_a_time():
    """The first pass keeps no graph, the second frees each chunk's before the next."""
    alive, most = set(), 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal most
            alive.add(id(x))
            ctx.place = id(x)
            most = max(most, len(alive) if x.requires_grad else 0)
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            alive.discard(ctx.place)
            return grad

    model = TwoLinears().double()

    def embed(chunk):
        image, text, scale = model(*chunk)
        return (Counted.apply(image) if torch.is_grad_enabled() else image), text, scale

    cached_backward(embed, chunked(features(12), [4, 4, 4]), info_nce)
    assert most == 1 and not alive


def test_no_chunk_is_an_error():
    with pytest.raises(ValueError, match="no chunks"):
        cached_backward(lambda chunk: chunk, [], info_nce)


def three_steps(rank, sizes):
    """Parameters' gradients and the losses of three steps; DDP rearranges its gradients after the first."""
    first = sum(sum(own) for own in sizes[:rank])
    total = sum(sum(own) for own in sizes)
    model = TwoLinears(batch_norm=True).double()
    ddp = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(3):
        own = slice(first, first + sum(sizes[rank]))
        chunks = chunked([part[own] + step for part in features(total)], sizes[rank])
        optimizer.zero_grad()
        losses.append(
            cached_backward(
                lambda chunk: ddp(*chunk),
                chunks,
                lambda *outputs: info_nce(*outputs, dist.group.WORLD, tile=5),
                ddp.no_sync,
                model,
            )
        )
        found = gradients(model)
        optimizer.step()
    return [*losses, *found]


@pytest.mark.parametrize("sizes", [[[6, 6], [6, 6]], [[5, 3], [4, 3, 2]], [[5, 3], [4, 3, 2], [7, 2]]], ids=str)
def test_chunks_on_several_workers(sizes):
    total = sum(sum(own) for own in sizes)
    model = TwoLinears(batch_norm=True).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    for step in range(3):
        optimizer.zero_grad()
        chunks = chunked([part + step for part in features(total)], [size for own in sizes for size in own])
        expected.append(in_one_graph(model, chunks))
        found = gradients(model)
        optimizer.step()
    for results in run(len(sizes), three_steps, sizes):
        assert_equal(results, [*expected, *found], 1e-10)
