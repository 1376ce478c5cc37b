"""The one training loop; it runs in every training process.

Shapes: B pairs of this worker.
"""

from __future__ import annotations

import math
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from orchestrator import storage
from orchestrator.config import Config, ConfigError, TrainConfig
from orchestrator.data.batch import SAMPLE, Columns, count, empty, positions, unpack_sample
from orchestrator.data.images import ImageTransform
from orchestrator.data.ledger import Ledger
from orchestrator.data.manifest import Manifest, ShardChanged
from orchestrator.data.rejects import RejectLimitExceeded
from orchestrator.inference.model_directory import save_model
from orchestrator.model.clip import CLIP
from orchestrator.model.compiler import missing_for_compile
from orchestrator.model.tokenizer import Tokenizer
from orchestrator.train.checkpoint import CheckpointStore, Snapshot, TrainState
from orchestrator.train.checkpoint_writer import CheckpointWriter
from orchestrator.train.meter import Meter
from orchestrator.train.metrics import MetricsWriter
from orchestrator.train.optim import learning_rate, make_optimizer
from orchestrator.train.parallel import share_gradients
from orchestrator.train.preemption import PreemptionNotice
from orchestrator.train.resolution import Resolutions
from orchestrator.train.start import load_start
from orchestrator.train.step import Outcome, Step, page_locked
from orchestrator.train.supply import Supply
from orchestrator.train.tensors import restore_tensors, snapshot_tensors
from orchestrator.train.trackers import make_trackers


class NonFiniteSteps(RuntimeError):
    """Too many steps in a row gave no finite loss or gradient; the message names the last one's samples."""


@dataclass(frozen=True)
class Job:
    """All that a training process is told.

    Parameters
    ----------
    config : of the run, with model.vocab_size set
    run_uri : the run's folder
    manifest : the shards
    tokenizer, transform : saved with the model
    total_steps : optimiser steps that the learning rate's schedule is made for
    last_step : after which the run ends, total_steps or before
    resolutions : of its steps, and what they cost
    board : actor handle of the RunBoard
    rejects : actor handle of the RejectActor
    card : text of the model card
    """

    config: Config
    run_uri: str
    manifest: Manifest
    tokenizer: Tokenizer
    transform: ImageTransform
    total_steps: int
    last_step: int
    resolutions: Resolutions
    board: Any
    rejects: Any
    card: str


