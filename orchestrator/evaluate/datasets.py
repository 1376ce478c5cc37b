"""Evaluation sets in CLIP_benchmark's WebDataset layout.

root/classnames.txt, root/zeroshot_classification_templates.txt    one a line
root/<split>/nshards.txt, root/<split>/{0..n-1}.tar                 samples: a picture and .cls
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator import storage
from orchestrator.config import DataConfig
from orchestrator.data.shards import RawSample, Reject, read_shard


class EvaluationSetError(ValueError):
    """An evaluation set that cannot be measured; the message names the set, the file and the cure."""


@dataclass(frozen=True)
class EvaluationSet:
    """A classification set.

    Parameters
    ----------
    name : for tables
    class_names : C names; a sample's label is a place in this list
    templates : prompt templates with {c}
    shards : URIs
    """

    name: str
    class_names: list[str]
    templates: list[str]
    shards: list[str]

    def samples(self) -> Iterator[RawSample]:
        """The samples in the order of the shards; a bad one is an error, since it would change what is measured."""
        for uri in self.shards:
            for sample in read_shard(uri, DataConfig(), captions=False):
                if isinstance(sample, Reject):
                    raise EvaluationSetError(
                        f"evaluation set {self.name}: {uri} sample {sample.index} ({sample.key}): {sample.reason}"
                    )
                if not isinstance(sample.label, int) or not 0 <= sample.label < len(self.class_names):
                    raise EvaluationSetError(
                        f"evaluation set {self.name}: {uri} sample {sample.index} ({sample.key}): label "
                        f"{sample.label!r} is not a place in classnames.txt (0 to {len(self.class_names) - 1})"
                    )
                yield sample


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
    class_names = _lines(name, storage.join(root, "classnames.txt"))
    if not templates:
        templates = _lines(name, storage.join(root, "zeroshot_classification_templates.txt"))
    for template in templates:
        if "{c}" not in template:
            raise EvaluationSetError(f"evaluation set {name}: template {template!r} has no {{c}} for the class name")
    count_uri = storage.join(root, split, "nshards.txt")
    count = _lines(name, count_uri)[0]
    if not count.isdigit() or int(count) < 1:
        raise EvaluationSetError(f"evaluation set {name}: {count_uri} holds {count!r}, not a number of shards")
    shards = [storage.join(root, split, f"{number}.tar") for number in range(int(count))]
    return EvaluationSet(name, class_names, templates, shards)


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
