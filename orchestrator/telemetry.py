"""What is exported for Prometheus, at each node's metrics endpoint: every name of this project, in one place.

Ray puts `ray_` in front of a name and `_total` behind a counter's, and adds labels of its own: of the node and the
process, and, inside a Serve application, `application`, `deployment` and `replica`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray.util.metrics

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
BATCH_SIZES = (1.0, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Metric:
    """One that is exported.

    Parameters
    ----------
    kind : Gauge, Counter or Histogram
    text : what it says, with its unit
    labels : besides Ray's
    bounds : of a histogram's buckets
    """

    kind: str
    text: str
    labels: tuple[str, ...]
    bounds: tuple[float, ...] = ()


# Of the newest record of a run, told by its first worker: they are gone while there is none.
TRAINING = {
    name: Metric("Gauge", text, ("run",))
    for name, text in {
        "step": "optimiser steps made",
        "epoch": "samples trained on, over those of the data",
        "loss": "over the global batch",
        "logit_scale": "the multiplier, not its logarithm",
        "lr": "learning rate",
        "grad_norm": "norm of the gradient of the global batch, before it is clipped",
        "param_norm": "norm of all weights",
        "samples_per_s": "image-text pairs trained on a second, over all workers",
        "data_wait": "share of the time that training waits for data, 0 to 1",
        "checkpoint_stall": "share of the time that training waits for a checkpoint, 0 to 1",
        "first_batch_s": "seconds that this group of workers waited for its first batch",
        "flops": "FLOP/s of all workers' forward and backward passes",
        "mfu": "flops as a share of what the devices can do, 0 to 1; absent where that is not known",
        "peak_memory_gb": "of the first worker's process, or of its GPU, in 10^9 bytes",
    }.items()
}

# Of a run, told where its driver is: they outlive its workers, and end with the run.
RUN = {
    "workers": Metric("Gauge", "training processes of the run; 0 while none has started", ("run",)),
    "progressed_at_s": Metric("Gauge", "when a step was last recorded, or the run began, in Unix time", ("run",)),
    "events": Metric(
        "Counter",
        "start: of a group of workers, the first one's or after a failure or for another number of workers; rollback: "
        "to the last checkpoint, for loss or gradient were not finite; skipped_step: for the same reason; "
        "lost_checkpoint: one that could not be written; preemption: notice that a node will be taken away",
        ("run", "event"),
    ),
    "rejects": Metric("Gauge", "samples that could not be used", ("run", "reason")),
    "reject_limit": Metric("Gauge", "samples that may be unusable before the run stops", ("run",)),
}

# Of an application that serves.
SERVING = {
    "requests": Metric("Counter", "requests by route and outcome", ("handler", "status")),
    "stage_seconds": Metric("Histogram", "time of a request by stage", ("stage",), SECONDS),
    "classifier_cache": Metric("Counter", "classifiers asked for, by whether a replica had them at hand", ("hit",)),
    "classifier_weights": Metric("Counter", "weights asked for, by whether their keeper had them", ("found",)),
    "images_encoded": Metric("Counter", "images through the tower", ("model",)),
    "texts_encoded": Metric("Counter", "texts through the tower", ("model",)),
    "image_batch_size": Metric("Histogram", "images in one forward pass", ("model",), BATCH_SIZES),
    "text_batch_size": Metric("Histogram", "texts in one forward pass", ("model",), BATCH_SIZES),
}

EXPORTED = {f"clip_{name}": metric for name, metric in (TRAINING | RUN | SERVING).items()}


def export(name: str, library: Any = ray.util.metrics) -> Any:
    """A Ray metric of the table, to be told values.

    Parameters
    ----------
    name : without `clip_`
    library : ray.util.metrics, or ray.serve.metrics inside a Serve application

    Raises
    ------
    KeyError : it is not in the table
    """
    metric = EXPORTED[f"clip_{name}"]
    bounds = {"boundaries": list(metric.bounds)} if metric.bounds else {}
    return getattr(library, metric.kind)(f"clip_{name}", metric.text, tag_keys=metric.labels, **bounds)


class Exporter:
    """Metrics of the table that have some labels in common.

    Parameters
    ----------
    names : without `clip_`
    labels : that are the same in all that is told
    """

    def __init__(self, *names: str, **labels: str):
        self._labels = labels
        self._metrics = {name: export(name) for name in names}

    def set(self, name: str, value: float, **labels: str) -> None:
        """The new value of a gauge."""
        self._metrics[name].set(value, {**self._labels, **labels})

    def count(self, name: str, **labels: str) -> None:
        """One more of a counter."""
        self._metrics[name].inc(1, {**self._labels, **labels})
