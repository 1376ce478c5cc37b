"""The Kubernetes manifests as kustomize renders them, and what they are held against."""

from __future__ import annotations

import functools
import json
import lzma
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

KUBERAY = Path(__file__).parents[1] / "cluster/kuberay"
OVERLAYS = sorted(str(path.parent.relative_to(KUBERAY)) for path in KUBERAY.glob("overlays/*/*/kustomization.yaml"))
SCHEMAS = Path(__file__).parent / "cluster/kuberay_crds.json.xz"


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The objects that a folder renders to; the test is skipped where there is nothing to render it with."""
    command = next((c for c in (["kustomize", "build"], ["kubectl", "kustomize"]) if shutil.which(c[0])), None)
    if command is None:
        pytest.skip("neither kustomize nor kubectl is on this machine")
    made = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return list(yaml.safe_load_all(made.stdout))


@functools.cache
def render(overlay: str) -> list[dict[str, Any]]:
    return kustomize(KUBERAY / overlay)


def of_kind(overlay: str, kind: str) -> dict[str, Any]:
    """The only object of a kind."""
    (found,) = [one for one in render(overlay) if one["kind"] == kind]
    return found


def ray_spec(overlay: str) -> dict[str, Any]:
    """The RayCluster's spec, whether it stands alone or in a job or service."""
    (owner,) = [one for one in render(overlay) if one["apiVersion"].startswith("ray.io")]
    spec = owner["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def autoscaling(overlay: str) -> dict[str, Any]:
    """What Ray's own autoscaler makes of the cluster."""
    return _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "", "namespace": ""}, "spec": ray_spec(overlay)}
    )


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """Pod specs by what they are for."""
    spec = ray_spec(overlay)
    found = {"head": spec["headGroupSpec"]["template"]["spec"]}
    found |= {group["groupName"]: group["template"]["spec"] for group in spec["workerGroupSpecs"]}
    for one in render(overlay):
        if one["kind"] == "RayJob":
            found["submitter"] = one["spec"]["submitterPodTemplate"]["spec"]
        elif one["kind"] == "StatefulSet":
            found["redis"] = one["spec"]["template"]["spec"]
    return found


@functools.cache
def schema(kind: str) -> dict[str, Any]:
    """KubeRay's schema of a kind as JSON schema; a field that it does not know is an error, as for `kubectl apply`."""
    strict = _strict(json.loads(lzma.decompress(SCHEMAS.read_bytes()))[kind])
    strict["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own; the definitions leave it out.
    return strict


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {key: _strict(value) for key, value in node.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made["type"] = ["integer", "string"]
    elif made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


def reaches(policies: list[dict[str, Any]], source: dict[str, str], target: dict[str, str], port: int | str,
            namespace: dict[str, str] | None = None) -> bool:  # fmt: skip
    """Whether NetworkPolicies let a pod through.

    Parameters
    ----------
    policies : of the target's namespace
    source, target : the pods' labels
    port : by number; by name where the policy names it
    namespace : labels of the source's namespace; None: the target's own
    """
    chosen = [one["spec"] for one in policies if _matches(one["spec"]["podSelector"], target)]
    chosen = [spec for spec in chosen if "Ingress" in spec["policyTypes"]]
    return not chosen or any(
        (not rule.get("ports") or port in [p["port"] for p in rule["ports"]])
        and (not rule.get("from") or any(_admits(peer, source, namespace) for peer in rule["from"]))
        for spec in chosen
        for rule in spec.get("ingress", [])
    )


def _admits(peer: dict[str, Any], source: dict[str, str], namespace: dict[str, str] | None) -> bool:
    assert not set(peer) - {"podSelector", "namespaceSelector"}
    if "namespaceSelector" in peer:
        near = namespace is not None and _matches(peer["namespaceSelector"], namespace)
    else:
        near = namespace is None
    return near and _matches(peer.get("podSelector", {}), source)


def _matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    for one in selector.get("matchExpressions", []):
        if one["key"] not in labels or (one["operator"] == "In" and labels[one["key"]] not in one["values"]):
            return False
        assert one["operator"] in ("In", "Exists")
    return selector.get("matchLabels", {}).items() <= labels.items()
