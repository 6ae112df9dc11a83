"""Figures of two sides, and what they are of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from router.commands.bench.measuring import Seen
from router.plan.figures import value_at


class Figure(NamedTuple):
    """One measured thing: `values` of both sides, None where it was not told. `lower_is_better`: None if neither."""

    name: str
    unit: str
    values: tuple[float | None, float | None]
    lower_is_better: bool | None

    @property
    def ratio(self) -> float | None:
        """The second side's of the first one's."""
        first, second = self.values
        return second / first if first and second is not None and math.isfinite(second / first) else None

    @property
    def improves(self) -> bool | None:
        """None: neither, or by less than 1%."""
        if self.ratio is None or self.lower_is_better is None or abs(self.ratio - 1.0) < 0.01:
            return None
        return (self.ratio < 1.0) == self.lower_is_better


def figures_of(first: Seen, second: Seen) -> list[Figure]:
    """All that was measured of one work on two sides."""
    each = [_figures(seen) for seen in (first, second)]
    return [
        Figure(name, unit, (value, each[1][name, unit, lower]), lower) for (name, unit, lower), value in each[0].items()
    ]


def percentile(values: Sequence[float], share: float) -> float | None:
    """None of nothing."""
    return value_at(share, sorted(values)) if values else None


def first_tokens_ms(seen: Seen) -> list[float]:
    """Times to the first token, in order."""
    return sorted(answer.first_s * 1e3 for answer in seen.answers if answer.first_s is not None)


def _figures(seen: Seen) -> dict[tuple[str, str, bool | None], float | None]:
    first_ms, answers = first_tokens_ms(seen), seen.answers
    whole_ms = [answer.seconds * 1e3 for answer in answers]
    between_ms = [
        (answer.seconds - answer.first_s) * 1e3 / (answer.chunks - 1)
        for answer in answers
        if answer.first_s is not None and answer.chunks > 1
    ]
    prompt, cached = _sum([a.prompt_tokens for a in answers]), _sum([a.cached_tokens for a in answers])
    written = _sum([a.answer_tokens if a.answer_tokens is not None else a.chunks for a in answers])
    seconds, pods = seen.seconds or math.nan, seen.pods or len(seen.by_pod)
    known = [answer for answer in answers if answer.predicted is not None and answer.cached_tokens is not None]
    return {
        ("TTFT p50", "ms", True): percentile(first_ms, 0.5),
        ("TTFT p90", "ms", True): percentile(first_ms, 0.9),
        ("TTFT p99", "ms", True): percentile(first_ms, 0.99),
        ("whole answer p50", "ms", True): percentile(whole_ms, 0.5),
        ("whole answer p90", "ms", True): percentile(whole_ms, 0.9),
        ("between tokens p50", "ms", True): percentile(between_ms, 0.5),
        ("requests a second", "1/s", False): len(answers) / seconds,
        ("answer tokens a second", "1/s", False): None if written is None else written / seconds,
        ("prompt tokens", "", None): prompt,
        ("prompt tokens computed", "", True): None if prompt is None or cached is None else prompt - cached,
        ("prompt tokens cached", "%", False): None if not prompt or cached is None else 100.0 * cached / prompt,
        ("busiest pod, of the mean", "x", True): (
            max(seen.by_pod.values()) * pods / seen.by_pod.total() if pods > 1 and seen.by_pod else None
        ),
        ("cached tokens predicted exactly", "%", None): (
            100.0 * sum(answer.predicted == answer.cached_tokens for answer in known) / len(known) if known else None
        ),
        ("requests", "", None): len(answers),
        ("failed", "", None): seen.failures.total(),
    }


def _sum(counts: Sequence[int | None]) -> float | None:
    """None where not all are told."""
    told = [count for count in counts if count is not None]
    return float(sum(told)) if told and len(told) == len(counts) else None
