"""A pod's speed, learned from the first bytes of its streams."""

from __future__ import annotations

import random

import pytest

from scorer.cost import FleetRate, PrefillRate


def _pod(tokens_per_s: float, base_s: float, tokens: int, rng: random.Random) -> float:
    """The seconds to the first byte on an idle pod of this speed, give or take 10%."""
    return (base_s + tokens / tokens_per_s) * rng.uniform(0.9, 1.1)


@pytest.mark.parametrize("tokens_per_s", [800.0, 8_000.0, 80_000.0])
def test_the_speed_is_learned(tokens_per_s: float) -> None:
    """Ten times slower or faster than assumed: after two dozen requests the cost is right within a quarter."""
    rng, rate = random.Random(1), PrefillRate(8_000.0)
    for _ in range(24):
        tokens = rng.randint(500, 4000)
        rate.learn(tokens, _pod(tokens_per_s, 0.0, tokens, rng))
    assert rate.cost_s(4000) == pytest.approx(4000 / tokens_per_s, rel=0.25)
    assert rate.tokens_per_s == pytest.approx(tokens_per_s, rel=0.25)


def test_a_slow_pod_is_known_after_a_few_requests() -> None:
    """Among equal pods, eight samples are enough to see most of a fourfold difference."""
    fleet, rng = FleetRate(8_000.0), random.Random(2)
    slow, *others = [PrefillRate(8_000.0, fleet) for _ in range(4)]
    for _ in range(8):
        slow.learn(2000, _pod(2_000.0, 0.0, 2000, rng))
        for other in others:
            other.learn(2000, _pod(8_000.0, 0.0, 2000, rng))
    assert slow.cost_s(2000) > 2.5 * max(other.cost_s(2000) for other in others)


def test_equal_pods_stay_equal_whatever_is_sent_to_them() -> None:
    """A pod that sees only short prompts is not slower than one that sees long ones: base is told from speed."""
    fleet, rng = FleetRate(8_000.0), random.Random(3)
    short, long = PrefillRate(8_000.0, fleet), PrefillRate(8_000.0, fleet)
    for _ in range(60):
        tokens = rng.randint(64, 300)
        short.learn(tokens, _pod(8_000.0, 0.03, tokens, rng))
        long.learn(3000, _pod(8_000.0, 0.03, 3000, rng))
    assert 0.6 < short.token_s / long.token_s < 1.6


def test_nobody_is_slow_for_ever() -> None:
    """What was measured of a pod to which nothing is sent fades, until it counts as the fleet does."""
    fleet, rng = FleetRate(8_000.0), random.Random(4)
    unlucky, other = PrefillRate(8_000.0, fleet), PrefillRate(8_000.0, fleet)
    for _ in range(4):
        unlucky.learn(2000, 2.0)
    assert unlucky.token_s > 2 * (2000 / 8000) / 2000
    for _ in range(300):
        other.learn(2000, _pod(8_000.0, 0.0, 2000, rng))
    assert unlucky.token_s == pytest.approx(other.token_s, rel=0.1)


def test_what_every_request_costs_is_told_from_what_tokens_cost() -> None:
    """A pod with a long step is not a pod with slow prefill."""
    rng, rate = random.Random(5), PrefillRate(8_000.0)
    for _ in range(100):
        rate.learn(8, _pod(8_000.0, 0.05, 8, rng))
        rate.learn(2000, _pod(8_000.0, 0.05, 2000, rng))
    assert rate.cost_s(2000) == pytest.approx(0.25, rel=0.25)
    assert rate.fleet.base_s == pytest.approx(0.05, rel=0.5)


