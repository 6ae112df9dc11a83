"""CPU times on a machine that others use, too: its speed may halve for seconds or minutes.

Every piece of work stands between two runs of a fixed loop, and counts in units of it. Where the two differ, the
machine has changed its speed meanwhile, and another piece is measured.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from time import perf_counter, process_time
from typing import TypeAlias

Work: TypeAlias = Callable[[], object]
"""What is measured; an awaitable that it returns belongs to it."""

_ROUNDS = 3000
_DIFFERENT = 0.1  # of a loop's time
_TRIES_MAX = 60


class Steady:
    """The measurements of one run, all in units of one loop."""

    def __init__(self) -> None:
        self._loop_us = statistics.median(_loop() for _ in range(200)) * 1e6

    async def cpu_us(self, prepare: Callable[[], Awaitable[Work]]) -> float:
        """CPU microseconds (all threads) of one piece of work; `prepare` makes a new one for every try."""
        for _ in range(_TRIES_MAX):
            work = await prepare()
            before = _loop()
            began = process_time()
            result = work()
            if asyncio.iscoroutine(result):
                await result
            took = process_time() - began
            after = _loop()
            if 2 * abs(before - after) <= _DIFFERENT * (before + after):
                break
        return took / (before + after) * 2 * self._loop_us


def _loop() -> float:
    began = perf_counter()
    total = 0
    for number in range(_ROUNDS):
        total += number * number
    return perf_counter() - began
