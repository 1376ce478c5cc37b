"""Few-shot, robustness and overlap, on made data with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, logit

from orchestrator.evaluate import figures
from orchestrator.evaluate.few_shot import (
    SHOTS,
    draw_shots,
    examples_to_match,
    few_shot,
    headroom,
    mean_and_interval,
)
from orchestrator.evaluate.linear_probe import Probes
from orchestrator.evaluate.overlap import overlap
from orchestrator.evaluate.robustness import (
    Count,
    Pair,
    effective_robustness,
    relative_robustness,
    shift_table,
)
from orchestrator.evaluate.shift import papers_marks

CURVE = 0.3 + 0.1 * np.log2(SHOTS)


def test_shots_are_nested_and_balanced():
    label = np.repeat([3, 5, 9], 20)
    few, many = draw_shots(label, 2, seed=1), draw_shots(label, 8, seed=1)
    assert set(few) < set(many) and np.unique(label[many], return_counts=True)[1].tolist() == [8, 8, 8]
    assert list(draw_shots(label, 2, seed=2)) != list(few)
    with pytest.raises(ValueError, match="class 3 has 20 training examples, fewer than 21"):
        draw_shots(label, 21, seed=0)


def test_the_few_shot_curve_is_that_of_probes_fitted_one_by_one():
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(4, 12))

    def made(count):
        label = np.arange(count) % 4
        return centre[label] + rng.normal(size=(count, 12)), label

    training, validation, (test, truth) = made(80), made(60), made(200)
    found = few_shot(training, validation, lambda probe: probe.accuracy(test, truth), (1, 4, 16, 32), seeds=(0, 7))
    # A class has 20 examples: 32 cannot be drawn.
    assert found.shots_S == [1, 4, 16] and found.score_RS.shape == (2, 3)
    drawn = draw_shots(training[1], 4, 7)
    best = None
    for strength in np.geomspace(1e-6, 1e6, 97):
        probe = Probes(training[0][drawn], training[1][drawn]).fit([strength])[0]
        if best is None or probe.accuracy(*validation) > best.accuracy(*validation):
            best = probe
    assert found.score_RS[1, 1] == pytest.approx(best.accuracy(test, truth), abs=0.03)
    assert found.score_RS[:, 2].mean() > found.score_RS[:, 0].mean() + 0.1


def test_examples_that_equal_zero_shot_on_a_known_curve():
    found = examples_to_match(SHOTS, CURVE + np.array([[-0.01], [0.01]]), 0.3 + 0.1 * math.log2(5.4))
    assert found.value == pytest.approx(5.4) and not found.censored
    low, high = found.interval
    assert (low, high) == pytest.approx((5.4 / 2**0.1, 5.4 * 2**0.1))
    assert str(examples_to_match(SHOTS, CURVE[None], 0.2)) == "fewer than 1"
    assert str(examples_to_match(SHOTS, CURVE[None], 0.9)) == "more than 16"
    assert str(examples_to_match(SHOTS, CURVE[None], 0.3)) == "1"


def test_the_interval_over_seeds_is_scipys():
    score = [0.5, 0.6, 0.55]
    mean, interval = mean_and_interval(score)
    assert interval == pytest.approx(stats.ttest_1samp(score, 0).confidence_interval())
    assert mean == pytest.approx(0.55) and math.isnan(mean_and_interval([0.5])[1][0])


def test_headroom_is_that_of_the_line_the_data_were_made_on():
    supervised = np.linspace(0.5, 0.95, 30)
    found = headroom(supervised, 1.2 * supervised - 0.3 + np.random.default_rng(0).normal(0, 0.02, 30))
    assert found.slope_interval[0] < 1.2 < found.slope_interval[1]
    assert 0.95 < found.correlation_interval[0] < found.correlation < found.correlation_interval[1] < 1


def made_pair(standard, slope, intercept, above=0.0, samples=100_000):
    shifted = expit(slope * logit(standard) + intercept) + above
    return Pair(Count(round(standard * samples), samples), Count(round(shifted * samples), samples))


def test_effective_robustness_is_what_was_put_in():
    lines = [(1.0, -0.8), (1.2, -2.0)]
    models = [[made_pair(p, *line) for line in lines] for p in (0.4, 0.5, 0.6, 0.7, 0.8)]
    found = effective_robustness(
        models, [made_pair(0.76, *line, above=a) for line, a in zip(lines, (0.1, 0.2), strict=True)], 300
    )
    assert found.value == pytest.approx(0.15, abs=1e-3) and found.interval[0] < 0.15 < found.interval[1]
    assert found.interval[1] - found.interval[0] < 0.02
    none = effective_robustness(models, [made_pair(0.76, *line) for line in lines], 300)
    assert none.interval[0] < 0 < none.interval[1]


def test_relative_robustness_has_the_interval_of_two_binomials():
    found = relative_robustness(Count(500, 1000), Count(600, 1000), 4000)
    reach = 1.96 * math.sqrt((0.25 + 0.24) / 1000)
    assert found.value == pytest.approx(0.1) and found.interval == pytest.approx((0.1 - reach, 0.1 + reach), abs=0.004)


# About as many pictures as each set has (the counts behind the paper's percentages are not published), and the paper's
# accuracies in percent.
SAMPLES = {"imagenet": 50000, "imagenet_v2": 10000, "imagenet_r": 30000, "objectnet": 18574, "imagenet_sketch": 50889}
SAMPLES["imagenet_a"] = 7500
PAPER = {
    "resnet101": [76.2, 64.3, 37.7, 32.6, 25.2, 2.7],
    "zero_shot_clip": [76.2, 70.1, 88.9, 72.3, 60.2, 77.1],
    "linear_probe_clip": [85.4, 75.9, 84.2, 66.2, 57.4, 75.3],
}


def test_the_papers_table_comes_out_of_raw_counts():
    counts = {
        name: {where: Count(round(p / 100 * n), n) for (where, n), p in zip(SAMPLES.items(), row, strict=True)}
        for name, row in PAPER.items()
    }
    assert {name: list(row.values()) for name, row in shift_table(counts).items()} == PAPER
    with pytest.raises(ValueError, match="resnet101 on imagenet_a: 7501 right of 7500"):
        shift_table({"resnet101": {"imagenet_a": Count(7501, 7500)}})


def test_the_papers_classifiers_are_marked_where_imagenets_shifts_are_measured():
    counts = {"standard": {"hits": 7, "samples": 10}, "shifted": {"hits": 5, "samples": 10}, "classes": 2}
    shifts = {
        "1": counts | {"of": ["wds_imagenet1k", "wds_imagenet-a"]},
        "2": counts | {"of": ["imagenet1k", "imagenet_sketch"]},
        "3": counts | {"of": ["imagenet1k", "mine"]},
        "4": counts | {"of": ["mine", "imagenet-r"]},
    }
    marks = papers_marks(shifts)
    assert marks["CLIP, linear probe"][0] == pytest.approx((0.854, 0.753))
    assert {who: [100 * p for _, p in points] for who, points in marks.items()} == {
        title: pytest.approx([row[5], row[4]])
        for title, row in zip(("ResNet-101", "CLIP, zero-shot", "CLIP, linear probe"), PAPER.values(), strict=True)
    }
    figure = figures.robustness({"this model": shifts}, None, marks)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "the paper's CLIP, zero-shot" in labels and "this model" in labels
    assert papers_marks({"x": counts}) == {}


def test_overlap_against_scipy():
    correct = np.array([1] * 9 + [0] + [1] * 50 + [0] * 50, bool)
    found = overlap(correct, np.arange(110) < 10)
    assert (found.overlap, found.clean, found.share) == pytest.approx((0.9, 0.5, 1 / 11))
    assert found.gain == pytest.approx(59 / 110 - 0.5)
    assert found.greater == pytest.approx(stats.binom.sf(8, 10, 0.5))
    expected = stats.binomtest(9, 10).proportion_ci(0.995, "exact")
    assert found.interval == pytest.approx((expected.low, expected.high)) and found.different > found.greater
    assert overlap(correct, np.zeros(110, bool)).greater == 1
    with pytest.raises(ValueError, match="one clean at least"):
        overlap(correct, np.ones(110, bool))


def test_a_model_that_is_never_wrong_has_a_place_on_logit_axes():
    assert Count(10, 10).accuracy == 1 and Count(10, 10).inner_accuracy == pytest.approx(10.5 / 11)
    assert Count(0, 10).inner_accuracy == pytest.approx(0.5 / 11)
    assert np.isfinite(logit([Count(10, 10).inner_accuracy, Count(0, 10).inner_accuracy])).all()
