"""Threads for what large bodies need: the smaller ones first, and none of them for longer than a request can wait."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, TypeVar

_T = TypeVar("_T")

_THREADS = 2  # one is left for smaller bodies: each takes its turns of the interpreter from the loop
_LARGEST_BYTES = 8 << 20  # what is above takes a good part of a second


class LargeBodies:
    """Work on bodies, by their sizes, on one loop. Of those above 8 MiB one at a time."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="read")
        self._free = _THREADS
        self._largest = False  # one of these is under way
        self._numbers = count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []  # a heap, by size

    def close(self) -> None:
        """Nothing more is begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def waiting(self) -> int:
        """How many bodies wait for a thread."""
        return sum(not turn.done() for _, _, turn in self._waiting)

    async def do(self, size: int, make: Callable[..., _T], *given: Any) -> _T:
        """What `make` makes of a body of `size` bytes, in a thread. Raises what it raises, and `TimeoutError` at the
        deadline: what is under way then goes on for nobody, and what is not is not begun.
        """
        async with asyncio.timeout(self._deadline_s):
            await self._turn(size)
            loop = asyncio.get_running_loop()
            work = self._pool.submit(make, *given)
            work.add_done_callback(lambda work: self._done(work, loop, size))
            return await asyncio.wrap_future(work)

    async def _turn(self, size: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (size, next(self._numbers), turn))
        self._begin()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(size)
            raise

    def _begin(self) -> None:
        """Whoever is first has a thread, if there is one for bodies of that size."""
        while self._waiting and self._free:
            size, _, turn = self._waiting[0]
            if not turn.done():
                if size > _LARGEST_BYTES and self._largest:
                    return
                self._largest = self._largest or size > _LARGEST_BYTES
                self._free -= 1
                turn.set_result(None)
            heapq.heappop(self._waiting)

    def _done(self, work: Future[Any], loop: asyncio.AbstractEventLoop, size: int) -> None:
        """Called in the thread, when that is free."""
        with contextlib.suppress(RuntimeError):  # the loop is no more
            loop.call_soon_threadsafe(self._give_back, size)

    def _give_back(self, size: int) -> None:
        self._free += 1
        if size > _LARGEST_BYTES:
            self._largest = False
        self._begin()
