"""Recall@k between pictures and their captions, exact (`retrieval_index` is for very many).

Shapes: I pictures, T captions, D embedding, K depths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy
import torch
from torch import Tensor

from orchestrator.statistics.intervals import Interval, bootstrap

DEPTHS = (1, 5, 10)
# Similarities held at once: tens of megabytes.
CHUNK = 1 << 22


def recall_hits(
    query_QD: Tensor, item_MD: Tensor, query_picture_Q: Tensor, item_picture_M: Tensor, depths: Sequence[int] = DEPTHS
) -> Tensor:
    """Whether one of a query's own items is among its k nearest.

    A tie is worth the probability that random order would bring an own item into the k.

    Parameters
    ----------
    query_QD, item_MD : unit-length embeddings on one device
    query_picture_Q, item_picture_M : the picture that each belongs to; equal: an own item
    depths : the K values of k

    Returns
    -------
    (Q, K) float64 in [0, 1]

    Raises
    ------
    ValueError : a query without an item of its own, or an embedding with NaN
    """
    if not bool(torch.isin(query_picture_Q, item_picture_M).all()):
        alone = int(torch.isin(query_picture_Q, item_picture_M).logical_not().nonzero()[0])
        raise ValueError(
            f"query {alone} has no item of its own: every picture needs a caption and every caption a picture"
        )
    if bool(query_QD.isnan().any() or item_MD.isnan().any()):
        raise ValueError("an embedding holds NaN: the model's weights do")
    depth_K = torch.tensor(depths, dtype=torch.float64)
    parts = []
    step = max(1, CHUNK // len(item_MD))
    order_M = item_picture_M.argsort()
    sorted_M = item_picture_M[order_M]
    for query, picture in zip(query_QD.split(step), query_picture_Q.split(step), strict=True):
        similarity_QM = query @ item_MD.T
        # The pairs (query, own item), without looking through all items.
        first_Q, last_Q = (torch.searchsorted(sorted_M, picture, right=right) for right in (False, True))
        query_P = torch.arange(len(query), device=query.device).repeat_interleave(last_Q - first_Q)
        before_Q = torch.cumsum(last_Q - first_Q, 0) - (last_Q - first_Q)
        item_P = order_M[torch.arange(len(query_P), device=query.device) + (first_Q - before_Q)[query_P]]
        own_P = similarity_QM[query_P, item_P]
        best_Q = torch.full_like(similarity_QM[:, 0], -torch.inf).scatter_reduce(0, query_P, own_P, "amax")
        above_Q, reached_Q = (
            reach(similarity_QM, best_Q[:, None]).sum(dim=1).cpu().double() for reach in (torch.gt, torch.ge)
        )
        own_Q = torch.zeros_like(best_Q).index_add(0, query_P, (own_P == best_Q[query_P]).float()).cpu().double()
        tied_Q1, own_Q1 = (reached_Q - above_Q)[:, None], own_Q[:, None]
        drawn_QK = torch.minimum((depth_K - above_Q[:, None]).clamp(min=0), tied_Q1)
        # None of the own ones among those drawn without replacement.
        missed_QK = scipy.stats.hypergeom.pmf(0, tied_Q1.numpy(), own_Q1.numpy(), drawn_QK.numpy())
        parts.append(1 - torch.from_numpy(missed_QK))
    return torch.cat(parts)


def retrieval(
    image_ID: Tensor, text_TD: Tensor, picture_T: Tensor, depths: Sequence[int] = DEPTHS
) -> tuple[Tensor, Tensor]:
    """Both ways: pictures to captions, captions to pictures.

    Parameters
    ----------
    image_ID, text_TD : unit-length embeddings
    picture_T : the picture (0 to I-1) of each caption; a picture may have several
    depths : the K values of k

    Returns
    -------
    hits (I, K) and (T, K), as of `recall_hits`; recall@k is the mean of a column
    """
    picture_I = torch.arange(len(image_ID), device=picture_T.device)
    there = recall_hits(image_ID, text_TD, picture_I, picture_T, depths)
    return there, recall_hits(text_TD, image_ID, picture_T, picture_I, depths)


def recall_interval(hit_Q: np.ndarray, picture_Q: np.ndarray, resamples: int = 1000) -> Interval:
    """The 95% bootstrap interval of a recall.

    Pictures are drawn, each with all of its captions: captions of one picture are found or missed together, so that
    drawing them one by one would make the interval too narrow.

    Parameters
    ----------
    hit_Q : a column of `recall_hits`
    picture_Q : the picture (0 to I-1) of each query
    resamples : of the pictures
    """
    hits_I, count_I = np.bincount(picture_Q, hit_Q), np.bincount(picture_Q)
    return bootstrap(lambda drawn: hits_I[drawn].sum() / count_I[drawn].sum(), len(count_I), resamples)
