"""Near-duplicates that were put into training are found, and nothing else."""

from __future__ import annotations

import functools
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from evaluation_sets import encoded, textures, write_seen
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from orchestrator import storage
from orchestrator.evaluate.duplicates import find, make_bank, thumbnail
from orchestrator.evaluate.overlap import overlap
from orchestrator.evaluate.overlap_search import Pictures, Progress, Tally, gather, search_shard, training_shards
from orchestrator.evaluate.sections import overlap_rows, overlap_section
from orchestrator.report.document import markdown

PICTURES = textures(40, seed=0)


@functools.cache
def bank_of(seed):
    return bank(textures(40, seed))


def bank(pictures):
    return make_bank(np.stack([thumbnail(encoded(one)) for one in pictures]))


def cut(picture, share):
    left, top = (round((1 - share) * side * at) for side, at in zip(picture.size, (0.3, 0.9), strict=True))
    return picture.crop((left, top, left + round(share * picture.width), top + round(share * picture.height)))


COPIES = {
    "encoded anew": lambda one: Image.open(io.BytesIO(encoded(one, 30))),
    "half as large": lambda one: one.resize((48, 48), Image.Resampling.BILINEAR),
    "stretched": lambda one: one.resize((128, 96)),
    "brighter": lambda one: ImageEnhance.Brightness(one).enhance(1.15),
    "cut by a tenth": lambda one: cut(one, 0.9),
    "cut by a fifth": lambda one: cut(one, 0.8),
    "with a border": lambda one: ImageOps.expand(one, 5, "white"),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_and_no_other_pictures(how):
    copies = np.stack([thumbnail(encoded(COPIES[how](one), 75)) for one in PICTURES[:20]])
    found = find(bank_of(0), copies)
    assert all(match.training == match.evaluation for match in found), found
    assert len(found) >= 19 and min(match.correlation for match in found) > 0.93


def test_a_picture_that_differs_in_one_place_is_another():
    changed = []
    for number, one in enumerate(PICTURES[:10]):
        other = one.copy()
        other.paste((255, 255, 255) if number % 2 else (0, 0, 0), (30, 30, 42, 42))
        changed.append(thumbnail(encoded(other)))
    assert find(bank_of(0), np.stack(changed)) == []


def test_pictures_of_one_colour_match_nothing():
    plain = bank([Image.new("RGB", (64, 64), (200, 40, 40))] * 2)
    assert find(plain, plain.thumbnail_M) == []


def test_what_was_put_into_training_is_listed_by_shard_and_place(tmp_path):
    """Shards that hold every third of 30 textures, searched in this process; two sets share the textures."""
    pictures = textures(30, seed=0)
    write_seen(str(tmp_path / "train"))
    with storage.open_output(str(tmp_path / "train/2.parquet")) as stream:
        images = [encoded(pictures[29], 60), encoded(pictures[0], 60), b"no picture"]
        pq.write_table(pa.table({"picture": pa.array(images, pa.binary())}), stream)
    keys = Pictures({"a": [f"a{n}" for n in range(20)], "b": [f"b{n}" for n in range(10)]})
    shards = training_shards([f"{tmp_path}/train/{{0,1}}.tar", f"{tmp_path}/train/*.parquet"])
    parts = [str(tmp_path / f"parts/{number}") for number in range(len(shards))]
    looked_at = bank(pictures)
    tallies = [search_shard(keys, looked_at, shard, part, "picture") for shard, part in zip(shards, parts, strict=True)]
    assert tallies == [(25, 0, 5), (25, 0, 5), (2, 1, 2)]
    total, seen = gather(parts, {name: str(tmp_path / f"{name}.parquet") for name in ("a", "b")})
    assert seen == {"a": {0, 3, 6, 9, 12, 15, 18}, "b": {1, 4, 7, 9}} and total == Tally(52, 1, 12)
    pairs = pq.read_table(tmp_path / "a.parquet").to_pylist()
    # 40 others, then the copies of 0, 3, 6 ..., in two shards by turns.
    first = [(one["sample"], one["sample_key"], one["shard"][-5:], one["index"], one["key"]) for one in pairs[:2]]
    assert first == [(0, "a0", "0.tar", 20, "t00040"), (6, "a6", "0.tar", 21, "t00042")]
    assert [one["index"] for one in pairs if one["shard"].endswith("parquet")] == [1]


def test_the_report_says_what_training_has_seen():
    right = np.array([1] * 9 + [0] + [1] * 50 + [0] * 50, bool)
    one = {"samples": 110, "seen": 10, "pairs": "x", **overlap(right, np.arange(110) < 10)._asdict()}
    training = Tally(3000, 5, 12)._asdict() | {"shards": 2}
    found = {"training": training, "sets": {"a": one, "b": {"samples": 2, "seen": 2}}}
    rows = overlap_rows(found)
    expected = stats.binomtest(9, 10).proportion_ci(0.995, "exact")
    assert (rows[0]["overlap low"], rows[0]["overlap high"]) == pytest.approx((expected.low, expected.high))
    text = markdown("x", overlap_section(found, rows))
    assert "3,000 pictures of 2 training shards" in text and "5 more could not be read" in text
    between = f"+40.0 ({100 * expected.low - 50:+.1f} to {100 * expected.high - 50:+.1f})"
    assert f"| 9.1 | 53.6 | 90.0 | 50.0 | +3.64 | {between} | 0.01074 |" in text
    assert "| b | 2 | 2 | 100.0 |" in text and overlap_section({}, []) == []


def test_progress_says_how_far_it_is():
    assert Progress(3000, 2, 8).line(10) == "overlap: 3,000 pictures, 300 a second; 2 of 8 shards"


def test_a_runs_manifest_names_its_shards(tmp_path):
    (tmp_path / "manifest.json").write_text(
        '{"format": 1, "shards": [{"uri": "s3://b/0.tar", "size": 1, "etag": "", "modified_ns": 0, "samples": 2}]}'
    )
    assert training_shards([f"{tmp_path}/manifest.json", "s3://b/{0,1}.tar"]) == ["s3://b/0.tar", "s3://b/1.tar"]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json: not the manifest of a run"):
        training_shards([f"{tmp_path}/other.json"])
