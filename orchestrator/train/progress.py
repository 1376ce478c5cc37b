"""Progress: the newest metrics travel from the first worker to whoever watches."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import ray


@ray.remote(num_cpus=0)
class ProgressBoard:
    """Holds the newest record of a run."""

    def __init__(self) -> None:
        self._record: dict[str, Any] = {}

    def post(self, record: dict[str, Any]) -> None:
        self._record = record

    def read(self) -> dict[str, Any]:
        return self._record


def progress_line(record: dict[str, Any]) -> str:
    """One line for people.

    Parameters
    ----------
    record : step, total_steps, epoch, loss, logit_scale, samples_per_s, data_wait (share, 0 to 1), eta_s
    """
    eta = int(record["eta_s"])
    return (
        f"step {record['step']}/{record['total_steps']}  epoch {record['epoch']:.2f}  loss {record['loss']:.3f}  "
        f"scale {record['logit_scale']:.1f}  {record['samples_per_s']:,.0f} samples/s  "
        f"data wait {record['data_wait']:.0%}  ETA {eta // 3600}:{eta % 3600 // 60:02d}:{eta % 60:02d}"
    )


class ProgressDisplay:
    """Shows a board while training runs: a live line in a terminal, plain lines in a log.

    Parameters
    ----------
    board : actor handle of a ProgressBoard
    log_interval_s : seconds between plain lines
    """

    def __init__(self, board: Any, log_interval_s: float = 10.0):
        self._board = board
        self._interval_s = 1.0 if sys.stdout.isatty() else log_interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProgressDisplay:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._show(last=True)

    def _watch(self) -> None:
        self._seen = -1
        while not self._stop.wait(1.0):
            if time.monotonic() - getattr(self, "_shown_at", 0.0) >= self._interval_s:
                self._show(last=False)

    def _show(self, last: bool) -> None:
        try:
            record = ray.get(self._board.read.remote(), timeout=5)
        except ray.exceptions.RayError:
            return  # Progress must never stop a run.
        if not record or (record["step"] == self._seen and not last):
            return
        self._seen, self._shown_at = record["step"], time.monotonic()
        if sys.stdout.isatty():
            print(f"\r\033[K{progress_line(record)}", end="\n" if last else "", flush=True)
        else:
            print(progress_line(record), flush=True)
