"""The retry budget: a share of traffic, a floor, and what a dying pod held."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.demand import Demand
from router.core.retry_budget import FLOOR_S, RetryBudget
from router.errors import NoRetry
from tests.fakes.cores import MODEL, NOBODY, core_of, route


def spent(budget: RetryBudget, now: float, most: int = 1000) -> int:
    """Retries that it gives at one moment."""
    return sum(budget.take(now) for _ in range(most))


def test_the_floor() -> None:
    """It is there from the start, fills up again in its time, and never over."""
    budget = RetryBudget(0.2, 10)
    assert spent(budget, 100.0) == 10
    assert spent(budget, 100.0 + FLOOR_S / 2) == 5
    assert spent(budget, 100.0 + 50 * FLOOR_S) == 10


def test_an_outage_is_not_amplified() -> None:
    """Where every request fails and would be retried, retries are the share, and the floor now and then."""
    budget, retries = RetryBudget(0.2, 10), 0
    for number in range(10_000):
        budget.request(live=50)
        retries += budget.take(number * 0.01)  # 100 requests a second, for 100 s
    assert 2000 <= retries <= 2000 + 10 + 10 * 100 / FLOOR_S


def test_what_a_dying_pod_held() -> None:
    """After a quiet time each request that is live may move once, at one moment."""
    budget = RetryBudget(0.2, 10)
    for _ in range(5000):
        budget.request(live=300)
    assert spent(budget, 0.0) == 310


def test_none() -> None:
    """Share 0 and floor 0: nothing is ever retried."""
    budget = RetryBudget(0.0, 0)
    for number in range(100):
        budget.request(live=10)
        assert not budget.take(float(number))


@settings(max_examples=100, deadline=None)
@given(st.floats(0.0, 1.0), st.integers(0, 20), st.lists(st.tuples(st.booleans(), st.integers(0, 50), st.floats(0, 5))))
def test_bounds(share: float, floor: int, story: list[tuple[bool, int, float]]) -> None:
    """Whatever comes: it never owes, and gives no more than the floor over time and the share of the requests."""
    budget, now, requests, retries = RetryBudget(share, floor), 0.0, 0, 0
    for is_request, live, later in story:
        now += later
        if is_request:
            budget.request(live)
            requests += 1
        else:
            retries += budget.take(now)
        assert 0.0 <= budget.left <= floor + 50
    assert retries <= floor + floor * now / FLOOR_S + share * requests + 1e-6


def test_retries_are_paid_for() -> None:
    """The core counts: a first attempt pays in, a retry takes out, and is refused without a trace of load."""
    core = core_of(2, upstream={"retry_share": 0.5, "retry_floor": 1})
    elsewhere = frozenset(("pod-0",))
    route(core, Demand(MODEL, 100), elsewhere, 0.0)
    with pytest.raises(NoRetry):
        route(core, Demand(MODEL, 100), elsewhere, 0.0)
    assert core.in_flight == sum(pod.requests for pod in core.fleet.pods.values()) == 1
    for _ in range(2):
        route(core, Demand(MODEL, 100), NOBODY, 0.0)
    route(core, Demand(MODEL, 100), elsewhere, 0.0)
