"""Near-duplicates by their pixels: the same picture encoded anew, resized, stretched a little or cut at its edges.

No model looks: what is found holds for every model. Two steps. Coarse: pictures of 8 x 8 pixels, whole and cut in nine
ways, correlate; most that differ stop here. Fine: of two that do, the cut that fits best is sought and compared at
16 x 16 pixels, after brightness and contrast are made equal. They are near-duplicates where they correlate and no
sixteenth of the picture differs: different pictures of one kind, emoji say, differ somewhere.

Pictures of one plain colour say nothing and match nothing. Mirrored, turned and grey copies are not found.

Shapes: B pictures of training, M of evaluation, V cuts, T a thumbnail's side, S a descriptor's, K boxes tried.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from orchestrator.data.images import decode_rgb

# Raise it when other pairs are found than before: what was searched is then searched again.
METHOD = 1
T, COARSE, FINE, CELLS = 32, 8, 16, 4
# Coarse correlation from which two are looked at again; the correlation and the difference, in grey levels of 255 (root
# of the mean square), of the worst of 4 x 4 cells that make them near-duplicates.
LOOK, SAME, DIFFERENCE = 0.8, 0.93, 24.0
CUT = 0.85
# What the fine search leaves of a picture along a side, and how much more along one than along the other.
LEAST, STRETCH = 0.75, 1.2
# Where the contrasts of two pictures differ more, they are not made equal.
CONTRAST = 0.7, 1.4
# Pictures of evaluation that are compared at once: tens of megabytes.
AT_ONCE = 2048
# A thumbnail whose grey levels deviate by less is one plain colour.
PLAIN = 2.0


class Match(NamedTuple):
    """A near-duplicate: the places of the two pictures, and how well they correlate, up to 1."""

    training: int
    evaluation: int
    correlation: float


class Bank(NamedTuple):
    """The pictures of evaluation: thumbnails uint8 (M, T, T, 3), descriptors float16 (M, V, 3SS); 7 KB a picture."""

    thumbnail_M: np.ndarray
    descriptor_MVD: np.ndarray


def thumbnail(data: bytes) -> np.ndarray:
    """An encoded picture -> uint8 (T, T, 3), its sides stretched to a square.

    Raises
    ------
    ImageError
    """
    return np.asarray(decode_rgb(data).resize((T, T), Image.Resampling.BICUBIC, reducing_gap=2.0))


def make_bank(thumbnail_M: np.ndarray) -> Bank:
    """Descriptors of thumbnails (M, T, T, 3)."""
    parts = (thumbnail_M[start : start + AT_ONCE] for start in range(0, len(thumbnail_M), AT_ONCE))
    return Bank(thumbnail_M, np.concatenate([_descriptors(part).astype(np.float16) for part in parts]))


def find(bank: Bank, thumbnail_B: np.ndarray) -> list[Match]:
    """All near-duplicates between pictures of training (B, T, T, 3) and those of evaluation.

    Either may be the whole of which the other is a cut.
    """
    found = []
    mine_BVD = _descriptors(thumbnail_B)
    count, cuts, width = mine_BVD.shape
    for start in range(0, len(bank.thumbnail_M), AT_ONCE):
        theirs_MVD = bank.descriptor_MVD[start : start + AT_ONCE].astype(np.float32)
        # Mine as the whole of which theirs holds a cut, and theirs as the whole.
        mine_BMV = (mine_BVD[:, 0] @ theirs_MVD.reshape(-1, width).T).reshape(count, -1, cuts)
        theirs_BVM = (mine_BVD.reshape(-1, width) @ theirs_MVD[:, 0].T).reshape(count, cuts, -1)
        for b, m in zip(*np.nonzero(np.maximum(mine_BMV.max(axis=2), theirs_BVM.max(axis=1)) >= LOOK), strict=True):
            mine, theirs = thumbnail_B[b], bank.thumbnail_M[start + m]
            correlation = _compare(mine, theirs, BOXES_V4[mine_BMV[b, m].argmax()])
            if correlation is None:
                correlation = _compare(theirs, mine, BOXES_V4[theirs_BVM[b, :, m].argmax()])
            if correlation is not None:
                found.append(Match(int(b), int(start + m), correlation))
    return found


def _compare(whole: np.ndarray, other: np.ndarray, box_4: np.ndarray) -> float | None:
    """The correlation of a thumbnail with the cut of another that fits best, near a box; None: no near-duplicates."""
    whole_1 = _cut(whole.astype(np.float32)[None], WHOLE_14, FINE)[:, 0]
    other_1 = other.astype(np.float32)[None]
    (unit_D,) = _unit(whole_1)
    best = -1.0
    for step, enough in STEPS:
        for _ in range(MOVES_A_STEP):
            tried_K4 = np.clip(box_4 + step * MOVES_K4, 0, 1)
            side_K2 = tried_K4[:, 2:] - tried_K4[:, :2]
            tried_K4 = tried_K4[(side_K2.min(axis=1) >= np.maximum(LEAST, side_K2.max(axis=1) / STRETCH))]
            correlation_K = _unit(_cut(other_1, tried_K4, FINE)[0]) @ unit_D
            if correlation_K.max() <= best:
                break
            best, box_4 = float(correlation_K.max()), tried_K4[correlation_K.argmax()]
        if best < enough:
            return None
    # One brightness for all colours: of two hearts of one shape, a red one is not a green one.
    x, y = (one - one.mean() for one in (whole_1[0], _cut(other_1, box_4[None], FINE)[0, 0]))
    difference = x - y * np.clip((x * y).sum() / (y * y).sum(), *CONTRAST)
    cells = (difference**2).reshape(CELLS, FINE // CELLS, CELLS, FINE // CELLS, 3).mean(axis=(1, 3, 4))
    return best if np.sqrt(cells.max()) <= DIFFERENCE else None


def _descriptors(thumbnail_M: np.ndarray) -> np.ndarray:
    """(M, V, 3SS): coarse pixels of each cut, each colour of mean 0, of length 1; zeros of a plain colour."""
    return _unit(_cut(thumbnail_M.astype(np.float32), BOXES_V4, COARSE))


def _unit(pixels: np.ndarray) -> np.ndarray:
    flat = (pixels - pixels.mean(axis=(-3, -2), keepdims=True)).reshape(*pixels.shape[:-3], -1)
    length = np.linalg.norm(flat, axis=-1, keepdims=True)
    return np.where(length >= PLAIN * np.sqrt(flat.shape[-1]), flat / np.maximum(length, 1e-6), 0)


def _cut(pixels_M: np.ndarray, box_K4: np.ndarray, side: int) -> np.ndarray:
    """Boxes of pictures (M, T, T, 3), left, top, right and bottom in [0, 1], averaged to (M, K, side, side, 3)."""
    across_KST, down_KST = (_weights(box_K4[:, near], box_K4[:, near + 2], side) for near in (0, 1))
    rows = down_KST.reshape(-1, T) @ pixels_M.reshape(-1, T, T * 3)
    return across_KST[:, None] @ rows.reshape(len(pixels_M), len(box_K4), side, T, 3)


def _weights(low_K: np.ndarray, high_K: np.ndarray, side: int) -> np.ndarray:
    """(K, side, T): the share of each of T pixels in each of `side` equal parts of an interval."""
    edge_KS = T * (low_K[:, None] + (high_K - low_K)[:, None] * np.arange(side + 1) / side)
    place_T = np.arange(T)
    share_KST = np.minimum(edge_KS[:, 1:, None], place_T + 1) - np.maximum(edge_KS[:, :-1, None], place_T)
    share_KST = share_KST.clip(min=0)
    return (share_KST / share_KST.sum(axis=2, keepdims=True)).astype(np.float32)


WHOLE_14 = np.array([[0.0, 0.0, 1.0, 1.0]])
_CORNERS = [(x, y) for x in np.linspace(0, 1 - CUT, 3) for y in np.linspace(0, 1 - CUT, 3)]
BOXES_V4 = np.concatenate([WHOLE_14, [(x, y, x + CUT, y + CUT) for x, y in _CORNERS]])
# Edges move one by one, together (the box moves) and against each other (it grows or shrinks); or nothing does.
_EDGES = np.eye(4)
_TOGETHER = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, -1, -1]])
MOVES_K4 = np.concatenate([np.zeros((1, 4)), _EDGES, -_EDGES, _TOGETHER, -_TOGETHER])
# How far edges move, in shares of a side, and the correlation without which the search ends.
STEPS = ((0.04, 0.85), (0.02, 0.9), (0.01, SAME))
MOVES_A_STEP = 4
