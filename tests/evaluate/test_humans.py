"""People's answers, counted by hand."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from orchestrator.evaluate.humans import (
    beside_people,
    class_accuracy,
    correlation_of_difficulty,
    human_result,
    read_answers,
)

TRUTH = {"p1": "beagle", "p2": "beagle", "p3": "boxer"}
LINES = """person,picture,answer
a,p1,beagle
b,p1,beagle
c,p1,boxer
a,p2,
b,p2,don't know
c,p2,beagle
a,p3,boxer
b,p3,beagle
c,p3,Don't know
"""


def write(tmp_path, text):
    path = tmp_path / "answers.csv"
    path.write_text(text)
    return str(path)


def test_the_papers_table_by_hand(tmp_path):
    answers = read_answers(write(tmp_path, LINES), TRUTH)
    found = human_result(answers, TRUTH)
    assert found.accuracy == pytest.approx((3 / 6 + 1 / 3) / 2)
    assert found.accuracy_on_guesses == pytest.approx((3 / 4 + 1 / 2) / 2)
    # p1: beagle; p2: don't know; p3: a tie of three.
    assert found.majority_vote_full == pytest.approx(1 / 2)
    # p1 and p2: beagle; p3: a tie of two.
    assert found.majority_vote_on_guesses == 1
    assert np.isnan(human_result([one for one in answers if one.picture == "p3"], TRUTH).majority_vote_full)


def test_people_and_model_are_held_beside_each_other_on_the_same_pictures(tmp_path):
    truth = TRUTH | {"p4": "boxer", "p5": "beagle"}
    answers = read_answers(write(tmp_path, LINES), truth)
    found = beside_people(answers, truth, {"p1": "beagle", "p2": "boxer", "p3": "boxer", "p4": "beagle", "p5": "boxer"})
    assert (found["people"], found["pictures"]) == (3, 3)
    assert found["table"]["people"] == asdict(human_result(answers, TRUTH))
    # Nobody was asked of p4 and p5; one who always guesses, alone, is a majority.
    assert set(found["table"]["model"].values()) == {0.75}
    assert found["classes"] == [
        {"class": "beagle", "people": 0.5, "model": 0.5},
        {"class": "boxer", "people": pytest.approx(1 / 3), "model": 1.0},
    ]
    assert found["no correlation"].startswith("2 classes in common")


def test_people_of_a_known_skill_make_a_table_of_the_papers_kind(tmp_path):
    rng, names = np.random.default_rng(0), [f"breed{number}" for number in range(37)]
    truth = {f"p{number}": names[number % 37] for number in range(37 * 60)}
    lines = ["person,picture,answer"]
    for picture, name in truth.items():
        for person in range(5):
            # 60% know, 20% say so that they do not, the others guess wrong at random.
            draw = rng.random()
            wrong = rng.choice([other for other in names[:6] if other != name])
            lines.append(f"{person},{picture},{name if draw < 0.6 else '' if draw < 0.8 else wrong}")
    found = human_result(read_answers(write(tmp_path, "\n".join(lines)), truth), truth)
    assert found.accuracy == pytest.approx(0.6, abs=0.02)
    assert found.accuracy_on_guesses == pytest.approx(0.75, abs=0.02)
    assert found.majority_vote_full > found.accuracy + 0.1
    assert found.majority_vote_on_guesses > found.accuracy_on_guesses + 0.1


def test_difficulty_is_correlated_as_scipy_says(tmp_path):
    rng = np.random.default_rng(0)
    people = {f"c{number}": float(rng.random()) for number in range(20)}
    model = {name: share + float(rng.normal(0, 0.1)) for name, share in people.items()} | {"other": 1.0}
    found = correlation_of_difficulty(people, model)
    assert found.value == pytest.approx(stats.linregress(list(people.values()), list(model.values())[:20]).rvalue)
    assert found.interval[0] < found.value < found.interval[1] and found.classes == 20
    assert class_accuracy([("p1", "beagle"), ("p2", None), ("p3", "boxer")], TRUTH) == {"beagle": 0.5, "boxer": 1}
    with pytest.raises(ValueError, match="2 classes in common"):
        correlation_of_difficulty({"a": 1, "b": 0}, {"a": 1, "b": 0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person,answer\n", "no column picture; the first line must name"),
        ("person,picture,answer\n", "holds no answers"),
        ("person,picture,answer\na,p9,boxer\n", "line 2: picture 'p9' is not in the evaluation set"),
        ("person,picture,answer\na,p1,poodle\n", "line 2: answer 'poodle' is no class"),
        ("person,picture,answer\na,p1,boxer\na,p1,\n", "line 3: 'a' has already answered for 'p1'"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_answers(write(tmp_path, text), TRUTH)