def train_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Train until the run's last step.

    Returns
    -------
    {"step", "loss", "left_out"} of the last step; or {"error"}: why the run had to stop, where trying again would not
    help
    """
    job: Job = settings["job"]
    try:
        return _Worker(job).train()
    except NonFiniteSteps as error:
        if ray.get(job.board.may_roll_back.remote(str(error), job.config.train.max_rollbacks)):
            raise
        return {"error": str(error)}
    except Exception as error:
        final = _find_cause(error, (RejectLimitExceeded, ShardChanged, ConfigError))
        if final is None:
            raise
        return {"error": str(final)}


class _Worker:
    """One training process, from the checkpoint it goes on from to the end of the run."""

    def __init__(self, job: Job):
        config, train = job.config, job.config.train
        context = ray.train.get_context()
        # Batches lie in Ray's shared memory, read-only; normalising makes a new tensor and nothing writes to them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        self.job, self.rank, self.world_size = job, context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        torch.set_num_threads(train.torch_threads or max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
        if train.deterministic:
            torch.use_deterministic_algorithms(True)
        # Every process draws the same initial weights.
        torch.manual_seed(config.run.seed)
        self.model = _build(config, self.device)
        self.workers = dist.group.WORLD if self.world_size > 1 else None
        # What the workers agree on does not wait for the GPU's queue.
        self.control = dist.new_group(backend="gloo") if self.world_size > 1 else None
        shared = share_gradients(self.model, train.parallel, self.device, self.world_size)
        self.optimizer = make_optimizer(self.model, config.optim, train.precision == "pure_bf16", config.run.seed)
        self.step = Step(self.model, shared, self.optimizer, config, job.transform, self.device, self.workers)
        self.store = CheckpointStore(job.run_uri)
        self.state, self.ledger = self._restore()
        # What this worker has trained on since the last checkpoint.
        self.mine = job.manifest.ledger()
        self.trace: list[tuple[int, list[int]]] = []
        self.supply = Supply(
            _blocks(), empty(config.model.image_size, config.model.text.context_length), train.global_batch,
            self.state.step, self.rank, self.world_size, self.control, train.deterministic,
            config.data.prefetch_batches, page_locked if self.device.type == "cuda" else None,
        )  # fmt: skip
        self.writer = self._patiently(self._make_writer) if self.rank == 0 else None
        self.checkpoints = CheckpointWriter(
            self.store, train.keep_checkpoints, config.run.storage_patience_s, train.max_failed_checkpoints,
            partial(self._say, event="lost_checkpoint"),
        )  # fmt: skip
        self.notice = PreemptionNotice()
        if self.rank == 0:
            job.board.placed.remote(self.world_size)
        self.meter = Meter(config.model.text.context_length, self.world_size, self.device)

    def _patiently(self, action: Callable[[], Any]) -> Any:
        return storage.patiently(action, self.job.config.run.storage_patience_s)

    def _say(self, message: str, event: str = "") -> None:
        self.job.board.say.remote(message, event)

    def _make_writer(self) -> MetricsWriter:
        run = self.job.config.run
        trackers = make_trackers(run.trackers, run.name, self.job.run_uri, self.job.config.as_dict())
        return MetricsWriter(self.job.run_uri, self.state.step, trackers, self._say)

    def _restore(self) -> tuple[TrainState, Ledger]:
        """Go on from the checkpoint that the data was planned from."""
        step = ray.get(self.job.board.start.remote())
        if step:
            saved = self._patiently(lambda: self.store.read(step))
            restore_tensors(self.model, self.optimizer, saved.model, saved.optimizer)
            return saved.state, Ledger.from_bytes(saved.ledger, [shard.samples for shard in self.job.manifest.shards])
        if self.job.config.train.init:
            load_start(self.model, self.job.config.train.init)
        return TrainState(), self.job.manifest.ledger()

    def train(self) -> dict[str, Any]:
        job, train, state = self.job, self.job.config.train, self.state
        outcome, saved_at, skipped, leaving = Outcome(float("nan"), 0.0), state.step, 0, ""
        while state.step < job.last_step:
            with self.meter.waiting("data"):
                batch = self.supply.next()
            if batch is None:  # Rejected samples make the data shorter than the manifest says.
                break
            # Nothing random depends on what was drawn before: a continued run draws what it would have drawn.
            torch.manual_seed((job.config.run.seed * 1_000_003 + state.step) * 65_537 + self.rank)
            samples, ask = self._sum(count([batch]), self.rank == 0 and self.notice.due())
            if ask:
                leaving = self.notice.ask() or leaving
                (stopping,) = self._sum(self.rank == 0 and ray.get(job.board.stopping.remote()))
                if stopping:
                    return self._stop(saved_at)
            rate = learning_rate(state.step, job.total_steps, job.config.optim)
            halved = job.resolutions.halved(state.step)
            outcome = self.step(batch, rate, self._chunks(samples), halved)
            self.mine.add(batch[SAMPLE])
            if train.trace:
                self.trace.append((state.step, batch[SAMPLE].tolist()))
            self.meter.add(samples, positions(batch), job.resolutions.flops(state.step))
            skipped = 0 if outcome.finite else skipped + 1
            if skipped:
                self._skip(outcome, batch, skipped)
            state.step += 1
            state.samples += samples
            if state.step % train.log_every == 0 or state.step == job.last_step:
                self._record(outcome)
            if (leaving or state.step % train.checkpoint_every == 0) and not skipped:
                if leaving and self.writer is not None:
                    self._say(leaving, "preemption")
                with self.meter.waiting("checkpoint"):
                    self._checkpoint()
                saved_at, leaving = state.step, ""
        if saved_at != state.step:
            self._checkpoint()
        if self.writer is not None:
            self.checkpoints.finish()
            self._patiently(self.writer.close)
        self._save_model()
        return {"step": state.step, "loss": outcome.loss, "left_out": self.supply.left_out}

    def _stop(self, saved_at: int) -> dict[str, Any]:
        """Somebody asked the run to end: what has been trained is kept, the batch at hand will be read again."""
        if saved_at != self.state.step:
            self._checkpoint()
        if self.writer is not None:
            self.checkpoints.finish()
            self._patiently(self.writer.close)
        return {"error": f"stopped on request after step {self.state.step}; the same command goes on from it"}

    def _chunks(self, samples: int) -> int:
        """As many on every worker, though one may have a sample more."""
        micro_batch = self.job.config.train.micro_batch
        return math.ceil(math.ceil(samples / self.world_size) / micro_batch) if micro_batch else 1

    def _sum(self, *numbers: int) -> list[int]:
        """Over all workers."""
        if self.control is None:
            return list(numbers)
        totals = torch.tensor(numbers)
        dist.all_reduce(totals, group=self.control)
        return totals.tolist()

    def _gather(self, mine: Any) -> list[Any]:
        """Every worker's, in order of rank."""
        parts: list[Any] = [mine]
        if self.control is not None:
            parts = [None] * self.world_size
            dist.all_gather_object(parts, mine, group=self.control)
        return parts

    def _skip(self, outcome: Outcome, batch: Columns, skipped: int) -> None:
        """A step without a finite loss or gradient has left the weights alone; too many of them end in an error."""
        step, names, limit = self.state.step, self._names(batch[SAMPLE]), self.job.config.train.max_skipped_steps
        what = f"step {step} gave a loss of {outcome.loss} and a gradient norm of {outcome.grad_norm}"
        if self.writer is not None:
            self.writer.skip(step, outcome.loss, outcome.grad_norm, names)
            said = f"{what}: skipped; its samples, such as {names[0]}, will be in skipped.jsonl"
            self._say(said, "skipped_step")
        if skipped > limit:
            if self.writer is not None:
                self.writer.publish()
            raise NonFiniteSteps(
                f"{what}, as did the {limit} steps before it (train.max_skipped_steps); the last checkpoint is good. "
                "Lower optim.lr, lengthen optim.warmup_steps, set optim.max_grad_norm or train.precision=fp32, and "
                f"look at the samples in {self.job.run_uri}/skipped.jsonl, such as {names[0]}"
            )

    def _names(self, sample_B: np.ndarray) -> list[str]:
        _, shards, indices = unpack_sample(np.concatenate(self._gather(sample_B)))
        uris = self.job.manifest.shards
        return [f"{uris[shard].uri}[{index}]" for shard, index in sorted(zip(shards, indices, strict=True))]

    def _record(self, outcome: Outcome) -> None:
        if self.writer is None:
            return
        state, job = self.state, self.job
        record = {
            "step": state.step,
            "time": time.time(),
            "workers": self.world_size,
            "epoch": state.samples / job.manifest.samples,
            "loss": outcome.loss,
            "logit_scale": float(self.model.logit_scale.detach().exp()),
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": outcome.grad_norm,
            "param_norm": self.step.param_norm(),
            "rejects": ray.get(job.rejects.count.remote()),
            **self.meter.read(),
        }
        self.writer.write(record)
        # At the rate of the newest step; steps of another resolution take time in proportion to their operations.
        now, left = job.resolutions.flops(state.step - 1), job.resolutions.training(state.step, job.last_step)
        left_s = left / now.training * job.config.train.global_batch / max(record["samples_per_s"], 1e-9)
        job.board.post.remote({**record, "total_steps": job.last_step, "eta_s": left_s})

    def _checkpoint(self) -> None:
        """Begin to write one; all workers call this at the same step."""
        weights, moments = snapshot_tensors(self.model, self.optimizer)
        parts = self._gather((self.mine.to_bytes(), self.trace))
        sizes = [shard.samples for shard in self.job.manifest.shards]
        for mine, _ in parts:
            self.ledger.merge(Ledger.from_bytes(mine, sizes))
        self.mine, self.trace = self.job.manifest.ledger(), []
        if self.writer is not None:
            if self.job.config.train.trace:
                self.writer.trace(self.state.step, [trace for _, trace in parts])
            rejects = ray.get(self.job.rejects.to_bytes.remote())
            state = TrainState(self.state.step, self.state.samples)
            snapshot = Snapshot(state, weights, moments, self.ledger.to_bytes(), rejects)
            self.checkpoints.save(snapshot, before=self.writer.publish)

    def _save_model(self) -> None:
        model, job = self.model, self.job
        weights, _ = snapshot_tensors(model, self.optimizer)
        if self.rank == 0:
            whole = CLIP(job.config.model)
            if job.config.train.precision == "pure_bf16":
                whole.round_text_tower()
            whole.load_state_dict(weights)
            final = storage.join(job.run_uri, "final")
            self._patiently(lambda: save_model(final, whole, job.tokenizer, job.transform, job.card))


