"""Stored features against the tower itself, and evaluation sets of every kind."""

from __future__ import annotations

import io
import json
import re
from functools import partial

import numpy as np
import pytest
import torch
from evaluation_sets import write_classes, write_multilabel, write_names, write_retrieval, write_split
from shapes import NAMES, pairs
from tiny import save_tiny

from orchestrator import storage
from orchestrator.evaluate import extract
from orchestrator.evaluate.datasets import EvaluationSetError, open_evaluation_set
from orchestrator.evaluate.extract import EmbedBlocks, ReadShard, Split
from orchestrator.evaluate.features import feature_folder
from orchestrator.inference import Embedder
from orchestrator.model.pixels import normalize_pixels


def embed_all(model: str, split: Split) -> list[dict]:
    """What the tasks of Ray Data do, in this process; returns the answers to the driver."""
    read = ReadShard([split], Embedder(model).transform)
    embed = EmbedBlocks(partial(Embedder, model), [split.folder], "cpu", batch_size=7)
    blocks = [block for shard in range(len(split.dataset.shards)) for block in read.read(0, shard)]
    # Ray Data joins small blocks as it likes.
    joined = embed({name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]})
    rows = range(len(joined["first"]))
    answers = [{name: column[row : row + 1] for name, column in joined.items()} for row in rows]
    tally = extract._Tally(split)
    for answer in answers:
        first, count = int(answer["first"][0]), int(answer["count"][0])
        if first >= 0:
            tally.parts.append(extract.Part(int(answer["shard"][0]), first, count))
        else:
            tally.end(json.loads(answer["about"][0]))
    assert tally.whole or tally.error
    if not tally.error:
        split.folder.finish(tally.parts)
    return answers


def opened(root: str, model: str, features: str) -> Split:
    dataset = open_evaluation_set("made", root, "test", [])
    return Split(dataset, feature_folder(features, Embedder(model).fingerprint, dataset, "test"))


def embedded(folder) -> tuple[str, Split]:
    """A tiny model and a set that it has embedded."""
    model, root = str(folder / "model"), str(folder / "set")
    save_tiny(model)
    write_classes(root)
    split = opened(root, model, str(folder / "features"))
    embed_all(model, split)
    return model, split


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_features_and_embeddings_are_the_towers(tmp_path, kind):
    model, root = str(tmp_path / "model"), str(tmp_path / "set")
    tower = save_tiny(model, kind)
    write_classes(root)
    split = opened(root, model, str(tmp_path / "features"))
    embed_all(model, split)
    found = split.folder.read()
    made = {f"s{number:07d}": sample for number, sample in enumerate(pairs(48, seed=3))}
    # Shards in their order, and the samples in theirs.
    assert found.key_N == [f"s{n:07d}" for n in (*range(0, 48, 2), *range(1, 48, 2))]
    assert found.label.tolist() == [made[key][2] for key in found.key_N]
    transform = Embedder(model).transform
    pixels = torch.from_numpy(np.stack([transform.evaluate(made[key][0]) for key in found.key_N]))
    with torch.no_grad():
        normal = normalize_pixels(pixels, transform.mean, transform.std)
        assert found.embedding_ND == pytest.approx(tower.encode_image(normal).numpy(), abs=1e-5)
        if kind == "vit":
            taken = []
            hook = tower.visual.transformer.register_forward_hook(lambda *given: taken.append(given[-1]))
            tower.visual(normal)
            hook.remove()
            before = tower.visual.ln_post(taken[0])
            assert found.feature_NF.shape[1] == 32
        else:
            before = tower.visual(normal)
        assert found.feature_NF == pytest.approx(before.numpy(), abs=1e-4)
    assert len(split.folder.parts()) == 2


def test_what_is_there_is_not_computed_again(tmp_path):
    model, split = embedded(tmp_path)
    whole = split.folder.read()
    # As if it had been cut off: no end mark, and a part is missing.
    storage.delete_file(f"{split.folder.uri}/complete.json")
    missing = split.folder.parts()[1]
    storage.delete_file(f"{split.folder.uri}/{missing.file}")
    with pytest.raises(EvaluationSetError, match="is not whole"):
        split.folder.read()
    again = Split(split.dataset, split.folder, split.folder.parts())
    answers = embed_all(model, again)
    assert [int(one["count"][0]) for one in answers if one["first"][0] >= 0] == [missing.samples]
    assert np.array_equal(split.folder.read().embedding_ND, whole.embedding_ND)


def test_features_of_another_model_other_data_or_another_transform_lie_elsewhere(tmp_path):
    root, features = str(tmp_path / "set"), str(tmp_path / "features")
    for name, seed in (("one", 0), ("other", 1)):
        save_tiny(str(tmp_path / name), seed=seed)
    write_classes(root)
    places = [opened(root, str(tmp_path / name), features).folder.uri for name in ("one", "other")]
    config = tmp_path / "one/preprocessor_config.json"
    config.write_text(config.read_text().replace("0.48145466", "0.5"))
    places.append(opened(root, str(tmp_path / "one"), features).folder.uri)
    write_classes(root, seed=4)
    places.append(opened(root, str(tmp_path / "one"), features).folder.uri)
    assert len(set(places)) == 4


