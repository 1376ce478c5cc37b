"""The classes that a model does worst at, with pictures that it takes for something else."""

from __future__ import annotations

import io
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from orchestrator import storage
from orchestrator.data.images import decode_rgb
from orchestrator.evaluate.answers import Answers, kept_answers
from orchestrator.evaluate.datasets import EvaluationSet
from orchestrator.evaluate.plan import file_name
from orchestrator.report.drawing import drawable

# Classes that are shown, pictures of each, and their side in pixels.
CLASSES, EACH, SIDE = 6, 5, 96


class Mistake(NamedTuple):
    """An encoded picture, and the class that it was taken for."""

    image: bytes
    answer: str


def picture_file(name: str) -> str:
    """Where a set's worst classes are drawn, in the folder of results."""
    return f"pictures/{file_name(name)}.jpg"


def worst_rows(classes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `measure.class_rows` that have samples, the least accurate first."""
    return sorted((dict(row) for row in classes if row["samples"]), key=lambda row: row["accuracy"])


def draw_worst(out: str, name: str, dataset: EvaluationSet, classes: Sequence[Mapping[str, Any]]) -> None:
    """Draw some of the worst classes' mistaken pictures into the folder of results, if there are any.

    Parameters
    ----------
    out : URI of the folder, which holds the set's answers
    name, dataset : the set
    classes : of `measure.class_rows`
    """
    answers = kept_answers(out, name)
    worst = [row["class"] for row in worst_rows(classes)[:CLASSES] if row["accuracy"] < 1]
    if answers is None or not worst:
        return
    mistakes = find_mistakes(dataset, answers, worst)
    storage.write_bytes(storage.join(out, picture_file(name)), draw_mistakes(mistakes))


def find_mistakes(dataset: EvaluationSet, answers: Answers, classes: Sequence[str]) -> dict[str, list[Mistake]]:
    """The first few mistaken pictures of each class; shards are read no further than to the last of them."""
    wanted: dict[int, str] = {}
    for one in classes:
        wrong_N = ~answers.right_N & (answers.label_N == dataset.class_names.index(one))
        wanted |= dict.fromkeys(np.flatnonzero(wrong_N)[:EACH].tolist(), one)
    found: defaultdict[str, list[Mistake]] = defaultdict(list)
    for place, sample in enumerate(dataset.samples()):
        if place in wanted:
            found[wanted.pop(place)].append(Mistake(sample.image, dataset.class_names[answers.best_N[place]]))
        if not wanted:
            break
    return {one: found[one] for one in classes}


def draw_mistakes(mistakes: Mapping[str, Sequence[Mistake]]) -> bytes:
    """A row a class: its name, and pictures below the name that each was given; bytes of a JPEG."""
    figure = Figure(figsize=(1.45 * (EACH + 1), 1.5 * len(mistakes)), dpi=110, layout="constrained")
    for axes_row, (name, row) in zip(
        figure.subplots(len(mistakes), EACH + 1, squeeze=False), mistakes.items(), strict=True
    ):
        for axes in axes_row:
            axes.set_axis_off()
        axes_row[0].text(0.0, 0.5, _lines(name, 16), va="center", fontsize=9, fontweight="bold")
        for axes, one in zip(axes_row[1:], row, strict=False):
            picture = decode_rgb(one.image)
            picture.thumbnail((SIDE, SIDE), Image.Resampling.BICUBIC)
            axes.imshow(picture)
            axes.set_title(_lines(one.answer, 20), fontsize=7)
    out = io.BytesIO()
    figure.savefig(out, format="jpeg", facecolor="white")
    return out.getvalue()


def _lines(text: str, width: int) -> str:
    """Two lines at most."""
    return drawable("\n".join(textwrap.wrap(text, width, max_lines=2, placeholder=" …")))
