"""Checkpoints are written while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrator import storage
from orchestrator.storage import StorageError
from orchestrator.train.checkpoint import CheckpointStore, Snapshot


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread; training waits only where the one before is not yet written.

    What cannot be written is tried again until `patience_s` have passed: object storage may be out of reach for a while
    and a full disk may be cleared. Then the checkpoint is given up and training goes on; where `max_failures` in a row
    are given up, it stops.

    Parameters
    ----------
    store : where they go
    keep : newest checkpoints kept
    patience_s : seconds
    max_failures : checkpoints in a row
    on_failure : told why one was given up
    """

    def __init__(
        self,
        store: CheckpointStore,
        keep: int,
        patience_s: float,
        max_failures: int,
        on_failure: Callable[[str], None],
    ):
        self._store, self._keep, self._patience_s, self._max_failures = store, keep, patience_s, max_failures
        self._on_failure = on_failure
        self._thread: threading.Thread | None = None
        self._errors: list[BaseException] = []

    def save(self, snapshot: Snapshot, before: Callable[[], None] = lambda: None) -> None:
        """Begin to write a checkpoint; `before` runs first, in the same thread.

        Raises
        ------
        StorageError : the last `max_failures` checkpoints could not be written
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(snapshot, before), daemon=True, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until what was begun is written.

        Raises
        ------
        StorageError : as `save`
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if len(self._errors) >= self._max_failures:
            raise self._errors[-1]

    def finish(self) -> None:
        """Until the last one is written.

        Raises
        ------
        StorageError : the last one could not be written
        """
        self.wait()
        if self._errors:
            raise self._errors[-1]

    def _write(self, snapshot: Snapshot, before: Callable[[], None]) -> None:

        def write() -> None:
            before()
            self._store.write(snapshot, self._keep)

        try:
            storage.patiently(write, self._patience_s)
            self._errors.clear()
        except StorageError as error:
            self._errors.append(error)
            self._on_failure(f"no checkpoint at step {snapshot.state.step}: {error}")
        except BaseException as error:  # an error of the program: training must not go on without checkpoints
            self._errors.extend([error] * self._max_failures)
