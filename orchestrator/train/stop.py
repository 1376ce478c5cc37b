"""A run that is asked to end, by `ray job stop` or a signal, ends with a checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import ray

ASK_S = 30.0


@contextlib.contextmanager
def ends_with_a_checkpoint(board: Any) -> Iterator[None]:
    """Inside, SIGTERM makes the workers write a checkpoint and end; a second one, or one without workers, ends at once.

    Parameters
    ----------
    board : actor handle of the run's RunBoard
    """
    if threading.current_thread() is not threading.main_thread():  # a trial: the study's process has the signals
        yield
        return
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, before)
        asked.set()

    def pass_on() -> None:
        asked.wait()
        if not over.is_set():
            print("asked to stop: a checkpoint first", flush=True)
            try:
                heard = ray.get(board.stop.remote(), timeout=ASK_S)
            except ray.exceptions.RayError:  # the cluster is lost, and so are the workers
                heard = False
            if not heard:
                os.kill(os.getpid(), signal.SIGTERM)

    over = threading.Event()
    before = signal.signal(signal.SIGTERM, ask)
    # Ray is not called from inside a signal's handler, which may have interrupted it.
    waiting = threading.Thread(target=pass_on, daemon=True)
    waiting.start()
    try:
        yield
    finally:
        over.set()
        asked.set()
        signal.signal(signal.SIGTERM, before)
        waiting.join()
