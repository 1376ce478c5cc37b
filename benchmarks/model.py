"""Forward passes and training steps of the model family, beside transformers' CLIPModel at the same sizes.

    python benchmarks/model.py                              # what suits this device
    python benchmarks/model.py --models vit-b-32 --batch 16 --repeats 3
    python benchmarks/model.py --compile                    # our blocks through torch.compile beside; as on a GPU

Both sides take the same pictures, the same captions (padded to 77; lengths log-normal with a mean near 16 tokens), the
same precision, batch, loss and fused AdamW, and take turns, a step each. transformers computes all 77 positions; a
second row gives it captions cut to the batch's longest, which our text tower does by itself. It has no ResNets: those
stand alone.

MFU is the share of the device's peak that the operations come to, of the positions that a side computes: counted by
torch, two for a multiplication and an addition, a backward pass twice the forward's. The peak is the specification's
for a GPU in bf16, else the best of some matrix products measured here.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from orchestrator import cli
from orchestrator.config import ModelConfig
from orchestrator.model.clip import CLIP
from orchestrator.model.layouts import config_to_hugging_face
from orchestrator.model.scaling import count_flops
from orchestrator.objectives import info_nce
from orchestrator.train.meter import peak_flops
from orchestrator.train.optim import make_optimizer
from orchestrator.train.step import uses_bf16

FAMILY = tuple(recipe for recipe in cli.recipe_names() if recipe != "demo")
SMALL = ("vit-b-32", "rn50", "vit-b-16")
START, END = 49406, 49407  # of the released vocabulary
MEAN_TOKENS, SIGMA = 16, 0.45


def captions(batch: int, context: int) -> torch.Tensor:
    """Tokens (B, T) of captions with real lengths: [SOS] words [EOS], then zeros."""
    rng = np.random.default_rng(0)
    # Quantiles rather than draws: a small batch, too, has the mean and the long captions of the distribution.
    distribution = statistics.NormalDist(math.log(MEAN_TOKENS) - SIGMA**2 / 2, SIGMA)
    exact = [math.exp(distribution.inv_cdf((place + 0.5) / batch)) for place in range(batch)]
    lengths = [min(max(round(length), 3), context) for length in exact]
    tokens_BT = np.zeros((batch, context), dtype=np.int64)
    for row, length in zip(tokens_BT, lengths, strict=True):
        row[:length] = [START, *rng.integers(1000, 40000, length - 2), END]
    return torch.from_numpy(tokens_BT)


@dataclasses.dataclass
class Side:
    """One of those who take turns: a forward pass without gradients, and a training step."""

    name: str
    forward: Callable[[], Any]
    step: Callable[[], Any]
    flops: float  # of a pair's forward pass

    def run(self, kind: str) -> None:
        if kind == "forward":
            with torch.no_grad():
                self.forward()
        else:
            self.step()


def _training_step(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return step


def _flops(model: ModelConfig, tokens: int) -> float:
    return count_flops(dataclasses.replace(model, text=dataclasses.replace(model.text, context_length=tokens))).total


def _ours(config: Any, image: torch.Tensor, tokens: torch.Tensor, autocast: Any, compiled: bool) -> Side:
    with image.device:
        model = CLIP(config.model)
    model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        model.compile_blocks()

    def forward() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with autocast:
            return model(image, tokens)

    def loss() -> torch.Tensor:
        image_BD, text_BD, scale = forward()
        return info_nce(image_BD.float(), text_BD.float(), scale)

    longest = int(tokens.argmax(dim=-1).max()) + 1
    name = "ours, compiled" if compiled else "ours"
    return Side(name, forward, _training_step(loss, make_optimizer(model, config.optim)), _flops(config.model, longest))


def _transformers(config: Any, image: torch.Tensor, tokens: torch.Tensor, autocast: Any) -> Iterator[Side]:
    """CLIPModel on captions of 77 tokens, and the same model on captions cut to the longest."""
    from transformers import CLIPConfig, CLIPModel

    with image.device:
        model: nn.Module = CLIPModel(CLIPConfig(**config_to_hugging_face(config.model))).train()
    optimizer = make_optimizer(model, config.optim)
    longest = int(tokens.argmax(dim=-1).max()) + 1
    for name, taken in (("transformers", tokens), ("transformers, cut captions", tokens[:, :longest].contiguous())):
        # [EOS] at the end of the mask, as the processor makes it.
        mask = (torch.arange(taken.shape[1], device=taken.device) <= taken.argmax(dim=-1, keepdim=True)).long()

        def forward(taken: torch.Tensor = taken, mask: torch.Tensor = mask, loss: bool = False) -> Any:
            with autocast:
                return model(input_ids=taken, attention_mask=mask, pixel_values=image, return_loss=loss)

        def loss(forward: Callable[..., Any] = forward) -> torch.Tensor:
            return forward(loss=True).loss

        yield Side(name, forward, _training_step(loss, optimizer), _flops(config.model, taken.shape[1]))


def _batch(recipe: str, device: torch.device) -> int:
    """Pairs that make a step long enough to measure, and short enough to repeat."""
    if device.type == "cpu":
        return 16
    model = cli.parse(["--config", recipe, "--data.train", "none"], "").model
    return min(1024, 2 ** int(math.log2(1.5e14 / count_flops(model).training)))


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(recipe: str, batch: int, repeats: int, device: torch.device, compiled: bool) -> list[dict[str, Any]]:
    """Rows of one model: each side, forward and training step, medians over the repeats."""
    config = cli.parse(["--config", recipe, "--data.train", "none"], "")
    config.model.vocab_size = config.tokenizer.vocab_size
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16("auto", device))
    size = config.model.image_size
    torch.manual_seed(0)
    image = torch.randn(batch, 3, size, size).to(device, memory_format=torch.channels_last)
    tokens = captions(batch, config.model.text.context_length).to(device)
    sides = [_ours(config, image, tokens, autocast, False)]
    if compiled:
        sides.append(_ours(config, image, tokens, autocast, True))
    if config.model.vision.kind == "vit":
        sides += _transformers(config, image, tokens, autocast)
    rows = []
    for kind, work in (("forward", 1), ("train step", 3)):
        seconds: dict[str, list[float]] = {side.name: [] for side in sides}
        for repeat in range(-2, repeats):  # the first two warm up
            for side in sides if repeat % 2 else reversed(sides):
                _synchronize(device)
                begin = time.perf_counter()
                side.run(kind)
                _synchronize(device)
                if repeat >= 0:
                    seconds[side.name].append(time.perf_counter() - begin)
        for side in sides:
            median = statistics.median(seconds[side.name])
            operations = work * side.flops * batch / median
            rows.append({"model": recipe, "kind": kind, "side": side.name, "batch": batch, "seconds": median,
                         "pairs_per_s": batch / median, "flops_per_s": operations})  # fmt: skip
    return rows


def _measure_what_fits(
    recipe: str, batch: int, repeats: int, device: torch.device, compiled: bool
) -> list[dict[str, Any]]:
    """The batch is halved until it fits; no row where a single pair does not."""
    while batch:
        try:
            return measure(recipe, batch, repeats, device, compiled)
        except torch.OutOfMemoryError:
            batch //= 2
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    return []


def peak(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """Operations a second that the device can do at most, and where that figure comes from."""
    if device.type == "cuda" and dtype == torch.bfloat16:
        known = peak_flops(torch.cuda.get_device_name(device))
        if known:
            return known, "specification"
    best = 0.0
    for side in (1024, 2048, 4096):
        a, b = torch.randn(side, side, device=device, dtype=dtype), torch.randn(side, side, device=device, dtype=dtype)
        for _ in range(5):
            _synchronize(device)
            begin = time.perf_counter()
            a @ b
            _synchronize(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - begin))
    return best, "measured, matrix products"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=FAMILY, help="default: the small ones on a CPU, all on a GPU")
    parser.add_argument("--batch", type=int, help="pairs a step; halved where they do not fit")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="ours with torch.compile, too (default: on a GPU)"
    )
    arguments = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    dtype = torch.bfloat16 if uses_bf16("auto", device) else torch.float32
    at_most, source = peak(device, dtype)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    compiled = on_gpu if arguments.compile is None else arguments.compile
    for recipe in arguments.models or (FAMILY if on_gpu else SMALL):
        measured = _measure_what_fits(
            recipe, arguments.batch or _batch(recipe, device), arguments.repeats, device, compiled
        )
        for row in measured:
            row["mfu"] = row["flops_per_s"] / at_most
            print(f"  {json.dumps(row)}", file=sys.stderr, flush=True)
        rows += measured
        left_out += [recipe] * (not measured)

    hardware = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"\n{hardware}, {str(dtype).removeprefix('torch.')}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"peak {at_most / 1e12:.2f} Tflop/s ({source}); medians of {arguments.repeats}\n")
    print("| model | | side | batch | ms | pairs/s | MFU |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['model']} | {row['kind']} | {row['side']} | {row['batch']} | {1e3 * row['seconds']:.0f} "
            f"| {row['pairs_per_s']:.1f} | {row['mfu']:.0%} |"
        )
    for recipe in left_out:
        print(f"| {recipe} | does not fit | | | | | |")

    found = {(row["model"], row["kind"], row["side"]): row for row in rows}
    goals = {}
    ours, theirs = (found.get(("vit-b-32", "train step", side)) for side in ("ours", "transformers"))
    if ours and theirs:
        goal = 1.3 if on_gpu else 1.2
        value = theirs["seconds"] / ours["seconds"]
        goals["train_step_vs_transformers"] = {"value": round(value, 3), "goal": goal, "met": value >= goal}
    large = [
        row["mfu"]
        for row in rows
        if (row["model"], row["kind"]) == ("vit-l-14", "train step") and "ours" in row["side"]
    ]
    if on_gpu and large:
        goals["mfu_vit_l_14"] = {"value": round(max(large), 3), "goal": 0.45, "met": max(large) >= 0.45}
    machine = {"device": hardware, "dtype": str(dtype), "peak": at_most, "torch": torch.__version__}
    print()
    print(json.dumps({"benchmark": "model", "machine": machine, "rows": rows, "left_out": left_out, "goals": goals}))


if __name__ == "__main__":
    main()
