"""How the figures went: points for the page's curves, and counts of the last minute for what is told of it. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from router.metrics.histograms import quantile

POINT_COLUMNS = (
    "at", "hit_ratio", "requests_per_s", "errors_per_s", "ttft_p50", "ttft_p95", "prefix_blocks", "prefix_bytes",
    "prefix_evictions_per_s", "index_blocks", "index_bytes", "index_evictions_per_s",
)  # fmt: skip
"""Of a point: `at` in seconds since the epoch, bytes, seconds, counts a second; null: not measured."""
_WINDOW_S = 60.0
_RATE_S = 5.0  # over which counts a second are told: long enough to be calm, short enough to be of now


class _Counts(NamedTuple):
    at: float
    requests: int
    errors: int
    first_bytes: Sequence[int]
    prefix_evictions: int
    index_evictions: int


class Course:
    """Bounded: `points_max` points, and the counts of one minute."""

    def __init__(self, points_max: int, bounds: Sequence[float]) -> None:
        """`bounds`: of the buckets of times to the first byte."""
        self.points: deque[list[float | None]] = deque(maxlen=points_max)
        self._bounds = bounds
        self._counts: deque[_Counts] = deque(maxlen=round(_WINDOW_S) + 1)

    def add(self, account: Mapping[str, Any], index: dict[str, int], now: float, wall: float) -> dict[str, Any]:
        """One look at all: the figures of the last minute. `now`: monotonic seconds; `wall`: since the epoch."""
        requests, store = account["requests"], account["prefix_store"]
        errors = requests["4xx"] + requests["5xx"]
        newest = _Counts(now, requests["all"], errors, account["first_bytes"], store["evictions"], index["evictions"])
        self._keep(newest)
        cached, asked = account["window"]
        told = {
            "hit_ratio": round(cached / asked, 4) if asked else None,
            "cached_tokens": cached,
            "prompt_tokens": asked,
            "requests_per_s": self._rate("requests"),
            "errors_per_s": self._rate("errors"),
            **self._first_bytes(),
        }
        self.points.append([
            round(wall, 1), told["hit_ratio"], told["requests_per_s"], told["errors_per_s"], told["ttft_p50"],
            told["ttft_p95"], store["blocks"], store["bytes"], self._rate("prefix_evictions"), index["blocks"],
            index["bytes"], self._rate("index_evictions"),
        ])  # fmt: skip
        return told

    def _keep(self, newest: _Counts) -> None:
        counts = self._counts
        if counts and (newest.requests < counts[-1].requests or len(newest.first_bytes) != len(counts[-1].first_bytes)):
            counts.clear()  # a worker does not answer, or was started anew
        while counts and counts[0].at < newest.at - _WINDOW_S - 0.5:
            counts.popleft()
        counts.append(newest)

    def _rate(self, field: str) -> float | None:
        newest = self._counts[-1]
        then = next((each for each in self._counts if each.at >= newest.at - _RATE_S - 0.5), newest)
        if then is newest:
            return None
        grown: float = getattr(newest, field) - getattr(then, field)
        return round(grown / (newest.at - then.at), 2)

    def _first_bytes(self) -> dict[str, float | None]:
        """Of the last minute, or since somebody looks."""
        oldest, newest = self._counts[0], self._counts[-1]
        counts = [late - early for early, late in zip(oldest.first_bytes, newest.first_bytes, strict=True)]
        shares = {"ttft_p50": 0.5, "ttft_p95": 0.95}
        found = {name: quantile(share, self._bounds, counts) for name, share in shares.items()}
        return {name: None if value is None else round(value, 4) for name, value in found.items()}
