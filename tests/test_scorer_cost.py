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


@pytest.mark.parametrize("factor", [2.0, 5.0, 10.0])
def test_a_slow_pod_among_quick_ones_is_known_after_three(factor: float) -> None:
    """Where the fleet needs a tenth of a second, a moment's error is large; what took much longer is none."""
    fleet, rng = FleetRate(8_000.0), random.Random(2)
    slow, other = PrefillRate(8_000.0, fleet), PrefillRate(8_000.0, fleet)
    for step in range(30):
        other.learn(1500, _pod(12_000.0, 0.0, 1500, rng))
        if step % 10 == 0:
            slow.learn(1500, _pod(12_000.0 / factor, 0.0, 1500, rng))
    assert slow.cost_s(1500) == pytest.approx(factor * 0.125, rel=0.35)
    assert other.cost_s(1500) == pytest.approx(0.125, rel=0.15)


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


@pytest.mark.parametrize("tokens_per_s", [100.0, 8_000.0, 80_000.0])
def test_what_was_right_stays_right(tokens_per_s: float) -> None:
    """A pod that is as fast as it was assumed to be: the first sample changes nothing, nor does the hundredth."""
    rate = PrefillRate(tokens_per_s)
    for step in range(100):
        tokens = 100 + step * 37
        rate.learn(tokens, tokens / tokens_per_s)
        assert rate.cost_s(2000) == pytest.approx(2000 / tokens_per_s, rel=1e-3)
        assert rate.fleet.base_s == pytest.approx(0.0, abs=1e-3 * 2000 / tokens_per_s)


def test_a_request_that_takes_as_long_as_samples_may_err() -> None:
    """It counts like one that takes a little more or less."""
    costs = []
    for tokens in (790, 800, 810):
        rate = PrefillRate(8_000.0)
        rate.learn(tokens, 2 * tokens / 8_000)
        costs.append(rate.cost_s(800))
    assert costs[0] == pytest.approx(costs[1], rel=0.02) and costs[1] == pytest.approx(costs[2], rel=0.02)


def test_all_that_a_request_costs_is_found() -> None:
    """Without noise the fit is what the times were made of: for each request, each token and each position."""
    rng, rate = random.Random(10), PrefillRate(8_000.0)
    base_s, token_s, position_s = 0.04, 1e-4, 2e-9
    for _ in range(400):
        tokens, start = rng.randint(100, 4000), rng.choice((0, 0, 10_000, 60_000))
        rate.learn(tokens, base_s + tokens * (token_s + position_s * (start + tokens / 2)), start)
    assert rate.fleet.base_s == pytest.approx(base_s, rel=0.1)
    for tokens, start in ((200, 0), (4000, 0), (2000, 60_000)):
        assert rate.cost_s(tokens, start) == pytest.approx(
            tokens * (token_s + position_s * (start + tokens / 2)), rel=0.03
        )


def test_prompts_that_are_alike_cost_by_their_tokens() -> None:
    """Nothing tells what each request costs from what its tokens do: then all is the tokens'."""
    rate = PrefillRate(8_000.0)
    for _ in range(50):
        rate.learn(2000, 0.5)
    assert rate.fleet.base_s < 0.05 and rate.cost_s(2000) == pytest.approx(0.5, rel=0.1)


def _slow_and_usual() -> tuple[PrefillRate, PrefillRate]:
    """A pod that takes four times as long as three others, and one of these."""
    fleet = FleetRate(8_000.0)
    slow, *others = [PrefillRate(8_000.0, fleet) for _ in range(4)]
    for _ in range(12):
        slow.learn(4000, 2.0)
        for other in others:
            other.learn(4000, 0.5)
    return slow, others[0]


def test_a_sample_claims_no_more_than_some_times_what_it_should_have_taken() -> None:
    """On that pod: what takes longer counts as eight times that, and a little."""
    for number in range(2):
        stalled, slower = _slow_and_usual()[number], _slow_and_usual()[number]
        most_s = 8 * (slower.fleet.base_s + slower.cost_s(1000)) + 0.05
        stalled.learn(1000, 1e4)
        slower.learn(1000, most_s)
        assert stalled.learned == slower.learned and stalled.fleet.learned == slower.fleet.learned
        slower.learn(1000, 0.9 * most_s)
        stalled.learn(1000, 0.8 * most_s)
        assert stalled.learned != slower.learned


def test_short_requests_teach_what_is_not_for_their_tokens() -> None:
    """A slow pod's tokens cost more: what they cost is none of what every request costs. Fewer than 64 are short."""
    slow, _ = _slow_and_usual()
    for _ in range(200):
        slow.learn(63, slow.cost_s(63))
    known = slow.samples
    slow.learn(64, slow.cost_s(64) + slow.fleet.base_s)
    assert slow.samples == known + 1
    assert slow.fleet.base_s < 0.2 * slow.cost_s(63)


def test_nothing_computed_teaches_nothing() -> None:
    """Of a prompt that was cached whole."""
    rate = PrefillRate(8_000.0)
    before = rate.fleet.learned
    rate.learn(0, 1.0)
    assert rate.fleet.learned == before and rate.samples == 0


def test_a_mean_of_many_counts_for_a_few() -> None:
    """Of more than eight it teaches no more than of eight."""
    many, eight, seven = (PrefillRate(8_000.0) for _ in range(3))
    for rate, count in ((many, 100.0), (eight, 8.0), (seven, 7.0)):
        rate.learn(2000, 1.0, count=count)
    assert many.learned == eight.learned != seven.learned


