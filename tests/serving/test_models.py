"""Several models behind one endpoint, and web pages of other origins that may call it."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest
from ray_cluster import wait_until
from server import LABELS, png, scores_of

PICTURE = png()
ORIGIN = "https://pages.example"


@pytest.fixture(scope="module")
def several(server):
    """A server of two models; afterwards the one that was there."""
    before = dict(server.args)
    models = {name: str(server.folder / f"model-{seed}") for name, seed in (("first", 1), ("second", 2))}
    rest = {key: value for key, value in before.items() if key != "model"}
    server.deploy(**rest, models=models, cors_origins=[ORIGIN])

    def served() -> list[str]:
        return [one["id"] for one in httpx.get(f"{server.url}/v1/models", timeout=60).json().get("data", [])]

    wait_until(lambda: served() == list(models), "two models")
    server.wait_until_running()
    yield server
    server.deploy(**before)
    wait_until(lambda: served() == ["default"], "the one model")
    server.wait_until_running()


@pytest.fixture
def client(several):
    with httpx.Client(base_url=several.url, timeout=60) as client:
        yield client


def in_order(scores: list[dict]) -> list[float]:
    found = {one["label"]: one["score"] for one in scores}
    return [found[label] for label in LABELS]


def test_each_model_answers_for_itself(client, several):
    models = several.args["models"]
    assert len({one["fingerprint"] for one in client.get("/v1/models").json()["data"]}) == 2
    wanted = {name: scores_of(PICTURE, uri) for name, uri in models.items()}
    assert not np.allclose(wanted["first"], wanted["second"], atol=1e-3)
    for asked, name in (("", "first"), ("first", "first"), ("second", "second")):
        reply = client.post("/v1/classify", files={"image": PICTURE}, data={"labels": LABELS, "model": asked})
        assert reply.json()["model"] == name
        np.testing.assert_allclose(in_order(reply.json()["results"][0]["scores"]), wanted[name], atol=1e-4)
        body = {"inputs": base64.b64encode(PICTURE).decode(), "parameters": {"candidate_labels": LABELS}}
        path = f"/hf/zero-shot-image-classification/{asked}".rstrip("/")
        np.testing.assert_allclose(in_order(client.post(path, json=body).json()), wanted[name], atol=1e-4)


def test_a_classifier_is_of_one_model(client, several):
    body = {"classes": LABELS, "templates": ["a photo of a {c}"], "model": "second"}
    assert client.put("/v1/classifiers/of-second", json=body).json()["model"] == "second"
    reply = client.post("/v1/classifiers/of-second/classify", files={"image": PICTURE}, data={"top": 2})
    wanted = np.sort(scores_of(PICTURE, several.args["models"]["second"]))[::-1][:2]
    np.testing.assert_allclose([one["score"] for one in reply.json()["results"][0]["scores"]], wanted, atol=1e-4)
    assert client.delete("/v1/classifiers/of-second").status_code == 204


def test_an_unknown_model_is_named(client):
    reply = client.post("/v1/classify", files={"image": PICTURE}, data={"labels": LABELS, "model": "third"})
    assert reply.status_code == 404 and reply.json()["error"]["field"] == "model" and "third" in reply.text


def test_pages_of_permitted_origins_only(client):
    def permitted(origin: str) -> str | None:
        headers = {"origin": origin, "access-control-request-method": "POST"}
        return client.options("/v1/classify", headers=headers).headers.get("access-control-allow-origin")

    assert permitted(ORIGIN) == ORIGIN
    assert permitted("https://elsewhere.example") is None
