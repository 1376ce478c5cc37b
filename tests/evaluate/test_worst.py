"""The worst classes, and pictures of them."""

from __future__ import annotations

import io

import numpy as np
from evaluation_sets import write_classes
from PIL import Image
from shapes import NAMES, pairs

from orchestrator import storage
from orchestrator.evaluate.answers import Answers
from orchestrator.evaluate.datasets import open_evaluation_set
from orchestrator.evaluate.sections import worst_section
from orchestrator.evaluate.worst import Mistake, draw_mistakes, find_mistakes, picture_file, worst_rows
from orchestrator.report.document import page


def test_mistaken_pictures_are_the_first_of_their_class_and_no_shard_is_read_for_nothing(tmp_path):
    write_classes(str(tmp_path), test=144, shards=2)
    dataset = open_evaluation_set("made", str(tmp_path), "test", [])
    places = [*range(0, 144, 2), *range(1, 144, 2)]
    label_N = np.array([place % 12 for place in places])
    # In the order of the shards: every red cross is right but the second and third, all green circles are wrong.
    best_N = np.where(label_N == 3, 5, label_N)
    best_N[np.flatnonzero(label_N == 2)[1:3]] = [7, 8]
    # The second shard holds the odd pictures: those of the fourth class, of which the first five lie in one shard.
    found = find_mistakes(dataset, Answers([], label_N, best_N), [NAMES[2], NAMES[3]])
    made = [image for image, _, _ in pairs(144, seed=3)]
    assert [(one.image, one.answer) for one in found[NAMES[2]]] == [(made[14], NAMES[7]), (made[26], NAMES[8])]
    assert [one.image for one in found[NAMES[3]]] == [made[number] for number in (3, 15, 27, 39, 51)]
    storage.delete_file(dataset.shards[1])
    assert list(find_mistakes(dataset, Answers([], label_N, best_N), [NAMES[2]])) == [NAMES[2]]


def test_the_page_shows_the_worst_classes_first_and_their_pictures_as_they_are(tmp_path):
    rows = [
        {"class": name, "samples": samples, "accuracy": accuracy, "taken for": "x", "times": 1, "then for": ""}
        for name, samples, accuracy in (("good", 3, 1.0), ("none", 0, None), ("bad", 4, 0.25), ("fair", 2, 0.5))
    ]
    assert [row["class"] for row in worst_rows(rows)] == ["bad", "fair", "good"]
    made = draw_mistakes({"bad": [Mistake(image, caption) for image, caption, _ in pairs(3, seed=1)], "fair": []})
    storage.write_bytes(f"{tmp_path}/{picture_file('a/set')}", made)
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.format == "JPEG" and min(picture.size) > 100
    text = page("x", worst_section(str(tmp_path), "a/set", rows))
    # Inverted for a dark page, as diagrams are, a photograph would be a negative.
    assert '<img class=photo alt="Mistaken pictures of a/set' in text and "img:not(.photo) { filter" in text
    assert 'src="data:image/jpeg;base64,' in text
    assert "jpeg" not in page("x", worst_section(str(tmp_path), "other", rows))
