"""A pod's speed, learned from the first bytes of its streams."""

from __future__ import annotations

import random

import pytest

from scorer.cost import PrefillRate


def _pod(tokens_per_s: float, base_s: float, tokens: int, rng: random.Random) -> float:
    """The seconds to the first byte on an idle pod of this speed, give or take 10%."""
    return (base_s + tokens / tokens_per_s) * rng.uniform(0.9, 1.1)


@pytest.mark.parametrize("tokens_per_s", [800.0, 8_000.0, 80_000.0])
def test_the_speed_is_learned(tokens_per_s: float) -> None:
    """Ten times slower or faster than assumed: after two dozen requests the cost is right within a quarter."""
    rng, rate = random.Random(1), PrefillRate(8_000.0)
    for _ in range(24):
        tokens = rng.randint(500, 4000)
        rate.learn(tokens, _pod(tokens_per_s, 0.0, tokens, rng), 0.0)
    assert rate.cost_s(4000) == pytest.approx(4000 / tokens_per_s, rel=0.25)
    assert rate.tokens_per_s == pytest.approx(tokens_per_s, rel=0.25)


def test_a_slow_pod_is_known_after_a_few_requests() -> None:
    """Four samples are enough to see most of a tenfold difference."""
    slow, fast, rng = PrefillRate(8_000.0), PrefillRate(8_000.0), random.Random(2)
    for _ in range(4):
        slow.learn(2000, _pod(800.0, 0.0, 2000, rng), 0.0)
        fast.learn(2000, _pod(8_000.0, 0.0, 2000, rng), 0.0)
    assert slow.cost_s(2000) > 5 * fast.cost_s(2000)


def test_what_every_request_costs_is_told_from_what_tokens_cost() -> None:
    """A pod with a long step is not a pod with slow prefill."""
    rng, rate = random.Random(3), PrefillRate(8_000.0)
    for _ in range(60):
        rate.learn(8, _pod(8_000.0, 0.05, 8, rng), 0.0)
        rate.learn(2000, _pod(8_000.0, 0.05, 2000, rng), 0.0)
    assert rate.cost_s(2000) == pytest.approx(0.25, rel=0.25)


def test_what_waited_does_not_teach() -> None:
    """Behind a backlog the measured time is the queue's."""
    rate = PrefillRate(8_000.0)
    rate.learn(2000, 10.0, backlog_s=9.0)
    rate.learn(8, 10.0, backlog_s=9.0)
    assert rate.cost_s(2000) == 0.25 and rate.base_s == 0.0 and rate.samples == 0


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_at_all_does_not_teach(seconds: float) -> None:
    """A clock that stood still or went back says nothing."""
    rate = PrefillRate(8_000.0)
    rate.learn(2000, seconds, 0.0)
    assert rate.cost_s(2000) == 0.25


def test_the_cost_stays_a_cost() -> None:
    """Whatever is measured, a token costs more than nothing and less than for ever."""
    rng, rate = random.Random(4), PrefillRate(8_000.0)
    for _ in range(2000):
        seconds = rng.choice((1e-9, 1e-4, 0.02, 0.3, 5.0, 600.0))
        rate.learn(rng.choice((0, 1, 63, 64, 500, 100_000)), seconds, rng.choice((0.0, 0.0, seconds / 5, seconds)))
        assert 0.0 < rate.token_s < 600.0 and rate.base_s >= 0.0
        assert rate.cost_s(0) >= 0.0 and rate.cost_s(1000) > rate.cost_s(10)
