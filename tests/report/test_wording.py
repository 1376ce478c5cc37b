"""Numbers as people read them."""

import math

import numpy as np
import pytest

from orchestrator.report.wording import cell


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.07, "0.07"), (5e-5, "5e-5"), (3.2e15, "3.2e15"), (1.0, "1"), (0.123456, "0.1235"), (math.inf, "inf"),
     (math.nan, "–"), (np.float32("nan"), "–"), (None, "–"), (True, "true"), (1234567, "1,234,567"),
     ([1, 0.5], "[1, 0.5]")],
)  # fmt: skip
def test_numbers_have_sensible_digits(value, text):
    assert cell(value) == text
