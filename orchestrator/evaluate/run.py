"""One model on many sets: features on all devices, then each set's analyses, each kept as it ends.

<out>/sets/<set>.json              what was measured of a set; a set that has one is not measured again
<out>/predictions/<set>.parquet    every sample's answers
<out>/pictures/<set>.jpg           some of the worst classes'
<out>/result.json                  all of it, for machines
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray
import torch

from orchestrator import storage
from orchestrator.evaluate import analyses
from orchestrator.evaluate.answers import keep_answers, kept_answers
from orchestrator.evaluate.classifiers import KeptClassifiers
from orchestrator.evaluate.datasets import EvaluationSetError
from orchestrator.evaluate.extract import Progress, Split, extract
from orchestrator.evaluate.humans import beside_people, read_answers
from orchestrator.evaluate.overlap_measure import measure_overlap
from orchestrator.evaluate.plan import (
    FORMAT,
    SHIFTING,
    SUITED,
    TRAINING,
    VALIDATION,
    Job,
    Options,
    kept_result,
    open_jobs,
    result_uri,
)
from orchestrator.evaluate.shift import asked_pairs, count_pair, known_pairs
from orchestrator.evaluate.worst import draw_worst
from orchestrator.inference import Embedder
from orchestrator.model.scaling import count_flops
from orchestrator.train.cluster import nodes_of, total
from orchestrator.train.waiting import require_nodes

PROGRESS_S = 10.0


def evaluate(options: Options, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure, on the Ray that this process has joined.

    Parameters
    ----------
    options : what
    say : told of progress, a line each

    Returns
    -------
    the content of result.json: {model, fingerprint, flops, suite, sets: {name: ...}, shifts,
    humans, overlap, failed: {name: why}}

    Raises
    ------
    ConfigError : the cluster has no nodes of the placement
    ModelDirectoryError, StorageError : the model cannot be read, or another library's needs that library
    ValueError : a shift of sets that are not there
    EvaluationSetError : no set can be measured at all
    """
    require_nodes("placement.data", options.placement.data)
    require_nodes("placement.train", options.placement.train)
    embedder = options.load()
    pairs = asked_pairs(options.shifts, list(options.datasets)) or known_pairs(list(options.datasets))
    jobs, failed = open_jobs(options, embedder.fingerprint, say)
    kept = {job.name: kept_result(options, job) for job in jobs}
    sets = {name: found for name, found in kept.items() if found is not None}
    for name in sets:
        say(f"{name}: measured before")
    waiting = [job for job in jobs if job.name not in sets]
    begin = time.monotonic()
    where = options.placement.train
    device = "cuda" if total("GPU", where) > 0 else "cpu"

    def on_result(job: Job, found: dict[str, Any]) -> None:
        sets[job.name] = found
        say(f"{job.name}: {summary_line(found)} ({len(sets)} of {len(options.datasets)} sets)")

    def on_failure(name: str, error: BaseException) -> None:
        failed[name] = _reason(name, error)
        say(f"{name}: failed: {failed[name]}")

    tasks = _Tasks(lambda job: (options, job, device), device, where, on_result, on_failure)

    def on_end(split: Split, error: str) -> None:
        job = owner[split.folder.uri]
        if job.name in failed:
            return
        if error:
            on_failure(job.name, EvaluationSetError(error))
        elif all(folder.complete for folder in job.folders.values()):
            tasks.add(job)

    missing = [
        Split(job.splits[split], folder)
        for job in waiting
        for split, folder in job.folders.items()
        if not folder.complete
    ]
    owner = {folder.uri: job for job in waiting for folder in job.folders.values()}
    for job in waiting:
        if all(folder.complete for folder in job.folders.values()):
            say(f"{job.name}: features there already")
            tasks.add(job)
    last = begin

    def on_progress(progress: Progress) -> None:
        nonlocal last
        tasks.look()
        now = time.monotonic()
        if now - last >= PROGRESS_S:
            last = now
            say(progress.line(now - begin))

    extract(options.load, embedder.transform, missing, options.batch_size, on_end, on_progress, options.placement)
    tasks.finish()
    shifts: dict[str, Any] = {}
    measured = {job.name: job for job in jobs if job.name in sets}
    for standard, shifted in pairs if options.suite in SHIFTING and not options.image_only else []:
        title = f"{standard} to {shifted}"
        try:
            if missing_set := next((name for name in (standard, shifted) if name not in measured), None):
                raise EvaluationSetError(f"evaluation set {missing_set} was not measured")
            both = measured[standard], measured[shifted]
            shifts[title] = ray.get(_task(measure_shift, device, where).remote(options, *both, device))
        except (EvaluationSetError, ray.exceptions.RayError) as error:
            on_failure(title, error)
    humans: dict[str, Any] = {}
    for name, uri in options.humans.items():
        try:
            humans[name] = analyses.finite(_beside_people(options, measured, name, uri))
        except (ValueError, storage.StorageError) as error:
            on_failure(f"people's answers to {name}", error)
    overlap: dict[str, Any] = {}
    if options.overlap:
        try:
            overlap = analyses.finite(measure_overlap(options, list(measured.values()), say))
        except (storage.StorageError, ray.exceptions.RayError) as error:
            on_failure("overlap", error)
    result = {
        "format": FORMAT,
        "model": options.model,
        "fingerprint": embedder.fingerprint,
        "flops": count_flops(embedder.model.config).image if isinstance(embedder, Embedder) else None,
        "suite": options.suite,
        "sets": {name: sets[name] for name in options.datasets if name in sets},
        "shifts": shifts,
        "humans": humans,
        "overlap": overlap,
        "failed": failed,
    }
    storage.write_bytes(storage.join(options.out, "result.json"), _json(result))
    return result


