"""Pretraining as one call: from a Config to a finished run's folder."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from functools import partial

import ray
import ray.data
import ray.train
import ray.train.torch

from orchestrator import storage
from orchestrator.cli import to_yaml
from orchestrator.config import Config
from orchestrator.data.manifest import Manifest, Shard, inspect_shard
from orchestrator.data.pipeline import image_transform, make_dataset
from orchestrator.data.rejects import RejectActor, RejectLedger
from orchestrator.data.shards import RawSample, read_shard
from orchestrator.model.tokenizer import Tokenizer
from orchestrator.train.loop import Job, train_worker
from orchestrator.train.model_card import model_card
from orchestrator.train.progress import ProgressBoard, ProgressDisplay
from orchestrator.train.run import RunDirectory, absolute_storage_path
from orchestrator.train.start import check_start

# Captions that a vocabulary is trained on, at most: more do not change it.
VOCABULARY_CAPTIONS = 2_000_000

CPU_ENVIRONMENT = {
    # torch's threads share the cores with reading tasks: one that spins while it waits for another that was displaced
    # takes the core that the other needs.
    "OMP_WAIT_POLICY": "PASSIVE",
    # A step frees what the next one allocates again; glibc would give it back to the kernel in between.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


class TrainingStopped(RuntimeError):
    """The run stopped and trying again would not help; the message says why."""


def pretrain(config: Config) -> RunDirectory:
    """Train the model that a configuration describes, or continue the run of its name.

    Ray must be initialised.

    Parameters
    ----------
    config : validated

    Returns
    -------
    the run's folder, with `final/` in it

    Raises
    ------
    ConfigError : `run.resume` does not fit what is in the folder, or `train.init` the model
    StorageError : shards or folder cannot be reached
    TrainingStopped : a non-finite loss, more bad samples than data.max_reject_share allows, or a shard that changed
    """
    run = RunDirectory(config)
    run.claim(config)
    if run.finished:
        print(f"run {config.run.name} is finished already: {run.path('final')}", flush=True)
        return run
    if config.train.init:
        config = dataclasses.replace(
            config, train=dataclasses.replace(config.train, init=absolute_storage_path(config.train.init))
        )
    manifest, tokenizer = _open_data(config, run)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size))
    total_steps = manifest.samples * config.train.epochs // config.train.global_batch
    if config.train.max_steps:
        total_steps = min(total_steps, config.train.max_steps)
    if total_steps < 1:
        raise TrainingStopped(
            f"train.global_batch={config.train.global_batch}: more than the {manifest.samples} samples of "
            f"{config.train.epochs} epochs; lower it or add data"
        )
    run.save(to_yaml(config), manifest, tokenizer)
    logging.getLogger("ray.train").setLevel(logging.WARNING)

    rejects = RejectActor.options(num_cpus=0).remote(  # type: ignore[attr-defined]
        RejectLedger(manifest.samples, config.data.max_reject_share)
    )
    board = ProgressBoard.remote()  # type: ignore[attr-defined]
    job = Job(
        config=config,
        run_uri=run.uri,
        manifest=manifest,
        tokenizer=tokenizer,
        transform=image_transform(config),
        total_steps=total_steps,
        board=board,
        card=model_card(config, manifest),
    )
    start = run.position()
    if start.step:
        print(f"continuing {config.run.name} from step {start.step} of {total_steps}", flush=True)
    trainer = _trainer(config, run, job, partial(_remaining_data, config, run, manifest, tokenizer, rejects))
    with ProgressDisplay(board):
        try:
            result = trainer.fit()
        finally:
            _save_rejects(run, rejects)
    ended: dict = result.return_value or {}  # type: ignore[attr-defined]
    if "error" in ended:
        raise TrainingStopped(ended["error"])
    return run


def _remaining_data(
    config: Config, run: RunDirectory, manifest: Manifest, tokenizer: Tokenizer, rejects: ray.actor.ActorHandle
) -> ray.data.Dataset:
    """Called anew each time that a group of workers starts: what the restored checkpoint has not consumed."""
    dataset = make_dataset(manifest, config, tokenizer, rejects, skip_samples=run.position().samples)
    dataset.context.enable_progress_bars = False  # The run has a progress line of its own.
    return dataset


def _trainer(config: Config, run: RunDirectory, job: Job, dataset) -> ray.train.torch.TorchTrainer:
    train = config.train
    use_gpu = train.device == "gpu" or (train.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    filesystem, path = storage.open_location(run.storage_path)
    environment = {} if use_gpu else {"env_vars": CPU_ENVIRONMENT}
    return ray.train.torch.TorchTrainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config={"job": job},
        datasets={"train": dataset},
        scaling_config=ray.train.ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": train.cpus_per_worker, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(  # type: ignore[call-arg]
            name=config.run.name,
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
            worker_runtime_env=environment,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=train.keep_checkpoints),
        ),
    )


def _open_data(config: Config, run: RunDirectory) -> tuple[Manifest, Tokenizer]:
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
    inspect = ray.remote(num_cpus=0.5)(inspect_shard)
    shards: dict[str, Shard] = {}
    waiting = iter(uris)
    running = {inspect.remote(uri, config.data): uri for uri in itertools.islice(waiting, 256)}
    while running:
        done, _ = ray.wait(list(running), num_returns=1)
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


def _save_rejects(run: RunDirectory, rejects: ray.actor.ActorHandle) -> None:
    ledger: RejectLedger = ray.get(rejects.ledger.remote())  # type: ignore[assignment]
    storage.write_bytes(run.path("rejects.jsonl"), ledger.to_jsonl().encode())
    if ledger.counts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(ledger.counts.items()))
        print(f"skipped samples: {reasons}; listed in {run.path('rejects.jsonl')}", flush=True)
