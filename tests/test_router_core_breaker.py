"""The circuit breaker, with time as a number: when it opens, for how long, what closes it; never for half a fleet."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.breaker import Breaker, BreakerLimits
from router.core.decision import Core
from router.core.demand import Demand, End, Placement
from router.errors import NoFitPod
from tests.fakes.cores import MODEL, NOBODY, SERVED, VOID, core_of, decide, route

CUT = End("cut", 200)
ENDS = {"f": SERVED, "b": CUT, "x": End("served", 500), "u": VOID}
LIMITS = BreakerLimits(in_row_max=3, share_max=0.5, requests_min=10, window_s=10.0, open_s=4.0, open_max_s=20.0)


def fail(breaker: Breaker, now: float, times: int = 1, in_row: bool = True, may_open: bool = True) -> str | None:
    """Failures of requests that are sent and fail at once; the last reason."""
    reason = None
    for _ in range(times):
        if breaker.tripped:
            breaker.sent(now, LIMITS)
        reason = breaker.failed(breaker.epoch, now, LIMITS, in_row=in_row, may_open=may_open)
    return reason


def test_failures_in_a_row() -> None:
    """It opens with the last of them, and says why; a success in between begins the count again."""
    breaker = Breaker()
    assert fail(breaker, 0.0, 2) is None
    breaker.succeeded(breaker.epoch, 0.0)
    assert fail(breaker, 0.0, 2) is None
    assert breaker.state(0.0) == "closed" and breaker.blocked_until <= 0.0
    assert fail(breaker, 1.0) == "3 requests failed in a row" == breaker.reason
    assert [breaker.state(now) for now in (1.0, 4.9, 5.0)] == ["open", "open", "half-open"]
    assert breaker.blocked_until == 5.0


@pytest.mark.parametrize(("apart_s", "expected"), [(0.1, "6 of 11 requests failed"), (11.0, None)])
def test_a_failing_share(apart_s: float, expected: str | None) -> None:
    """Without a row of failures: half of a window's requests, if they are enough; a new window forgets the old."""
    breaker, now, reasons = Breaker(), 0.0, []
    for _ in range(6):
        now += apart_s
        reasons.append(fail(breaker, now))
        breaker.succeeded(breaker.epoch, now)
    assert next(filter(None, reasons), None) == expected


def test_a_500_counts_for_the_share_only() -> None:
    """What may be the fault of a request does not open it in a row, but when half of all requests fail so."""
    breaker = Breaker()
    assert fail(breaker, 0.0, 9, in_row=False) is None
    assert fail(breaker, 0.0, in_row=False) == "10 of 10 requests failed"


def test_500s_and_nothing_else_for_long() -> None:
    """However few they are: a pod that has served nothing for a window, and failed so often, is at fault."""
    breaker = Breaker()
    assert [fail(breaker, now, in_row=False) for now in (0.0, 8.0)] == [None, None]
    breaker.succeeded(breaker.epoch, 9.0)
    assert [fail(breaker, now, in_row=False) for now in (10.0, 15.0, 19.0)] == [None] * 3
    assert fail(breaker, 20.0, in_row=False) == "4 requests failed in 10 s, and none was served"


def test_a_probe_closes_it() -> None:
    """After its time one request decides; until it is back, no other goes there."""
    breaker = Breaker()
    fail(breaker, 0.0, 3)
    assert breaker.blocked_until == 4.0
    breaker.sent(4.0, LIMITS)
    assert (breaker.state(4.5), breaker.blocked_until) == ("half-open", 8.0)
    assert breaker.succeeded(breaker.epoch, 5.0)
    assert (breaker.state(5.0), breaker.blocked_until, breaker.tripped) == ("closed", 0.0, False)
    assert not breaker.succeeded(breaker.epoch, 5.0)


def test_it_opens_for_longer_each_time() -> None:
    """4, 8, 16, 20, 20 … s for failing probes; and 4 again after it was closed for long enough."""
    breaker, now, times = Breaker(), 0.0, []
    fail(breaker, now, 3)
    for _ in range(6):
        times.append(breaker.blocked_until - now)
        now = breaker.blocked_until
        assert fail(breaker, now) == "its probe request failed"
    assert times == [4.0, 8.0, 16.0, 20.0, 20.0, 20.0]
    now = breaker.blocked_until
    breaker.sent(now, LIMITS)
    breaker.succeeded(breaker.epoch, now)
    fail(breaker, now + 1.0, 3)
    assert breaker.blocked_until - now - 1.0 == 20.0
    now = breaker.blocked_until
    breaker.sent(now, LIMITS)
    breaker.succeeded(breaker.epoch, now)
    fail(breaker, now + 20.1, 3)
    assert breaker.blocked_until - now - 20.1 == pytest.approx(4.0)


def test_old_requests_say_nothing() -> None:
    """What was sent before it opened neither closes it nor opens it for longer."""
    breaker = Breaker()
    old = breaker.epoch
    fail(breaker, 0.0, 3)
    assert not breaker.succeeded(old, 1.0)
    assert breaker.failed(old, 1.0, LIMITS, in_row=True, may_open=True) is None
    breaker.sent(4.0, LIMITS)
    assert breaker.failed(old, 4.1, LIMITS, in_row=True, may_open=True) is None
    breaker.unproven(old, 4.1)
    assert (breaker.state(4.1), breaker.blocked_until, breaker.openings) == ("half-open", 8.0, 1)


