"""The `ray up` files: as Ray reads them, what they would open, and what their nodes would be."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import boto3
import botocore.exceptions
import pytest
import yaml
from moto import mock_aws

from cluster.preflight.ray_up import check_file, prepare
from cluster.spot import SpotFirst
from orchestrator import cli
from orchestrator.placement import admits

REPOSITORY = Path(__file__).parents[2]
FILES = {cloud: REPOSITORY / "cluster" / f"{cloud}.yaml" for cloud in ("aws", "gcp")}
both = pytest.mark.parametrize("cloud", FILES)


def types_of(cloud):
    return prepare(str(FILES[cloud]))["available_node_types"]


def recipe(*options):
    return cli.parse(["--config", "vit-l-14", "--data.train", "s3://bucket/0.tar", *options], "")


@both
def test_ray_takes_it_and_the_preflight_finds_room_for_a_recipe(cloud):
    for trainers, status in ((16, "ok"), (17, "fail")):
        lines = check_file(str(FILES[cloud]), recipe("--train.num_workers", str(trainers)))
        assert [(line.status, line.check) for line in lines] == [("ok", "file"), (status, "resources")], lines


@both
def test_the_preflight_counts_nodes_of_the_right_labels_alone(cloud):
    # 8 nodes for data, 4 for training, 4 for serving: without a GPU each, one place a CPU.
    cpus = {"train": 4 * 48, "data": 8 * 32 - 1, "serve": 4 * 8}
    for role, room in cpus.items():
        config = recipe("--train.device", "cpu", "--placement.train", f"{{clip-on-ray/role: {role}}}")
        assert f"room for {room}" in check_file(str(FILES[cloud]), config)[1].seen
    config = recipe("--placement.data", "{clip-on-ray/role: date}")
    line = check_file(str(FILES[cloud]), config)[1]
    assert (line.status, "date" in line.seen, "labels" in line.cure) == ("fail", True, True)


@both
def test_each_role_has_a_node_type_and_the_head_does_no_work(cloud):
    file, types = prepare(str(FILES[cloud])), types_of(cloud)
    head = types.pop(file["head_node_type"])
    assert (head["resources"], head["max_workers"], head.get("labels")) == ({"CPU": 0}, 0, None)
    placement = recipe().placement
    serve = re.search(r"nodes: {} # .*({.*})", (REPOSITORY / "serving/config.yaml").read_text())
    wanted = {"data": placement.data, "train": placement.train, "serve": yaml.safe_load(serve[1])}
    for role, selector in wanted.items():
        assert [name for name, fields in types.items() if admits(selector, fields["labels"])] == [role]
    for fields in types.values():
        assert 0 <= fields["min_workers"] <= fields["max_workers"] <= file["max_workers"]
    assert 0 < file["idle_timeout_minutes"] <= 30
    assert types["train"]["resources"]["GPU"] > 0


@both
def test_the_package_is_installed_with_extras_that_there_are_and_no_port_but_rays_own_is_named(cloud):
    file, text = prepare(str(FILES[cloud])), FILES[cloud].read_text()
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = re.findall(r"pip install \S+ ~/clip-on-ray(?:\[(\w+)\])?", "\n".join(file["head_setup_commands"]))
    assert installs and {extra for extra in installs if extra} <= set(extras)
    for local in file["file_mounts"].values():
        assert local.startswith("~") or (REPOSITORY / local).exists(), local
    commands = "\n".join(file["head_start_ray_commands"] + file["worker_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands and "0.0.0.0" not in text
    assert "RAY_AUTH_MODE=token" in "\n".join(file["worker_setup_commands"])
    assert file["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert not re.search(r"AKIA|secret|BEGIN|private_key|RAY_AUTH_TOKEN=", text)


def test_gcp_nodes_have_service_accounts_and_a_network_of_their_own():
    for fields in types_of("gcp").values():
        node = fields["node_config"]
        assert node["serviceAccounts"] and node["networkInterfaces"][0]["subnetwork"].endswith("/clip-on-ray")
        assert node["tags"] == {"items": ["clip-on-ray"]}


@pytest.fixture(scope="module")
def aws(tmp_path_factory):
    """The provider's class, and the file as `ray up` completes it, in an AWS account of this process alone."""
    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name, value in {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "HOME": str(home)}.items():
            patch.setenv(name, value)
        from cluster.spot.aws import Provider

        for name in ("clip-on-ray-head", "clip-on-ray-node"):
            boto3.client("iam").create_instance_profile(InstanceProfileName=name)
        yield Provider, Provider.bootstrap_config(prepare(str(FILES["aws"])))


