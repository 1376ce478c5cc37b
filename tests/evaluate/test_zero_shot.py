"""Zero-shot accuracy against scikit-learn's, and evaluation sets that cannot be measured."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from shapes import NAMES, TEMPLATES, pairs
from sklearn.metrics import top_k_accuracy_score
from tiny import save_tiny

from orchestrator import storage
from orchestrator.data.shard_writers import ShardWriter
from orchestrator.evaluate.after_training import markdown_table
from orchestrator.evaluate.datasets import EvaluationSetError, open_evaluation_set
from orchestrator.evaluate.picture import draw_predictions
from orchestrator.evaluate.zero_shot import zero_shot
from orchestrator.inference import Embedder, zero_shot_classifier


def write_set(root: str, shards: int = 2, count: int = 50) -> list[tuple[bytes, str, int]]:
    samples = pairs(count, seed=3)
    for shard in range(shards):
        with ShardWriter(storage.join(root, "test", f"{shard}.tar")) as writer:
            for number, (image, _, label) in list(enumerate(samples))[shard::shards]:
                writer.write(f"s{number:07d}", {"jpg": image, "cls": str(label).encode()})
    storage.write_bytes(storage.join(root, "test", "nshards.txt"), str(shards).encode())
    storage.write_bytes(storage.join(root, "classnames.txt"), "\n".join(NAMES).encode())
    storage.write_bytes(
        storage.join(root, "zeroshot_classification_templates.txt"), ("\n".join(TEMPLATES) + "\n").encode()
    )
    return samples


def test_accuracy_is_that_of_scikit_learn_on_all_samples_at_once(tmp_path):
    save_tiny(str(tmp_path / "model"))
    samples = write_set(str(tmp_path / "set"))
    embedder = Embedder(str(tmp_path / "model"))
    dataset = open_evaluation_set("shapes", str(tmp_path / "set"), "test", [])
    result = zero_shot(embedder, dataset, batch_size=7)

    pixels = np.stack([embedder.transform.evaluate(image) for image, _, _ in samples])
    scores = (embedder.embed_images(pixels) @ zero_shot_classifier(embedder, NAMES, TEMPLATES).T).double().numpy()
    labels = [label for _, _, label in samples]
    classes = range(len(NAMES))
    assert result.top1 == pytest.approx(top_k_accuracy_score(labels, scores, k=1, labels=classes))
    assert result.top5 == pytest.approx(top_k_accuracy_score(labels, scores, k=5, labels=classes))
    assert (result.samples, result.classes, result.chance) == (50, 12, 1 / 12)
    # The examples are answers of this model to pictures of this set.
    assert len(result.examples) == 12
    by_image = {image: row for row, (image, _, _) in enumerate(samples)}
    for example in result.examples:
        row = by_image[example.image]
        assert example.truth == NAMES[labels[row]]
        probabilities = torch.softmax(embedder.logit_scale * torch.from_numpy(scores[row]), dim=-1)
        assert example.best[0][0] == NAMES[int(probabilities.argmax())]
        assert example.best[0][1] == pytest.approx(float(probabilities.max()), abs=1e-4)


def test_the_result_is_a_table_and_a_picture(tmp_path):
    save_tiny(str(tmp_path / "model"))
    write_set(str(tmp_path / "set"))
    dataset = open_evaluation_set("shapes", str(tmp_path / "set"), "test", [])
    result = zero_shot(Embedder(str(tmp_path / "model")), dataset, batch_size=64)
    assert set(result.summary()) == {"top1", "top5", "chance", "classes", "samples"}
    json.dumps(result.summary())
    assert "| shapes |" in markdown_table({"shapes": result.summary()})
    with Image.open(io.BytesIO(draw_predictions({"shapes": result.examples}, "title"))) as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 100


def test_a_set_of_fewer_than_five_classes_has_a_top5_of_one(tmp_path):
    save_tiny(str(tmp_path / "model"))
    with ShardWriter(str(tmp_path / "set" / "test" / "0.tar")) as writer:
        for number, (image, _, _) in enumerate(pairs(6, seed=1)):
            writer.write(f"{number}", {"jpg": image, "cls": str(number % 2).encode()})
    for name, text in (("test/nshards.txt", "1"), ("classnames.txt", "a\nb")):
        storage.write_bytes(str(tmp_path / "set" / name), text.encode())
    dataset = open_evaluation_set("two", str(tmp_path / "set"), "test", ["{c}"])
    assert zero_shot(Embedder(str(tmp_path / "model")), dataset, batch_size=4).top5 == 1.0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("classnames.txt", None, r"set shapes: .*classnames\.txt is missing; it must be a folder"),
        ("classnames.txt", "\n\n", r"classnames\.txt is empty"),
        ("test/nshards.txt", None, r"nshards\.txt is missing"),
        ("test/nshards.txt", "two", r"nshards\.txt holds 'two', not a number of shards"),
        ("zeroshot_classification_templates.txt", "a photo", r"template 'a photo' has no \{c\}"),
    ],
)
def test_a_broken_set_is_found_before_anything_is_measured(tmp_path, file, content, message):
    write_set(str(tmp_path))
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_text(content)
    with pytest.raises(EvaluationSetError, match=message):
        open_evaluation_set("shapes", str(tmp_path), "test", [])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"cls": b"12"}, r"label 12 is not a place in classnames\.txt \(0 to 11\)"),
        ({"cls": b"first"}, r"0\.tar sample 0 \(bad\)"),
        ({}, "label None"),
    ],
)
def test_a_sample_without_a_usable_label_stops_the_measurement(tmp_path, members, message):
    write_set(str(tmp_path), shards=1)
    with ShardWriter(str(tmp_path / "test" / "0.tar")) as writer:
        writer.write("bad", {"jpg": pairs(1, seed=1)[0][0], **members})
    dataset = open_evaluation_set("shapes", str(tmp_path), "test", [])
    with pytest.raises(EvaluationSetError, match=message):
        list(dataset.samples())
