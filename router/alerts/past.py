"""What happened in the last minute: differences of what is counted, between now and then. Pure."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from router.metrics.histograms import WINDOW_S

_EVERY_S = 5.0  # between two that are kept


class Tally(NamedTuple):
    """Counts since the start."""

    decisions: list[int]
    """By bucket of `histograms.DECISION_SECONDS`."""
    errors: list[int]
    """Of predictions, by bucket of `histograms.ERROR_TOKENS`."""
    evictions: int
    retries_refused: int
    replays_failed: dict[str, int]
    """By pod."""


class Past:
    """Counts of the last minute, every few seconds."""

    def __init__(self, counted: Tally, now: float) -> None:
        self._kept: deque[tuple[float, Tally]] = deque([(now, counted)])

    def add(self, counted: Tally, now: float) -> Tally:
        """What came since a minute ago, or since the start."""
        kept = self._kept
        while len(kept) > 1 and kept[1][0] <= now - WINDOW_S:
            kept.popleft()
        before = kept[0][1]
        if now >= kept[-1][0] + _EVERY_S:
            kept.append((now, counted))
        return Tally(
            [a - b for a, b in zip(counted.decisions, before.decisions, strict=True)],
            [a - b for a, b in zip(counted.errors, before.errors, strict=True)],
            counted.evictions - before.evictions,
            counted.retries_refused - before.retries_refused,
            {pod: count - before.replays_failed.get(pod, 0) for pod, count in counted.replays_failed.items()},
        )

    def length_s(self, now: float) -> float:
        """Of the stretch that was told last."""
        return max(_EVERY_S, now - self._kept[0][0])
