"""What the CPU computes, a GPU computes; where there is none the CPU takes its place, so that the tests are tried."""

import numpy as np
import pytest
import torch
from objectives.naive import (
    TwoLinears,
    assert_equal,
    embeddings,
    features,
    naive_info_nce,
    naive_sigmoid,
    value_and_gradients,
)
from tiny import save_tiny, tiny_model

from orchestrator.config import Config
from orchestrator.data.images import ImageTransform
from orchestrator.inference import Embedder
from orchestrator.model.clip import CLIP
from orchestrator.objectives import cached_backward, info_nce, sigmoid_loss
from orchestrator.train.optim import make_optimizer
from orchestrator.train.parallel import share_gradients
from orchestrator.train.step import Step, page_locked
from orchestrator.train.tensors import restore_tensors, snapshot_tensors

CPU = torch.device("cpu")
DEVICE = torch.device("cuda") if torch.cuda.is_available() else CPU
PAIRS = 12


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """cuDNN's convolutions of fp32 round to TF32, unless told not to."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def batch_of(pairs=PAIRS, allocate=np.empty):
    rng = np.random.default_rng(0)
    tokens, image = allocate((pairs, 10), np.dtype(np.int32)), allocate((pairs, 3, 32, 32), np.dtype(np.uint8))
    tokens[:], image[:] = rng.integers(2, 590, tokens.shape), rng.integers(0, 256, image.shape)
    tokens[:, 8:] = [599, 0]
    return {"image": image, "tokens": tokens, "sample": np.arange(pairs)}


class Training:
    """A model, its optimiser and its step, on one device."""

    def __init__(self, device, kind="vit", precision="fp32", objective="contrastive", change=lambda model: None):
        config = Config()
        config.model = tiny_model(600, kind).config
        config.model.objective = objective
        config.optim.warmup_steps, config.train.precision = 0, precision
        torch.manual_seed(0)
        self.model = CLIP(config.model).to(device)
        change(self.model)
        self.optimizer = make_optimizer(self.model, config.optim, precision == "pure_bf16")
        shared = share_gradients(self.model, "ddp", device, 1)
        self.step = Step(self.model, shared, self.optimizer, config, ImageTransform(32), device, None)

    def losses(self, steps, chunks=1, lr=1e-3):
        return [self.step(batch_of(), lr, chunks).loss for _ in range(steps)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tile", [8, 64])
@pytest.mark.parametrize(("ours", "naive", "scalars"), [(info_nce, naive_info_nce, [100.0]),
                                                        (sigmoid_loss, naive_sigmoid, [10.0, -10.0])])  # fmt: skip
def test_losses_equal_their_definitions(ours, naive, scalars, tile, dtype):
    inputs = (*embeddings(23, 6), *(torch.tensor(x).double() for x in scalars))
    found = value_and_gradients(lambda *x: ours(*x, tile=tile), *(x.to(DEVICE, dtype) for x in inputs))
    expected = value_and_gradients(naive, *inputs)
    assert_equal([x.cpu() for x in found], expected, 1e-10 if dtype == torch.float64 else 1e-5)


def test_dropout_drops_the_same_both_times():
    image, text = (x.to(DEVICE) for x in features(12))
    chunks = list(zip(image.split([5, 5, 2]), text.split([5, 5, 2]), strict=True))
    whole, cached = (TwoLinears(dropout=0.5).double().to(DEVICE) for _ in range(2))
    torch.manual_seed(3)
    outputs = [whole(*chunk) for chunk in chunks]
    expected = info_nce(*(torch.cat([output[side] for output in outputs]) for side in (0, 1)), outputs[0][2])
    expected.backward()
    torch.manual_seed(3)
    value = cached_backward(lambda chunk: cached(*chunk), chunks, info_nce)
    assert_equal(
        [value, *(p.grad for p in cached.parameters())],
        [expected.detach(), *(p.grad for p in whole.parameters())],
        1e-10,
    )


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("objective", ["contrastive", "sigmoid"])
def test_steps_equal_the_cpus(kind, objective):
    here, there = (Training(device, kind, objective=objective) for device in (CPU, DEVICE))
    np.testing.assert_allclose(there.losses(5, lr=1e-4), here.losses(5, lr=1e-4), rtol=1e-3)


def test_chunks_equal_the_whole_batch():
    np.testing.assert_allclose(Training(DEVICE).losses(5, chunks=3), Training(DEVICE).losses(5), rtol=1e-3)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("change", [
    # On the CPU tests/model/test_efficiency.py compiles, for minutes.
    pytest.param(CLIP.compile_blocks, marks=pytest.mark.skipif(DEVICE == CPU, reason="no GPU to compile for")),
    CLIP.checkpoint_activations,
])  # fmt: skip
def test_options_for_speed_and_memory_change_nothing(kind, change):
    found, expected = Training(DEVICE, kind, change=change), Training(DEVICE, kind)
    np.testing.assert_allclose(found.losses(5, lr=1e-4), expected.losses(5, lr=1e-4), rtol=1e-3)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_low_precision_learns_as_fp32_does(kind, precision):
    rounded = CLIP.round_text_tower if precision == "pure_bf16" else lambda model: None
    found, exact = Training(DEVICE, kind, precision, change=rounded).losses(30), Training(DEVICE, kind).losses(30)
    assert found[0] == pytest.approx(exact[0], rel=0.02)
    assert exact[-1] < 0.5 * exact[0] and found[-1] < 0.6 * found[0]


@pytest.mark.parametrize("precision", ["bf16", "pure_bf16"])
def test_a_continued_run_goes_on_to_the_bit(precision):
    rounded = CLIP.round_text_tower if precision == "pure_bf16" else lambda model: None
    unbroken, first, second = (Training(DEVICE, precision=precision, change=rounded) for _ in range(3))
    expected = unbroken.losses(6)
    first.losses(3)
    restore_tensors(second.model, second.optimizer, *snapshot_tensors(first.model, first.optimizer))
    assert second.losses(3) == expected[3:]


def test_batches_in_page_locked_memory():
    batch, plain = batch_of(allocate=page_locked), batch_of()
    for name in ("image", "tokens"):
        assert torch.from_numpy(batch[name]).is_pinned() == (DEVICE != CPU)
        np.testing.assert_array_equal(batch[name], plain[name])
    found, expected = Training(DEVICE), Training(DEVICE)
    assert found.step(batch, 1e-3).loss == expected.step(plain, 1e-3).loss


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_embeddings_equal_the_cpus(tmp_path, kind):
    save_tiny(str(tmp_path / "model"), kind)
    here, there = (Embedder(str(tmp_path / "model"), device) for device in (CPU, DEVICE))
    image = batch_of()["image"]
    torch.testing.assert_close(there.embed_images(image), here.embed_images(image), rtol=1e-4, atol=1e-5)
    texts = ["a red circle", "a blue square on a field of green crosses"]
    torch.testing.assert_close(there.embed_texts(texts), here.embed_texts(texts), rtol=1e-4, atol=1e-5)
    assert here.fingerprint == there.fingerprint
