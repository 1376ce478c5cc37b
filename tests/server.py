"""A server as users run it: a cluster, a config file, `serve deploy`, HTTP."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import yaml
from PIL import Image
from ray_cluster import REPOSITORY, RayCluster, wait_until

from orchestrator.inference import Embedder, zero_shot_classifier

LABELS = ["a red circle", "a blue square", "a green cross"]
SERVE = str(Path(sys.executable).with_name("serve"))


@dataclass
class Server:
    """A deployed application.

    Parameters
    ----------
    url : of its HTTP interface
    cluster : that it runs on
    folder : of its models and classifiers
    args : of the application
    """

    url: str
    cluster: RayCluster
    folder: Path
    args: dict[str, Any] = field(default_factory=dict)

    def deploy(self, **args: Any) -> None:
        """`serve deploy` of these arguments, without waiting for what comes of it."""
        self.args = args
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": int(self.url.rpartition(":")[2])},
            "applications": [
                {"name": "clip", "route_prefix": "/", "import_path": "serving.app:build", "args": args},
            ],
        }
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(config))
        environment = {**self.cluster.environment, "RAY_DASHBOARD_ADDRESS": self.cluster.dashboard}
        done = subprocess.run(
            [SERVE, "deploy", str(file)], env=environment, cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.cluster.dashboard}/api/serve/applications/", timeout=10) as reply:
            return json.load(reply)["applications"].get("clip", {})

    def reasons(self) -> str:
        """What each deployment says of itself."""
        deployments = self.state().get("deployments", {})
        return "\n".join(f"{name}: {one['status']} {one['message']}" for name, one in deployments.items())

    def wait_until_running(self) -> None:
        def running() -> bool:
            state = self.state()
            assert state.get("status") != "DEPLOY_FAILED", f"{state['message']}\n{self.reasons()}"
            return state.get("status") == "RUNNING"

        wait_until(running, "the deployment")

        def answers() -> bool:
            try:
                return httpx.get(f"{self.url}/readyz", timeout=30).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(answers, "the first answer")

    def log(self, deployment: str) -> str:
        """What the replicas of a deployment have logged."""
        files = self.cluster.temporary.glob(f"session_latest/logs/serve/*{deployment}*.log")
        return "".join(file.read_text(errors="replace") for file in files)

    def replicas(self, deployment: str) -> list[psutil.Process]:
        """The processes of a deployment."""
        found = []
        for process in psutil.Process(self.cluster.nodes[0].pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if f"ServeReplica:clip:{deployment}" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all replicas, of the newest export."""
        with urllib.request.urlopen(self.cluster.metrics, timeout=10) as reply:
            lines = reply.read().decode().splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith((f"ray_{name}{{", f"ray_{name}_total{{")) and all(label in line for label in wanted)
        )


def png(color: tuple[int, int, int] = (200, 30, 30), size: int = 48, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), color).save(out, kind)
    return out.getvalue()


def scores_of(picture: bytes, model: str) -> np.ndarray:
    """Probabilities of LABELS, as the model directory itself gives them."""
    embedder = Embedder(model)
    cosine = embedder.embed_images(embedder.transform.evaluate(picture)[None])
    weights = zero_shot_classifier(embedder, LABELS, ["a photo of a {c}"])
    return (embedder.logit_scale * cosine @ weights.T).softmax(-1).numpy()[0]
