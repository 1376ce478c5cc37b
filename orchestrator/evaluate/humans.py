"""People's answers to an evaluation set, beside a model's.

Accuracy is the mean over classes of the share of right answers. "I don't know" is an answer that is never right;
guesses are all others. A majority vote is the most frequent answer to a picture, "I don't know" among the answers of
the full set; pictures without a single most frequent answer are left out.

Source: Radford et al. 2021, section 4, table 2.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy

from orchestrator import storage
from orchestrator.statistics.intervals import LEVEL, Interval

COLUMNS = ("person", "picture", "answer")
UNKNOWN = {"", "don't know", "i don't know", "dont know"}


class Answer(NamedTuple):
    """What a person said of a picture: a class, or None for "I don't know"."""

    person: str
    picture: str
    answer: str | None


def read_answers(uri: str, truth: Mapping[str, str]) -> list[Answer]:
    """Read a CSV with the columns person, picture and answer.

    Parameters
    ----------
    uri : the file; an empty answer or "don't know" is that
    truth : the class of each picture

    Raises
    ------
    ValueError : a column is missing, a picture or class is unknown, or someone answers twice; with file and line
    """
    rows = csv.DictReader(io.StringIO(storage.read_bytes(uri).decode("utf-8-sig")))
    if missing := [column for column in COLUMNS if column not in (rows.fieldnames or [])]:
        raise ValueError(f"{uri}: no column {', '.join(missing)}; the first line must name {', '.join(COLUMNS)}")
    classes, seen, answers = set(truth.values()), set(), []
    for row in rows:
        person, picture, answer = ((row[column] or "").strip() for column in COLUMNS)
        where = f"{uri}, line {rows.line_num}"
        if picture not in truth:
            raise ValueError(f"{where}: picture {picture!r} is not in the evaluation set")
        known = answer.lower() not in UNKNOWN
        if known and answer not in classes:
            raise ValueError(f'{where}: answer {answer!r} is no class of the set; leave it empty for "don\'t know"')
        if (person, picture) in seen:
            raise ValueError(f"{where}: {person!r} has already answered for {picture!r}: keep one answer")
        seen.add((person, picture))
        answers.append(Answer(person, picture, answer if known else None))
    if not answers:
        raise ValueError(f"{uri} holds no answers")
    return answers


@dataclass(frozen=True)
class HumanResult:
    """A line of the paper's table, each a mean over classes in [0, 1]; NaN where no picture is left."""

    accuracy: float
    majority_vote_full: float
    accuracy_on_guesses: float
    majority_vote_on_guesses: float


def human_result(answers: Sequence[Answer], truth: Mapping[str, str]) -> HumanResult:
    """What people, one by one and by vote, get right."""
    guesses = [one for one in answers if one.answer is not None]
    return HumanResult(*(score(part, truth) for part in (answers, guesses) for score in (_single, _vote)))


def class_accuracy(answers: Iterable[tuple[str, str | None]], truth: Mapping[str, str]) -> dict[str, float]:
    """Share of right answers of each class that has any.

    Parameters
    ----------
    answers : (picture, answer) of people or of a model
    truth : the class of each picture
    """
    right: defaultdict[str, list[bool]] = defaultdict(list)
    for picture, answer in answers:
        right[truth[picture]].append(answer == truth[picture])
    return {name: float(np.mean(right[name])) for name in sorted(right)}


class Correlation(NamedTuple):
    """Of the classes' accuracies: Pearson's r, its 95% interval, p-value, and the number of classes."""

    value: float
    interval: Interval
    p: float
    classes: int


def correlation_of_difficulty(people: Mapping[str, float], model: Mapping[str, float]) -> Correlation:
    """Whether what is hard for people is hard for a model, class by class.

    Raises
    ------
    ValueError : fewer than 4 classes in common, or one side does equally well on all
    """
    common = sorted(people.keys() & model.keys())
    x_C, y_C = np.array([people[name] for name in common]), np.array([model[name] for name in common])
    if len(common) < 4 or np.ptp(x_C) == 0 or np.ptp(y_C) == 0:
        raise ValueError(f"{len(common)} classes in common: a correlation needs at least 4, not all of one accuracy")
    found = scipy.stats.pearsonr(x_C, y_C)
    ends = found.confidence_interval(LEVEL)
    return Correlation(float(found.statistic), (float(ends.low), float(ends.high)), float(found.pvalue), len(common))


def beside_people(answers: Sequence[Answer], truth: Mapping[str, str], model: Mapping[str, str]) -> dict[str, Any]:
    """The paper's table and the classes' difficulty, of people and of a model on the pictures that people have seen.

    Parameters
    ----------
    answers : of people
    truth, model : of each picture, its class and the model's answer

    Returns
    -------
    {people, pictures, table: {who: HumanResult}, classes: [{class, people, model}], correlation or no correlation}
    """
    pictures = {one.picture for one in answers}
    own = [Answer("model", picture, model[picture]) for picture in sorted(pictures)]
    shares = class_accuracy(((one.picture, one.answer) for one in answers), truth)
    own_shares = class_accuracy(((one.picture, one.answer) for one in own), truth)
    result: dict[str, Any] = {
        "people": len({one.person for one in answers}),
        "pictures": len(pictures),
        "table": {"people": asdict(human_result(answers, truth)), "model": asdict(human_result(own, truth))},
        "classes": [{"class": name, "people": shares[name], "model": own_shares[name]} for name in shares],
    }
    try:
        result["correlation"] = correlation_of_difficulty(shares, own_shares)._asdict()
    except ValueError as error:
        result["no correlation"] = str(error)
    return result


def _single(answers: Sequence[Answer], truth: Mapping[str, str]) -> float:
    return _mean(class_accuracy(((one.picture, one.answer) for one in answers), truth))


def _vote(answers: Sequence[Answer], truth: Mapping[str, str]) -> float:
    votes: defaultdict[str, Counter[str | None]] = defaultdict(Counter)
    for one in answers:
        votes[one.picture][one.answer] += 1
    winners = []
    for picture, counter in votes.items():
        (first, most), *others = counter.most_common(2)
        if not others or others[0][1] < most:
            winners.append((picture, first))
    return _mean(class_accuracy(winners, truth))


def _mean(shares: Mapping[str, float]) -> float:
    return float(np.mean(list(shares.values()))) if shares else float("nan")
