"""The zero-shot result at the end of a run: a table, `zero_shot.json`, a picture, and a line in the model card."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ray

from orchestrator import storage
from orchestrator.config import Config, EvaluationConfig
from orchestrator.evaluate.datasets import EvaluationSet, EvaluationSetError, open_evaluation_set
from orchestrator.train.cluster import nodes_of, total

# Whoever opens the sets before training need not wait for torch.
if TYPE_CHECKING:
    from orchestrator.evaluate.zero_shot import ZeroShotResult

RESULT = "zero_shot.json"
PICTURE = "predictions.png"


def open_sets(config: EvaluationConfig) -> list[EvaluationSet]:
    """Open all sets of a configuration; call it before training, so that a missing one is found then."""
    sets = [open_evaluation_set(name, root, config.split, config.templates) for name, root in config.zero_shot.items()]
    for one in sets:
        if one.kind != "classification":
            raise EvaluationSetError(
                f"evaluation set {one.name}: of {one.kind}; training's end measures classification alone: leave it out "
                "and use jobs/evaluate.py"
            )
    return sets


def evaluate_run(
    run_uri: str, sets: list[EvaluationSet], config: Config, cpus: int = 0
) -> dict[str, dict[str, float | int]]:
    """Measure `<run>/final` on a node that has a device, and write the result beside it.

    Parameters
    ----------
    run_uri : the run's folder
    sets : what to measure
    config : of the run: batch size and placement
    cpus : logical CPUs to reserve where there is no GPU; 0: a node's

    Returns
    -------
    {set: {top1, top5, chance, classes, samples}}
    """
    where, batch_size = config.placement.train, config.evaluation.batch_size
    gpus = 1 if total("GPU", where) > 0 else 0
    # By default it would have to fit into what the caller itself has reserved, if that is a trial of a study.
    task = ray.remote(
        num_cpus=1 if gpus else cpus or _cpus_of_a_node(where),
        num_gpus=gpus,
        scheduling_strategy="DEFAULT",
        label_selector=where,
    )(measure)
    results: dict[str, ZeroShotResult] = ray.get(task.remote(f"{run_uri}/final", sets, batch_size, gpus > 0))
    summary = {name: result.summary() for name, result in results.items()}
    storage.write_bytes(f"{run_uri}/{PICTURE}", _picture(run_uri, results))
    card_uri = f"{run_uri}/final/README.md"
    card = storage.read_bytes(card_uri).decode().split("\n## Zero-shot result\n")[0]
    storage.write_bytes(card_uri, (card + "\n## Zero-shot result\n\n" + markdown_table(summary)).encode())
    storage.write_bytes(f"{run_uri}/{RESULT}", (json.dumps(summary, indent=2) + "\n").encode())
    return summary


class Accuracy:
    """Measures a run's zero-shot accuracy, beside other work of the cluster.

    Parameters
    ----------
    config : evaluation sets and placement, which a study's runs have in common
    """

    def __init__(self, config: Config):
        self._config = config

    def __call__(self, run_uri: str) -> float:
        """Top-1 as a mean over the sets, in [0, 1]; NaN where there is no set."""
        sets = open_sets(self._config.evaluation)
        if not sets:
            return math.nan
        summary = read_result(run_uri) or evaluate_run(run_uri, sets, self._config, cpus=1)
        return sum(float(one["top1"]) for one in summary.values()) / len(summary)


def _cpus_of_a_node(where: dict[str, str], most: int = 8) -> int:
    """Training has ended: a node's CPUs are free, and Ray gives torch as many threads as a task reserves."""
    return min(most, max([1, *(int(node["Resources"].get("CPU", 0)) for node in nodes_of(where))]))


def measure(model_uri: str, sets: list[EvaluationSet], batch_size: int, gpu: bool) -> dict[str, ZeroShotResult]:
    """Zero-shot results of one model on several sets; plain, without Ray."""
    from orchestrator.evaluate.zero_shot import zero_shot
    from orchestrator.inference import Embedder

    embedder = Embedder(model_uri, "cuda" if gpu else "cpu", batch_size)
    return {dataset.name: zero_shot(embedder, dataset, batch_size) for dataset in sets}


def read_result(run_uri: str) -> dict[str, dict[str, float | int]] | None:
    """The result of a run, or None where there is none yet."""
    uri = f"{run_uri}/{RESULT}"
    return json.loads(storage.read_bytes(uri)) if storage.exists(uri) else None


def markdown_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    lines = ["| set | top-1 | top-5 | chance | classes | samples |", "| --- | --- | --- | --- | --- | --- |"]
    for name, result in summary.items():
        lines.append(
            f"| {name} | {result['top1']:.1%} | {result['top5']:.1%} | {result['chance']:.2%} | "
            f"{result['classes']:,} | {result['samples']:,} |"
        )
    return "\n".join(lines) + "\n"


def print_table(summary: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Zero-shot classification")
    table.add_column("set")
    for column in ("top-1", "top-5", "chance", "classes", "samples"):
        table.add_column(column, justify="right")
    for name, result in summary.items():
        table.add_row(
            name,
            f"{result['top1']:.1%}",
            f"{result['top5']:.1%}",
            f"{result['chance']:.2%}",
            f"{result['classes']:,}",
            f"{result['samples']:,}",
        )
    Console().print(table)


def _picture(run_uri: str, results: dict[str, ZeroShotResult]) -> bytes:
    from orchestrator.evaluate.picture import draw_predictions

    examples = {name: result.examples for name, result in results.items()}
    return draw_predictions(
        examples, f"{run_uri.rsplit('/', 1)[-1]}: the picture's name above, the model's answers beside"
    )
