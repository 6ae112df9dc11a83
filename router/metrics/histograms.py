"""What requests leave behind: values that wait to be sorted into buckets, and the cached share of the last minute.

To observe is to append to a list; the buckets are filled some thousand values at a time, or when somebody looks. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

REQUEST_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip
DECISION_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0)
ERROR_TOKENS = (0, 16, 32, 64, 128, 256, 512, 1024, 4096, 16384, 65536)
_WAITING_MAX = 2048  # values of a histogram that wait: filling them in takes 0.1 ms
WINDOW_S = 60
"""Of the hit ratio."""


class Histogram:
    """Counts by bucket, and a sum."""

    __slots__ = ("_counts", "_sum", "_waiting", "bounds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """`bounds`: of the buckets, upwards; a value on a bound is below it."""
        self.bounds = bounds
        self._counts = np.zeros(len(bounds) + 1, dtype=np.int64)
        self._sum = 0.0
        self._waiting: list[float] = []

    def observe(self, value: float) -> None:
        """Count one."""
        waiting = self._waiting
        waiting.append(value)
        if len(waiting) >= _WAITING_MAX:
            self._fill()

    def totals(self) -> tuple[list[int], float]:
        """Values by bucket, of which there is one more than bounds; and their sum."""
        if self._waiting:
            self._fill()
        counts: list[int] = self._counts.tolist()
        return counts, self._sum

    def _fill(self) -> None:
        values = np.array(self._waiting)
        self._waiting.clear()
        self._counts += np.bincount(np.searchsorted(self.bounds, values), minlength=len(self._counts))
        self._sum += float(values.sum())


def quantile(share: float, bounds: Sequence[float], counts: Sequence[int]) -> float | None:
    """The value that a `share` of all is below, taken to lie evenly within a bucket; None where there is none.

    What is above the last bound counts as that, as PromQL has it.
    """
    wanted, below = share * sum(counts), 0
    if not wanted:
        return None
    for place, count in enumerate(counts[:-1]):
        if count and below + count >= wanted:
            lower = bounds[place - 1] if place else min(0.0, bounds[0])
            return lower + (bounds[place] - lower) * (wanted - below) / count
        below += count
    return bounds[-1]


class Window:
    """Cached and asked-for prompt tokens of the last minute, by whole seconds: constant work, constant room."""

    def __init__(self) -> None:
        self._slots = [(-1, 0, 0)] * WINDOW_S

    def add(self, now: float, cached: int, tokens: int) -> None:
        """One request was answered."""
        second = int(now)
        at, had_cached, had_tokens = self._slots[second % WINDOW_S]
        if at != second:
            had_cached = had_tokens = 0
        self._slots[second % WINDOW_S] = (second, had_cached + cached, had_tokens + tokens)

    def totals(self, now: float) -> tuple[int, int]:
        """Tokens: cached, and asked for."""
        since = int(now) - WINDOW_S
        live = [slot for slot in self._slots if slot[0] > since]
        return sum(slot[1] for slot in live), sum(slot[2] for slot in live)

    def ratio(self, now: float) -> float:
        """Share of prompt tokens that were cached; 0 without any."""
        cached, tokens = self.totals(now)
        return cached / tokens if tokens else 0.0
