"""A `ray up` file: whether Ray takes it, and whether its node types add up to what the recipe asks. Nothing is asked
of the cloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.preflight.line import Line, guarded
from cluster.preflight.room import Kind, judge
from orchestrator.config import Config


def check_file(file: str, config: Config) -> list[Line]:
    """Its lines: file, then, where it is valid, resources.

    Parameters
    ----------
    file : path of the YAML
    config : of the run that it is for
    """
    prepared: dict[str, Any] = {}

    def look() -> Line:
        prepared.update(prepare(file))
        return Line("ok", "file", file, f"{len(prepared['available_node_types'])} node types; Ray takes it")

    lines = [guarded("file", file, look, "Mend the file; https://docs.ray.io names each key (cluster YAML)")]
    if prepared:
        cure = "Raise max_workers of a node type and of the file, take larger nodes"
        lines.append(guarded("resources", file, lambda: judge_types(prepared, config, file, cure), cure))
    return lines


def prepare(file: str) -> dict[str, Any]:
    """The file with Ray's defaults filled in, validated by Ray.

    Raises
    ------
    ValueError : what is wrong, in one line
    """
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        fields = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError("no mapping of keys to values")
    try:
        prepared = prepare_config(fields)
        validate_config(prepared)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.absolute_path)
        raise ValueError(f"{place or 'top level'}: {error.message[:300]}") from None
    if "available_node_types" not in prepared:
        raise ValueError("available_node_types is missing")
    return prepared


def judge_types(prepared: dict[str, Any], config: Config, file: str, cure: str) -> Line:
    """Hold the node types of a prepared file against the recipe."""
    head = prepared["head_node_type"]
    kinds, silent = [], []
    for name, fields in prepared["available_node_types"].items():
        resources, labels = fields.get("resources") or {}, fields.get("labels") or {}
        count = fields.get("max_workers", 0) + (name == head)
        if "CPU" not in resources and count:
            silent.append(name)
        if name == head:
            # It is there whatever its max_workers, and takes part with what it has.
            kinds.append(Kind(1, *_size(resources), head=True, labels=labels))
            count -= 1
        kinds.append(Kind(count, *_size(resources), labels=labels))
    line = judge(kinds, config, file, cure, limit=prepared["max_workers"])
    if line.status == "fail" and silent:
        seen = f"{line.seen}, not counting {', '.join(silent)}, which state no resources"
        return Line("warn", "resources", file, seen, "State CPU and GPU of each node type")
    return line


def _size(resources: dict[str, Any]) -> tuple[float, float]:
    return float(resources.get("CPU", 0)), float(resources.get("GPU", 0))