class _Tasks:
    """Analyses of sets whose features are there, beside the extraction of the others; one at a time on a node.

    They reserve no CPU: on a small machine reading and embedding hold all of them, and results would wait for the last
    set's features.
    """

    def __init__(
        self,
        arguments: Callable[[Job], tuple],
        device: str,
        where: dict[str, str],
        on_result: Callable[[Job, dict[str, Any]], None],
        on_failure: Callable[[str, BaseException], None],
    ):
        self._arguments, self._task = arguments, _task(measure, device, where)
        self._on_result, self._on_failure = on_result, on_failure
        self._most = max(1, len(nodes_of(where)))
        self._queue: list[Job] = []
        self._running: dict[Any, Job] = {}

    def add(self, job: Job) -> None:
        self._queue.append(job)
        self.look()

    def look(self, timeout_s: float | None = 0) -> None:
        """Take a result that is there, or comes within the time (None: for ever), and start what there is room for."""
        ready = ray.wait(list(self._running), timeout=timeout_s)[0] if self._running else []
        for one in ready:
            job = self._running.pop(one)
            try:
                found = ray.get(one)
            except ray.exceptions.RayError as error:
                self._on_failure(job.name, error)
            else:
                self._on_result(job, found)
        while self._queue and len(self._running) < self._most:
            job = self._queue.pop(0)
            self._running[self._task.remote(*self._arguments(job))] = job

    def finish(self) -> None:
        """Wait for all."""
        while self._queue or self._running:
            self.look(None)


def _task(function: Callable[..., Any], device: str, where: dict[str, str]) -> Any:
    """A plain function as Ray's task on a device; on a CPU, on all cores of a node of `where`."""

    def on_all_cores(*arguments: Any) -> Any:
        torch.set_num_threads(os.cpu_count() or 1)
        return function(*arguments)

    return ray.remote(
        num_cpus=0,
        num_gpus=1 if device == "cuda" else 0,
        max_retries=0,
        scheduling_strategy="SPREAD",
        label_selector=where,
    )(on_all_cores)


