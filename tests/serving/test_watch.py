"""Every request is bounded in time and bytes, and counted."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import pytest

from serving.errors import RequestError
from serving.http import Watch
from serving.settings import Limits

BEGIN = {"type": "http.response.start", "status": 200, "headers": []}


class Counter:
    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def inc(self, value: float, tags: dict[str, str]) -> None:
        self.seen.append(tags)


def ask(
    app, body: tuple[bytes, ...] = (b"",), headers: tuple = (), request_s: float = 0.05
) -> tuple[list[dict], Counter]:
    """What is sent in answer, and what was counted."""
    counter, sent, parts = Counter(), [], list(body)
    service = SimpleNamespace(settings=SimpleNamespace(limits=Limits(request_s=request_s)), requests=counter)

    async def receive() -> dict:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/x", "headers": list(headers)}
    try:
        asyncio.run(Watch(app, service, body_bytes=10)(scope, receive, send))
    except RequestError as error:
        sent.append({"error": error})
    return sent, counter


def test_what_takes_too_long_is_given_up():
    async def slow(scope, receive, send):
        await asyncio.sleep(60)

    sent, counter = ask(slow)
    assert sent[0]["status"] == 504
    assert "no answer within 0.05 s" in json.loads(sent[1]["body"])["error"]["message"]
    assert counter.seen == [{"handler": "other", "status": "504"}]


def test_an_answer_that_has_begun_is_not_begun_again():
    async def stuck(scope, receive, send):
        await send(BEGIN)
        await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        ask(stuck)


def test_a_body_of_unknown_length_is_left_off_where_it_is_too_long():
    read = []

    async def reads(scope, receive, send):
        while (message := await receive())["more_body"]:
            read.append(message["body"])

    sent, counter = ask(reads, body=(b"12345", b"67890", b"1", b"never"), request_s=60)
    assert sent[0]["error"].status == 413 and read == [b"12345", b"67890"]
    sent, counter = ask(reads, body=(b"never",), headers=((b"content-length", b"11"),), request_s=60)
    assert sent[0]["status"] == 413 and counter.seen[0]["status"] == "413"


def test_a_client_that_leaves_is_no_mistake_of_the_servers():
    async def waits(scope, receive, send):
        if (await receive())["type"] == "http.disconnect":
            raise ConnectionError("the client left")

    counter = Counter()
    service = SimpleNamespace(settings=SimpleNamespace(limits=Limits()), requests=counter)

    async def receive() -> dict:
        return {"type": "http.disconnect"}

    with pytest.raises(ConnectionError):
        asyncio.run(Watch(waits, service, body_bytes=10)({"type": "http", "headers": []}, receive, None))
    assert [seen["status"] for seen in counter.seen] == ["499"]


def test_a_request_that_is_called_off_is_no_mistake_of_the_servers():
    counter = Counter()
    service = SimpleNamespace(settings=SimpleNamespace(limits=Limits()), requests=counter)

    async def waits(scope, receive, send):
        await asyncio.sleep(60)

    async def called_off() -> None:
        request = asyncio.create_task(Watch(waits, service, 10)({"type": "http", "headers": []}, None, None))
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(called_off())
    assert [seen["status"] for seen in counter.seen] == ["499"]


def test_outcomes_are_counted_by_route():
    async def answers(scope, receive, send):
        scope["route"] = SimpleNamespace(path="/v1/classify")
        await send(BEGIN)

    async def breaks(scope, receive, send):
        raise ValueError("unforeseen")

    assert ask(answers, request_s=60)[1].seen == [{"handler": "/v1/classify", "status": "200"}]
    with pytest.raises(ValueError, match="unforeseen"):
        ask(breaks, request_s=60)
