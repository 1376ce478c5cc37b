"""The demo's data: emoji in three drawing styles, as training shards and evaluation sets.

    python -m orchestrator.data.demo                # into the cache
    python -m orchestrator.data.demo s3://bucket/demo

Training pairs are the Google and Fluent styles, without a tenth of the concepts. Three evaluation sets:

    unseen-style       the concepts of training in the Twitter style, which training never sees; among all names
    unseen-concepts    the concepts held out of training, in all three styles; among themselves
    categories         all concepts in the Twitter style; among the coarse categories. Its train split, for probes, has
                       the pictures of training

Two more show a natural distribution shift: concepts held out of training, with nothing but the style between them.

    known-styles       in the Google and Fluent styles
    shifted-style      in the Twitter style
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from orchestrator import storage
from orchestrator.config import Config
from orchestrator.data.emoji import CATEGORY_TEMPLATES, TEMPLATES, Concept, read_concepts
from orchestrator.data.images import to_rgb
from orchestrator.data.packages import DemoDataError, Package, cache_folder, fetch
from orchestrator.data.shard_writers import ShardWriter

__all__ = ["DemoDataError", "fill", "prepare"]

PACKAGES = {
    "google": Package(
        "emoji-datasource-google",
        "16.0.0",
        "ZRexfzs7MVoLnmzZmNsO4TKhnAJp5D++Vm6PpUpH/jEQQlemp3l88CjZ+DoZ2faM9R4QxZkOPJCoT8DlPhfQ3A==",
        "Noto Emoji by Google",
        "Apache-2.0",
    ),
    "twitter": Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "7F+uCuHH+7Qnrc15P5tnbvKkg9E6tlzi4MnT2uW1RlN4pLYTza6cP/dstIfSDMtpjFLWuZewWg8jBbuL2eyELQ==",
        "Twemoji by Twitter and contributors",
        "CC-BY-4.0",
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "Fluent Emoji by Microsoft",
        "MIT",
    ),
}
FOLDERS = {"google": "package/img/google/64/", "twitter": "package/img/twitter/64/", "fluent": "package/assets/"}
TRAINING_STYLES = ("google", "fluent")
UNSEEN_STYLE = "twitter"
TRAINING_SHARDS = 8

# Fluent pictures have 256 pixels a side. They are stored near the size that the other styles come in.
LARGEST_SIDE = 72

# Part of the fingerprint that decides whether data on the disk can stay: raise it when what is written changes.
LAYOUT = 10

# style -> code of the concept -> encoded picture and its file ending
Styles = dict[str, dict[str, tuple[bytes, str]]]


def prepare(root: str | None = None) -> dict[str, str]:
    """Write the demo's shards and evaluation sets, unless they are there.

    Parameters
    ----------
    root : a folder, on a disk or in object storage; None: below the cache folder

    Returns
    -------
    {"train": pattern of the training shards, "unseen-style": ..., "unseen-concepts": ..., "categories": folders}

    Raises
    ------
    DemoDataError : a package cannot be had
    """
    root = root or str(cache_folder() / "demo")
    paths = {"train": storage.join(root, "train", f"{{00000..{TRAINING_SHARDS - 1:05d}}}.tar")}
    paths |= {name: storage.join(root, name) for name in ("unseen-style", "unseen-concepts", "categories")}
    stamp, fingerprint = storage.join(root, "prepared.json"), _fingerprint()
    if storage.exists(stamp) and storage.read_bytes(stamp) == fingerprint:
        print(f"demo data {root} (there already)", flush=True)
        return paths
    archives = {style: fetch(package) for style, package in PACKAGES.items()}
    concepts, styles = read_archives(archives)
    write_sets(root, concepts, styles)
    # Last: a run that was cut off before leaves no stamp, and starts again.
    storage.write_bytes(stamp, fingerprint)
    print(f"demo data {root}", flush=True)
    return paths


def fill(config: Config) -> None:
    """Point a configuration whose `data.train` is `demo` at the data, which is prepared if need be."""
    paths = prepare()
    config.data.train = paths.pop("train")
    config.evaluation.zero_shot = config.evaluation.zero_shot or paths


def read_archives(archives: dict[str, Path]) -> tuple[list[Concept], Styles]:
    """Concepts, and their encoded pictures in each style."""
    with tarfile.open(archives["google"]) as archive:
        description = archive.extractfile("package/emoji.json")
        assert description is not None
        concepts = read_concepts(json.load(description))
    styles: Styles = {}
    for style, path in archives.items():
        files: dict[str, tuple[bytes, str]] = {}
        with tarfile.open(path) as archive:
            for member in archive:
                stem, _, ending = member.name.removeprefix(FOLDERS[style]).rpartition(".")
                if member.name.startswith(FOLDERS[style]) and ending in ("png", "webp"):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    files[stem] = stream.read(), ending
        found = {c.code: next((files[name] for name in c.files if name in files), None) for c in concepts}
        styles[style] = {code: _shrink(*picture) for code, picture in found.items() if picture}
    return concepts, styles


def write_sets(root: str, concepts: Sequence[Concept], styles: Styles) -> None:
    """Write training shards and the three evaluation sets."""
    seen = [c for c in concepts if not c.held_out]
    unseen = [c for c in concepts if c.held_out]
    pairs = [(c, style) for c in seen for style in TRAINING_STYLES if c.code in styles[style]]
    # Shuffled once, so that every shard is a fair draw of concepts and styles.
    pairs.sort(key=lambda pair: hashlib.sha256(f"{pair[0].code} {pair[1]}".encode()).digest())
    for shard in range(TRAINING_SHARDS):
        with ShardWriter(storage.join(root, "train", f"{shard:05d}.tar")) as writer:
            for concept, style in pairs[shard::TRAINING_SHARDS]:
                captions = concept.captions
                text = {"txt": captions[0].encode(), "json": json.dumps({"captions": captions}).encode()}
                image = _quick_to_decode(styles[style][concept.code][0])
                writer.write(f"{concept.code}-{style}", {"png": image, **text})
    names = [c.name for c in concepts]
    _write_evaluation(
        storage.join(root, "unseen-style"),
        names,
        TEMPLATES,
        {"test": [(c, UNSEEN_STYLE, names.index(c.name)) for c in seen]},
        styles,
    )
    held_out = [(c, style, label) for label, c in enumerate(unseen) for style in styles]
    parts = {
        "unseen-concepts": held_out,
        "known-styles": [one for one in held_out if one[1] in TRAINING_STYLES],
        "shifted-style": [one for one in held_out if one[1] == UNSEEN_STYLE],
    }
    for name, part in parts.items():
        _write_evaluation(storage.join(root, name), [c.name for c in unseen], TEMPLATES, {"test": part}, styles)
    categories = sorted({c.category for c in concepts})
    _write_evaluation(
        storage.join(root, "categories"),
        categories,
        CATEGORY_TEMPLATES,
        {
            "test": [(c, UNSEEN_STYLE, categories.index(c.category)) for c in concepts],
            "train": [(c, style, categories.index(c.category)) for c, style in pairs],
        },
        styles,
    )


def _write_evaluation(
    root: str,
    class_names: Sequence[str],
    templates: Sequence[str],
    splits: Mapping[str, Iterable[tuple[Concept, str, int]]],
    styles: Styles,
) -> None:
    """One evaluation set in CLIP_benchmark's WebDataset layout, with one shard a split."""
    for split, labelled in splits.items():
        with ShardWriter(storage.join(root, split, "0.tar")) as writer:
            present = [(c, style, label) for c, style, label in labelled if c.code in styles[style]]
            for number, (concept, style, label) in enumerate(present):
                data, ending = styles[style][concept.code]
                writer.write(f"s{number:07d}", {ending: data, "cls": str(label).encode()})
        storage.write_bytes(storage.join(root, split, "nshards.txt"), b"1")
    storage.write_bytes(storage.join(root, "classnames.txt"), "\n".join(class_names).encode())
    storage.write_bytes(storage.join(root, "zeroshot_classification_templates.txt"), "\n".join(templates).encode())


def _shrink(data: bytes, ending: str) -> tuple[bytes, str]:
    """A picture of at most LARGEST_SIDE pixels a side, transparency kept; smaller ones stay as they are."""
    with Image.open(io.BytesIO(data)) as image:
        if max(image.size) <= LARGEST_SIDE:
            return data, ending
        small = image.convert("RGBA")
    small.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    output = io.BytesIO()
    small.save(output, "PNG")
    return output.getvalue(), "png"


def _quick_to_decode(data: bytes) -> bytes:
    """The same pixels over white, as a PNG that is not compressed: more bytes, and quicker to decode."""
    output = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        to_rgb(image).save(output, "PNG", compress_level=0)
    return output.getvalue()


def _fingerprint() -> bytes:
    packages = {package.name: f"{package.version} sha512-{package.integrity}" for package in PACKAGES.values()}
    return (json.dumps({"layout": LAYOUT, "packages": packages}, indent=2) + "\n").encode()


if __name__ == "__main__":
    try:
        prepare(sys.argv[1] if len(sys.argv) > 1 else None)
    except (DemoDataError, storage.StorageError) as error:
        sys.exit(f"error: {error}")
    print("next      python jobs/pretrain.py --config demo")
