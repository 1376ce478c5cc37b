"""Each step's samples for each worker, to the last sample of the data.

Every worker pulls from a stream of its own, and the streams differ a little in length. While all of them last, each
worker takes its share of the global batch. When one runs dry, the workers put together what is left, share it anew, and
go on until nothing is left; two samples for each worker are the least that a step is made of.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist

from orchestrator.data.batch import Allocate, Columns, count, join, take
from orchestrator.data.feed import Feed


def share(step: int, global_batch: int, rank: int, world_size: int) -> int:
    """Samples of a step's global batch that a worker takes: an even part, and in turn one more where it is not even."""
    part, extra = divmod(global_batch, world_size)
    return part + ((rank - step * extra) % world_size < extra)


def last_batches(left: int, global_batch: int) -> list[int]:
    """Global batches that use up what is left: where the last would be a small one, the last two are halves of both."""
    full, rest = divmod(left, global_batch)
    sizes = [global_batch] * full + [rest] * (rest > 0)
    if full and rest:
        sizes[-2:] = [(global_batch + rest + 1) // 2, (global_batch + rest) // 2]
    return sizes


class Supply:
    """A worker's batches, in step with the other workers'.

    Parameters
    ----------
    blocks : of this worker's stream
    empty : columns of no sample
    global_batch : samples of a step, over all workers
    step : the first step
    rank, world_size : of this worker
    workers : process group on the CPU (gloo) of all of them; None: this process is alone
    whole : every worker's stream is the whole data in the same order, and a worker takes its part of each batch
    prefetch : batches kept ready
    allocate : gives the memory of whole batches; None: as it comes
    """

    def __init__(
        self,
        blocks: Iterable[Columns],
        empty: Columns,
        global_batch: int,
        step: int,
        rank: int,
        world_size: int,
        workers: dist.ProcessGroup | None,
        whole: bool,
        prefetch: int,
        allocate: Allocate | None = None,
    ):
        self._empty, self._global_batch, self._step = empty, global_batch, step
        self._rank, self._world_size, self._workers, self._whole = rank, world_size, workers, whole
        self._feed = Feed(blocks, self._sizes(), empty, prefetch, allocate)
        self._held: tuple[Columns, bool] | None = None
        self._last: Iterator[Columns] | None = None
        self.left_out = 0

    def _sizes(self) -> Iterator[int]:
        for step in itertools.count(self._step):
            yield self._global_batch if self._whole else self._share(step, self._global_batch)

    def _share(self, step: int, global_batch: int, rank: int | None = None) -> int:
        return share(step, global_batch, self._rank if rank is None else rank, self._world_size)

    def next(self) -> Columns | None:
        """This worker's part of the next step; None on all workers when nothing is left."""
        step, self._step = self._step, self._step + 1
        if self._last is None:
            # A batch is given out only once the next is known to be whole: the last two may have to share what is left.
            batch, full = self._held or self._feed.next()
            self._held = following, _ = self._feed.next()
            if self._all(full and self._held[1]):
                return self._part(step, batch, self._global_batch) if self._whole else batch
            self._last = iter(self._share_rest(step, join([batch, following, self._feed.drain()])))
        return next(self._last, None)

    def _part(self, step: int, batch: Columns, size: int) -> Columns:
        start = sum(self._share(step, size, rank) for rank in range(self._rank))
        return take(batch, start, start + self._share(step, size))

    def _share_rest(self, step: int, rest: Columns) -> list[Columns]:
        """The last steps' batches."""
        held = [count([rest])] * self._world_size if self._whole else self._counts(count([rest]))
        left = held[0] if self._whole else sum(held)
        sizes = last_batches(left, self._global_batch)
        if sizes and sizes[-1] < 2 * self._world_size:  # a single batch, and batch norm needs two samples of a worker
            self.left_out, sizes = left, []
        shares = [
            [self._share(step + number, size, rank) for number, size in enumerate(sizes)]
            for rank in range(self._world_size)
        ]
        if not sizes:
            return []
        if self._whole:
            starts = itertools.accumulate(sizes, initial=0)
            return [
                self._part(step + number, take(rest, start, start + size), size)
                for number, (start, size) in enumerate(zip(starts, sizes, strict=False))
            ]
        rest = self._even_out(rest, held, [sum(mine) for mine in shares])
        bounds = list(itertools.accumulate(shares[self._rank], initial=0))
        return [take(rest, start, stop) for start, stop in itertools.pairwise(bounds)]

    def _all(self, full: bool) -> bool:
        if self._workers is None:
            return full
        flag = torch.tensor(int(full))
        dist.all_reduce(flag, dist.ReduceOp.MIN, group=self._workers)
        return bool(flag)

    def _counts(self, mine: int) -> list[int]:
        if self._workers is None:
            return [mine]
        counts = torch.zeros(self._world_size, dtype=torch.int64)
        counts[self._rank] = mine
        dist.all_reduce(counts, group=self._workers)
        return counts.tolist()

    def _even_out(self, rest: Columns, held: list[int], wanted: list[int]) -> Columns:
        """Move samples from workers that hold more than they want to those that hold less."""
        surplus = [have - want for have, want in zip(held, wanted, strict=True)]
        kept = take(rest, 0, min(held[self._rank], wanted[self._rank]))
        spare, received = take(rest, wanted[self._rank], held[self._rank]), [kept]
        for giver, taker in itertools.product(range(self._world_size), repeat=2):
            moved = min(surplus[giver], -surplus[taker])
            if moved <= 0:
                continue
            surplus[giver] -= moved
            surplus[taker] += moved
            if self._rank == giver:
                self._send(take(spare, 0, moved), taker)
                spare = take(spare, moved, count([spare]))
            elif self._rank == taker:
                received.append(self._receive(moved, giver))
        return join(received)

    def _send(self, columns: Columns, taker: int) -> None:
        for name in self._empty:
            dist.send(torch.from_numpy(columns[name].copy()), group=self._workers, group_dst=taker)

    def _receive(self, size: int, giver: int) -> Columns:
        received = {}
        for name, column in self._empty.items():
            tensor = torch.from_numpy(column).new_empty((size, *column.shape[1:]))
            dist.recv(tensor, group=self._workers, group_src=giver)
            received[name] = tensor.numpy()
        return received