def test_one_stall_is_not_a_speed() -> None:
    """A pod that once answered after ten minutes is soon known as what it is."""
    rng, rate = random.Random(6), PrefillRate(8_000.0)
    for step in range(40):
        rate.learn(2000, 600.0 if step == 20 else _pod(8_000.0, 0.0, 2000, rng))
        assert rate.cost_s(2000) < 1.0
    assert rate.cost_s(2000) == pytest.approx(0.25, rel=0.5)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_no_time_at_all_does_not_teach(seconds: float) -> None:
    """A clock that stood still or went back says nothing."""
    rate = PrefillRate(8_000.0)
    rate.learn(2000, seconds)
    assert rate.cost_s(2000) == 0.25 and rate.samples == 0


def test_the_cost_stays_a_cost() -> None:
    """Whatever is measured, a token costs more than nothing and less than for ever."""
    rng, rate = random.Random(7), PrefillRate(8_000.0)
    for _ in range(2000):
        rate.learn(rng.choice((0, 1, 63, 64, 500, 100_000)), rng.choice((1e-9, 1e-4, 0.02, 0.3, 5.0, 600.0)))
        assert 0.0 < rate.token_s < 600.0 and rate.fleet.base_s >= 0.0
        assert rate.cost_s(0) == 0.0 and rate.cost_s(1000) > rate.cost_s(10)


def test_a_token_costs_more_far_from_the_start() -> None:
    """Attention: the same number of tokens behind a long prefix takes longer, and is known to."""
    rng, fleet = random.Random(8), FleetRate(8_000.0)
    pods = [PrefillRate(8_000.0, fleet) for _ in range(4)]
    for step in range(400):
        tokens, start = rng.randint(200, 6000), rng.choice((0, 0, 4000, 30_000))
        seconds = 0.02 + tokens / 10_000 * (1 + (start + tokens / 2) / 15_000)
        pods[step % 4].learn(tokens, seconds * rng.uniform(0.9, 1.1), start)
    for tokens, start in ((500, 30_000), (5000, 0), (500, 0)):
        expected_s = tokens / 10_000 * (1 + (start + tokens / 2) / 15_000)
        assert pods[0].cost_s(tokens, start) == pytest.approx(expected_s, rel=0.2)


def test_equal_pods_are_believed_equal() -> None:
    """Whatever lengths they happen to get: no more than some percent apart."""
    rng, fleet = random.Random(9), FleetRate(8_000.0)
    pods = [PrefillRate(8_000.0, fleet) for _ in range(4)]
    for _ in range(600):
        tokens = int(10 ** rng.uniform(2, 4.3))
        rng.choice(pods).learn(tokens, _pod(5_000.0, 0.03, tokens, rng))
    costs = [pod.cost_s(3000) for pod in pods]
    assert max(costs) < 1.15 * min(costs) and min(costs) == pytest.approx(0.6, rel=0.15)


def test_some_of_a_measured_time_is_prefill() -> None:
    """However much a request costs without any: a pod is not believed infinitely fast."""
    rate, other = PrefillRate(8_000.0), PrefillRate(8_000.0)
    for pod in (rate, other):
        for _ in range(200):
            pod.learn(1, 0.2)
    before = rate.factor
    for _ in range(20):
        rate.learn(1000, 0.2)
        other.learn(1000, 0.05)
    assert rate.factor > before * 0.5 and other.factor > 0.05


def test_a_pod_that_left_does_not_count() -> None:
    """What is known fades with every round of samples of all pods: of those that are there."""

    def known(left: bool) -> float:
        fleet = FleetRate(8_000.0)
        slow, other, gone = (PrefillRate(8_000.0, fleet) for _ in range(3))
        if left:
            gone.leave()
        for step in range(20):
            other.learn(4000, 0.5)
            if step < 10:
                slow.learn(4000, 2.0)
        return slow.slowness()

    assert 1.0 < known(True) < known(False)


def test_a_mean_counts_for_as_many() -> None:
    """Of eight requests a mean teaches about what each of them would."""
    single, mean = PrefillRate(8_000.0), PrefillRate(8_000.0)
    for _ in range(8):
        single.learn(2000, 1.0)
    mean.learn(2000, 1.0, count=8.0)
    assert mean.cost_s(2000) == pytest.approx(single.cost_s(2000), rel=0.25)
