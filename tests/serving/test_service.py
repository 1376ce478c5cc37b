"""What an ingress replica remembers of classifiers."""

import asyncio
from types import SimpleNamespace

import pytest

from serving.errors import RequestError
from serving.service import FRESH_S, Ingress


def ask(status: int, known: bool, times: int = 1):
    """How often the keeper of classifiers, which fails, was asked for one; the answer is the one that was known."""
    asked = []

    async def classifiers(*what):
        asked.append(what)
        raise RequestError(status, "", "as the test wants it")

    definition = SimpleNamespace(digest="d")
    kept = {"cats": (-FRESH_S * 1e6, definition)} if known else {}
    service = SimpleNamespace(_definitions=kept, classifiers=classifiers)
    for _ in range(times):
        assert asyncio.run(Ingress.definition(service, "cats")) is definition
    return len(asked)


def test_a_known_classifier_outlives_a_keeper_that_starts_anew():
    assert ask(503, known=True) == 1
    assert ask(503, known=True, times=3) == 1  # Not asked again at once.


@pytest.mark.parametrize(("status", "known"), [(404, True), (500, True), (503, False)])
def test_other_failures_are_told(status, known):
    with pytest.raises(RequestError) as failed:
        ask(status, known)
    assert failed.value.status == status
