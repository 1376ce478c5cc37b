"""The Kubernetes manifests, without a cluster: what the API server, KubeRay, Ray and this project's own parsers say."""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from manifests import KUBERAY, OVERLAYS, autoscaling, kustomize, of_kind, pods, ray_spec, reaches, render, schema
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ray.serve.schema import ServeDeploySchema

from cluster.preflight.ray_up import judge_types
from orchestrator import cli, storage
from orchestrator.tune import command
from serving.settings import Settings

ROOT = KUBERAY.parents[1]
KUBERNETES = "1.32"
JOBS = [overlay for overlay in OVERLAYS if overlay.endswith(("pretrain", "tune"))]
SERVICES = [overlay for overlay in OVERLAYS if overlay.endswith("serve")]
MOST_CHARACTERS = 47  # of a RayJob's or RayService's name


def validate(one):
    if one["apiVersion"] == "ray.io/v1":
        jsonschema.Draft202012Validator(schema(one["kind"])).validate(one)
        # Its metadata are Kubernetes' own, as any object's are.
        one = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": one["metadata"]}
    kubernetes_validate.validate(one, KUBERNETES, strict=True)


def installed():
    """The image's packages, by canonical name."""
    lines = (KUBERAY / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def asked(entrypoint, monkeypatch):
    """What a job's command asks for, by the job's own parser; for a study, also how many trials run side by side."""
    words = shlex.split(entrypoint)
    # KubeRay's submitter splits the command in a shell, Ray puts it together and runs it in another.
    assert shlex.split(subprocess.list2cmdline(words)) == words
    assert words[0] == "python" and (ROOT / words[1]).is_file()
    if words[1] == "jobs/pretrain.py":
        return cli.parse(words[2:], ""), 1
    assert words[1] == "jobs/tune.py"
    monkeypatch.setattr(storage, "exists", lambda uri: False)
    study = command.parse(words[2:], "")
    return study.study.base, study.at_once


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_api_server_would_take_every_object(overlay):
    for one in render(overlay):
        assert one["kind"] != "Secret"
        validate(one)
        assert one["kind"] == "Namespace" or one["metadata"]["namespace"] == "clip-on-ray"


def test_a_field_that_no_schema_knows_is_found():
    for kind, path in (("RayService", ("rayClusterConfig", "headGroupSpec", "template", "spec")), ("StatefulSet", ())):
        one = copy.deepcopy(of_kind("overlays/cpu/serve", kind))
        place = one["spec"]
        for key in path:
            place = place[key]
        place["nodeSelectors"] = {}
        with pytest.raises(jsonschema.ValidationError, match="nodeSelectors"):
            validate(one)


def test_the_readme_names_what_there_is():
    named = re.findall(
        r"(?:base|hardware|workloads|overlays|options)/[\w./*-]*[\w*]", (KUBERAY / "README.md").read_text()
    )
    assert named and all(any(KUBERAY.glob(one)) for one in named)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_bounds_and_no_privileges(overlay):
    spec = ray_spec(overlay)
    containers = [(name, pod, one) for name, pod in pods(overlay).items() for one in pod["containers"]]
    containers.append(("autoscaler", pods(overlay)["head"], spec["autoscalerOptions"]))
    (image,) = yaml.safe_load((KUBERAY / "base/kustomization.yaml").read_text())["images"]
    for name, pod, one in containers:
        assert pod["securityContext"]["runAsUser"] > 0
        rules = one["securityContext"]
        assert rules["runAsNonRoot"] and rules["allowPrivilegeEscalation"] is False
        assert rules["capabilities"] == {"drop": ["ALL"]} and rules["seccompProfile"] == {"type": "RuntimeDefault"}
        assert set(one["resources"]["limits"]) == set(one["resources"]["requests"]) >= {"cpu", "memory"}
        assert all(port["name"] for port in one.get("ports", []))
        assert pod["automountServiceAccountToken"] is (name in ("head", "autoscaler"))
        if name == "redis":
            assert re.fullmatch(r"redis:\d+\.\d+\.\d+", one["image"])
        elif name != "autoscaler":  # which takes the head's
            assert one["image"] == f"{image['newName']}:{image['newTag']}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_passwords_and_keys_come_from_secrets_that_the_readme_names(overlay):
    text = (KUBERAY / "README.md").read_text()
    assert ray_spec(overlay)["authOptions"] == {"mode": "token"}

    def look(node):
        if isinstance(node, list):
            for one in node:
                look(one)
        elif isinstance(node, dict):
            if re.search("password|token|secret|auth$|key$", str(node.get("name", "")), re.IGNORECASE):
                assert "value" not in node
            if "secretKeyRef" in node:
                secret = node["secretKeyRef"]
                assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in text
            for one in node.values():
                look(one)

    look(render(overlay))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kuberay_and_rays_autoscaler_read_the_cluster(overlay):
    spec = ray_spec(overlay)
    assert spec["rayVersion"] == installed()["ray"]
    assert spec["enableInTreeAutoscaling"] and spec["autoscalerOptions"]["version"] == "v2"
    assert all("restartPolicy" not in pod for name, pod in pods(overlay).items() if name != "submitter")
    types = dict(autoscaling(overlay)["available_node_types"])
    head = types.pop("headgroup")
    assert head["resources"]["CPU"] == 0
    for role, kind in types.items():
        assert kind["labels"]["clip-on-ray/role"] == role
        assert 0 <= kind["min_workers"] <= kind["max_workers"] >= 1
    roles = {"pretrain": ["data", "train"], "tune": ["data", "train"], "serve": ["serve"]}
    assert list(types) == roles.get(Path(overlay).name, ["data", "train", "serve"])


@pytest.mark.parametrize("overlay", JOBS)
def test_a_jobs_command_parses_and_fills_the_gpus(overlay, monkeypatch):
    job = of_kind(overlay, "RayJob")
    config, at_once = asked(job["spec"]["entrypoint"], monkeypatch)
    if config.data.train != "demo":
        config.validate()
    # The image holds the code: nothing goes along, and none of it is data.
    assert "runtimeEnvYAML" not in job["spec"]
    assert job["spec"]["metadata"] == {"image": pods(overlay)["head"]["containers"][0]["image"]}
    assert len(job["metadata"]["name"]) <= MOST_CHARACTERS
    fewest, most = config.train.worker_range
    nodes = autoscaling(overlay)
    assert judge_types(nodes, config, overlay, "").status == "ok"
    gpus = {
        name: kind["max_workers"] * kind["resources"].get("GPU", 0)
        for name, kind in nodes["available_node_types"].items()
    }
    assert gpus == {"headgroup": 0, "data": 0, "train": most * at_once if config.train.device == "gpu" else 0}
    assert fewest == most


@pytest.mark.parametrize("overlay", SERVICES)
def test_the_service_is_servings_own_application(overlay):
    service = of_kind(overlay, "RayService")
    deployed = yaml.safe_load(service["spec"]["serveConfigV2"])
    usual = yaml.safe_load((ROOT / "serving/config.yaml").read_text())
    ServeDeploySchema.model_validate(deployed)
    (application,), (own,) = deployed["applications"], usual["applications"]
    assert application["import_path"] == own["import_path"] and application["route_prefix"] == own["route_prefix"]
    settings = Settings(**application["args"])
    (worker,) = pods(overlay)["serve"]["containers"]
    assert set(settings.keys.values()) <= {variable["name"] for variable in worker["env"]} and settings.keys
    assert {"name": "serve", "containerPort": deployed["http_options"]["port"]} in worker["ports"]
    # But for the number of replicas, deployments are as they are there.
    replicas = {}
    for deployments in (application["deployments"], own["deployments"]):
        for one in deployments:
            most = one["autoscaling_config"].pop("max_replicas")
            replicas.setdefault(one["name"], most)
    assert application["deployments"] == own["deployments"]
    (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    gpus = group["maxReplicas"] * int(worker["resources"]["limits"].get("nvidia.com/gpu", 0))
    assert (settings.hardware == "gpu") == bool(gpus)
    assert not gpus or replicas["ImageEncoder-default"] == gpus
    assert len(service["metadata"]["name"]) <= MOST_CHARACTERS
    upgrade = service["spec"]["upgradeStrategy"]
    if upgrade["type"] == "NewClusterWithIncrementalUpgrade":
        options = upgrade["clusterUpgradeOptions"]
        assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100 and options["gatewayClassName"]
    else:
        assert upgrade == {"type": "NewCluster"}


HEAD = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "head", "ray.io/serve": "false"}
WORKER = {"ray.io/is-ray-node": "yes", "ray.io/node-type": "worker", "ray.io/serve": "true"}
REDIS = {"app.kubernetes.io/name": "redis"}
SUBMITTER = {"ray.io/originated-from-crd": "RayJob"}
OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}
GATEWAY = {"gateway.networking.k8s.io/gateway-name": "clip-gateway"}
OPERATORS = {"kubernetes.io/metadata.name": "kuberay-system"}


