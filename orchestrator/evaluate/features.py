"""What a model makes of an evaluation set, stored once and read by every analysis.

    <root>/<model fingerprint>/<set>-<content>/<split>/<shard>-<first>-<samples>.parquet    rows of one shard
    <root>/<model fingerprint>/<set>-<content>/<split>/complete.json                        written last

The fingerprint is of the model's weights, vocabulary and image transform, the content of the split's shards: features
of another model, another transform or other data lie elsewhere. A part has its name only when it is whole.

Shapes: N pictures, T captions, C classes, D embedding, F features before the projection.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import storage
from orchestrator.evaluate.datasets import EvaluationSet, EvaluationSetError

COMPLETE = "complete.json"
# Part of every folder's name: raise it when what is written changes.
LAYOUT = 1


class Part(NamedTuple):
    """Some neighbouring samples of a shard."""

    shard: int
    first: int
    samples: int

    @property
    def file(self) -> str:
        return f"{self.shard:05d}-{self.first:08d}-{self.samples:05d}.parquet"


@dataclass(frozen=True)
class Features:
    """A split as a model sees it, in the order of its shards.

    Parameters
    ----------
    key_N : names of the samples
    label : classes (N,), or 0 and 1 (N, C), or None for retrieval
    embedding_ND : unit length
    feature_NF : before the projection
    caption_T, caption_embedding_TD, picture_T : retrieval: texts, their embeddings, the picture that each belongs to
    """

    key_N: list[str]
    label: np.ndarray | None
    embedding_ND: np.ndarray
    feature_NF: np.ndarray
    caption_T: list[str]
    caption_embedding_TD: np.ndarray
    picture_T: np.ndarray


@dataclass(frozen=True)
class FeatureFolder:
    """Where the features of one split of one set lie.

    Parameters
    ----------
    uri : the folder
    dataset : the set's name, for errors
    """

    uri: str
    dataset: str

    @property
    def complete(self) -> bool:
        return storage.exists(storage.join(self.uri, COMPLETE))

    def parts(self) -> list[Part]:
        """What is there already, in order."""
        if not storage.exists(self.uri):
            return []
        names = (uri.rsplit("/", 1)[-1] for uri in storage.list_dir(self.uri))
        found = (re.fullmatch(r"(\d{5,})-(\d{8,})-(\d{5,})\.parquet", name) for name in names)
        return sorted(Part(*map(int, match.groups())) for match in found if match)

    def write(self, part: Part, table: pa.Table) -> None:
        """Store a part, whole or not at all."""
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="none")
        storage.write_bytes(storage.join(self.uri, part.file), sink.getvalue())

    def finish(self, parts: Iterable[Part]) -> None:
        """Say that all of the split is there: just these parts."""
        ordered = sorted(parts)
        content = {"samples": sum(part.samples for part in ordered), "parts": ordered}
        storage.write_bytes(storage.join(self.uri, COMPLETE), json.dumps(content).encode())

    def read(self) -> Features:
        """All of it.

        Raises
        ------
        EvaluationSetError : it is not whole, or damaged
        """
        if not self.complete:
            raise EvaluationSetError(f"evaluation set {self.dataset}: {self.uri} is not whole; evaluate again")
        parts = [Part(*part) for part in json.loads(storage.read_bytes(storage.join(self.uri, COMPLETE)))["parts"]]
        with ThreadPoolExecutor(8) as threads:
            tables = list(threads.map(self._read_part, parts))
        return _joined(pa.concat_tables(tables))

    def _read_part(self, part: Part) -> pa.Table:
        uri = storage.join(self.uri, part.file)
        cure = f"delete the folder {self.uri} and run the evaluation again"
        try:
            table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
        except (storage.MissingObject, pa.ArrowInvalid, OSError) as error:
            raise EvaluationSetError(f"evaluation set {self.dataset}: {uri}: {error}; {cure}") from None
        if table.num_rows != part.samples:
            raise EvaluationSetError(
                f"evaluation set {self.dataset}: {uri} holds {table.num_rows} rows, not {part.samples}; {cure}"
            )
        return table


def feature_folder(root: str, fingerprint: str, dataset: EvaluationSet, split: str) -> FeatureFolder:
    """The place of a split's features; it need not be there.

    Parameters
    ----------
    root : URI of all features
    fingerprint : of the model, its transform included
    dataset, split : the split
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", dataset.name)
    uri = storage.join(root, fingerprint, f"{name}-{dataset.content}-{LAYOUT}", split)
    return FeatureFolder(uri, dataset.name)


def part_table(
    keys: Sequence[str],
    labels: Sequence[int | list[int] | None],
    texts: Sequence[list[str]],
    embedding_ND: np.ndarray,
    feature_NF: np.ndarray,
    caption_embedding_TD: np.ndarray,
) -> pa.Table:
    """Rows of a part; a picture's captions and their embeddings lie in its row."""
    ends = np.cumsum([0, *map(len, texts)])
    captions = [caption_embedding_TD[start:stop].ravel() for start, stop in itertools.pairwise(ends)]
    return pa.table(
        {
            "key": pa.array(keys, pa.string()),
            "label": pa.array(
                [None if one is None else one if isinstance(one, list) else [one] for one in labels],
                pa.list_(pa.int32()),
            ),
            "embedding": _vectors(embedding_ND),
            "feature": _vectors(feature_NF),
            "captions": pa.array(texts, pa.list_(pa.string())),
            "caption_embeddings": pa.array(captions, pa.list_(pa.float32())),
        }
    )


def _vectors(value_NV: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(value_NV, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, value_NV.shape[1])


def _joined(table: pa.Table) -> Features:
    def matrix(name: str) -> np.ndarray:
        column = table[name].combine_chunks()
        return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)

    label_column = table["label"].combine_chunks()
    label = None
    if label_column.null_count == 0:
        # A class is a list of one; so is the label of a multi-label set of one class, which nobody has.
        label = label_column.flatten().to_numpy(zero_copy_only=False).reshape(len(label_column), -1).astype(np.int64)
        label = label[:, 0] if label.shape[1] == 1 else label
    embedding_ND = matrix("embedding")
    captions = table["captions"].to_pylist()
    caption_TD = table["caption_embeddings"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return Features(
        key_N=table["key"].to_pylist(),
        label=label,
        embedding_ND=embedding_ND,
        feature_NF=matrix("feature"),
        caption_T=[text for texts in captions for text in texts],
        caption_embedding_TD=caption_TD.reshape(-1, embedding_ND.shape[1]),
        picture_T=np.repeat(np.arange(len(captions)), [len(texts) for texts in captions]),
    )