def test_on_aws_nothing_is_open_but_ssh_and_the_group_to_itself(aws):
    _, file = aws
    nodes = [fields["node_config"] for fields in file["available_node_types"].values()]
    (group,) = {one for node in nodes for one in node["SecurityGroupIds"]}
    client = boto3.client("ec2", file["provider"]["region"])
    rules = client.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["IpPermissions"]
    from_outside = [(rule["FromPort"], rule["ToPort"]) for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
    assert from_outside == [(22, 22)]
    assert [pair["GroupId"] for rule in rules for pair in rule["UserIdGroupPairs"]] == [group]
    for node in nodes:
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])
        assert node["MetadataOptions"]["HttpTokens"] == "required" and node["IamInstanceProfile"]["Name"]


@pytest.mark.parametrize(
    ("code", "started"), [("InsufficientInstanceCapacity", True), ("UnauthorizedOperation", False)]
)
def test_on_aws_a_node_is_on_demand_where_there_is_no_spot(aws, code, started):
    """One spot node is to be had, two more are not."""
    provider_class, file = aws
    provider = provider_class(file["provider"], "test")
    node = {**file["available_node_types"]["train"]["node_config"], "ImageId": "ami-1"}
    tags = {"ray-node-type": "worker", "ray-user-node-type": "train"}
    spot = []

    def refuse(params, **ignored):
        spot.append("InstanceMarketOptions" in params)
        if spot[-1] and len(spot) > 1:
            raise botocore.exceptions.ClientError({"Error": {"Code": code, "Message": "none"}}, "RunInstances")

    events = provider.ec2_fail_fast.meta.client.meta.events  # Ray keeps clients
    events.register("provide-client-params.ec2.RunInstances", refuse, unique_id="refuse")
    try:
        if started:
            nodes = provider.create_node(node, tags, 3)
            assert [one.instance_type for one in nodes.values()] == ["g6e.12xlarge"] * 3
            # Every subnet is tried before a node is started on demand.
            assert sum(spot) > len(node["SubnetIds"]) and spot[-2:] == [False, False] and all(spot[:-2])
        else:
            with pytest.raises(Exception, match=code):
                provider.create_node(node, tags, 3)
            assert all(spot)
    finally:
        events.unregister("provide-client-params.ec2.RunInstances", unique_id="refuse")


def test_on_gcp_the_same_node_is_asked_for_on_demand(monkeypatch):
    """Google's client is not here: what Ray's provider does with it is stood in for."""
    import sys
    from types import ModuleType

    asked = []

    class Ray:
        def create_node(self, config, tags, count):
            asked.append(config["scheduling"])
            if config["scheduling"].get("provisioningModel") == "SPOT":
                raise Exception({"errors": [{"code": "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"}]})
            return {f"node-{len(asked)}": config}

    module = ModuleType("node_provider")
    module.GCPNodeProvider = Ray
    monkeypatch.setitem(sys.modules, "ray.autoscaler._private.gcp.node_provider", module)
    monkeypatch.delitem(sys.modules, "cluster.spot.gcp", raising=False)
    from cluster.spot.gcp import Provider

    node = types_of("gcp")["train"]["node_config"]
    assert issubclass(Provider, SpotFirst) and len(Provider().create_node(node, {}, 2)) == 2
    on_demand = {"onHostMaintenance": "TERMINATE", "automaticRestart": False}
    assert asked == [node["scheduling"], on_demand, on_demand]
    monkeypatch.delitem(sys.modules, "cluster.spot.gcp")