def measure(options: Options, job: Job, device: str) -> dict[str, Any]:
    """Everything that a suite measures of one set, kept in the results' folder; plain, without Ray."""
    dataset, *_ = job.splits.values()
    parts = options.parts
    features = job.folders[options.split].read()
    result: dict[str, Any] = {
        "digest": job.digest, "kind": dataset.kind, "samples": len(features.key_N), "classes": len(dataset.class_names),
        "notes": [],
    }  # fmt: skip
    if dataset.kind == "retrieval":
        result["retrieval"] = analyses.retrieval_result(features, device)
    elif "zero-shot" in parts:
        zero_shot, answers = analyses.zero_shot(kept_classifiers(options, device), dataset, features)
        result["zero_shot"] = zero_shot
        if answers is not None:
            keep_answers(options.out, job.name, answers)
            draw_worst(options.out, job.name, dataset, zero_shot["classes"])
    if dataset.kind != "retrieval" and "probe" in parts:
        _probe(options, job, features, result, device)
    result = analyses.finite(result)
    storage.write_bytes(result_uri(options, job.name), _json(result))
    return result


def measure_shift(options: Options, standard: Job, shifted: Job, device: str) -> dict[str, Any]:
    """Right answers of a pair of sets; plain, without Ray."""
    sides = [(job.splits[options.split], job.folders[options.split].read()) for job in (standard, shifted)]
    return count_pair(kept_classifiers(options, device), *sides)


def kept_classifiers(options: Options, device: str) -> KeptClassifiers:
    """The model's zero-shot classifiers, kept with its features."""
    return KeptClassifiers(Embedder(options.model, device, options.batch_size), options.cache)


def _beside_people(options: Options, measured: Mapping[str, Job], name: str, uri: str) -> dict[str, Any]:
    found = kept_answers(options.out, name) if name in measured else None
    if found is None:
        raise EvaluationSetError(f"evaluation set {name}: no answers of the model to hold beside those of {uri}")
    names = measured[name].splits[options.split].class_names
    truth, model = (
        {key: names[place] for key, place in zip(found.key_N, places_N.tolist(), strict=True)}
        for places_N in (found.label_N, found.best_N)
    )
    return beside_people(read_answers(uri, truth), truth, model)


def summary_line(result: Mapping[str, Any]) -> str:
    """A set's main figures."""
    found = []
    if "retrieval" in result:
        ways = analyses.WAYS
        found += [f"{way} {result['retrieval'][way]['recall@1']['value']:.1%} recall@1" for way in ways]
    if "zero_shot" in result:
        found.append(f"zero-shot {analyses.ensemble_score(result):.1%} {result['zero_shot']['metric']}")
    if "probe" in result:
        words = "" if "zero_shot" in result else f" {result['probe']['metric']}"
        found.append(f"probe {result['probe']['score']['value']:.1%}{words}")
    return ", ".join([*found, *result["notes"]])


def _probe(options: Options, job: Job, features: Any, result: dict[str, Any], device: str) -> None:
    dataset = job.splits[options.split]
    if TRAINING not in job.folders:
        result["notes"].append("no probe: no train split")
        return
    own = next((job.folders[name].read() for name in VALIDATION if name in job.folders), None)
    probing = analyses.Probing(dataset, job.folders[TRAINING].read(), features, own, device)
    result["probe"] = probing.full()
    if "few-shot" in SUITED[dataset.kind] & options.parts:
        zero_shot_score = analyses.ensemble_score(result) if "zero_shot" in result else None
        found = probing.few(options.shots, options.repeats)
        result["few_shot"] = analyses.few_shot_result(found, result["probe"], zero_shot_score)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _reason(name: str, error: Any) -> str:
    """One line: an evaluation's own errors as they are, others with the set's name and their kind."""
    cause = getattr(error, "cause", error)
    text = " ".join(str(cause).split())
    if isinstance(cause, EvaluationSetError | storage.StorageError):
        return text
    kind = "" if isinstance(cause, ValueError) else f"{type(cause).__name__}: "
    return f"evaluation set {name}: {kind}{text}"
