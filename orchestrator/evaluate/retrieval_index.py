"""Recall@k through an index, where comparing every picture with every caption would take hours.

faiss' inverted file: items are grouped around centres, and a query looks into the groups whose centres are nearest.
How many it looks into is doubled until a sample of queries finds what exact search finds. faiss-cpu is no dependency of
this project; without it search is exact.

Shapes: Q queries, M items, D embedding, K depths, S sampled queries.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Similarities from which an index is worth building; of 512 numbers each, they are 10 TFLOP.
WORTH = 10**10
# Of the nearest items that exact search finds, the share that the index has to find, measured on so many queries.
ENOUGH, SAMPLED = 0.99, 1000
# Items that a group's centre is fitted to, on average, and rounds of the fitting.
FITTED, ROUNDS = 64, 10


class IndexHits(NamedTuple):
    """What `recall_hits` gives, by way of an index.

    Parameters
    ----------
    hit_QK : float64, 1 where one of a query's own items is among its k nearest, else 0
    recall : share of the nearest items that the index finds, on a sample of queries
    looked_into : share of the groups that a query looks into
    """

    hit_QK: np.ndarray
    recall: float
    looked_into: float


def worth_an_index(queries: int, items: int) -> bool:
    """Whether there is an index, and so much to compare that it helps."""
    return queries * items >= WORTH and importlib.util.find_spec("faiss") is not None


def index_hits(
    query_QD: np.ndarray,
    item_MD: np.ndarray,
    query_picture_Q: np.ndarray,
    item_picture_M: np.ndarray,
    depths: Sequence[int],
    seed: int = 0,
) -> IndexHits:
    """Whether one of a query's own items is among its k nearest, as an index finds them; ties as they come.

    Parameters
    ----------
    query_QD, item_MD : unit-length embeddings, float32
    query_picture_Q, item_picture_M : the picture that each belongs to; equal: an own item
    depths : the K values of k
    seed : of the queries that recall is measured on
    """
    import faiss

    depth = min(max(depths), len(item_MD))
    item_MD = np.ascontiguousarray(item_MD)
    groups = max(1, int(4 * np.sqrt(len(item_MD))))
    index = faiss.IndexIVFFlat(
        faiss.IndexFlatIP(item_MD.shape[1]), item_MD.shape[1], groups, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.max_points_per_centroid, index.cp.niter = FITTED, ROUNDS
    # With fewer items to a centre than faiss likes it warns, and does as well.
    index.cp.min_points_per_centroid = 1
    index.train(item_MD)
    index.add(item_MD)
    sample_S = np.random.default_rng(seed).permutation(len(query_QD))[:SAMPLED]
    _, exact_SK = faiss.knn(query_QD[sample_S], item_MD, depth, metric=faiss.METRIC_INNER_PRODUCT)
    index.nprobe = 1
    while (recall := _shared(index.search(query_QD[sample_S], depth)[1], exact_SK)) < ENOUGH and index.nprobe < groups:
        index.nprobe = min(2 * index.nprobe, groups)
    _, near_QK = index.search(np.ascontiguousarray(query_QD), depth)
    # -1: the groups that were looked into hold fewer items.
    own_QK = (item_picture_M[near_QK] == query_picture_Q[:, None]) & (near_QK >= 0)
    hit_QK = np.stack([own_QK[:, :k].any(axis=1) for k in depths], axis=1).astype(np.float64)
    return IndexHits(hit_QK, recall, index.nprobe / groups)


def _shared(found_SK: np.ndarray, exact_SK: np.ndarray) -> float:
    """The share of the items on the right that stand in the same row on the left."""
    return float((found_SK[:, :, None] == exact_SK[:, None, :]).any(axis=1).mean())
