"""Every sample's answers, kept beside the results and read by whatever looks at single pictures."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import storage
from orchestrator.evaluate.analyses import ENSEMBLE
from orchestrator.evaluate.plan import file_name


class Answers(NamedTuple):
    """What the prompt ensemble says of a set's pictures, in the order of its shards.

    Parameters
    ----------
    key_N : names of the samples
    label_N, best_N : their class, and the likeliest one
    """

    key_N: list[str]
    label_N: np.ndarray
    best_N: np.ndarray

    @property
    def right_N(self) -> np.ndarray:
        return self.label_N == self.best_N


def _uri(out: str, name: str) -> str:
    return storage.join(out, "predictions", f"{file_name(name)}.parquet")


def keep_answers(out: str, name: str, table: pa.Table) -> None:
    """Keep a set's answers, as `measure.predictions` makes them, in a folder of results."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    storage.write_bytes(_uri(out, name), sink.getvalue())


def kept_answers(out: str, name: str) -> Answers | None:
    """A set's answers; None where there are none: sets of other kinds than classification have none."""
    uri = _uri(out, name)
    if not storage.exists(uri):
        return None
    table = pq.read_table(io.BytesIO(storage.read_bytes(uri)))
    best_N = table[f"{ENSEMBLE}: classes"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)[:, 0]
    return Answers(table["key"].to_pylist(), table["label"].to_numpy(), best_N)
