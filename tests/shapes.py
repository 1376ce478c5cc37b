"""Made pictures with captions that a small model learns in a minute: coloured shapes on grey."""

from __future__ import annotations

import io
import itertools

import numpy as np
from PIL import Image, ImageDraw

COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 210, 40)}
SHAPES = ("circle", "square", "cross")
NAMES = [f"{color} {shape}" for color, shape in itertools.product(COLORS, SHAPES)]
TEMPLATES = ["a {c}", "a picture of a {c}"]


def draw(name: str, rng: np.random.Generator, side: int = 40) -> bytes:
    """A JPEG of the shape at a random place and size."""
    color, shape = name.split()
    picture = Image.new("RGB", (side, side), (int(rng.integers(90, 170)),) * 3)
    pen = ImageDraw.Draw(picture)
    size = int(rng.integers(12, 22))
    x, y = (int(v) for v in rng.integers(4, side - size - 4, 2))
    box = (x, y, x + size, y + size)
    if shape == "circle":
        pen.ellipse(box, fill=COLORS[color])
    elif shape == "square":
        pen.rectangle(box, fill=COLORS[color])
    else:
        third = size // 3
        pen.rectangle((x + third, y, x + size - third, y + size), fill=COLORS[color])
        pen.rectangle((x, y + third, x + size, y + size - third), fill=COLORS[color])
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=92)
    return out.getvalue()


def pairs(count: int, seed: int) -> list[tuple[bytes, str, int]]:
    """(JPEG, caption, class) of `count` pictures, classes in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        label = number % len(NAMES)
        caption = TEMPLATES[int(rng.integers(len(TEMPLATES)))].replace("{c}", NAMES[label])
        found.append((draw(NAMES[label], rng), caption, label))
    return found
