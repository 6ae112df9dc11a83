"""Slow start: what a new or recovered pod's price is multiplied with, and who gets it."""

from __future__ import annotations

import pytest

from router.core.decision import Core
from router.core.demand import Demand, End
from scorer.candidates import by_column
from scorer.cost import FleetRate, PrefillRate
from scorer.pick import pick
from scorer.policies import Settings, policy_of
from scorer.slow_start import slowness
from tests.fakes.candidates import a_candidate
from tests.fakes.cores import MODEL, NOBODY, SERVED, asked, core_of, route


def test_it_falls_in_a_straight_line() -> None:
    """The factor at first, half of what it is above 1 at half time, 1 from the end on."""
    for left_s, expected in ((30.0, 4.0), (15.0, 2.5), (3.0, 1.3), (0.3, 1.03)):
        assert slowness([left_s, 0.0], 30.0, 4.0) == [pytest.approx(expected), 1.0]
    assert slowness([0.0, -5.0], 30.0, 4.0) is None


def test_only_differences_count() -> None:
    """Where all are new nothing is raised; else against the least slow."""
    assert slowness([30.0, 30.0], 30.0, 4.0) is None
    assert slowness([30.0, 15.0], 30.0, 3.0) == [pytest.approx(1.5), 1.0]


def test_a_raised_price_decides() -> None:
    """Between equals the slow one loses; it wins where the other is dearer by more than the factor."""
    policy = policy_of(Settings())
    equals = by_column([a_candidate(0), a_candidate(1)])
    assert {pick(equals, policy, turn, [4.0, 1.0]).best.number for turn in range(4)} == {1}
    busier = by_column([a_candidate(0), a_candidate(1, backlog_s=7.0)])
    assert pick(busier, policy, 0, [4.0, 1.0]).best.number == 0
    assert pick(busier, policy, 0, [5.0, 1.0]).best.number == 1


def share(core: Core, pod: str, now: float) -> float:
    """Of requests that stay, how many go to this pod; they are given back after."""
    placed = [route(core, Demand(MODEL, 1000), NOBODY, now) for _ in range(60)]
    for each in placed:
        core.finish(each, SERVED, now)
    return sum(each.pod.name == pod for each in placed) / len(placed)


def test_a_new_pod_is_not_flooded() -> None:
    """It gets less than its part at first, more later, and its part in the end; those from the start get theirs."""
    core = core_of(3)
    late = core.fleet.pods["pod-2"]
    late.believe(False)
    assert share(core, "pod-0", 0.0) == 0.5
    late.believe(True)
    shares = [share(core, "pod-2", 40.0 + later) for later in (0.0, 15.0, 30.0)]
    assert 0.0 < shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx(1 / 3, abs=0.02)


def test_a_drained_pod_starts_when_it_is_back() -> None:
    """Restarted while it is drained, its slow start waits until it may be asked again."""
    core = core_of(2)
    late = core.fleet.pods["pod-1"]
    share(core, "pod-0", 0.0)
    core.fleet.cold.add(late)
    late.drain(True)
    assert share(core, "pod-0", 60.0) == 1.0
    late.drain(False)
    assert share(core, "pod-1", 120.0) < 0.3
    assert share(core, "pod-1", 150.0) == pytest.approx(0.5, abs=0.05)


def test_so_is_one_that_was_ejected() -> None:
    """From the moment in which its breaker closes."""
    core = core_of(2, breaker={"failures_in_row": 1})
    share(core, "pod-0", 0.0)
    core.finish(route(core, Demand(MODEL, 100), frozenset(("pod-1",)), 50.0), End("cut", 200), 50.0)
    probe = route(core, Demand(MODEL, 100), frozenset(("pod-1",)), 60.0)
    core.finish(probe, SERVED, 60.0)
    assert share(core, "pod-0", 60.0) < 0.3
    assert share(core, "pod-0", 90.0) == pytest.approx(0.5, abs=0.05)


def test_it_can_be_switched_off() -> None:
    """A slow start of 0 s raises nothing."""
    core = core_of(2, scoring={"slow_start": 0})
    share(core, "pod-0", 0.0)
    core.fleet.cold.add(core.fleet.pods["pod-1"])
    assert share(core, "pod-1", 0.0) == pytest.approx(0.5, abs=0.02)


def test_a_pod_of_unknown_speed_is_tried_at_once_and_with_care() -> None:
    """It gets the first request that comes, and no other before that one has shown how fast it is."""
    core = core_of(3)
    late, fleet = core.fleet.pods["pod-2"], FleetRate(1000)
    for rank in core.fleet.ranks:
        rank.load = core.load_of(rank.id, PrefillRate(1000, fleet))
    late.believe(False)
    for number in range(8):  # these two are measured
        placed = route(core, asked(core, number, 1600), NOBODY, float(number))
        core.first_byte(placed, True, number + 0.3)
        core.finish(placed, SERVED, number + 0.4)
    late.believe(True)
    went = [route(core, asked(core, 100 + number, 1000), NOBODY, 40.0).pod.name for number in range(4)]
    assert went.count("pod-2") == went[:3].count("pod-2") == 1
