"""A run that begins where another one stands.

The other run's newest whole checkpoint (weights, moments, step, what was trained on) and its records become the first
of the new run's folder. `parent.json` says so: it is written last, and training begins after it.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from orchestrator import storage
from orchestrator.train.checkpoint import CheckpointStore, TrainState
from orchestrator.train.run import RunDirectory

PARENT = "parent.json"
# MetricsWriter drops the lines of steps after the checkpoint.
RECORDS = ("metrics.jsonl", "skipped.jsonl")


def inherit(run: RunDirectory, parent_uri: str) -> TrainState:
    """Give a run that has not trained yet the state of another; once that is done, nothing but say which state it was.

    It may be repeated after it was cut off anywhere. The parent's folder is only read.

    Parameters
    ----------
    run : that begins
    parent_uri : folder of the run that it goes on from

    Returns
    -------
    where the run begins

    Raises
    ------
    CheckpointDamaged : the parent has no checkpoint that is whole
    StorageError : either folder cannot be used
    """
    record = run.path(PARENT)
    if storage.exists(record):
        known = json.loads(storage.read_bytes(record))
        return TrainState(known["step"], known["samples"])
    for name in RECORDS:
        uri = storage.join(parent_uri, name)
        if storage.exists(uri):
            storage.write_bytes(run.path(name), storage.read_bytes(uri))
    store = run.checkpoints
    # One that was copied before it was cut off is what the run will go on from, whatever the parent has by now.
    state = store.newest()
    if not state.step:
        state = store.adopt(CheckpointStore(parent_uri))
    storage.write_bytes(record, json.dumps({"format": 1, "parent": parent_uri, **asdict(state)}).encode())
    return state
