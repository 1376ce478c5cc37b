"""Pretraining as one call: from a Config to a finished run's folder."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import storage
from orchestrator.cli import to_yaml
from orchestrator.config import Config
from orchestrator.data.ledger import Ledger
from orchestrator.data.manifest import Manifest, Shard, inspect_shard
from orchestrator.data.pipeline import image_transform
from orchestrator.data.rejects import RejectActor, RejectLedger
from orchestrator.data.shards import RawSample, read_shard
from orchestrator.errors import UserError
from orchestrator.model.tokenizer import Tokenizer
from orchestrator.train.cluster import CPU_ENVIRONMENT, uses_gpu
from orchestrator.train.data_actors import make_data_actors
from orchestrator.train.elastic import OnTheirNodes
from orchestrator.train.loop import Job, train_worker
from orchestrator.train.model_card import model_card
from orchestrator.train.network import NodeInterface
from orchestrator.train.progress import ProgressDisplay, RunBoard
from orchestrator.train.reading import data_config, remaining_data
from orchestrator.train.resolution import Resolutions
from orchestrator.train.run import RunDirectory
from orchestrator.train.start import check_start
from orchestrator.train.stop import ends_with_a_checkpoint
from orchestrator.train.trackers import check_trackers
from orchestrator.train.waiting import explain_reading, explain_waiting, require_placement

# Captions that a vocabulary is trained on, at most: more do not change it.
VOCABULARY_CAPTIONS = 2_000_000

# Seconds that the first look at the data waits for a shard before it says what may be lacking.
PATIENCE_S = 30.0


class TrainingStopped(UserError, RuntimeError):
    """The run stopped and trying again would not help; the message says why."""


def pretrain(
    config: Config, display: Callable[..., ProgressDisplay] = ProgressDisplay, last_step: int = 0
) -> RunDirectory:
    """Train the model that a configuration describes, or continue the run of its name.

    Ray must be initialised.

    Parameters
    ----------
    config : validated
    display : shows how it goes
    last_step : optimiser step after which the run ends although its learning rate's schedule goes on; 0: that of the
        schedule

    Returns
    -------
    the run's folder, with `final/` in it

    Raises
    ------
    ConfigError : `run.resume` does not fit what is in the folder, `train.init` the model, or `placement` the cluster
    StorageError : shards or folder cannot be reached
    TrainingStopped : a non-finite loss, more bad samples than data.max_reject_share allows, or a shard that changed
    """
    check_trackers(config.run.trackers)
    require_placement(config)
    run = RunDirectory(config)
    run.claim(config)
    if run.finished:
        print(f"run {config.run.name} is finished already: {run.path('final')}", flush=True)
        return run
    make_data_actors()
    if config.train.init:
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, init=storage.absolute(config.train.init))
        )
    manifest, tokenizer = open_data(config, run)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    steps = total_steps(manifest.samples, config)
    if steps < 1:
        raise TrainingStopped(
            f"train.global_batch={config.train.global_batch}: more than the {manifest.samples} samples of "
            f"{config.train.epochs} epochs; lower it or add data"
        )
    run.save(to_yaml(config), manifest, tokenizer)
    logging.getLogger("ray.train").setLevel(logging.WARNING)

    start = run.checkpoints.newest()
    bad = RejectLedger(manifest, config.data.max_reject_share)
    if start.step:
        bad.restore(run.checkpoints.rejects(start.step))
        print(f"continuing {config.run.name} from step {start.step} of {last_step or steps}", flush=True)
    # They live where this process does: the loss of another node must not take them.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    rejects = RejectActor.options(scheduling_strategy=here).remote(bad, config.run.name)  # type: ignore[attr-defined]
    board = RunBoard.options(scheduling_strategy=here).remote(config.run.name)  # type: ignore[attr-defined]
    job = Job(
        config=config,
        run_uri=run.uri,
        manifest=manifest,
        tokenizer=tokenizer,
        transform=image_transform(config),
        total_steps=steps,
        last_step=last_step or steps,
        resolutions=Resolutions.of(config, steps),
        board=board,
        rejects=rejects,
        card=model_card(config, manifest),
    )
    trainer = _trainer(
        config, run, job, partial(remaining_data, config, manifest, tokenizer, run.checkpoints, board, rejects)
    )
    with _gone_at_the_end(board), display(board, partial(explain_waiting, config)), ends_with_a_checkpoint(board):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingStopped(_why_failed(error, config)) from error
        finally:
            _save_rejects(run, rejects)
    ended: dict = result.return_value or {}  # type: ignore[attr-defined]
    if "error" in ended:
        raise TrainingStopped(ended["error"])
    _say_what_was_trained_on(run, manifest, rejects, ended["left_out"])
    return run


@contextlib.contextmanager
def _gone_at_the_end(board: Any) -> Iterator[None]:
    """What the board exports says that the run goes on: it must not outlive it, though this process evaluates yet."""
    try:
        yield
    finally:
        ray.kill(board)


def total_steps(samples: int, config: Config) -> int:
    """Optimiser steps of a whole run on data of so many samples."""
    full, rest = divmod(samples * config.train.epochs, config.train.global_batch)
    steps = full + (rest > 0 and full > 0)
    return min(steps, config.train.max_steps) if config.train.max_steps else steps


class _Trainer(ray.train.torch.TorchTrainer):
    """Without Ray's own guard of the workers' reservation, and with a count of places that minds labels.

    The guard is an actor of each run that outlives all else and asks the dashboard whether the run is still there:
    without a dashboard it never ends. Ray itself gives the reservation back when the job ends, and a study sees to that
    of trials which it stops (`tune.reservations`).
    """

    def _create_default_callbacks(self) -> list:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [one for one in callbacks if type(one).__name__ != "PlacementGroupCleanerCallback"]

    def _initialize_and_run_controller(self, **options: Any) -> ray.train.Result:
        scaling: Any = self.scaling_config
        if scaling.elasticity_enabled and scaling.label_selector:
            options["scaling_policy"] = OnTheirNodes(scaling)
        return super()._initialize_and_run_controller(**options)  # type: ignore[misc]


def _trainer(config: Config, run: RunDirectory, job: Job, dataset) -> ray.train.torch.TorchTrainer:
    train = config.train
    use_gpu = uses_gpu(config)
    fewest, most = train.worker_range
    if fewest < most:
        # After a node is lost Ray first tries as many workers as before, since the cluster does not yet know.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    filesystem, path = storage.open_location(run.storage_path)
    environment = {} if use_gpu else {"env_vars": CPU_ENVIRONMENT}
    return _Trainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config={"job": job},
        torch_config=NodeInterface(),
        datasets={"train": dataset},
        dataset_config=data_config(config),
        scaling_config=ray.train.ScalingConfig(
            num_workers=(fewest, most) if fewest < most else most,  # type: ignore[arg-type]
            elastic_resize_monitor_interval_s=train.resize_every_s,  # type: ignore[call-arg]
            use_gpu=use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": train.gpus_per_worker} if use_gpu else {})},
            label_selector=config.placement.train or None,  # type: ignore[call-arg]
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=config.run.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            worker_runtime_env=environment,
        ),
    )


def open_data(config: Config, run: RunDirectory) -> tuple[Manifest, Tokenizer]:
    """The run's manifest and tokenizer: those it was started with, else made now."""
    if run.started:
        return run.load_manifest(), run.load_tokenizer()
    start = check_start(config.train.init, config.model) if config.train.init else None
    if config.data.manifest:
        manifest = Manifest.from_json(storage.read_bytes(config.data.manifest).decode())
    else:
        manifest = _build_manifest(config)
    print(
        f"data: {manifest.samples:,} samples in {len(manifest.shards):,} shards, "
        f"{sum(shard.size for shard in manifest.shards) / 1e6:,.0f} MB",
        flush=True,
    )
    if start is not None:
        return manifest, start
    if config.tokenizer.kind == "clip":
        return manifest, Tokenizer.clip()
    print(f"training a vocabulary of {config.tokenizer.vocab_size:,} on the captions", flush=True)
    return manifest, Tokenizer.train(_captions(config, manifest), config.tokenizer.vocab_size)


