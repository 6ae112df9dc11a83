"""Figures of two sides: what is not told is nothing, and a ratio says whether it is better."""

from __future__ import annotations

from collections import Counter

import pytest

from router.commands.bench.figures import Figure, figures_of, percentile
from router.commands.bench.measuring import Seen
from router.commands.streaming import Streamed


def seen(first_s: float, cached: int | None = None, prompt: int | None = 100, pods: int | None = None) -> Seen:
    """Four equal answers in two seconds, three of them by one pod."""
    answers = [Streamed("x", first_s, first_s + 0.3, 4, prompt, cached, None, None, None) for _ in range(4)]
    return Seen(answers, Counter(), Counter({"a": 3, "b": 1}), pods, 2.0)


def named(first: Seen, second: Seen) -> dict[str, Figure]:
    """By name."""
    return {figure.name: figure for figure in figures_of(first, second)}


def test_ratios_and_whether_they_are_better() -> None:
    """Half the time is better, half the throughput would not be; less than a hundredth is neither."""
    figures = named(seen(0.2, cached=10), seen(0.1, cached=40))
    assert figures["TTFT p90"].values == (200.0, 100.0)
    assert figures["TTFT p90"].ratio == 0.5 and figures["TTFT p90"].improves
    assert figures["prompt tokens cached"].values == (10.0, 40.0) and figures["prompt tokens cached"].improves
    assert figures["prompt tokens computed"].ratio == pytest.approx(2 / 3)
    assert figures["requests a second"].values == (2.0, 2.0) and figures["requests a second"].improves is None
    assert figures["between tokens p50"].values == pytest.approx((100.0, 100.0))
    assert figures["answer tokens a second"].values == (8.0, 8.0)  # chunks, where tokens are not told
    assert Figure("f", "", (2.0, 1.0), False).improves is False
    assert Figure("f", "", (1.0, 1.005), True).improves is None


def test_what_is_not_told_is_nothing() -> None:
    """No usage, no figure of tokens; a share of nothing has no ratio."""
    figures = named(seen(0.2, prompt=None), seen(0.2, cached=5))
    assert figures["prompt tokens computed"].values == (None, 380.0)
    assert figures["prompt tokens computed"].ratio is None
    assert named(seen(0.2, cached=0), seen(0.2, cached=5))["prompt tokens cached"].ratio is None
    assert named(Seen(), Seen())["TTFT p50"].values == (None, None) and percentile([], 0.5) is None


def test_how_evenly_pods_are_used() -> None:
    """Of the pods that there are, where that is known."""
    assert named(seen(0.1), seen(0.1, pods=4))["busiest pod, of the mean"].values == (1.5, 3.0)
