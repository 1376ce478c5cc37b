"""What many ask for, done together: pictures of many requests in one message to an encoder, inputs of many messages in
one forward pass.

`@serve.batch` closes a batch while the one before it is still at work, so that its batches are smallest when there is
most to do: of 16 that were allowed, 4 on average under 64 clients of a ViT-B-32. Here a batch is closed when it starts.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any


class Together:
    """Does what waits in batches, as soon as fewer than `ahead` of them are under way.

    Parameters
    ----------
    do : a batch of inputs -> what comes of each
    size : inputs of a batch, at most
    ahead : batches under way at once
    wait_s : seconds that an input waits for others while fewer are under way
    patience_s : seconds after which a batch starts although `ahead` are under way, a full one at once; infinity: never
    """

    def __init__(
        self,
        do: Callable[[list[Any]], Awaitable[Iterable[Any]]],
        size: int,
        ahead: int,
        wait_s: float = 0.0,
        patience_s: float = math.inf,
    ):
        self.size, self.wait_s = size, wait_s
        self._do, self._ahead, self._patience_s = do, ahead, patience_s
        self._waiting: deque[tuple[float, Any, asyncio.Future[Any]]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        """What comes of each input; raises what `do` raises."""
        loop, now = asyncio.get_running_loop(), time.monotonic()
        answers: list[asyncio.Future[Any]] = [loop.create_future() for _ in inputs]
        self._waiting.extend(zip([now] * len(inputs), inputs, answers, strict=True))
        self._start_what_is_due()
        return await asyncio.gather(*answers)

    def _start_what_is_due(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            free = len(self._under_way) < self._ahead
            full = len(self._waiting) >= self.size and (free or self._patience_s < math.inf)
            left_s = self._waiting[0][0] + (self.wait_s if free else self._patience_s) - time.monotonic()
            if full or left_s <= 0:
                self._start()
            else:
                if left_s < math.inf:
                    self._timer = asyncio.get_running_loop().call_later(left_s, self._start_what_is_due)
                return

    def _start(self) -> None:
        batch: list[tuple[Any, asyncio.Future[Any]]] = []
        while self._waiting and len(batch) < self.size:
            _, one, answer = self._waiting.popleft()
            if not answer.done():  # else who asked has given up
                batch.append((one, answer))
        if batch:
            task = asyncio.get_running_loop().create_task(self._finish(batch))
            self._under_way.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._start_what_is_due()

    async def _finish(self, batch: list[tuple[Any, asyncio.Future[Any]]]) -> None:
        try:
            results = await self._do([one for one, _ in batch])
            pairs = list(zip(batch, results, strict=True))
        except Exception as error:
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
            return
        for (_, answer), result in pairs:
            if not answer.done():
                answer.set_result(result)
