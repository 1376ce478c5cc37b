"""What a run on a changing cluster looked like over time: nodes, training processes, images a second."""

from __future__ import annotations

import csv
import io
import json
import math
import textwrap
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.local.cluster import LocalCluster, starts
from orchestrator import storage
from orchestrator.report import drawing

TRAINER = "RayTrainWorker"


@dataclass
class Timeline:
    """Looks at a cluster once a second while it is open.

    Parameters
    ----------
    cluster : to look at
    points : (seconds since the epoch, nodes that run Ray, training processes)
    events : (seconds since the epoch, what happened)
    """

    cluster: LocalCluster
    points: list[tuple[float, int, int]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)

    def __enter__(self) -> Timeline:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            processes = self.cluster.processes()
            self.points.append((time.time(), sum(map(_is_a_nodes_raylet, processes)), len(trainers(processes))))

    def happened(self, what: str) -> None:
        """Note an event, and say it."""
        self.events.append((time.time(), what))
        print(f"{time.time() - self.points[0][0] if self.points else 0.0:6.1f} s  {what}", flush=True)

    @property
    def now(self) -> tuple[int, int]:
        """Nodes and training processes at the last look."""
        return self.points[-1][1:] if self.points else (0, 0)

    def write(self, run_uri: str, folder: Path) -> None:
        """timeline.csv and timeline.png, with the speed that the run has recorded."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "timeline.csv").write_text(self.to_csv(run_uri))
        (folder / "timeline.png").write_bytes(self.draw(run_uri))

    def to_csv(self, run_uri: str) -> str:
        """seconds, nodes, trainers, images a second of the newest record of the run; a line a look."""
        out = io.StringIO()
        table = csv.writer(out, lineterminator="\n")
        table.writerow(["seconds", "nodes", "trainers", "images_per_s"])
        start, speeds = self.points[0][0], _speeds(run_uri)
        for moment, nodes, processes in self.points:
            known = [speed for at, speed in speeds if at <= moment]
            speed = known[-1] if known and moment <= speeds[-1][0] + 1 and processes else 0.0
            table.writerow([f"{moment - start:.1f}", nodes, processes, f"{speed:.1f}"])
        return out.getvalue()

    def draw(self, run_uri: str) -> bytes:
        """A PNG: nodes and training processes above, images a second below, events as numbered lines through both."""
        from matplotlib.figure import Figure

        start = self.points[0][0]
        figure = Figure(figsize=(8, 5), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
        seconds = [moment - start for moment, _, _ in self.points]
        for column, (label, color) in enumerate(
            (("nodes", drawing.PALETTE[0]), ("training processes", drawing.PALETTE[1]))
        ):
            above.step(seconds, [point[1 + column] for point in self.points], where="post", label=label, color=color)
        above.set_ylim(0, max(point[1] for point in self.points) + 0.9)
        above.yaxis.get_major_locator().set_params(integer=True)
        above.legend(loc="upper left", bbox_to_anchor=(0, 1.22), frameon=False, ncols=2)
        speeds = [(at - start, speed) for at, speed in _speeds(run_uri)]
        # No line through the time in which nothing trained.
        still = [(moment - start, math.nan) for moment, _, processes in self.points if not processes]
        below.plot(*zip(*sorted(speeds + still), strict=True), ".-", color=drawing.PALETTE[2], markersize=4)
        below.set_ylim(bottom=0)
        below.set_ylabel("images/s")
        below.set_xlabel("seconds")
        for moment, _ in self.events:
            for axes in (above, below):
                axes.axvline(moment - start, color=drawing.QUIET, linewidth=0.7, linestyle=":")
        # Events that lie closer together than their numbers are wide share a place.
        groups: list[list[int]] = []
        for number, (moment, _) in enumerate(self.events):
            near = groups and moment - self.events[groups[-1][0]][0] < 0.03 * (seconds[-1] - seconds[0])
            groups[-1].append(number) if near else groups.append([number])
        for group in groups:
            place, words = self.events[group[0]][0] - start, ",".join(str(number + 1) for number in group)
            above.text(place, above.get_ylim()[1], words, va="bottom", ha="center", fontsize=8, color=drawing.QUIET)
        told = [
            f"{number}: {what}".replace(" ", "\N{NO-BREAK SPACE}") for number, (_, what) in enumerate(self.events, 1)
        ]
        figure.supxlabel("\n".join(textwrap.wrap("   ".join(told), 110)), fontsize=8, color=drawing.QUIET)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=drawing.DPI)
        return out.getvalue()


def _is_a_nodes_raylet(process: psutil.Process) -> bool:
    """Whether it is a worker node's raylet: the node's first process starts it some seconds after itself."""
    try:
        parent = process.parent() if process.name() == "raylet" else None
    except psutil.Error:
        return False
    return parent is not None and starts(parent) == "worker"


def trainers(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of a cluster's processes that train."""
    found = []
    for process in processes:
        try:
            if TRAINER in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _speeds(run_uri: str) -> list[tuple[float, float]]:
    lines = storage.read_bytes(storage.join(run_uri, "metrics.jsonl")).decode().splitlines()
    return [(record["time"], record["samples_per_s"]) for record in map(json.loads, lines)]