def _build_manifest(config: Config) -> Manifest:
    """Inspect every shard on the cluster, a bounded number at a time, with progress."""
    uris = storage.expand(config.data.train)
    inspect = ray.remote(num_cpus=config.data.cpus_per_reader, label_selector=config.placement.data)(inspect_shard)
    shards: dict[str, Shard] = {}
    waiting = iter(uris)
    running = {inspect.remote(uri, config.data): uri for uri in itertools.islice(waiting, 256)}
    while running:
        done, _ = ray.wait(list(running), num_returns=1, timeout=PATIENCE_S)
        if not done:
            why = explain_reading(config)
            print(why or "waiting for the first look at a shard", flush=True)
            continue
        try:
            shards[running.pop(done[0])] = ray.get(done[0])
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        for uri in itertools.islice(waiting, 1):
            running[inspect.remote(uri, config.data)] = uri
        if len(shards) % 100 == 0:
            print(f"manifest: {len(shards):,} of {len(uris):,} shards", flush=True)
    return Manifest([shards[uri] for uri in uris])


def _captions(config: Config, manifest: Manifest) -> Iterator[str]:
    texts = (
        text
        for shard in manifest.shards
        for sample in read_shard(shard.uri, config.data)
        if isinstance(sample, RawSample)
        for text in sample.texts
    )
    return itertools.islice(texts, VOCABULARY_CAPTIONS)


def _why_failed(error: BaseException, config: Config) -> str:
    """One line from what Ray raised when it had tried often enough."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return (
        f"training failed more than train.max_failures={config.train.max_failures} times, the last time with: "
        f"{lines[-1].strip() if lines else type(error).__name__}; the last checkpoint is unharmed, the same command "
        "goes on from it"
    )


def _say_what_was_trained_on(
    run: RunDirectory, manifest: Manifest, rejects: ray.actor.ActorHandle, left_out: int
) -> None:
    store = run.checkpoints
    step = store.steps()[-1]
    trained = Ledger.from_bytes(store.ledger(step), [shard.samples for shard in manifest.shards])
    bad: RejectLedger = ray.get(rejects.ledger.remote())  # type: ignore[assignment]
    rejected = bad.places
    epochs = trained.epochs
    whole = [epoch for epoch in epochs if not trained.missing(epoch, rejected)]
    print(
        f"trained on {trained.samples:,} samples, none twice in an epoch; {len(whole)} of {len(epochs)} epochs whole"
        + (f", {left_out} samples left out at the end: fewer than two a worker" if left_out else ""),
        flush=True,
    )


def _save_rejects(run: RunDirectory, rejects: ray.actor.ActorHandle) -> None:
    ledger: RejectLedger = ray.get(rejects.ledger.remote())  # type: ignore[assignment]
    storage.write_bytes(run.path("rejects.jsonl"), ledger.to_jsonl().encode())
    if ledger.counts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(ledger.counts.items()))
        print(f"skipped samples: {reasons}; listed in {run.path('rejects.jsonl')}", flush=True)
