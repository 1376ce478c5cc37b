"""Evaluation sets in CLIP_benchmark's WebDataset layout.

root/dataset_type.txt                                               retrieval | multilabel; absent: classification
root/classnames.txt, root/zeroshot_classification_templates.txt     one a line; a retrieval set has neither
root/<split>/nshards.txt, root/<split>/{0..n-1}.tar                 samples: a picture, and .cls, .npy or .txt
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, cast, get_args

import numpy as np

from orchestrator import storage
from orchestrator.config import DataConfig
from orchestrator.data.manifest import identity
from orchestrator.data.shards import RawSample, Reject, read_shard
from orchestrator.errors import UserError

Kind = Literal["classification", "multilabel", "retrieval"]
# The released names of ImageNet's classes have these twice; a tie between the two is shared out.
KNOWN_TWINS = {"missile", "sunglasses"}


class EvaluationSetError(UserError, ValueError):
    """An evaluation set that cannot be measured; the message names the set, the file and the cure."""


@dataclass(frozen=True)
class EvaluationSet:
    """One split of a set.

    Parameters
    ----------
    name : for tables
    class_names : C names; a sample's label is a place in this list. Empty for retrieval
    templates : prompt templates with {c}. Empty for retrieval
    shards : URIs
    kind : what a sample is labelled with: a class, a 0 or 1 for each class, or captions
    """

    name: str
    class_names: list[str]
    templates: list[str]
    shards: list[str]
    kind: Kind = "classification"

    def samples(self) -> Iterator[RawSample]:
        """The samples in the order of the shards; a bad one is an error, since it would change what is measured."""
        for uri in self.shards:
            yield from self.read(uri)

    def read(self, uri: str) -> Iterator[RawSample]:
        """The samples of one shard.

        Raises
        ------
        EvaluationSetError : a sample that cannot be measured
        StorageError : the shard cannot be read
        """
        captions = self.kind == "retrieval"
        for sample in read_shard(uri, DataConfig(format="webdataset", caption="txt"), captions):
            if isinstance(sample, Reject):
                raise self.error(uri, sample.index, sample.key, f"{sample.reason} {sample.detail}".strip())
            if captions:
                lines = [line.strip() for line in sample.texts[0].splitlines() if line.strip()]
                sample = replace(sample, texts=lines)
            elif problem := self._wrong(sample.label):
                raise self.error(uri, sample.index, sample.key, problem)
            yield sample

    def error(self, uri: str, index: int, key: str, problem: str) -> EvaluationSetError:
        """What is wrong with a sample."""
        return EvaluationSetError(f"evaluation set {self.name}: {uri} sample {index} ({key}): {problem}")

    @property
    def content(self) -> str:
        """16 hex digits that change when a shard does: of names, sizes and ETags or times, unread.

        Raises
        ------
        StorageError : a shard is missing
        """
        with ThreadPoolExecutor(16) as threads:
            shards = list(threads.map(identity, self.shards))
        return hashlib.sha256(json.dumps([self.kind, self.shards, shards]).encode()).hexdigest()[:16]

    def _wrong(self, label: int | np.ndarray | None) -> str:
        classes = len(self.class_names)
        if self.kind == "multilabel":
            if isinstance(label, np.ndarray) and label.shape == (classes,) and np.isin(label, [0, 1]).all():
                return ""
            shape = f"of shape {label.shape}" if isinstance(label, np.ndarray) else repr(label)
            return f"label {shape} is not a 0 or a 1 for each of the {classes} lines of classnames.txt (.npy)"
        if isinstance(label, int) and 0 <= label < classes:
            return ""
        return f"label {label!r} is not a place in classnames.txt (0 to {classes - 1})"


def open_evaluation_set(name: str, root: str, split: str, templates: list[str]) -> EvaluationSet:
    """Open a set.

    Parameters
    ----------
    name : for tables and errors
    root : URI of its folder
    split : test, train ...
    templates : prompt templates; empty: the set's own

    Raises
    ------
    EvaluationSetError : a file is missing, empty or wrong
    """
    kind = _kind(name, root)
    class_names: list[str] = []
    if kind == "retrieval":
        templates = []
    else:
        class_names = _lines(name, storage.join(root, "classnames.txt"))
        twins = [one for one, count in Counter(class_names).items() if count > 1 and one not in KNOWN_TWINS]
        if twins:
            raise EvaluationSetError(
                f"evaluation set {name}: {root}/classnames.txt names {twins[0]!r} more than once; words cannot tell "
                "such classes apart: give each a name of its own"
            )
        templates = templates or _lines(name, storage.join(root, "zeroshot_classification_templates.txt"))
    for template in templates:
        if "{c}" not in template:
            raise EvaluationSetError(f"evaluation set {name}: template {template!r} has no {{c}} for the class name")
    count_uri = storage.join(root, split, "nshards.txt")
    count = _lines(name, count_uri)[0]
    if not count.isdigit() or int(count) < 1:
        raise EvaluationSetError(f"evaluation set {name}: {count_uri} holds {count!r}, not a number of shards")
    shards = [storage.join(root, split, f"{number}.tar") for number in range(int(count))]
    return EvaluationSet(name, class_names, templates, shards, kind)


def has_split(root: str, split: str) -> bool:
    """Whether a set has a split of that name."""
    return storage.exists(storage.join(root, split, "nshards.txt"))


def _kind(name: str, root: str) -> Kind:
    uri = storage.join(root, "dataset_type.txt")
    if not storage.exists(uri):
        return "classification"
    kind = storage.read_bytes(uri).decode().strip().lower()
    if kind not in get_args(Kind):
        raise EvaluationSetError(
            f"evaluation set {name}: {uri} holds {kind!r}; it must be one of {', '.join(get_args(Kind))}"
        )
    return cast(Kind, kind)


def _lines(name: str, uri: str) -> list[str]:
    try:
        text = storage.read_bytes(uri).decode()
    except storage.MissingObject:
        raise EvaluationSetError(
            f"evaluation set {name}: {uri} is missing; it must be a folder in CLIP_benchmark's WebDataset layout"
        ) from None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise EvaluationSetError(f"evaluation set {name}: {uri} is empty")
    return lines
