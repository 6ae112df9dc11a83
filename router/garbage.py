"""Python's garbage collector, kept from looking at all of memory while somebody waits.

A request leaves no cycles behind: what it made dies by itself. So the collector finds next to nothing, but with a full
prefix store one look at all objects takes over 100 ms. What has lived for some seconds is therefore set aside, and
looked at now and then, when no request is in flight, or at least once an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
from collections.abc import Callable

_YOUNG = 10_000  # objects more than before until the young are looked at: that takes 1 ms
_ASIDE_S = 5.0
_IDLE_S = 300.0  # from one look at everything to the next, if then nobody waits
_LATEST_S = 3600.0  # if somebody always does
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of glibc's malloc.h
_ARENAS = 2  # that all threads share: each keeps what its busiest moment has taken
_LARGE_BYTES = 1 << 20  # to map and unmap one of these costs less than to read it


def keep_little_memory() -> None:
    """Have large bodies go back to the system as soon as they are freed, where the allocator is glibc's.

    It learns from the first one to keep the memory of those like it, in pieces between what stays, and gives each
    thread an arena of its own: a process that was sent some would look as if it never let go of them. To be called
    before there are other threads.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)


class Collector:
    """Of this process. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._looked_at = clock()

    def start(self) -> None:
        """What there is now lives as long as the process."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG, 20, 100)

    async def run(self, in_flight: Callable[[], int]) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(_ASIDE_S)
            self.tick(in_flight())

    def tick(self, in_flight: int) -> None:
        """Set aside what lives; before that, look at everything if it is time, and give back what is free."""
        now = self._clock()
        if now - self._looked_at >= (_LATEST_S if in_flight else _IDLE_S):
            self._looked_at = now
            gc.unfreeze()
            gc.collect()
            _give_back_free_pages()
        gc.freeze()


def _give_back_free_pages() -> None:
    """What the busiest moment has taken, and nobody uses now, is the system's again, where the allocator is glibc's."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
