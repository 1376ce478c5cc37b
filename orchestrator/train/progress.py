"""Progress: the newest metrics travel from the first worker to whoever watches."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import ray

from orchestrator.telemetry import Exporter


@ray.remote(num_cpus=0)
class RunBoard:
    """What the processes of a run tell each other: where to go on from, the newest record, messages for people.

    It exports what is to be known of a run whether it has workers or not.

    Parameters
    ----------
    run : its name
    """

    def __init__(self, run: str) -> None:
        self._exported = Exporter("workers", "progressed_at_s", "events", run=run)
        self._exported.set("workers", 0)
        self._exported.set("progressed_at_s", time.time())
        self._record: dict[str, Any] = {}
        self._messages: list[str] = []
        self._start, self._starts, self._workers = 0, 0, 0
        self._rolled_back: set[int] = set()
        self._stopping = False

    def begin(self, step: int) -> None:
        """A group of workers is about to start, from the checkpoint of this step."""
        self._start, self._starts, self._workers = step, self._starts + 1, 0
        self._record = {}
        self._exported.count("events", event="start")
        self._exported.set("workers", 0)

    def start(self) -> int:
        """The step of the checkpoint to go on from; 0: none."""
        return self._start

    def placed(self, workers: int) -> None:
        """The workers have started."""
        self._workers = workers
        self._exported.set("workers", workers)

    def stop(self) -> bool:
        """Ask the run to end with a checkpoint; whether there are workers that can."""
        self._stopping = True
        return self._workers > 0

    def stopping(self) -> bool:
        """Whether the run has been asked to end."""
        return self._stopping

    def post(self, record: dict[str, Any]) -> None:
        self._record = record
        self._exported.set("progressed_at_s", time.time())

    def say(self, message: str, event: str = "") -> None:
        """A message for whoever watches; of an event that is counted, where it has a name."""
        self._messages.append(message)
        if event:
            self._exported.count("events", event=event)

    def may_roll_back(self, reason: str, limit: int) -> bool:
        """Whether the run goes back to its last checkpoint; the same for all workers of a group."""
        if self._starts not in self._rolled_back:
            if len(self._rolled_back) >= limit:
                return False
            self._rolled_back.add(self._starts)
            self.say(f"going back to the last checkpoint: {reason}", "rollback")
        return True

    def read(self) -> tuple[dict[str, Any], list[str], int, int]:
        """The newest record, messages not read before, how many groups have started, workers of the last one."""
        messages, self._messages = self._messages, []
        return self._record, messages, self._starts, self._workers


def progress_line(record: dict[str, Any]) -> str:
    """One line for people.

    Parameters
    ----------
    record : step, total_steps, epoch, loss, logit_scale, samples_per_s, workers, data_wait (share, 0 to 1), eta_s
    """
    eta = int(record["eta_s"])
    return (
        f"step {record['step']}/{record['total_steps']}  epoch {record['epoch']:.2f}  loss {record['loss']:.3f}  "
        f"scale {record['logit_scale']:.1f}  {record['samples_per_s']:,.0f} samples/s  "
        f"{record['workers']} worker{'s' if record['workers'] > 1 else ''}  "
        f"data wait {record['data_wait']:.0%}  ETA {eta // 3600}:{eta % 3600 // 60:02d}:{eta % 60:02d}"
    )


class ProgressDisplay:
    """Shows a board while training runs: a live line in a terminal, plain lines in a log.

    Parameters
    ----------
    board : actor handle of a RunBoard
    explain_waiting : given the workers that have started, says what the cluster lacks; nothing where it lacks nothing
    log_interval_s : seconds between plain lines
    patience_s : seconds without a step after which it is asked
    """

    def __init__(
        self,
        board: Any,
        explain_waiting: Callable[[int], str],
        log_interval_s: float = 10.0,
        patience_s: float = 30.0,
    ):
        self._board, self._explain_waiting, self._patience_s = board, explain_waiting, patience_s
        self._interval_s = 1.0 if sys.stdout.isatty() else log_interval_s
        self._seen, self._shown_at, self._starts = -1, 0.0, 0
        self._moved_at = time.monotonic()
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
        while not self._stop.wait(1.0):
            self._show(last=False)

    def _show(self, last: bool) -> None:
        try:
            record, messages, starts, workers = ray.get(self._board.read.remote(), timeout=5)
        except ray.exceptions.RayError:
            return  # Progress must never stop a run.
        for message in messages:
            self._print(message)
        now = time.monotonic()
        if starts != self._starts or record.get("step", -1) != self._seen:
            self._moved_at = now
        if starts != self._starts:
            self._starts, self._seen = starts, -1
        if not record:
            if now - self._moved_at > self._patience_s:
                self._moved_at = now + self._patience_s  # Then once a minute.
                why = self._explain_waiting(workers)
                if why:
                    self._print(why)
            return
        if last or (record["step"] != self._seen and now - self._shown_at >= self._interval_s):
            self._shown_at = now
            self._report(record, last)
        self._seen = record["step"]

    def _report(self, record: dict[str, Any], last: bool) -> None:
        line = progress_line(record)
        print(f"\r\033[K{line}" if sys.stdout.isatty() else line, end=self._end(last), flush=True)

    @staticmethod
    def _end(last: bool) -> str:
        return "" if sys.stdout.isatty() and not last else "\n"

    def _print(self, message: str) -> None:
        print(f"\r\033[K{message}" if sys.stdout.isatty() else message, flush=True)
