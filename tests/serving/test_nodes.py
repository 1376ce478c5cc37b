"""Replicas run on the nodes that the operator names, by their labels."""

import pytest
from ray.serve._private.build_app import build_app

from serving import app
from serving.settings import Settings

SERVE = {"clip-on-ray/role": "serve"}


@pytest.mark.parametrize("hardware", ["cpu", "gpu"])
@pytest.mark.parametrize("nodes", [SERVE, {}])
def test_all_replicas_are_on_the_nodes_that_are_named(nodes, hardware, monkeypatch):
    asked = []
    monkeypatch.setattr(app, "require_nodes", lambda option, selector: asked.append((option, selector)))
    built = build_app(app.build(Settings(models={"a": "/a", "b": "/b"}, hardware=hardware, nodes=nodes)), name="clip")
    options = {one.name: one.ray_actor_options for one in built.deployments}
    assert set(options) == {
        "Ingress",
        "Classifiers",
        *(f"{kind}Encoder-{m}" for kind in ("Image", "Text") for m in "ab"),
    }
    assert [one.get("label_selector") or {} for one in options.values()] == [nodes] * 6
    assert {one.get("num_gpus", 0) for name, one in options.items() if "Image" in name} == {int(hardware == "gpu")}
    assert asked == [("nodes", nodes)]
