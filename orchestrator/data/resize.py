"""Pillow's bicubic resize, bit for bit, three times as fast: a cut of a picture -> uint8 pixels, channels first.

Most of the time that an exact picture takes is Pillow's resize, not its JPEG decoder. The same integer arithmetic, laid
out so that a compiler can use vector instructions, needs a third of it (benchmarks/RESULTS.md, "Ingest").

Shapes: H, W of the source, R, S rows and columns of the result. A pixel is a uint32 of four bytes: red, green, blue and
one unused, as Pillow keeps it in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pyarrow as pa
from PIL import Image

# Weights are integers of 22 bits after the point: 8 bits of pixel and 2 of overshoot stay within 32.
_PRECISION = 22
# Rows that are narrowed together: 32 pixels fill two cache lines.
_STRIP = 32


def _compiled(function: Callable) -> Any:
    """Compiled at its first call and kept on disk, beside this file or in the user's cache."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # there is no place to keep it
        return numba.njit(nogil=True)(function)


def resize_bicubic(
    image: Image.Image,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    corner: tuple[int, int],
    out: np.ndarray,
) -> np.ndarray:
    """A window of a cut of a picture, resized: bicubic, antialiased.

    Equal to `image.crop(box).resize(size, BICUBIC)` and the window cut out of that, for a box of whole pixels. Of
    another box, the pixels that it touches are cut, and the resize is told its exact place in them. Rows are always
    narrowed first, as in Pillow up to 12; Pillow 13 begins with the columns where the height shrinks by more than twice
    as many pixels as the width, and rounds differently there.

    Parameters
    ----------
    image : of mode RGB, H rows of W pixels
    box : left, top, right, bottom in pixels of the image, not empty and inside it; what lies outside is not looked at
    size : width and height of the resized cut, in pixels
    corner : left and top of the window in the resized cut, in pixels
    out : uint8 (3, R, S), contiguous, to write into; its size is the window's

    Returns
    -------
    out

    Source: Pillow's Resample.c, whose weights and rounding this follows.
    """
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    # Pillow keeps a box in single precision.
    place = np.array(box, np.float32) - np.array([left, top, left, top], np.float32)
    _resize(_pixels_HW(image), (left, top, right, bottom), place, size, corner, out)
    return out


def _pixels_HW(image: Image.Image) -> np.ndarray:
    """The picture's own memory, uint32 (H, W), read only."""
    try:
        buffer = pa.array(image).values.buffers()[1]
    except ValueError:  # Pillow keeps a large picture in several pieces
        buffer = image.tobytes("raw", "RGBX")
    return np.frombuffer(buffer, np.uint32).reshape(image.height, image.width)


@_compiled
def _cubic(x):
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    if x < 2.0:
        return (((x - 5) * x + 8) * x - 4) * a
    return 0.0


@_compiled
def _weights(pixels, start, stop, size, first, count):
    """What `count` pixels of the result, from `first` of `size`, take from which of `pixels` along one side.

    Returns: place of the first source pixel, number of source pixels, and their weights, a row a result pixel.
    """
    scale = np.float64(stop - start) / size
    stretch = max(scale, 1.0)
    support = 2.0 * stretch
    places, taps = np.empty(count, np.int64), np.empty(count, np.int64)
    weights = np.zeros((count, math.ceil(support) * 2 + 1), np.int32)
    exact = np.empty(weights.shape[1])
    for i in range(count):
        centre = start + (first + i + 0.5) * scale
        low = max(int(centre - support + 0.5), 0)
        n = min(int(centre + support + 0.5), pixels) - low
        total = 0.0
        for k in range(n):
            exact[k] = _cubic((k + low - centre + 0.5) * (1.0 / stretch))
            total += exact[k]
        for k in range(n):
            weight = exact[k] / total if total != 0.0 else exact[k]
            weights[i, k] = int(weight * (1 << _PRECISION) + (-0.5 if weight < 0 else 0.5))
        places[i], taps[i] = low, n
    return places, taps, weights


@_compiled
def _weigh(lines, place, taps, weights, sums):
    """sums = the weighted sum of `taps` lines of bytes from `place` on, rounded to bytes."""
    length = sums.shape[0]
    for m in range(length):
        sums[m] = 1 << (_PRECISION - 1)
    k = 0
    while k + 4 <= taps:  # four at a time: a quarter of the loads and stores of the sums
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        a, b, c, d = lines[place + k], lines[place + k + 1], lines[place + k + 2], lines[place + k + 3]
        for m in range(length):
            ab = np.int32(w0 * np.int32(a[m])) + np.int32(w1 * np.int32(b[m]))
            cd = np.int32(w2 * np.int32(c[m])) + np.int32(w3 * np.int32(d[m]))
            sums[m] += np.int32(ab) + np.int32(cd)
        k += 4
    while k < taps:
        a = lines[place + k]
        for m in range(length):
            sums[m] += weights[k] * np.int32(a[m])
        k += 1
    for m in range(length):
        sums[m] = max(0, min(255, sums[m] >> _PRECISION))


@_compiled
def _resize(pixels_HW, cut, box, size, corner, out):
    left, top, right, bottom = cut
    rows, columns = out.shape[1], out.shape[2]
    x_places, x_taps, x_weights = _weights(right - left, box[0], box[2], size[0], corner[0], columns)
    y_places, y_taps, y_weights = _weights(bottom - top, box[1], box[3], size[1], corner[1], rows)
    y_start, y_stop = y_places[0], y_places[rows - 1] + y_taps[rows - 1]
    x_start, x_stop = x_places[0], x_places[columns - 1] + x_taps[columns - 1]

    # A strip of rows lies on its side, so that what is summed over is not what lies side by side in memory.
    strip = np.empty((right - left, _STRIP), np.uint32)
    narrow = np.empty((bottom - top, columns), np.uint32)
    sums = np.empty(4 * _STRIP, np.int32)
    for y in range(y_start, y_stop, _STRIP):
        height = min(_STRIP, y_stop - y)
        for x in range(x_start, x_stop):
            line = strip[x]
            for i in range(_STRIP):  # of a known length; rows past the end repeat the last
                line[np.uint64(i)] = pixels_HW[np.uint64(top + y + min(i, height - 1)), np.uint64(left + x)]
        for j in range(columns):
            _weigh(strip.view(np.uint8), x_places[j], x_taps[j], x_weights[j], sums)
            for i in range(height):
                narrow[y + i, j] = sums[4 * i] | sums[4 * i + 1] << 8 | sums[4 * i + 2] << 16

    sums = np.empty(4 * columns, np.int32)
    for i in range(rows):
        _weigh(narrow.view(np.uint8), y_places[i], y_taps[i], y_weights[i], sums)
        for channel in range(3):
            for j in range(columns):
                out[channel, i, j] = sums[4 * j + channel]
