"""Where nodes have roles, each kind of work runs on the nodes of its role, or says which labels it lacks."""

from __future__ import annotations

import pytest
import ray
import yaml
from ray._private.label_utils import validate_label_selector
from ray.util.state import list_actors, list_tasks
from ray_cluster import ray_cluster
from shapes import NAMES, write_data

from orchestrator import cli, placement
from orchestrator.config import Config, ConfigError
from orchestrator.evaluate.after_training import evaluate_run, open_sets
from orchestrator.train import waiting
from orchestrator.train.trainer import pretrain


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head that does no work, a node for data and a node for training; this process joined."""
    with ray_cluster(num_cpus=0, scratch=tmp_path_factory.mktemp("ray"), environment={}) as cluster:
        for role in ("data", "train"):
            cluster.add_node(2, f"clip-on-ray/role={role}")
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()


def roles_of(listed) -> dict[str, set[str]]:
    """Name of a task or an actor's class -> roles of the nodes on which it ran."""
    role = {node["NodeID"]: node["Labels"].get("clip-on-ray/role", "head") for node in ray.nodes()}
    found: dict[str, set[str]] = {}
    for one in listed:
        found.setdefault(one.class_name if hasattr(one, "class_name") else one.name, set()).add(role[one.node_id])
    return found


def config_of(root) -> Config:
    recipe, file = write_data(str(root)), root / "recipe.yaml"
    recipe["train"].update(epochs=1, log_every=1)
    recipe["placement"] = {kind: {"clip-on-ray/role": kind} for kind in ("data", "train")}
    file.write_text(yaml.safe_dump(recipe))
    return cli.parse(["--config", str(file)], "")


def test_a_run_reads_trains_and_measures_where_it_is_told_to(cluster, tmp_path):
    config = config_of(tmp_path)
    run = pretrain(config)
    result = evaluate_run(run.uri, open_sets(config.evaluation), config)
    assert result["held-out"]["classes"] == len(NAMES)
    tasks = roles_of(list_tasks(cluster.dashboard, limit=1000))
    assert tasks["inspect_shard"] == {"data"} and tasks["measure"] == {"train"}
    assert [ran for name, ran in tasks.items() if "ReadUnits" in name] == [{"data"}], tasks
    assert roles_of(list_actors(cluster.dashboard))["RayTrainWorker"] == {"train"}


def test_labels_that_no_node_has_are_named_with_the_cure(cluster, tmp_path, monkeypatch):
    config = config_of(tmp_path)
    config.placement.train = {"clip-on-ray/role": "trian"}
    named = r"placement\.train=\{'clip-on-ray/role': 'trian'\}: no node .* there is clip-on-ray/role=data, clip"
    with pytest.raises(ConfigError, match=named) as refused:
        pretrain(config)
    assert "--labels" in str(refused.value)
    # Where an autoscaler may start such nodes, it waits, and says for what.
    monkeypatch.setattr(waiting, "is_autoscaler_v2", lambda **ignored: True)
    with pytest.raises(ConfigError, match=r"train\.device='auto': no node of"):
        pretrain(config)
    assert "trian" in waiting.explain_waiting(config, workers=0)
    config.placement.data = {"zone": "in(a, b)"}
    assert "zone" in waiting.explain_waiting(config, workers=1) and "none of them" in waiting.explain_reading(config)


def test_what_is_lacking_is_counted_on_the_nodes_that_count(cluster):
    config = Config()
    config.placement.data, config.placement.train = {"clip-on-ray/role": "data"}, {"clip-on-ray/role": "train"}
    config.train.num_workers = 3
    assert "have 2 CPUs and 0 GPUs, of which 2 and 0 are free" in waiting.explain_waiting(config, workers=0)
    assert waiting.explain_waiting(config, workers=3) == ""
    config.data.cpus_per_reader = 3.0
    assert "no node of placement.data" in waiting.explain_waiting(config, workers=3)


EXPRESSIONS = ["a", "!a", "in(a, b)", "in(a,b)", "!in(a)", "in()", "!!a", "-a", "a b", "in(a,b", "a_", "a.b-c_d"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_the_syntax_is_rays(expression):
    def refused(selector):
        try:
            placement.check(selector)
        except ValueError:
            return True
        return False

    for selector in ({"a/b": expression}, {expression: "a"}):
        assert refused(selector) == bool(validate_label_selector(selector))


@pytest.mark.parametrize(
    ("expression", "fits"),
    [("a", "a"), ("!a", "b-"), ("in(a, b)", "ab"), ("!in(a, b)", "-"), ("!in(b)", "a-")],
)
def test_which_nodes_are_admitted(expression, fits):
    """Of nodes whose label is a or b, or that have none (-)."""
    for value in "ab-":
        labels = {} if value == "-" else {"x": value}
        assert placement.admits({"x": expression}, labels) == (value in fits)
    assert placement.admits({}, {}) and not placement.admits({"x": expression, "y": "c"}, {"x": fits[0]})
