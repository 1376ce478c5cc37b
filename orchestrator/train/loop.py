"""The one training loop; it runs in every training process.

Shapes: B pairs of this worker, R image side, T tokens.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from orchestrator.config import Config, ConfigError
from orchestrator.data.batch import unpack_sample
from orchestrator.data.images import ImageTransform
from orchestrator.data.manifest import Manifest, ShardChanged
from orchestrator.data.rejects import RejectLimitExceeded
from orchestrator.inference.model_directory import save_model
from orchestrator.model.clip import CLIP
from orchestrator.model.compiler import missing_for_compile
from orchestrator.model.pixels import normalize_pixels
from orchestrator.model.tokenizer import Tokenizer
from orchestrator.objectives import info_nce
from orchestrator.train.checkpoint import TrainState, load_checkpoint, save_checkpoint
from orchestrator.train.metrics import MetricsWriter
from orchestrator.train.optim import learning_rate, make_optimizer
from orchestrator.train.start import load_start


class NonFiniteLoss(RuntimeError):
    """The loss is infinite or not a number; the message names the step and the batch's samples."""


@dataclass(frozen=True)
class Job:
    """All that a training process is told.

    Parameters
    ----------
    config : of the run, with model.vocab_size set
    run_uri : the run's folder
    manifest : the shards
    tokenizer, transform : saved with the model
    total_steps : optimiser steps of the whole run
    board : actor handle of the ProgressBoard
    card : text of the model card
    """

    config: Config
    run_uri: str
    manifest: Manifest
    tokenizer: Tokenizer
    transform: ImageTransform
    total_steps: int
    board: Any
    card: str


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train until the run's last step.

    Returns
    -------
    {"step", "loss"} of the last step; or {"error"}: why the run had to stop, where trying again would not help
    """
    job: Job = settings["job"]
    try:
        return _train(job)
    except NonFiniteLoss as error:
        return {"error": str(error)}
    except Exception as error:
        final = _find_cause(error, (RejectLimitExceeded, ShardChanged, ConfigError))
        if final is None:
            raise
        return {"error": str(final)}


def _train(job: Job) -> dict[str, Any]:
    config, train = job.config, job.config.train
    context = ray.train.get_context()
    # Batches lie in Ray's shared memory, read-only; normalising makes a new tensor and nothing writes to them.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(train.torch_threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    # Every process draws the same initial weights.
    torch.manual_seed(config.run.seed)
    model = CLIP(config.model).to(device)
    model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    low_precision = train.precision == "pure_bf16"
    if low_precision:
        model.round_text_tower()
    if train.checkpoint_activations:
        model.checkpoint_activations()
    if train.compile:
        _require_compile()
        model.compile_blocks()
    optimizer = make_optimizer(model, config.optim, low_precision, config.run.seed)
    state = TrainState()
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            state = load_checkpoint(Path(directory), model, optimizer)
    elif train.init:
        load_start(model, train.init)
    towers: nn.Module = model
    if world_size > 1:
        towers = nn.parallel.DistributedDataParallel(
            model, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
        )
    workers = dist.group.WORLD if world_size > 1 else None
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=uses_bf16(train.precision, device))

    local_batch = train.global_batch // world_size
    batches = _batches(local_batch, config.data.prefetch_batches)
    writer = MetricsWriter(job.run_uri, state.step) if rank == 0 else None
    meter = _Meter(train.global_batch)
    loss_value = float("nan")
    saved_at = state.step
    while state.step < job.total_steps:
        with meter.waiting():
            batch = next(batches, None)
        if batch is None:  # Rejected samples make the data shorter than the manifest says.
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state.step, job.total_steps, config.optim)
        image_B3RR = normalize_pixels(
            torch.from_numpy(batch["image"]).to(device), job.transform.mean, job.transform.std
        )
        tokens_BT = torch.from_numpy(batch["tokens"]).to(device)
        with autocast:
            image_BD, text_BD, scale = towers(image_B3RR, tokens_BT)
        loss = info_nce(image_BD.float(), text_BD.float(), scale, workers)
        loss_value = loss.item()
        if not np.isfinite(loss_value):
            raise NonFiniteLoss(_describe_batch(state.step, loss_value, batch["sample"], job.manifest, workers))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        model.clamp_logit_scale()
        state.step += 1
        state.samples += train.global_batch

        if state.step % train.log_every == 0 or state.step == job.total_steps:
            record = {
                "step": state.step,
                "epoch": state.samples / job.manifest.samples,
                "loss": loss_value,
                "logit_scale": float(model.logit_scale.detach().exp()),
                "lr": optimizer.param_groups[0]["lr"],
                **meter.read(),
            }
            if writer is not None:
                writer.write(record)
                left = job.total_steps - state.step
                eta = left * train.global_batch / record["samples_per_s"]
                job.board.post.remote({**record, "total_steps": job.total_steps, "eta_s": eta})
        if state.step % train.checkpoint_every == 0:
            _report(model, optimizer, state, loss_value, rank)
            saved_at = state.step
            if writer is not None:
                writer.publish()
    if saved_at != state.step:
        _report(model, optimizer, state, loss_value, rank)
    if writer is not None:
        writer.close()
        save_model(job.run_uri.rstrip("/") + "/final", model, job.tokenizer, job.transform, job.card)
    return {"step": state.step, "loss": loss_value}


def uses_bf16(precision: str, device: torch.device) -> bool:
    """Whether `TrainConfig.precision` means bf16 autocast on this device."""
    if precision != "auto":
        return precision != "fp32"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _require_compile() -> None:
    missing = missing_for_compile()
    if missing:
        raise ConfigError(
            f"train.compile=True: {platform.node()} lacks {missing}; install it there or set train.compile to false"
        )


def _batches(local_batch: int, prefetch: int) -> Iterator[dict[str, np.ndarray]]:
    shard = ray.train.get_dataset_shard("train")
    return iter(
        shard.iter_batches(batch_size=local_batch, batch_format="numpy", drop_last=True, prefetch_batches=prefetch)
    )


def _report(model: CLIP, optimizer: torch.optim.Optimizer, state: TrainState, loss: float, rank: int) -> None:
    """Save a checkpoint from the first worker; all of them wait for it here."""
    metrics = {"step": state.step, "loss": loss}
    name = f"checkpoint_step_{state.step:08d}"
    if rank != 0:
        ray.train.report(metrics, checkpoint_dir_name=name)
        return
    with tempfile.TemporaryDirectory(prefix="clip-on-ray-") as scratch:
        save_checkpoint(Path(scratch), model, optimizer, state)
        ray.train.report(metrics, ray.train.Checkpoint.from_directory(scratch), checkpoint_dir_name=name)


def _describe_batch(
    step: int, loss: float, sample_B: np.ndarray, manifest: Manifest, workers: dist.ProcessGroup | None
) -> str:
    gathered: list[Any] = [sample_B]
    if workers is not None:
        gathered = [None] * dist.get_world_size(workers)
        dist.all_gather_object(gathered, sample_B, group=workers)
    epochs, shards, indices = unpack_sample(np.concatenate(gathered))
    names = [f"{manifest.shards[shard].uri}[{index}]" for shard, index in sorted(zip(shards, indices, strict=True))]
    return (
        f"the loss became {loss} at step {step} (epoch {epochs.min()}); the last checkpoint is unharmed. "
        f"Lower optim.lr, lengthen optim.warmup_steps or set train.precision to fp32, and look at the batch's samples: "
        + ", ".join(names)
    )


def _find_cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The error of one of these kinds among the causes; Ray wraps what a task raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kinds):
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None


class _Meter:
    """Samples a second, and the share of time spent waiting for data, since the last reading."""

    def __init__(self, global_batch: int):
        self._global_batch = global_batch
        self._first_batch_s: float | None = None
        self._reset()

    def _reset(self) -> None:
        self._start, self._waited_s, self._batches = time.perf_counter(), 0.0, 0

    def waiting(self) -> _Meter:
        return self

    def __enter__(self) -> None:
        self._wait_start = time.perf_counter()

    def __exit__(self, *exc_info: object) -> None:
        waited_s = time.perf_counter() - self._wait_start
        if self._first_batch_s is None:
            # The first batch waits for the pipeline to start; it would hide the steady state.
            self._first_batch_s = waited_s
            self._start = time.perf_counter()
        else:
            self._waited_s += waited_s
        self._batches += 1

    def read(self) -> dict[str, float]:
        elapsed_s = time.perf_counter() - self._start
        reading = {
            "samples_per_s": self._batches * self._global_batch / elapsed_s,
            "data_wait": self._waited_s / elapsed_s,
            "first_batch_s": self._first_batch_s or 0.0,
        }
        self._reset()
        return reading
