"""Where a run's metrics go besides its own folder: Ray's metrics endpoint, and by choice MLflow and Weights & Biases.

A tracker is told each record that `metrics.jsonl` gets. After a restart it goes on with what it had begun.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from orchestrator.config import ConfigError
from orchestrator.telemetry import TRAINING, Exporter

# What to install for each.
PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}


class Tracker(Protocol):
    """Takes records of numbers by name, `step` among them."""

    def log(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raise ConfigError for a tracker whose package is not installed here."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"run.trackers={names}: {name} is not installed; pip install {PACKAGES[name]} on every node"
            )


def make_trackers(names: Sequence[str], run_name: str, run_uri: str, config: dict[str, Any]) -> list[Tracker]:
    """Ray's metrics endpoint, and those that are named.

    Parameters
    ----------
    names : of PACKAGES
    run_name, run_uri : of the run; its folder says whether it is the one that was begun before
    config : of the run, shown beside its metrics

    Raises
    ------
    ConfigError : one cannot be reached
    """
    trackers: list[Tracker] = [RayMetrics(run_name)]
    kinds: dict[str, Callable[..., Tracker]] = {"mlflow": MLflow, "wandb": WandB}
    for name in names:
        try:
            trackers.append(kinds[name](run_name, hashlib.sha256(run_uri.encode()).hexdigest()[:16], config))
        except Exception as error:  # whatever a tracker's client raises
            raise ConfigError(f"run.trackers: {name} cannot be used: {error}") from error
    return trackers


class RayMetrics:
    """Gauges `ray_clip_<name>{run="..."}` at each node's metrics endpoint, for Prometheus."""

    def __init__(self, run_name: str):
        self._exported = Exporter(*TRAINING, run=run_name)

    def log(self, record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name in TRAINING:  # the rest is exported where the driver is
                self._exported.set(name, value)

    def close(self) -> None:
        pass


class MLflow:
    """MLflow at MLFLOW_TRACKING_URI, in the experiment that MLFLOW_EXPERIMENT_NAME names."""

    def __init__(self, run_name: str, identity: str, config: dict[str, Any]):
        import mlflow

        self._mlflow = mlflow
        tag = "clip_on_ray.run"
        found = mlflow.search_runs(filter_string=f"tags.`{tag}` = '{identity}'", max_results=1, output_format="list")
        if found:
            mlflow.start_run(run_id=found[0].info.run_id)
        else:
            mlflow.start_run(run_name=run_name, tags={tag: identity})
            mlflow.log_dict(config, "config.yaml")

    def log(self, record: dict[str, Any]) -> None:
        values = {name: float(value) for name, value in record.items() if name != "step"}
        self._mlflow.log_metrics(values, step=record["step"], synchronous=False)

    def close(self) -> None:
        self._mlflow.flush_async_logging()
        self._mlflow.end_run()


class WandB:
    """Weights & Biases, as its own environment variables say (WANDB_API_KEY, WANDB_PROJECT, WANDB_MODE, WANDB_DIR)."""

    def __init__(self, run_name: str, identity: str, config: dict[str, Any]):
        import wandb

        self._run = wandb.init(name=run_name, id=identity, resume="allow", config=config)
        # A run that went back logs steps again; as an axis of its own, `step` may.
        self._run.define_metric("*", step_metric="step")

    def log(self, record: dict[str, Any]) -> None:
        self._run.log(record)

    def close(self) -> None:
        self._run.finish()