def test_what_was_learned_is_learned_again() -> None:
    """After a restart all is believed that was before, and what comes teaches the same."""
    rng = random.Random(11)
    slow, _ = _slow_and_usual()
    for _ in range(60):
        tokens, start = rng.randint(100, 4000), rng.choice((0, 30_000))
        slow.learn(tokens, 0.03 + tokens * (4e-4 + 1e-8 * start), start)
    again = PrefillRate(100.0)
    again.fleet.relearn(slow.fleet.learned)
    again.relearn(slow.learned)
    slow.fleet.pods = 1
    assert again.fleet.learned == slow.fleet.learned and again.learned == slow.learned and again.samples == slow.samples
    for rate in (slow, again):
        rate.learn(500, 0.9, 1000)
        rate.look()
    assert again.cost_s(3000, 9000) == slow.cost_s(3000, 9000) != 0.0
    assert (again.per_token, again.per_position) == (slow.per_token, slow.per_position)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("value", [-1.0, 1e16, float("nan"), float("inf")])
def test_what_nobody_can_have_learned_is_not_believed(at: int, value: float) -> None:
    """Of pods as of the fleet: nothing negative, nothing without end, and no more or fewer figures."""
    slow, _ = _slow_and_usual()
    for known, new in ((slow.fleet, PrefillRate(8_000.0).fleet), (slow, PrefillRate(8_000.0))):
        before, values = new.learned, known.learned
        for wrong in (values[:-1], [*values, 1.0], [*values[:at], value, *values[at + 1 :]]):
            new.relearn(wrong)
            assert new.learned == before and new.samples == 0
        new.relearn(values)
        assert new.samples == known.samples
        known.relearn([*values[:-1], values[-1] + 1.0])
        assert known.learned == values, "what was learned since is newer"


def test_bounds_of_what_is_believed_again() -> None:
    """A token costs something, and no more than a second; a pod is at most ten thousand times as slow."""
    slow, _ = _slow_and_usual()
    for per_token, believed in ((0.0, False), (1.0, True), (1.01, False)):
        fleet, values = FleetRate(8_000.0), slow.fleet.learned
        fleet.relearn([values[0], per_token, *values[2:]])
        assert (fleet.per_token == per_token) is believed and (fleet.samples > 0) is believed
    for factor, believed in ((0.0, False), (1e4, True), (1.01e4, False)):
        rate = PrefillRate(8_000.0)
        rate.relearn([factor, *slow.learned[1:]])
        assert (rate.factor == factor) is believed and (rate.samples > 0) is believed


def test_a_look_has_what_is_believed_now() -> None:
    """What others have shown since counts; a pod that joins is believed to be as the fleet is."""
    slow, usual = _slow_and_usual()
    before = slow.factor
    for step in range(400):
        tokens, start = 1000 + 9 * step, 1000 * (step % 7)
        usual.learn(tokens, tokens * (1e-4 + 1e-8 * (start + tokens / 2)), start)
    slow.look()
    fleet = slow.fleet
    assert fleet.per_position > 0.0
    assert slow.per_token == slow.factor * fleet.per_token == slow.slowness() * fleet.per_token
    assert slow.per_position == slow.factor * fleet.per_position and slow.factor < before
    joins = PrefillRate(8_000.0, fleet)
    assert (joins.per_token, joins.per_position) == (fleet.per_token, fleet.per_position)


def test_prompts_that_are_alike_do_not_hide_what_tokens_cost() -> None:
    """By them alone nobody can tell what every request costs: the tokens are taken to cost it all."""
    for seed in range(4):
        rng, rate = random.Random(seed), PrefillRate(8_000.0)
        for _ in range(600):
            tokens = rng.randint(1950, 2050)
            rate.learn(tokens, _pod(8_000.0, 0.0, tokens, rng))
        assert rate.cost_s(200) == pytest.approx(200 / 8_000.0, rel=0.1)


def test_pods_that_are_slow_are_understood_as_quick_ones_are() -> None:
    """Where a prefill takes a minute: what a token costs, and how much more behind a long prefix."""
    rng, rate = random.Random(3), PrefillRate(100.0)
    for _ in range(60):
        tokens, start = rng.randint(200, 6000), rng.choice((0, 0, 4000, 30_000))
        rate.learn(tokens, tokens * (1e-2 + 7e-7 * (start + tokens / 2)), start)
    assert rate.fleet.per_token == pytest.approx(1e-2, rel=0.2)
    assert rate.fleet.per_position == pytest.approx(7e-7, rel=0.3)


def test_what_is_assumed_counts_a_little() -> None:
    """A first sample that is twice as long moves nearly all of the way."""
    rate = PrefillRate(8_000.0)
    rate.learn(2048, 2 * 2048 / 8_000.0)
    assert 4_010 < rate.tokens_per_s < 4_200


def test_attention_is_seen_beside_what_every_request_costs() -> None:
    """Though that is most of the time of short prompts: what comes late is not taken to cost what comes first does."""
    for seed in range(6):
        rng, rate = random.Random(seed), PrefillRate(8_000.0)
        for _ in range(100):
            tokens, start = rng.randint(100, 600), rng.choice((0, 4000))
            rate.learn(tokens, 0.5 + tokens * (1.4e-4 + 1.4e-7 * (start + tokens / 2)), start)
        assert rate.cost_s(600, 4000) > 1.2 * rate.cost_s(600) and rate.fleet.base_s > 0.25
