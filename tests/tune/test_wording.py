"""Numbers and names as people read them."""

import math

import numpy as np
import pytest

from orchestrator.tune import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.07, "0.07"), (5e-5, "5e-5"), (3.2e15, "3.2e15"), (1.0, "1"), (0.123456, "0.1235"), (math.inf, "inf"),
     (math.nan, "–"), (np.float32("nan"), "–"), (None, "–"), (True, "true"), (1234567, "1,234,567"),
     ([1, 0.5], "[1, 0.5]")],
)  # fmt: skip
def test_numbers_have_sensible_digits(value, text):
    assert wording.cell(value) == text


def test_short_names_tell_options_apart():
    assert wording.short_names(["model.vision.width", "model.text.width", "optim.lr", "lr"]) == {
        "model.vision.width": "vision.width", "model.text.width": "text.width", "optim.lr": "optim.lr", "lr": "lr",
    }  # fmt: skip
