"""Our resize against Pillow's, to the bit."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from orchestrator.data.resize import resize_bicubic


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Full of extremes: overshoot is clipped, and a wrong weight or order of passes shows."""
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((height, width, 3)) < 0.5, rng.integers(0, 256, (height, width, 3)), 255)
    return Image.fromarray(values.astype(np.uint8))


def pillow(image, size, box=None):
    """Rows, then columns: one call would choose the order itself, by Pillow's version and the picture's shape."""
    left, top, right, bottom = box or (0, 0, *image.size)
    rows = image.resize((size[0], image.height), Image.Resampling.BICUBIC, box=(left, 0, right, image.height))
    return np.asarray(rows.resize(size, Image.Resampling.BICUBIC, box=(0, top, size[0], bottom)))


def ours(image, box, size, corner=(0, 0), window=None):
    window = window or size
    out = np.empty((3, window[1], window[0]), np.uint8)
    assert resize_bicubic(image, box, size, corner, out) is out
    return out.transpose(1, 2, 0)


@pytest.mark.parametrize("seed", range(200))
def test_equal_to_pillow(seed):
    rng = np.random.default_rng(seed)
    width, height = (int(v) for v in rng.integers(1, 400, 2))
    left, top = int(rng.integers(width)), int(rng.integers(height))
    right, bottom = int(rng.integers(left, width)) + 1, int(rng.integers(top, height)) + 1
    size = tuple(int(v) for v in rng.integers(1, 260, 2))
    image = noise(width, height, seed)
    want = pillow(image.crop((left, top, right, bottom)), size)
    np.testing.assert_array_equal(ours(image, (left, top, right, bottom), size), want)
    x, y = int(rng.integers(size[0])), int(rng.integers(size[1]))
    window = (int(rng.integers(size[0] - x)) + 1, int(rng.integers(size[1] - y)) + 1)
    got = ours(image, (left, top, right, bottom), size, (x, y), window)
    np.testing.assert_array_equal(got, want[y : y + window[1], x : x + window[0]])


@pytest.mark.parametrize("seed", range(50))
def test_a_box_between_pixels(seed):
    rng = np.random.default_rng(seed)
    image = noise(200, 120, seed)
    left, top = float(rng.uniform(0, 90)), float(rng.uniform(0, 50))
    right, bottom = left + float(rng.uniform(2, 100)), top + float(rng.uniform(2, 60))
    cut = tuple(int(v) for v in (np.floor(left), np.floor(top), np.ceil(right), np.ceil(bottom)))
    place = tuple(
        float(np.float32(v) - np.float32(o)) for v, o in zip((left, top, right, bottom), cut[:2] * 2, strict=True)
    )
    want = pillow(image.crop(cut), (40, 31), place)
    np.testing.assert_array_equal(ours(image, (left, top, right, bottom), (40, 31)), want)


def test_a_picture_that_pillow_keeps_in_pieces():
    image = noise(2500, 2100)
    want = pillow(image, (50, 42))
    np.testing.assert_array_equal(ours(image, (0, 0, 2500, 2100), (50, 42)), want)


def test_works_where_compiled_code_cannot_be_kept():
    code = (
        "import numba, numpy as np; from PIL import Image\n"
        "real = numba.njit\n"
        "def njit(*args, cache=False, **options):\n"
        "    if cache: raise RuntimeError('cannot cache function: no locator available')\n"
        "    return real(*args, **options)\n"
        "numba.njit = njit\n"
        "from orchestrator.data.resize import resize_bicubic\n"
        "out = np.empty((3, 2, 2), np.uint8)\n"
        "resize_bicubic(Image.new('RGB', (4, 4), (1, 2, 3)), (0, 0, 4, 4), (2, 2), (0, 0), out)\n"
        "assert out[2, 1, 1] == 3"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
