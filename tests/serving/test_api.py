"""The API over HTTP against the model itself: what is answered, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import threading

import httpx
import huggingface_hub
import numpy as np
import pytest
import requests
import torch
from promql import alerts, metric_names, names_of_rows, wait_until_exposed
from ray_cluster import wait_until
from server import png
from shapes import NAMES, TEMPLATES, pairs

from orchestrator.inference import Embedder, zero_shot_classifier

PICTURES = [image for image, _, _ in pairs(12, seed=5)]


@pytest.fixture(scope="module")
def embedder(server) -> Embedder:
    return Embedder(server.args["model"])


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def expected(embedder: Embedder, images: list[bytes], labels: list, templates: list[str]) -> np.ndarray:
    """Probabilities as the evaluation of a model on a set computes them."""
    pixels = np.stack([embedder.transform.evaluate(image) for image in images])
    cosine = embedder.embed_images(pixels) @ zero_shot_classifier(embedder, labels, templates).T
    return torch.softmax(embedder.logit_scale * cosine, dim=-1).numpy()


def check(results: list[dict], wanted: np.ndarray, labels: list[str]) -> None:
    assert len(results) == len(wanted)
    for result, row in zip(results, wanted, strict=True):
        scores = [score["score"] for score in result["scores"]]
        assert scores == sorted(scores, reverse=True)
        found = {score["label"]: score["score"] for score in result["scores"]}
        np.testing.assert_allclose([found[label] for label in labels], row, atol=1e-4)


def files(images: list[bytes]) -> list:
    return [("image", (f"{n}.jpg", image, "image/jpeg")) for n, image in enumerate(images)]


def test_scores_equal_the_offline_evaluation(client, embedder):
    reply = client.post("/v1/classify", files=files(PICTURES), data={"labels": NAMES, "template": TEMPLATES})
    assert reply.status_code == 200, reply.text
    check(reply.json()["results"], expected(embedder, PICTURES, NAMES, TEMPLATES), NAMES)


def test_a_named_classifier_with_several_names_a_class(client, embedder, server):
    classes = [["red circle", "scarlet disc"], "blue square", ["green cross"]]
    body = {"classes": classes, "templates": TEMPLATES, "temperature": 0.5}
    made = client.put("/v1/classifiers/shapes", json=body)
    assert made.status_code == 200 and made.json()["state"] == "ready", made.text
    assert made.json()["classes"] == ["red circle", "blue square", "green cross"]
    reply = client.post("/v1/classifiers/shapes/classify", files=files(PICTURES[:3]))
    pixels = np.stack([embedder.transform.evaluate(image) for image in PICTURES[:3]])
    rows = []
    for names in (["red circle", "scarlet disc"], ["blue square"], ["green cross"]):
        prompts = embedder.embed_texts([t.replace("{c}", n) for n in names for t in TEMPLATES]).mean(0)
        rows.append(prompts / prompts.norm())
    wanted = torch.softmax(embedder.embed_images(pixels) @ torch.stack(rows).T / 0.5, dim=-1).numpy()
    check(reply.json()["results"], wanted, ["red circle", "blue square", "green cross"])
    listed = client.get("/v1/classifiers").json()["classifiers"]
    assert [one["name"] for one in listed] == ["shapes"]
    # It is on storage under its name, and gone when deleted.
    stored = server.folder / "classifiers"
    assert (stored / "classifiers" / "shapes.json").exists() and list((stored / "weights").iterdir())
    assert client.delete("/v1/classifiers/shapes").status_code == 204
    assert client.get("/v1/classifiers/shapes").status_code == 404
    assert not list((stored / "classifiers").iterdir()) and not list((stored / "weights").iterdir())


def settled(server, name: str) -> float:
    """A metric once it is the same in several exports, of which there is one a second."""
    seen: list[float] = []
    wait_until(lambda: seen.append(server.metric(name)) or (len(seen) > 15 and len(set(seen[-15:])) == 1), "exports")
    return seen[-1]


def test_a_cached_classifier_asks_no_text_tower(client, server):
    data = {"labels": ["a red circle", "a green cross"]}
    first = client.post("/v1/classify", files=files(PICTURES[:1]), data=data).json()

    before = settled(server, "clip_texts_encoded")
    assert before > 0
    for _ in range(20):
        again = client.post("/v1/classify", files=files(PICTURES[:1]), data=data).json()
        assert again["cached"] and again["results"] == first["results"]
    assert settled(server, "clip_texts_encoded") == before


def test_what_many_ask_for_at_once_is_made_once(client, server):
    """Eight threads want the same new words; one of them has the text tower work."""
    labels, replies = [f"thing number {n}" for n in range(200)], []
    before = settled(server, "clip_texts_encoded")

    def ask():
        replies.append(httpx.post(f"{server.url}/v1/classify", files=files(PICTURES[:1]), data={"labels": labels}))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {reply.status_code for reply in replies} == {200}
    assert settled(server, "clip_texts_encoded") == before + 200


def test_hugging_faces_client(server, embedder, tmp_path):
    picture = tmp_path / "picture.png"
    picture.write_bytes(png())
    client = huggingface_hub.InferenceClient(model=f"{server.url}/hf/zero-shot-image-classification")
    found = client.zero_shot_image_classification(
        str(picture), candidate_labels=["a red circle", "a blue square"], hypothesis_template="a picture of {}"
    )
    wanted = expected(embedder, [png()], ["a red circle", "a blue square"], ["a picture of {c}"])[0]
    assert {one.label: pytest.approx(one.score, abs=1e-4) for one in found} == dict(
        zip(["a red circle", "a blue square"], wanted, strict=True)
    )
    assert found[0].score >= found[1].score


@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: {"image": data}])
@pytest.mark.parametrize("labels", [["a cat", "a dog"], "a cat, a dog"])
def test_both_bodies_of_hugging_faces_task(client, wrap, labels):
    body = {"inputs": wrap(base64.b64encode(png()).decode()), "parameters": {"candidate_labels": labels}}
    reply = client.post("/hf/zero-shot-image-classification", json=body)
    assert reply.status_code == 200, reply.text
    assert {one["label"] for one in reply.json()} == {"a cat", "a dog"}
    assert sum(one["score"] for one in reply.json()) == pytest.approx(1.0, abs=1e-4)


def test_embeddings_of_texts_and_pictures(client, embedder):
    texts = ["a red circle", "a blue square"]
    reply = client.post("/v1/embeddings", json={"input": texts}).json()
    found = np.array([one["embedding"] for one in reply["data"]])
    np.testing.assert_allclose(found, embedder.embed_texts(texts).numpy(), atol=1e-5)
    body = {"input": [{"image": base64.b64encode(PICTURES[0]).decode()}], "encoding_format": "base64"}
    (one,) = client.post("/v1/embeddings", json=body).json()["data"]
    wanted = embedder.embed_images(embedder.transform.evaluate(PICTURES[0])[None])[0].numpy()
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), wanted, atol=1e-5)


def test_requests_and_curl(server, tmp_path):
    """The commands of the documentation."""
    picture = tmp_path / "cat.jpg"
    picture.write_bytes(png(kind="JPEG"))
    with picture.open("rb") as data:
        reply = requests.post(
            f"{server.url}/v1/classify", files={"image": data}, data={"labels": ["a cat", "a dog"]}, timeout=30
        )
    assert reply.status_code == 200
    command = ["curl", "-s", f"{server.url}/v1/classify", "-F", f"image=@{picture}", "-F", "labels=a cat",
               "-F", "labels=a dog"]  # fmt: skip
    assert json.loads(subprocess.run(command, capture_output=True, check=True).stdout) == reply.json() | {
        "cached": True
    }


def test_models_health_and_the_page(client, embedder):
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["image_size"], model["embed_dim"]) == ("default", 32, 32)
    assert model["fingerprint"] == embedder.fingerprint
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    page = client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]


def test_what_the_dashboard_asks_of_the_endpoint_is_exported(client, server):
    assert client.post("/v1/classify", files=files(PICTURES[:1]), data={"labels": NAMES}).status_code == 200
    names = names_of_rows("Serving") | metric_names(alerts()["ServeSlow"]) | {"ray_serve_autoscaling_target_replicas"}
    wait_until_exposed(names, server.cluster.temporary / "prom_metrics_service_discovery.json")


def test_one_bad_picture_fails_alone(client, embedder):
    images = [PICTURES[0], PICTURES[1][:200], PICTURES[2]]
    reply = client.post("/v1/classify", files=files(images), data={"labels": NAMES}).json()
    good, bad = [reply["results"][0], reply["results"][2]], reply["results"][1]
    check(good, expected(embedder, [PICTURES[0], PICTURES[2]], NAMES, ["a photo of a {c}"]), NAMES)
    assert bad["error"]["field"] == "image[1]" and bad["error"]["status"] == 422
    alone = client.post("/v1/classify", files=files(images[1:2]), data={"labels": NAMES})
    assert alone.status_code == 422 and alone.json()["error"]["field"] == "image"


BAD = [
    ({"data": {"labels": ["a"]}}, 422, "image"),
    ({"files": files([png()])}, 422, "labels"),
    ({"files": files([png()]), "data": {"labels": ["a"], "template": ["no place"]}}, 422, "templates[0]"),
    ({"files": files([png()]), "data": {"labels": [" "]}}, 422, "classes[0]"),
    ({"files": files([png()]), "data": {"labels": ["x" * 2000]}}, 413, "classes"),
    ({"files": files([png()]), "data": {"labels": ["a"], "model": "other"}}, 404, "model"),
    ({"files": files([png()] * 33), "data": {"labels": ["a"]}}, 413, "image"),
    ({"files": files([b"<svg xmlns='http://www.w3.org/2000/svg'/>"]), "data": {"labels": ["a"]}}, 415, "image"),
    ({"data": {"labels": ["a"], "uri": ["https://example.com/a.png"]}}, 403, "uri"),
]


@pytest.mark.parametrize(("request_", "status", "field"), BAD)
def test_bad_requests_name_the_field(client, request_, status, field):
    reply = client.post("/v1/classify", **request_)
    error = reply.json()["error"]
    assert (reply.status_code, error["status"], error["field"]) == (status, status, field), reply.text
    assert error["message"]


def test_pages_of_other_origins_may_not_call(client):
    reply = client.get("/v1/models", headers={"origin": "https://pages.example"})
    assert "access-control-allow-origin" not in reply.headers


def test_a_body_longer_than_any_good_one_is_refused(client):
    def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(120):
            yield b"x" * (1 << 20)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    with contextlib.suppress(httpx.TransportError):  # Where it is cut off while it is still being sent.
        reply = client.post("/v1/classify", content=endless(), headers=headers)
        assert reply.status_code == 413, reply.text
    assert client.get("/healthz").status_code == 200