def test_a_probe_without_a_verdict() -> None:
    """Its client left: another may be sent at once. It never ends: another after a while."""
    breaker = Breaker()
    fail(breaker, 0.0, 3)
    breaker.sent(4.0, LIMITS)
    breaker.unproven(breaker.epoch, 5.0)
    assert (breaker.state(5.0), breaker.blocked_until) == ("half-open", 5.0)
    breaker.sent(5.0, LIMITS)
    assert breaker.blocked_until == 9.0
    breaker.sent(9.0, LIMITS)
    assert breaker.blocked_until == 13.0


def test_sent_for_want_of_a_better_one() -> None:
    """While it is open, a request that goes there all the same closes it by success; its failure is no news."""
    breaker = Breaker()
    fail(breaker, 0.0, 3)
    fail(breaker, 1.0, 5)
    assert (breaker.blocked_until, breaker.openings) == (4.0, 1)
    breaker.sent(2.0, LIMITS)
    assert breaker.succeeded(breaker.epoch, 2.0)


def test_what_may_not_open() -> None:
    """The failures are counted, and the next one opens it as soon as it may."""
    breaker = Breaker()
    assert fail(breaker, 0.0, 8, may_open=False) is None
    assert fail(breaker, 0.0) == "9 requests failed in a row"


def test_asked_for_peace() -> None:
    """Retry-After blocks the pod and is no failure; the later of both times holds."""
    breaker = Breaker()
    breaker.avoid(10.0)
    breaker.avoid(7.0)
    assert (breaker.blocked_until, breaker.state(1.0)) == (10.0, "closed")
    fail(breaker, 1.0, 3)
    assert breaker.blocked_until == 10.0
    assert (breaker.avoided(9.9), breaker.avoided(10.0)) == (True, False)
    breaker.succeeded(breaker.epoch, 2.0)
    assert breaker.blocked_until == 10.0


def placed_on(core: Core, pod: str, now: float) -> Placement:
    """A request that goes to this pod."""
    return route(core, Demand(MODEL, 100, pods=frozenset((pod,))), NOBODY, now)


@pytest.mark.parametrize(("pods", "ejected"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_never_more_than_half(pods: int, ejected: int) -> None:
    """However many pods fail, at most half of those that answer probes are ejected; with one, none."""
    core = core_of(pods, breaker={"failures_in_row": 1})
    for _ in range(5):
        for name in core.fleet.pods:
            core.finish(placed_on(core, name, 0.0), CUT, 0.0)
    assert sum(pod.breaker.tripped for pod in core.fleet.pods.values()) == ejected


def test_the_unhealthy_are_not_counted() -> None:
    """Of four pods two don't answer probes: one of the others may be ejected, not both."""
    core = core_of(4, breaker={"failures_in_row": 1})
    placed = [placed_on(core, name, 0.0) for name in core.fleet.pods]
    for name in ("pod-0", "pod-1"):
        core.fleet.pods[name].believe(False)
    changes = [core.finish(each, CUT, 0.0) for each in placed[2:]]
    assert [change is not None for change in changes] == [True, False]


def test_the_ejected_come_last_and_come_back() -> None:
    """An ejected pod is picked only for want of another; after its time it gets one request, that decides."""
    core = core_of(2, breaker={"failures_in_row": 1, "open_time": 4})
    assert core.finish(placed_on(core, "pod-0", 0.0), CUT, 0.0) is not None
    picked = [route(core, Demand(MODEL, 100), NOBODY, 1.0).decision.rank.id.pod for _ in range(4)]
    assert picked == ["pod-1"] * 4
    assert route(core, Demand(MODEL, 100), frozenset(("pod-1",)), 1.0).decision.rank.id.pod == "pod-0"
    placed = [route(core, Demand(MODEL, 100), NOBODY, 4.0) for _ in range(3)]
    assert [each.pod.name for each in placed] == ["pod-0", "pod-1", "pod-1"]
    change = core.finish(placed[0], SERVED, 4.5)
    assert change is not None and not change.open
    assert core.fleet.pods["pod-0"].fit(4.5)


def test_a_retry_leaves_them_in_peace() -> None:
    """A pod that asked for it takes no retry; a first attempt goes there rather than nowhere."""
    core = core_of(2)
    core.finish(placed_on(core, "pod-0", 0.0), End("refused", 429, 10.0), 0.0)
    with pytest.raises(NoFitPod):
        decide(core, Demand(MODEL, 100), frozenset(("pod-1",)), 1.0)
    core.finish(placed_on(core, "pod-1", 0.0), End("refused", 429, 1e9), 0.0)
    assert decide(core, Demand(MODEL, 100), NOBODY, 1.0)
    assert not core.fleet.pods["pod-1"].fit(29.9), "at most for retry_after_max"
    assert core.fleet.pods["pod-1"].fit(30.0)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("swfbux"), st.integers(0, 9), st.floats(0.0, 3.0)), max_size=120))
def test_any_story(story: list[tuple[str, int, float]]) -> None:
    """Whatever happens, at most half are ejected, none is blocked for ever, and load is what is on its way."""
    longest = 8.0
    given: dict[str, Any] = {"failures_in_row": 2, "open_time": 1, "open_time_max": longest, "requests_min": 4}
    core, out, now = core_of(4, breaker=given), [], 0.0
    for what, number, later in story:
        now += later
        if what == "s" or not out:
            out.append(route(core, Demand(MODEL, 100), NOBODY, now))
            continue
        if what in ENDS:
            core.finish(out.pop(number % len(out)), ENDS[what], now)
        breakers = [pod.breaker for pod in core.fleet.pods.values()]
        assert sum(breaker.tripped for breaker in breakers) <= 2
        assert all(breaker.blocked_until <= now + longest for breaker in breakers)
        assert all((breaker.state(now) == "closed") is not breaker.tripped for breaker in breakers)
        assert core.in_flight == len(out) == sum(pod.requests for pod in core.fleet.pods.values())
