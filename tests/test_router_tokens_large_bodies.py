"""Threads for large bodies: who goes first, who has to wait for whom, and for how long."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest

from router.tokens.large_bodies import LargeBodies
from tests.fakes.peers import until

MIB = 1 << 20


class Work:
    """Something that is done in a thread, until it may end."""

    def __init__(self, order: list[str], name: str) -> None:
        self.order = order
        self.name = name
        self.may_end = threading.Event()

    def __call__(self) -> str:
        self.order.append(self.name)
        assert self.may_end.wait(10)
        return self.name


@contextlib.asynccontextmanager
async def bodies(deadline_s: float = 60.0) -> AsyncIterator[LargeBodies]:
    made = LargeBodies(deadline_s)
    yield made
    made.close()


async def test_one_that_is_very_large_keeps_no_smaller_one_waiting() -> None:
    """However many of them there are."""
    async with bodies() as large:
        order: list[str] = []
        works = [Work(order, f"64 MiB, {number}") for number in range(3)]
        tasks = [asyncio.create_task(large.do(64 * MIB, work)) for work in works]
        await until(lambda: order == ["64 MiB, 0"])
        assert await large.do(2 * MIB, lambda: "2 MiB") == "2 MiB"
        assert (order, large.waiting) == (["64 MiB, 0"], 2), "one at a time"
        for work in works:
            work.may_end.set()
        assert await asyncio.gather(*tasks) == order == [work.name for work in works]


async def test_the_smaller_ones_go_first() -> None:
    """Of those that wait; alike ones in their order."""
    async with bodies() as large:
        order: list[str] = []
        busy = [Work(order, "first"), Work(order, "second")]
        tasks = [asyncio.create_task(large.do(MIB, work)) for work in busy]
        await until(lambda: len(order) == 2)
        sizes = [5 * MIB, 60 * MIB, 3 * MIB, 2 * MIB, 3 * MIB]
        for number, size in enumerate(sizes):
            waiting = Work(order, f"{number}")
            waiting.may_end.set()
            tasks.append(asyncio.create_task(large.do(size, waiting)))
        await until(lambda: large.waiting == len(sizes))
        busy[0].may_end.set()
        await until(lambda: not large.waiting)
        busy[1].may_end.set()
        await asyncio.gather(*tasks)
        assert order == ["first", "second", "3", "2", "4", "0", "1"]


async def test_nobody_waits_beyond_the_deadline() -> None:
    """Neither for a thread, nor for what is under way; a thread is free again when its work has ended, not before."""
    async with bodies(deadline_s=0.05) as large:
        order: list[str] = []
        stuck = [Work(order, "one"), Work(order, "two")]
        never = Work(order, "never begun")
        late = await asyncio.gather(*(large.do(MIB, work) for work in (*stuck, never)), return_exceptions=True)
        assert [type(each) for each in late] == [TimeoutError] * 3 and order == ["one", "two"]
        with pytest.raises(TimeoutError):
            await large.do(MIB, never)
        for work in stuck:
            work.may_end.set()
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(TimeoutError):
                    assert await large.do(MIB, lambda: "done") == "done"
                    break
        assert order == ["one", "two"]


async def test_what_is_raised_there_is_raised_here() -> None:
    """And the thread is free for the next one."""

    def fails() -> None:
        raise ValueError("no JSON")

    async with bodies() as large:
        for _ in range(5):
            with pytest.raises(ValueError, match="no JSON"):
                await large.do(MIB, fails)


async def test_a_client_that_leaves_takes_no_thread_with_it() -> None:
    """Neither while its body waits, nor while it is read."""
    async with bodies() as large:
        order: list[str] = []
        works = [Work(order, f"{number}") for number in range(4)]
        tasks = [asyncio.create_task(large.do(MIB, work)) for work in works]
        await until(lambda: len(order) == 2 and large.waiting == 2)
        for task in tasks[:3]:
            task.cancel()
        await asyncio.gather(*tasks[:3], return_exceptions=True)
        assert (order, large.waiting) == (["0", "1"], 1)
        for work in works:
            work.may_end.set()
        assert await tasks[3] == "3"
        assert await asyncio.gather(*(large.do(MIB, lambda: 1) for _ in range(9))) == [1] * 9
        assert order == ["0", "1", "3"]
