"""Made evaluation sets of every kind, in CLIP_benchmark's layout."""

from __future__ import annotations

import io

import numpy as np
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
