"""Accuracy of each set on all of its pictures, on those that training has seen, and on the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator import storage
from orchestrator.evaluate.answers import kept_answers
from orchestrator.evaluate.overlap import overlap
from orchestrator.evaluate.overlap_search import Progress, gather, search
from orchestrator.evaluate.plan import Job, Options, file_name

PROGRESS_S = 10.0


def measure_overlap(options: Options, jobs: Sequence[Job], say: Callable[[str], None]) -> dict[str, Any]:
    """Search the shards of training and compare, on the Ray that this process has joined.

    Parameters
    ----------
    options : `overlap` names the shards
    jobs : sets that have been measured; of those without answers to single pictures nothing is said
    say : told of progress, a line each

    Returns
    -------
    {training: {shards, pictures, rejected}, sets: {name: {pairs: URI, all, overlap, clean ...}}}

    Raises
    ------
    StorageError : a shard of training cannot be read; those that can are not read again
    """
    answers = {job.name: found for job in jobs if (found := kept_answers(options.out, job.name)) is not None}
    datasets = [job.splits[options.split] for job in jobs if job.name in answers]
    if not datasets:
        return {}
    begin = last = time.monotonic()

    def on_progress(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_S or progress.done == progress.shards:
            last = now
            say(progress.line(now - begin))

    parts = search(datasets, options.overlap, options.cache, on_progress, options.image_column, options.placement.data)
    uris = {name: storage.join(options.out, "overlap", f"{file_name(name)}.parquet") for name in answers}
    total, seen = gather(parts, uris)
    sets: dict[str, Mapping[str, Any]] = {}
    for name, found in answers.items():
        overlap_N = np.isin(np.arange(len(found.key_N)), list(seen[name]))
        one: dict[str, Any] = {"pairs": uris[name], "samples": len(overlap_N), "seen": int(overlap_N.sum())}
        # Without a clean picture there is nothing to compare with.
        sets[name] = one if overlap_N.all() else one | overlap(found.right_N, overlap_N)._asdict()
        say(f"{name}: training has seen {one['seen']:,} of {one['samples']:,} pictures")
    return {"training": {"shards": len(parts), **total._asdict()}, "sets": sets}
