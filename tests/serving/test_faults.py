"""Under load, with parts killed and replaced: every answer is right, or says that it comes later."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest
from ray_cluster import wait_until
from server import LABELS, png, scores_of

PICTURE = png()


class Load:
    """Clients that ask without a pause, and what they were answered."""

    def __init__(self, url: str, clients: int):
        self._url, self._stop = url, threading.Event()
        self.statuses: Counter[int] = Counter()
        self.answers: list[np.ndarray] = []
        self.seconds: list[float] = []
        self.without_retry_after = 0
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(timeout=60) as client:
            while not self._stop.is_set():
                start = time.perf_counter()
                try:
                    reply = client.post(f"{self._url}/v1/classify", files={"image": PICTURE}, data={"labels": LABELS})
                except httpx.TransportError:
                    self.statuses[0] += 1
                    continue
                self.statuses[reply.status_code] += 1
                if reply.status_code == 200:
                    self.seconds.append(time.perf_counter() - start)
                    found = {one["label"]: one["score"] for one in reply.json()["results"][0]["scores"]}
                    self.answers.append(np.array([found[label] for label in LABELS]))
                elif reply.status_code == 503:
                    self.without_retry_after += "retry-after" not in reply.headers
                    time.sleep(0.05)

    def wait_for(self, more: int) -> None:
        """Until that many more were answered."""
        target = len(self.answers) + more
        wait_until(lambda: len(self.answers) >= target, f"{more} more answers")


def agree(answers: list[np.ndarray], *right: np.ndarray) -> bool:
    return all(any(np.allclose(answer, one, atol=1e-4) for one in right) for answer in answers)


@pytest.mark.parametrize("deployment", ["ImageEncoder-default", "Classifiers"])
def test_a_killed_replica_gives_no_wrong_answer(server, deployment):
    with Load(server.url, 4) as load:
        load.wait_for(20)
        (victim,) = server.replicas(deployment)
        victim.kill()
        wait_until(lambda: [r for r in server.replicas(deployment) if r.pid != victim.pid], "another replica")
        server.wait_until_running()
        load.wait_for(20)
    assert set(load.statuses) <= {200, 503}, load.statuses
    assert agree(load.answers, scores_of(PICTURE, server.args["model"]))


def test_classifiers_are_there_after_a_restart(server):
    body = {"classes": LABELS, "templates": ["a photo of a {c}"]}
    assert httpx.put(f"{server.url}/v1/classifiers/kept", json=body, timeout=60).status_code == 200
    for victim in server.replicas("Classifiers") + server.replicas("TextEncoder-default"):
        victim.kill()

    def answered():
        with contextlib.suppress(httpx.TransportError):
            reply = httpx.get(f"{server.url}/v1/classifiers/kept", timeout=60)
            return reply.status_code == 200 and reply.json()["state"] == "ready"

    wait_until(answered, "the classifier after the restart")
    reply = httpx.post(f"{server.url}/v1/classifiers/kept/classify", files={"image": PICTURE}, timeout=60)
    found = {one["label"]: one["score"] for one in reply.json()["results"][0]["scores"]}
    np.testing.assert_allclose([found[label] for label in LABELS], scores_of(PICTURE, server.args["model"]), atol=1e-4)


def test_a_model_is_replaced_without_a_failed_request(server):
    before = dict(server.args)
    old, new = scores_of(PICTURE, before["model"]), scores_of(PICTURE, str(server.folder / "model-2"))
    assert not np.allclose(old, new, atol=1e-3)
    with Load(server.url, 4) as load:
        load.wait_for(20)
        server.deploy(**{**before, "model": str(server.folder / "model-2")})
        server.wait_until_running()
        seen = len(load.answers)
        wait_until(lambda: agree(load.answers[seen:][-20:], new) and len(load.answers) > seen + 20, "the new model")
    assert set(load.statuses) == {200}, load.statuses
    assert agree(load.answers, old, new)
    assert np.allclose(load.answers[-1], new, atol=1e-4)
    # The classifier of that name is made anew, of the new model.
    reply = httpx.post(f"{server.url}/v1/classifiers/kept/classify", files={"image": PICTURE}, timeout=60)
    found = {one["label"]: one["score"] for one in reply.json()["results"][0]["scores"]}
    np.testing.assert_allclose([found[label] for label in LABELS], new, atol=1e-4)


def test_keys(server):
    before = dict(server.args)
    server.deploy(**before, keys={"a client": "CLIP_TEST_KEY"})
    try:
        wait_until(lambda: httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 401, "the keys")
        server.wait_until_running()
        url = f"{server.url}/v1/models"
        assert httpx.get(url).headers["www-authenticate"] == "Bearer"
        assert httpx.get(url, headers={"authorization": "Bearer wrong"}).status_code == 403
        right = server.cluster.environment["CLIP_TEST_KEY"]
        assert httpx.get(url, headers={"authorization": f"Bearer {right}"}).status_code == 200
        assert httpx.get(f"{server.url}/healthz").status_code == 200
        logs = server.cluster.temporary.glob("session_latest/logs/**/*")
        assert not [file for file in logs if file.is_file() and right in file.read_text(errors="replace")]
    finally:
        server.deploy(**before)
        wait_until(lambda: httpx.get(f"{server.url}/v1/models", timeout=60).status_code == 200, "no keys")
        server.wait_until_running()


def test_a_flood_is_answered_or_refused_at_once(server):
    """Ten times the clients that fill the server; those that it takes wait no longer for it than its queue is long."""
    with Load(server.url, 8) as calm:
        calm.wait_for(200)
    memory = sum(r.memory_info().rss for r in server.replicas("")) / 1e6
    with Load(server.url, 80) as flood:
        flood.wait_for(1000)
        grown = sum(r.memory_info().rss for r in server.replicas("")) / 1e6 - memory
    assert set(flood.statuses) <= {200, 503}, flood.statuses
    assert flood.without_retry_after == 0
    assert grown < 300
    assert np.percentile(flood.seconds, 99) < 30 * np.percentile(calm.seconds, 99)
    assert httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200
