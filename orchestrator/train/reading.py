"""What a group of training processes reads: the samples that are left, split over them.

Ray asks for it in a process of its own whenever a group starts. That process loads this module, which therefore does
without torch: it would take seconds of each start.
"""

from __future__ import annotations

from functools import partial

import ray
import ray.data
import ray.train

from orchestrator import storage
from orchestrator.config import Config
from orchestrator.data.ledger import Ledger
from orchestrator.data.manifest import Manifest
from orchestrator.data.pipeline import make_dataset
from orchestrator.model.tokenizer import Tokenizer
from orchestrator.train.checkpoint import CheckpointStore


def remaining_data(
    config: Config,
    manifest: Manifest,
    tokenizer: Tokenizer,
    store: CheckpointStore,
    board: ray.actor.ActorHandle,
    rejects: ray.actor.ActorHandle,
) -> ray.data.Dataset:
    """What is left of a run's data after the checkpoint that its training processes go on from.

    Parameters
    ----------
    config, manifest, tokenizer : of the run
    store : its checkpoints
    board, rejects : handles of its RunBoard, which is told where training begins, and of its RejectActor
    """
    step, trained = storage.patiently(partial(_trained_before, store, manifest), config.run.storage_patience_s)
    rejected = ray.get(rejects.ledger.remote()).places  # type: ignore[attr-defined]
    ray.get(board.begin.remote(step))
    dataset = make_dataset(manifest, config, tokenizer, rejects, trained, rejected)
    dataset.context.enable_progress_bars = False  # The run has a progress line of its own.
    return dataset


def _trained_before(store: CheckpointStore, manifest: Manifest) -> tuple[int, Ledger]:
    """The newest checkpoint's step and what was trained on up to it."""
    step = store.newest().step
    sizes = [shard.samples for shard in manifest.shards]
    return step, Ledger.from_bytes(store.ledger(step), sizes) if step else manifest.ledger()


def data_config(config: Config) -> ray.train.DataConfig:
    """How the data reach the training processes: each has a part of them, or, in a deterministic run, all."""
    options = ray.data.ExecutionOptions(
        preserve_order=config.train.deterministic,
        # For all of a dataset's tasks, and for the nodes that Ray Data asks an autoscaler for.
        label_selector=config.placement.data or None,
    )
    if config.train.deterministic:
        return ray.train.DataConfig(datasets_to_split=[], execution_options=options)
    return _UnequalSplit(execution_options=options)


class _UnequalSplit(ray.train.DataConfig):
    """Streams that together hold every sample; Ray's own drops some at the end to make them equally long."""

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **options):  # type: ignore[no-untyped-def]
        output: list[dict] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset = dataset.copy(dataset)
            dataset.context.execution_options = self._resolve_execution_options(name)
            splits = dataset.streaming_split(world_size, equal=False, locality_hints=worker_node_ids)
            for worker, split in zip(output, splits, strict=True):
                worker[name] = split
        return output