def test_progress_foretells_what_is_left_from_the_shards_that_have_ended(tmp_path):
    sets = {name: tmp_path / name for name in ("one", "other")}
    for root in sets.values():
        write_names(str(root))
        storage.write_bytes(f"{root}/test/nshards.txt", b"4")
    tallies = [
        extract._Tally(Split(open_evaluation_set(name, str(root), "test", []), None)) for name, root in sets.items()
    ]
    one, other = tallies
    one.parts = [extract.Part(0, 0, 30)]
    assert extract._progress(30, tallies) == (30, None, {"one": (0, 4)})
    one.end({"samples": 50})
    # 4 shards of 50 samples in either set, of which 30 are there.
    assert extract._progress(30, tallies) == (30, 370, {"one": (1, 4)})
    other.end({"samples": 10})
    other.parts = [extract.Part(0, 0, 10)]
    found = extract._progress(40, tallies)
    assert found == (40, 170 + 30, {"one": (1, 4), "other": (1, 4)})
    line = "40 pictures embedded, 4 a second, about 0:00:50 left; one 1 of 4 shards; other 1 of 4 shards"
    assert found.line(10.0) == line
    one.told = True
    assert extract._progress(40, tallies).left == 30


def test_a_damaged_part_is_named(tmp_path):
    _, split = embedded(tmp_path)
    part = f"{split.folder.uri}/{split.folder.parts()[0].file}"
    storage.write_bytes(part, b"no Parquet")
    with pytest.raises(EvaluationSetError, match=r"set made: .*00000-.*parquet: .*delete the folder"):
        split.folder.read()


def test_captions_and_labels_of_many_come_back(tmp_path):
    model = str(tmp_path / "model")
    save_tiny(model)
    write_retrieval(str(tmp_path / "captions"))
    split = opened(str(tmp_path / "captions"), model, str(tmp_path / "features"))
    embed_all(model, split)
    found = split.folder.read()
    assert found.label is None and len(found.caption_T) == 24
    assert found.picture_T.tolist() == [n for n in range(12) for _ in range(2)]
    assert found.caption_T[2] == f"a {NAMES[2]} of 2"
    assert found.caption_embedding_TD == pytest.approx(Embedder(model).embed_texts(found.caption_T).numpy(), abs=1e-5)
    write_multilabel(str(tmp_path / "many"))
    split = opened(str(tmp_path / "many"), model, str(tmp_path / "features"))
    embed_all(model, split)
    assert split.folder.read().label[1].tolist() == [1, 0, 0, 0, 0, 0, 1]
    assert split.folder.read().label.sum(axis=1).tolist() == [2] * 24


def npy(values):
    out = io.BytesIO()
    np.save(out, np.array(values))
    return out.getvalue()


BROKEN = b"\xff\xd8\xff no picture"


@pytest.mark.parametrize(
    ("kind", "members", "message"),
    [
        ("", {"jpg": BROKEN, "cls": b"0"}, r"test/0\.tar sample 0 \(s0000000\): (truncated|undecodable)_image"),
        ("", {"cls": b"0"}, r"missing_image"),
        ("", {"jpg": BROKEN, "cls": b"99"}, r"label 99 is not a place in classnames\.txt \(0 to 11\)"),
        ("multilabel", {"jpg": BROKEN, "cls": b"1"}, r"label 1 is not a 0 or a 1 for each of the 12 lines"),
        ("multilabel", {"jpg": BROKEN, "npy": npy([2] * 12)}, r"label of shape \(12,\) is not a 0 or a 1 for each"),
        ("multilabel", {"jpg": BROKEN, "npy": npy([1])}, r"label of shape \(1,\) is not a 0 or a 1 for each"),
        ("retrieval", {"jpg": BROKEN, "cls": b"1"}, r"missing_caption no \.txt member"),
    ],
)
def test_a_bad_sample_ends_its_shard_and_is_named(tmp_path, kind, members, message):
    model, root = str(tmp_path / "model"), str(tmp_path / "set")
    save_tiny(model)
    write_names(root, kind=kind)
    write_split(root, "test", [members], shards=1)
    split = opened(root, model, str(tmp_path / "features"))
    (answer,) = embed_all(model, split)
    assert re.search(message, json.loads(answer["about"][0])["error"])
    assert not split.folder.complete


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: write_names(root, kind="video"), r"dataset_type\.txt holds 'video'"),
        (lambda root: write_names(root, [*NAMES, "red circle"]), r"names 'red circle' more than once"),
        (lambda root: write_names(root, templates=["a photo"]), r"template 'a photo' has no \{c\}"),
    ],
)
def test_a_set_that_cannot_be_measured_is_refused(tmp_path, break_it, message):
    write_classes(str(tmp_path))
    break_it(str(tmp_path))
    with pytest.raises(EvaluationSetError, match=message):
        open_evaluation_set("made", str(tmp_path), "test", [])


def test_imagenets_released_names_are_accepted(tmp_path):
    write_classes(str(tmp_path))
    write_names(str(tmp_path), ["missile", "sunglasses", "missile", "sunglasses"])
    assert len(open_evaluation_set("imagenet1k", str(tmp_path), "test", []).class_names) == 4


def test_a_split_without_samples_is_an_error(tmp_path):
    model, root = str(tmp_path / "model"), str(tmp_path / "set")
    save_tiny(model)
    write_names(root)
    write_split(root, "test", [], shards=1)
    split = opened(root, model, str(tmp_path / "features"))
    tally = extract._Tally(split)
    for block in ReadShard([split], Embedder(model).transform).read(0, 0):
        tally.end(json.loads(block["about"][0]))
    assert tally.error == "evaluation set made: its shards hold no samples"
