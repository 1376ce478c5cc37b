"""Made pictures with captions that a small model learns in a minute: coloured shapes on grey."""

from __future__ import annotations

import io
import itertools
import json

import numpy as np
from PIL import Image, ImageDraw

from orchestrator import storage
from orchestrator.data.shard_writers import ShardWriter

COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 210, 40)}
SHAPES = ("circle", "square", "cross")
NAMES = [f"{color} {shape}" for color, shape in itertools.product(COLORS, SHAPES)]
TEMPLATES = ["a {c}", "a picture of a {c}"]
RECIPE = {
    "run": {"name": "shapes"},
    "data": {"interleave": 4, "shuffle_buffer": 500, "crop_scale": 0.8, "cpus_per_reader": 0.5},
    "tokenizer": {"kind": "trained", "vocab_size": 530},
    "model": {
        "embed_dim": 32,
        "image_size": 32,
        "vision": {"kind": "resnet", "layers": [1, 1, 1, 1], "width": 16, "heads": 8},
        "text": {"layers": 1, "width": 32, "heads": 2, "context_length": 16},
    },
    "optim": {"lr": 2.0e-3, "warmup_steps": 10},
    "train": {
        "epochs": 12,
        "global_batch": 48,
        "num_workers": 2,
        "cpus_per_worker": 0.5,
        "torch_threads": 1,
        "checkpoint_every": 20,
        "log_every": 5,
        "precision": "fp32",
    },
}


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


def write_data(root: str) -> dict:
    """Training shards and a held-out set; returns the recipe that reads them."""
    training = pairs(480, seed=1)
    for shard in range(4):
        with ShardWriter(storage.join(root, "train", f"{shard}.tar")) as writer:
            for number, (image, caption, _) in enumerate(training[shard::4]):
                writer.write(f"{number:07d}", {"jpg": image, "txt": caption.encode()})
    with ShardWriter(storage.join(root, "held-out", "test", "0.tar")) as writer:
        for number, (image, _, label) in enumerate(pairs(120, seed=2)):
            writer.write(f"{number:07d}", {"jpg": image, "cls": str(label).encode()})
    for name, text in (
        ("test/nshards.txt", "1"),
        ("classnames.txt", "\n".join(NAMES)),
        ("zeroshot_classification_templates.txt", "\n".join(TEMPLATES)),
    ):
        storage.write_bytes(storage.join(root, "held-out", name), text.encode())
    recipe = json.loads(json.dumps(RECIPE))
    recipe["run"]["storage_path"] = storage.join(root, "runs")
    recipe["data"]["train"] = [storage.join(root, "train", "{0..3}.tar")]
    recipe["evaluation"] = {"zero_shot": {"held-out": storage.join(root, "held-out")}, "batch_size": 64}
    return recipe