def _build(config: Config, device: torch.device) -> CLIP:
    model = CLIP(config.model).to(device)
    model.visual.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.logit_scale.requires_grad_(config.optim.learn_temperature)
    if config.train.precision == "pure_bf16":
        model.round_text_tower()
    if config.train.checkpoint_activations:
        model.checkpoint_activations()
    if compiles(config.train, device):
        model.compile_blocks()
    return model


def compiles(train: TrainConfig, device: torch.device) -> bool:
    """Whether blocks go through torch.compile on this device.

    Raises
    ------
    ConfigError : asked for, and the node lacks something for it
    """
    missing = missing_for_compile()
    if train.compile == "auto":
        return device.type == "cuda" and train.parallel == "ddp" and not train.deterministic and not missing
    if train.compile and missing:
        raise ConfigError(
            f"train.compile=True: {platform.node()} lacks {missing}; install it there or set train.compile to false"
        )
    return train.compile


def _blocks() -> Iterator[Columns]:
    shard = ray.train.get_dataset_shard("train")
    return iter(shard.iter_batches(batch_size=None, batch_format="numpy"))


def _find_cause(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> BaseException | None:
    """The error of one of these kinds among the causes; Ray wraps what a task raised."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, kinds):
            return error
        seen.add(id(error))
        error = getattr(error, "cause", None) or error.__cause__ or error.__context__
    return None
