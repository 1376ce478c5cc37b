"""InfoNCE over several processes equals one process on the concatenated batch."""

import gc
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn import functional as F

from orchestrator.objectives import info_nce

PAIRS, FEATURES, EMBED = 12, 7, 5


class TwoLinears(nn.Module):
    """The smallest dual encoder: enough to have parameters whose gradients can be compared."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(FEATURES, EMBED)
        self.text = nn.Linear(FEATURES, EMBED)
        self.log_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image, text):
        return F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1), self.log_scale.exp()


def batch():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(PAIRS, FEATURES, generator=generator, dtype=torch.float64) for _ in range(2))


def naive_loss(image, text, scale):
    """Written from the definition, pair by pair."""
    total = 0.0
    for i in range(len(image)):
        image_logits = torch.stack([scale * (image[i] * text[j]).sum() for j in range(len(text))])
        text_logits = torch.stack([scale * (text[i] * image[j]).sum() for j in range(len(image))])
        total = total - (image_logits[i] - image_logits.logsumexp(0)) - (text_logits[i] - text_logits.logsumexp(0))
    return total / (2 * len(image))


def expected():
    model = TwoLinears().double()
    loss = naive_loss(*model(*batch()))
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


def worker(rank, processes, port, sizes, queue):
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    try:
        queue.put((rank, *loss_and_gradients(rank, sizes)))
        # A process that leaves while another still talks to it, or with its own talk alive in a reference cycle of
        # DistributedDataParallel, is aborted by gloo's threads.
        dist.barrier()
        gc.collect()
    finally:
        dist.destroy_process_group()


def loss_and_gradients(rank, sizes):
    """Of this process, or why there are none."""
    start = sum(sizes[:rank])
    image, text = (part[start : start + sizes[rank]] for part in batch())
    model = nn.parallel.DistributedDataParallel(TwoLinears().double())
    try:
        loss = info_nce(*model(image, text), dist.group.WORLD)
    except ValueError as error:
        return str(error), None
    loss.backward()
    return loss.item(), [p.grad.numpy() for p in model.parameters()]


def run(processes, sizes):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    spawned = mp.spawn(worker, (processes, port, sizes, queue), nprocs=processes, join=False)
    results = [queue.get() for _ in range(processes)]
    spawned.join()
    return results


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_value_and_gradients_equal_one_process_on_the_whole_batch(processes):
    loss, gradients = expected()
    for _, value, found in run(processes, [PAIRS // processes] * processes):
        assert value == pytest.approx(loss, rel=1e-12)
        for gradient, reference in zip(found, gradients, strict=True):
            torch.testing.assert_close(torch.from_numpy(gradient), reference, rtol=1e-10, atol=1e-12)


def test_unequal_local_batches_are_an_error_on_every_worker():
    for _, message, _ in run(2, [7, 5]):
        assert "from 5 to 7 pairs" in message


def test_alone_without_a_process_group():
    loss, gradients = expected()
    model = TwoLinears().double()
    value = info_nce(*model(*batch()))
    value.backward()
    assert value.item() == pytest.approx(loss, rel=1e-12)
    for parameter, reference in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, reference, rtol=1e-10, atol=1e-12)


def test_different_shapes_are_an_error():
    with pytest.raises(ValueError, match=r"\(3, 5\), \(4, 5\)"):
        info_nce(torch.ones(3, 5), torch.ones(4, 5), torch.tensor(1.0))
