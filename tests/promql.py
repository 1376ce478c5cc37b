"""What the monitoring files ask Prometheus for, and which metrics those questions name."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import yaml
from ray_cluster import REPOSITORY, wait_until

MONITORING = REPOSITORY / "cluster/monitoring"
DASHBOARD = MONITORING / "grafana/dashboards/clip-on-ray.json"
VARIABLES = {"$run": ".*", "$application": ".+", "$__rate_interval": "1m"}
OPERATORS = {"and", "or", "unless", "bool", "offset"}


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def names_of_rows(*rows: str) -> set[str]:
    """Metrics that these rows of the dashboard name."""
    return set().union(*(metric_names(query) for row, _, query in panel_queries() if row in rows))


def panel_queries() -> list[tuple[str, str, str]]:
    """Row, panel and expression of each query of the dashboard, asked of everything."""
    found, row = [], ""
    for panel in dashboard()["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            found.append((row, panel["title"], expression))
    return found


def alerts() -> dict[str, str]:
    """Expression of each alert."""
    groups = yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"]
    return {rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}


def metric_names(expression: str) -> set[str]:
    """Names of the metrics in a PromQL expression: words that are no function, operator, label or unit of time."""
    bare = re.sub(r'"(\\.|[^"\\])*"', "", expression)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*\b(?!\s*\()", bare)) - OPERATORS


def label_names(expression: str) -> set[str]:
    """Labels that a PromQL expression selects and groups by."""
    selected = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', expression)
    grouped = ",".join(re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)).split(",")
    return {*selected, *map(str.strip, grouped)} - {""}


def wait_until_exposed(names: set[str], targets: Path) -> None:
    """Wait until each name was seen at one of the endpoints that Ray lists for Prometheus in a file."""
    seen: set[str] = set()

    def all_seen() -> bool:
        for target in json.loads(targets.read_text())[0]["targets"]:
            # One may be a lost node's.
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as reply:
                seen.update(re.findall(r"^([a-zA-Z_:][\w:]*)[{ ]", reply.read().decode(), re.MULTILINE))
        return names <= seen

    with contextlib.suppress(TimeoutError):
        wait_until(all_seen, "the metrics")
    assert names - seen == set()
