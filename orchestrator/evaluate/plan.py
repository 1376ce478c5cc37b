"""What an evaluation measures: sets, splits, where their features lie and which results still hold."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from orchestrator import storage
from orchestrator.config import PlacementConfig
from orchestrator.evaluate.datasets import EvaluationSet, EvaluationSetError, Kind, has_split, open_evaluation_set
from orchestrator.evaluate.features import FeatureFolder, feature_folder
from orchestrator.evaluate.few_shot import SHOTS
from orchestrator.inference import Embedder
from orchestrator.inference.image_encoder import ImageEncoder

Part = Literal["zero-shot", "probe", "few-shot", "retrieval"]
SUITES: dict[str, tuple[Part, ...]] = {
    "all": ("zero-shot", "probe", "few-shot", "retrieval"),
    "zero-shot": ("zero-shot",),
    "probe": ("zero-shot", "probe"),
    "few-shot": ("zero-shot", "probe", "few-shot"),
    "robustness": ("zero-shot",),
    "retrieval": ("retrieval",),
}
SUITED: dict[Kind, set[Part]] = {
    "classification": {"zero-shot", "probe", "few-shot"},
    "multilabel": {"zero-shot", "probe"},
    "retrieval": {"retrieval"},
}
# Suites that look at pairs of sets, too.
SHIFTING = ("all", "robustness")
TRAINING, VALIDATION = "train", ("val", "valid", "validation")
# Raise it when a result's content changes: results of before are then measured again.
FORMAT = 3
# What needs a text tower.
WORDED: set[Part] = {"zero-shot", "retrieval"}


@dataclass(frozen=True)
class Options:
    """What to measure.

    Parameters
    ----------
    model : URI of a model directory, or of another library's image encoder
    datasets : URI of each set's folder, by name
    suite : a key of SUITES
    out : URI of the folder that results go to
    cache : URI of the folder that features are kept in; several models and runs may share it
    split : the split that is measured
    templates : prompt templates with {c}; empty: each set's own
    shots : examples a class of few-shot probes
    repeats : seeds of each number of shots
    batch_size : pictures in one forward pass
    shifts : `standard=shifted`, names of two sets; ImageNet's known shifts need none
    humans : by set, a CSV of people's answers to its pictures
    overlap : shards of training, to be searched for pictures of the sets
    image_column : of those that are Parquet, the column of encoded pictures
    image_only : the model is another library's image encoder: what needs words is left out
    placement : on which nodes
    """

    model: str
    datasets: dict[str, str]
    suite: str
    out: str
    cache: str
    split: str = "test"
    templates: list[str] = field(default_factory=list)
    shots: tuple[int, ...] = SHOTS
    repeats: int = 5
    batch_size: int = 256
    shifts: list[str] = field(default_factory=list)
    humans: dict[str, str] = field(default_factory=dict)
    overlap: list[str] = field(default_factory=list)
    image_column: str = "image"
    image_only: bool = False
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    @property
    def parts(self) -> set[Part]:
        """What is measured, of sets that it suits."""
        return set(SUITES[self.suite]) - (WORDED if self.image_only else set())

    @property
    def load(self) -> Callable[..., Embedder | ImageEncoder]:
        """Makes the model, of (device, batch_size)."""
        return partial(ImageEncoder if self.image_only else Embedder, self.model)


@dataclass
class Job:
    """One set: its splits and where their features lie.

    Parameters
    ----------
    name, kind : of the set
    splits : by name; the measured one first
    folders : of their features
    digest : of all that the result depends on
    """

    name: str
    kind: Kind
    splits: dict[str, EvaluationSet]
    folders: dict[str, FeatureFolder]
    digest: str


def open_jobs(options: Options, fingerprint: str, say: Callable[[str], None]) -> tuple[list[Job], dict[str, str]]:
    """The sets that can be opened, and why the others cannot; a set that the suite does not measure is left out.

    Raises
    ------
    EvaluationSetError : the suite measures none
    """
    jobs: list[Job] = []
    failed: dict[str, str] = {}
    for name, root in options.datasets.items():
        try:
            job = _job(options, name, root, fingerprint)
        except (EvaluationSetError, storage.StorageError) as error:
            failed[name] = str(error)
            say(f"{name}: failed: {error}")
            continue
        if SUITED[job.kind] & options.parts:
            jobs.append(job)
        else:
            say(f"{name}: left out: a set of {job.kind}, which suite {options.suite} does not measure")
    if not jobs and not failed:
        raise EvaluationSetError(f"suite {options.suite} measures none of the sets: {', '.join(options.datasets)}")
    return jobs, failed


def _job(options: Options, name: str, root: str, fingerprint: str) -> Job:
    splits = {options.split: open_evaluation_set(name, root, options.split, options.templates)}
    kind = splits[options.split].kind
    if "probe" in SUITED[kind] & options.parts:
        for split in (TRAINING, *VALIDATION):
            if split != options.split and has_split(root, split):
                splits[split] = open_evaluation_set(name, root, split, options.templates)
    folders = {split: feature_folder(options.cache, fingerprint, one, split) for split, one in splits.items()}
    dataset = splits[options.split]
    depends = [
        FORMAT, fingerprint, options.suite, options.split, options.shots, options.repeats,
        dataset.class_names, dataset.templates, {split: one.content for split, one in splits.items()},
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
    return Job(name, kind, splits, folders, digest)


def kept_result(options: Options, job: Job) -> dict[str, Any] | None:
    """A result of before, if it is of the same model, data and options."""
    uri = result_uri(options, job.name)
    if not storage.exists(uri):
        return None
    found = json.loads(storage.read_bytes(uri))
    return found if found.get("digest") == job.digest else None


def result_uri(options: Options, name: str) -> str:
    """Where a set's result lies."""
    return storage.join(options.out, "sets", f"{file_name(name)}.json")


def file_name(name: str) -> str:
    """A set's name as that of a file."""
    return name.replace("/", "_")
