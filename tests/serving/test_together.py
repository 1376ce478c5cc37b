"""Batches of what many ask for: full when there is much to do, at once when there is little."""

from __future__ import annotations

import asyncio

import pytest

from serving.together import Together


class Work:
    """Doubles its inputs, one batch after another, each when it is told."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gates: list[asyncio.Event] = []

    async def __call__(self, batch: list[int]) -> list[int]:
        self.batches.append(batch)
        self.gates.append(asyncio.Event())
        await self.gates[len(self.batches) - 1].wait()
        return [2 * one for one in batch]


async def turn() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_comes_while_one_is_under_way_goes_together():
    async def go() -> None:
        work = Work()
        together = Together(work, size=4, ahead=1)
        asked = [asyncio.create_task(together(inputs)) for inputs in ([1], [2, 3], [4], [5, 6, 7])]
        await turn()
        assert work.batches == [[1]]
        work.gates[0].set()
        await turn()
        assert work.batches == [[1], [2, 3, 4, 5]]  # full, though that parts a call
        work.gates[1].set()
        await turn()
        assert work.batches[2:] == [[6, 7]]
        work.gates[2].set()
        assert await asyncio.gather(*asked) == [[2], [4, 6], [8], [10, 12, 14]]

    asyncio.run(go())


def test_a_full_batch_does_not_wait_where_patience_ends():
    async def go() -> None:
        work = Work()
        together = Together(work, size=2, ahead=1, patience_s=0.01)
        asked = [asyncio.create_task(together([one])) for one in range(4)]
        await turn()
        assert work.batches == [[0], [1, 2]]  # 3 has patience
        while len(work.batches) < 3:
            await asyncio.sleep(0.001)
        assert work.batches[2] == [3]
        for gate in work.gates:
            gate.set()
        assert await asyncio.gather(*asked) == [[0], [2], [4], [6]]

    asyncio.run(go())


def test_an_idle_one_waits_as_long_as_it_is_told():
    async def go() -> None:
        work = Work()
        together = Together(work, size=3, ahead=1, wait_s=3600)
        asked = [asyncio.create_task(together([one])) for one in range(2)]
        await turn()
        assert work.batches == []
        asked.append(asyncio.create_task(together([2])))
        await turn()
        assert work.batches == [[0, 1, 2]]
        work.gates[0].set()
        assert await asyncio.gather(*asked) == [[0], [2], [4]]

    asyncio.run(go())


def test_an_error_reaches_whom_it_concerns():
    async def go() -> None:
        async def do(batch: list[int]) -> list[int]:
            await asyncio.sleep(0)
            if 13 in batch:
                raise ValueError("thirteen")
            return batch

        together = Together(do, size=2, ahead=1)
        answers = await asyncio.gather(*(together([one]) for one in (1, 13, 14, 15)), return_exceptions=True)
        assert answers[0] == [1] and answers[3] == [15]
        assert all(isinstance(answer, ValueError) for answer in answers[1:3])

    asyncio.run(go())


def test_who_gave_up_is_left_out():
    async def go() -> None:
        work = Work()
        together = Together(work, size=4, ahead=1)
        first, second, third = (asyncio.create_task(together([one])) for one in range(3))
        await turn()
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        work.gates[0].set()
        await turn()
        assert work.batches == [[0], [2]]
        work.gates[1].set()
        assert await asyncio.gather(first, third) == [[0], [4]]

    asyncio.run(go())
