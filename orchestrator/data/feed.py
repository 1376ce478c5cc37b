"""Blocks of any size -> batches of the size that is asked for, prepared ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

from orchestrator.data.batch import Allocate, Columns, count, join, take


class Feed:
    """One worker's samples.

    Parameters
    ----------
    blocks : columns of `orchestrator.data.batch`, of any number of samples
    sizes : samples of each batch to come, without an end
    empty : columns of no sample
    prefetch : batches kept ready
    allocate : gives the memory of whole batches; None: as it comes
    """

    def __init__(
        self,
        blocks: Iterable[Columns],
        sizes: Iterator[int],
        empty: Columns,
        prefetch: int,
        allocate: Allocate | None = None,
    ):
        self._blocks, self._sizes, self._empty, self._allocate = iter(blocks), sizes, empty, allocate
        self._ready: queue.Queue[tuple[Columns, bool] | BaseException] = queue.Queue(max(1, prefetch))
        self._ended = False
        threading.Thread(target=self._prepare, daemon=True, name="feed").start()

    def next(self) -> tuple[Columns, bool]:
        """The next batch, and whether it has all the samples that it should.

        The first that has not is the last and may be empty, as all later ones are.

        Raises
        ------
        Exception : whatever the blocks raised
        """
        if self._ended:
            return self._empty, False
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        self._ended = not item[1]
        return item

    def drain(self) -> Columns:
        """All samples that are left."""
        parts = [self._empty]
        while not self._ended:
            parts.append(self.next()[0])
        return join(parts)

    def _prepare(self) -> None:
        held: list[Columns] = []
        try:
            for size in self._sizes:
                while count(held) < size:
                    block = next(self._blocks, None)
                    if block is None:
                        self._ready.put((join([self._empty, *held]), False))
                        return
                    held.append(block)
                self._ready.put((join(_split(held, size) or [self._empty], self._allocate), True))
        except BaseException as error:
            self._ready.put(error)


def _split(held: list[Columns], size: int) -> list[Columns]:
    """Take `size` samples off the front of `held`, in place."""
    front: list[Columns] = []
    while size:
        first, length = held[0], count(held[:1])
        if length <= size:
            front.append(held.pop(0))
            size -= length
        else:
            front.append(take(first, 0, size))
            held[0] = take(first, size, length)
            size = 0
    return front
