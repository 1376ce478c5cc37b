"""The paper's search for a linear probe's regularisation, beside scikit-learn's LogisticRegression.

    python benchmarks/evaluate.py                                       # about a minute on two cores
    python benchmarks/evaluate.py --samples 1000 --features 128 --classes 10

Both sides try the same strengths on the same float32 features, at most 1,000 iterations each. The features are made:
variances fall as a power law, and the mean is away from zero. scikit-learn's default tolerance (1e-4 of the gradient)
leaves the loss of weakly regularised probes far above its minimum. The last column says by how much at the strength
that was chosen, against the lowest loss that any side reached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from typing import Any

import numpy as np
import torch

from orchestrator.evaluate.linear_probe import ITERATIONS, Probes
from orchestrator.evaluate.regularisation import search_strength

GOAL = 5.0


def made(samples: int, features: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(99).normal(size=(classes, features))
    label_N = rng.integers(classes, size=samples)
    spread = np.arange(1, features + 1) ** -0.7
    x_ND = (rng.normal(size=(samples, features)) + 0.5 * centre[label_N]) * spread + 0.3
    return x_ND.astype(np.float32), label_N


def objective(
    weight_KD: np.ndarray, bias_K: np.ndarray, x_ND: np.ndarray, label_N: np.ndarray, strength: float
) -> float:
    logits = x_ND.astype(np.float64) @ weight_KD.astype(np.float64).T + bias_K
    logits -= logits.max(axis=1, keepdims=True)
    fit = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(label_N)), label_N]
    return float(fit.mean() + np.square(weight_KD.astype(np.float64)).sum() / (2 * strength * len(label_N)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=20)
    arguments = parser.parse_args()
    from sklearn.linear_model import LogisticRegression

    sizes = arguments.features, arguments.classes
    x_ND, label_N = made(arguments.samples, *sizes, seed=0)
    validation = made(1000, *sizes, seed=1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    Probes(x_ND[:100], label_N[:100], device=device).fit([1.0])  # warms up

    begin = time.perf_counter()
    found = search_strength(Probes(x_ND, label_N, device=device), lambda probe: probe.accuracy(*validation))
    ours = time.perf_counter() - begin
    rows: list[dict[str, Any]] = [
        {"side": "this probe, float32", "seconds": ours, "accuracy": max(found.scores.values())}
    ]
    losses: dict[str, dict[float, float]] = {rows[0]["side"]: {found.strength: found.probe.loss}}
    for side, tolerance in (("scikit-learn, default tolerance", 1e-4), ("scikit-learn, tolerance 1e-6", 1e-6)):
        scores, losses[side], begin = {}, {}, time.perf_counter()
        for strength in found.scores:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit = LogisticRegression(C=strength, max_iter=ITERATIONS, tol=tolerance).fit(x_ND, label_N)
            scores[strength] = fit.score(*validation)
            if strength == found.strength:
                losses[side][strength] = objective(fit.coef_, fit.intercept_, x_ND, label_N, strength)
        rows.append({"side": side, "seconds": time.perf_counter() - begin, "accuracy": max(scores.values())})
    least = min(loss[found.strength] for loss in losses.values())

    where = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{where}; {arguments.samples} samples, {sizes[0]} features, {sizes[1]} classes, {len(found.scores)} fits\n")
    print("| side | s | times this probe's | best validation accuracy | loss above the least |\n|---|---|---|---|---|")
    for row in rows:
        row["loss_above_least"] = losses[row["side"]][found.strength] / least - 1
        print(
            f"| {row['side']} | {row['seconds']:.2f} | {row['seconds'] / ours:.1f} | {row['accuracy']:.3f} "
            f"| {row['loss_above_least']:.1e} |"
        )
    ratio = rows[1]["seconds"] / ours
    goals = {"probe_search_vs_sklearn": {"value": round(ratio, 2), "goal": GOAL, "met": ratio >= GOAL}}
    machine = {"device": where, "torch": torch.__version__, "threads": torch.get_num_threads()}
    print("\n" + json.dumps({"benchmark": "evaluate", "machine": machine, "rows": rows, "goals": goals}))


if __name__ == "__main__":
    main()