def test_who_reaches_what():
    policies = [one for one in render("overlays/cpu/serve") if one["kind"] == "NetworkPolicy"]

    def ask(source, target, port, namespace=None):
        return reaches(policies, source, target, port, namespace)

    assert ask(WORKER, HEAD, 6379) and ask(HEAD, WORKER, 30000) and ask(WORKER, WORKER, 8000)
    for port in (6379, 8265, 10001, 8000, 8080):
        for target in (HEAD, WORKER):
            assert not ask({}, target, port) and not ask({}, target, port, {"kubernetes.io/metadata.name": "other"})
    assert ask(SUBMITTER, HEAD, 8265) and not ask(SUBMITTER, HEAD, 6379) and not ask(SUBMITTER, WORKER, 8265)
    assert ask(OPERATOR, HEAD, 8265, OPERATORS) and not ask(OPERATOR, HEAD, 6379, OPERATORS)
    assert not ask(OPERATOR, HEAD, 8265) and not ask({}, HEAD, 8265, OPERATORS)
    assert ask(GATEWAY, WORKER, 8000) and ask({}, WORKER, 8000, {"clip-on-ray/ingress": "true"})
    assert not ask(GATEWAY, HEAD, 8000) and not ask(GATEWAY, WORKER, 8265) and not ask(GATEWAY, HEAD, 8265)
    for port in (8080, 44217, 44227):
        assert ask({}, HEAD, port, {"clip-on-ray/monitoring": "true"}) and not ask({}, HEAD, port)
    assert ask(HEAD, REDIS, "redis") and not ask(WORKER, REDIS, "redis") and not ask({}, REDIS, "redis")


def test_tls_between_nodes_can_be_asked_for(tmp_path):
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    own = yaml.safe_load((KUBERAY / "overlays/nvidia-l4/pretrain/kustomization.yaml").read_text())
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    own["resources"] = ["../kuberay/base"]
    own["components"] = ["../kuberay/options/mtls", *(c.replace("../../..", "../kuberay") for c in own["components"])]
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(own))
    (job,) = [one for one in kustomize(overlay) if one["kind"] == "RayJob"]
    assert job["spec"]["rayClusterSpec"]["tlsOptions"] == {"enabled": True}
    validate(job)


def test_the_dockerfile():
    text = (KUBERAY / "Dockerfile").read_text()
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in bases) and len(bases) == 1
    users = {pod["securityContext"]["runAsUser"] for pod in pods("overlays/cpu/pretrain").values()}
    assert users == {int(one) for one in re.findall(r"^USER (\d+):\d+$", text, re.MULTILINE)}
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / one).exists() for one in source.split())


def test_the_images_packages_are_what_the_project_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = installed()
    for line in [*project["dependencies"], *project["optional-dependencies"]["demo"]]:
        requirement = Requirement(line)
        assert packages[canonicalize_name(requirement.name)] in requirement.specifier, line
