"""Monitoring: Prometheus takes the files, alerts fire when they should, and questions name what is really exported."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from promql import DASHBOARD, MONITORING, alerts, dashboard, label_names, metric_names, panel_queries

from orchestrator.telemetry import EXPORTED

SUFFIXES = {"Gauge": ("",), "Counter": ("_total",), "Histogram": ("_bucket", "_sum", "_count")}
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)"
)


def promtool(*words: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, words)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def rays_metrics() -> set[str]:
    """What Ray's own dashboards ask for, and what Serve's sources name."""
    ray_package = Path(ray.__file__).parent
    dashboards, serve = (
        "".join(file.read_text() for file in (ray_package / folder).glob("*.py"))
        for folder in ("dashboard/modules/metrics/dashboards", "serve/_private")
    )
    asked = re.findall(r"\b(?:ray|autoscaler)_\w+", dashboards)
    return {*asked, *(f"ray_{name}" for name in re.findall(r'"(serve_\w+)"', serve))}


@needs_promtool
def test_prometheus_takes_the_configuration_the_rules_and_every_question_of_the_dashboard(tmp_path):
    promtool("check", "config", MONITORING / "prometheus.yml")
    rules = [{"record": f"panel:{number}", "expr": query} for number, (*_, query) in enumerate(panel_queries())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", file)


@needs_promtool
def test_alerts_fire_when_they_should_and_only_then():
    promtool("test", "rules", Path(__file__).with_name("alerts.yml"))


def test_names_are_found_among_functions_labels_and_units():
    expression = (
        'histogram_quantile(0.99, sum by (a, le) (rate(x_bucket{b=~"y|z", c!=""}[5m] offset 1m))) > 2e3 '
        'and on (a) count by(a) (ray_up == bool 1) unless max without (d) (other:rate{e="{} f"}) / 100'
    )
    assert metric_names(expression) == {"x_bucket", "ray_up", "other:rate"}


def test_panels_and_alerts_name_metrics_that_are_exported():
    own = {f"ray_{name}{suffix}" for name, metric in EXPORTED.items() for suffix in SUFFIXES[metric.kind]}
    known = own | {name for name in rays_metrics() if not name.startswith("ray_clip_")}
    queries = [*((f"{row}: {panel}", query) for row, panel, query in panel_queries()), *alerts().items()]
    asked = [(place, metric_names(query)) for place, query in queries]
    for variable in dashboard()["templating"]["list"][1:]:
        (metric,) = re.fullmatch(r"label_values\((\w+), \w+\)", variable["query"]["query"]).groups()
        asked.append((f"variable {variable['name']}", {metric}))
    assert all(names for _, names in asked)
    assert [(place, names - known) for place, names in asked if names - known] == []


def test_our_metrics_are_asked_for_by_labels_that_they_have():
    queries = [*(query for *_, query in panel_queries()), *alerts().values()]
    checked = 0
    for query in queries:
        names = {re.sub("^ray_|_(total|bucket|sum|count)$", "", name) for name in metric_names(query)}
        if names <= EXPORTED.keys():
            checked += 1
            labels = {"application", "le"}.union(*(EXPORTED[name].labels for name in names))
            assert label_names(query) <= labels, query
    assert checked > len(queries) / 2


def test_every_panel_says_what_it_shows_in_which_unit_and_has_a_place_of_its_own():
    panels, taken = dashboard()["panels"], set()
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        area = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not area & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= area
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith((".", "?")) and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        for target in panel["targets"]:
            by = {
                label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")
            }
            assert target["legendFormat"] and set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= by, target


def test_alerts_are_marked_on_the_dashboard():
    (marks,) = dashboard()["annotations"]["list"]
    named = re.search(r'alertname=~"([^"]*)"', marks["expr"]).group(1).split("|")
    assert sorted(named) == sorted(alerts())


def test_grafana_knows_every_field_of_the_dashboard():
    """A field that its own types do not know is lost on the way through them."""
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models import units
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    written = json.loads(DASHBOARD.read_text())
    passed = json.loads(JSONEncoder().encode(Dashboard.from_json(written)))
    assert missing(written, passed) == []
    known = {value for name, value in vars(units).items() if isinstance(value, str) and not name.startswith("_")}
    for panel in written["panels"]:
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "none")
        assert unit in known or unit.startswith("suffix:"), unit


def missing(written, passed, path: str = "") -> list[str]:
    """Places in which the first has something that the second has not."""
    if isinstance(written, dict) and isinstance(passed, dict):
        pairs = [(key, value, passed.get(key, missing)) for key, value in written.items()]
    elif isinstance(written, list) and isinstance(passed, list) and len(written) == len(passed):
        pairs = [(number, *values) for number, values in enumerate(zip(written, passed, strict=True))]
    else:
        return [] if written == passed else [path]
    return [place for key, one, other in pairs for place in missing(one, other, f"{path}/{key}")]
