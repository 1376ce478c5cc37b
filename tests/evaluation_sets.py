"""Made evaluation sets of every kind, in CLIP_benchmark's layout."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from shapes import COLORS, NAMES, SHAPES, TEMPLATES, pairs

from orchestrator import storage
from orchestrator.data.shard_writers import ShardWriter


def write_split(root: str, split: str, samples: list[dict[str, bytes]], shards: int = 2) -> None:
    for shard in range(shards):
        with ShardWriter(storage.join(root, split, f"{shard}.tar")) as writer:
            for number, members in list(enumerate(samples))[shard::shards]:
                writer.write(f"s{number:07d}", members)
    storage.write_bytes(storage.join(root, split, "nshards.txt"), str(shards).encode())


def write_names(root: str, names: list[str] = NAMES, templates: list[str] = TEMPLATES, kind: str = "") -> None:
    storage.write_bytes(storage.join(root, "classnames.txt"), "\n".join(names).encode())
    storage.write_bytes(storage.join(root, "zeroshot_classification_templates.txt"), "\n".join(templates).encode())
    if kind:
        storage.write_bytes(storage.join(root, "dataset_type.txt"), kind.encode())


def write_classes(root: str, test: int = 48, train: int = 0, seed: int = 3, shards: int = 2) -> None:
    """Coloured shapes, one of 12 classes each."""
    write_names(root)
    for split, count, own_seed in (("test", test, seed), ("train", train, seed + 100)):
        if count:
            made = [{"jpg": image, "cls": str(label).encode()} for image, _, label in pairs(count, own_seed)]
            write_split(root, split, made, shards)


def write_multilabel(root: str, test: int = 24, train: int = 0) -> None:
    """Each picture has a colour and a shape among the names."""
    write_names(root, [*COLORS, *SHAPES], ["{c}"], "multilabel")
    for split, count, seed in (("test", test, 5), ("train", train, 105)):
        made = []
        for image, _, label in pairs(count, seed):
            out = io.BytesIO()
            np.save(out, np.array([name in NAMES[label] for name in (*COLORS, *SHAPES)], np.int64))
            made.append({"jpg": image, "npy": out.getvalue()})
        if made:
            write_split(root, split, made)


def write_retrieval(root: str, test: int = 12) -> None:
    """Two captions a picture, one a line."""
    storage.write_bytes(storage.join(root, "dataset_type.txt"), b"retrieval\n")
    made = [
        {"jpg": image, "txt": f"a {NAMES[label]} of {number}\nnumber {number}, {NAMES[label]}\n".encode()}
        for number, (image, _, label) in enumerate(pairs(test, seed=6))
    ]
    write_split(root, "test", made)


def textures(count: int, seed: int, side: int = 96) -> list[Image.Image]:
    """Pictures like photographs in that neighbouring pixels are alike, and unlike each other: coloured 1/f noise."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    frequency[0, 0] = 1.0
    found = []
    for _ in range(count):
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(3, side, side))) / frequency**1.2).real
        noise /= noise.std()
        found.append(Image.fromarray((128 + 45 * noise).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)))
    return found


def encoded(picture: Image.Image, quality: int = 92) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def write_textures(root: str, count: int = 30, seed: int = 0) -> None:
    """Textures under the names of shapes: nobody could tell them, but each has a class."""
    write_names(root)
    made = [{"jpg": encoded(one), "cls": str(number % 12).encode()} for number, one in enumerate(textures(count, seed))]
    write_split(root, "test", made)


def write_seen(root: str, count: int = 30, seed: int = 0, every: int = 3, others: int = 40) -> None:
    """Training shards that hold every third of the textures, encoded anew, half as large and cut; and others."""
    seen = [
        encoded(one.crop((2, 3, 92, 93)).resize((48, 48), Image.Resampling.BILINEAR), 60)
        for one in textures(count, seed)[::every]
    ]
    new = [encoded(one) for one in textures(others, seed + 1000)]
    samples = [{"jpg": image, "txt": b"a caption"} for image in [*new, *seen]]
    for shard in range(2):
        with ShardWriter(storage.join(root, f"{shard}.tar")) as writer:
            for number, members in list(enumerate(samples))[shard::2]:
                writer.write(f"t{number:05d}", members)
