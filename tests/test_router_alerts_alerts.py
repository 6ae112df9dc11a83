"""Each alert fires when it should, says why, and ends; the log has each change once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from router.alerts.alerts import Alerts
from router.alerts.conditions import ALERTS
from router.config.settings import AlertsConfig
from router.core.decision import Core
from router.core.demand import End
from router.metrics.metrics import Metrics
from router.metrics.process import MemoryUse
from router.server.long_answers import at_once
from tests.fakes.cores import MODEL, NOBODY, asked, core_of, nothing, route
from tests.fakes.prefix_stats import stats_of
from tests.fakes.services import operators

GIVEN = AlertsConfig()


class World:
    """A gateway's figures, which a test changes, in simulated time."""

    def __init__(self, core: Core | None = None, **given: Any) -> None:
        self.now = 1000.0
        self.core = core or core_of(2)
        self.evictions = {"lru": 0, "manual": 0}
        self.memory = MemoryUse(100, 100, 1000)
        self.metrics = Metrics(self.core, lambda: stats_of(evictions=dict(self.evictions)), lambda: self.now)
        self.alerts = Alerts(self.metrics, AlertsConfig(**given), lambda: self.memory, lambda: self.now)

    def after(self, seconds: float) -> dict[str, str]:
        """What fires then, by name, with the subject; it is looked at every second."""
        until = self.now + seconds
        while self.now < until:
            self.now += 1.0
            at_once(self.alerts.look(self.now))
        return {alert.name: alert.subject for alert in self.alerts.firing}

    def served(self, cached: int = 100, error: int = 0, decision_s: float = 1e-3, count: int = 20) -> None:
        """Requests are answered, whose prompts have 100 tokens."""
        for _ in range(count):
            self.metrics.window.add(self.now, cached, 100)
            self.metrics.errors.observe(error)
            self.metrics.decisions.observe(decision_s)


def _low(world: World) -> None:
    world.served(cached=29)


def _slow(world: World) -> None:
    world.served(decision_s=0.15)


def _wrong(world: World) -> None:
    world.served(error=100, count=2)
    world.served(count=20)


def _evicts(world: World) -> None:
    world.evictions["lru"] += 700


def _refuses(world: World) -> None:
    world.metrics.retries_refused += 1


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("hit_ratio_low", _low), ("decision_slow", _slow), ("predictions_wrong", _wrong),
        ("evictions_high", _evicts), ("retry_budget_spent", _refuses),
    ],
)  # fmt: skip
def test_what_is_of_the_last_minute(name: str, begins: Callable[[World], None]) -> None:
    """It fires at the next look, and ends when a minute without it has gone by."""
    world = World()
    assert world.after(10) == {}
    begins(world)
    assert world.after(1) == {name: ""}
    assert world.after(70) == {}


@pytest.mark.parametrize(
    ("begins", "count"), [(lambda world, count: world.served(29, 100, 0.15, count), GIVEN.requests_min - 1)]
)
def test_few_requests_say_nothing(begins: Callable[[World, int], None], count: int) -> None:
    """Nine cold prompts in a quiet minute are no trouble; the tenth makes it one."""
    world = World()
    begins(world, count)
    assert world.after(1) == {}
    begins(world, 1)
    assert set(world.after(1)) == {"hit_ratio_low", "decision_slow", "predictions_wrong"}


def test_what_is_cleared_by_hand_is_not_evicted() -> None:
    """An operator clears the store: nothing is too small."""
    world = World()
    world.evictions["manual"] += 10_000
    assert world.after(5) == {}


def test_memory() -> None:
    """Over nine tenths of the limit; without a limit, never."""
    world = World()
    world.memory = MemoryUse(1, 901, 1000)
    assert world.after(1) == {"memory_high": ""}
    assert "90%" in world.alerts.firing[0].why
    world.memory = MemoryUse(1, 901, 0)
    assert world.after(1) == {}


def test_a_pod_whose_feed_is_not_exact() -> None:
    """Only after a while, as pods start so; with the feed's own reason. It ends with the feed's trouble."""
    world = World()
    feed = world.core.fleet.pods["pod-1"].ranks[0].feed
    assert feed is not None
    feed.frame(0, b"\xc1", world.now)
    feed.replay_ended(True, world.now)
    assert world.after(GIVEN.patience) == {}
    assert world.after(1) == {"pod_not_exact": "pod-1"}
    assert "could not be decoded" in world.alerts.firing[0].why
    feed.unlearn()
    assert world.after(1) == {}


def test_a_pod_that_is_killed() -> None:
    """It does not look well: its state is not exact any more, and the alert says what it is like."""
    world = World(patience=0)
    pod = world.core.fleet.pods["pod-0"]
    for each in world.core.fleet.pods.values():
        world.core.fleet.probed(each, True, world.now, failures_max=1)
    assert world.after(1) == {}
    pod.fails("no connection to /health", listens=False)
    world.core.fleet.probed(pod, False, world.now, failures_max=1)
    assert world.after(1) == {"pod_not_exact": "pod-0"}
    assert world.alerts.firing[0].why == "degraded: no connection to /health"
    world.core.fleet.probed(pod, True, world.now, failures_max=1)
    assert world.after(1) == {}


def test_pods_without_events() -> None:
    """Where no pod of a model has a feed, that is on purpose; where others have one, it was forgotten."""
    world = World(core_of(2, feeds=False), patience=0)
    assert world.after(100) == {}
    told = core_of(1).fleet.pods["pod-0"]
    told.name = "pod-2"
    world.core.fleet.join(told)
    world.core.fleet.learned_models(told, [{"id": "another"}])
    assert world.after(1) == {}
    world.core.fleet.learned_models(told, [{"id": "another"}, {"id": MODEL}])
    world.after(1)
    assert [(one.name, one.subject) for one in world.alerts.firing] == [
        ("pod_not_exact", "pod-0"), ("pod_not_exact", "pod-1"),
    ]  # fmt: skip
    assert world.alerts.firing[0].why == "blind: it has no event feed, and other pods of its model have"
    world.core.fleet.leave("pod-2")
    assert world.after(1) == {}


def test_a_gap_that_is_not_repaired() -> None:
    """A replay that fails is told at once, and until a minute after the last one, or as long as history is lacking."""
    world = World()
    feed = world.core.fleet.pods["pod-0"].ranks[0].feed
    assert feed is not None
    feed.frame(0, nothing(1.0), world.now)
    assert feed.frame(5, nothing(2.0), world.now) == 0 or feed.replaying
    assert world.after(5) == {}
    feed.replay_ended(False, world.now)
    assert world.after(1)["gap_not_repaired"] == "pod-0"
    assert world.after(90)["gap_not_repaired"] == "pod-0"
    feed.reread()
    feed.mend(world.now)
    for number in range(6):
        feed.replayed(number, nothing(float(number)), world.now)
    feed.replay_ended(True, world.now)
    assert "gap_not_repaired" not in world.after(70)


def test_no_fit_pod() -> None:
    """At all, or for one of the models."""
    world = World()
    fleet = world.core.fleet
    fleet.learned_models(fleet.pods["pod-1"], [{"id": MODEL}, {"id": "other"}])
    fleet.pods["pod-1"].drain(True)
    assert world.after(1) == {"no_fit_pod": "other"}
    fleet.pods["pod-0"].drain(True)
    assert world.after(1) == {"no_fit_pod": ""}
    assert world.alerts.firing[0].why == "none of 2 pods is fit"
    for pod in fleet.pods.values():
        pod.drain(False)
    assert world.after(1) == {}


def test_breaker() -> None:
    """From the failures that open it until a request was served."""
    world = World(core_of(3, breaker={"failures_in_row": 2}))
    core = world.core
    for number in range(2):
        placement = route(core, asked(core, number, pods=frozenset(("pod-2",))), NOBODY, world.now)
        core.finish(placement, End("failed"), world.now)
    assert world.after(1) == {"breaker_open": "pod-2"}
    assert "2 requests failed in a row" in world.alerts.firing[0].why
    breaker = core.fleet.pods["pod-2"].breaker
    world.now += 1000.0
    placement = route(core, asked(core, 9, pods=frozenset(("pod-2",))), NOBODY, world.now)
    core.finish(placement, End("served", 200), world.now)
    assert breaker.state(world.now) == "closed"
    assert world.after(1) == {}


def test_a_replica_that_knows_nothing() -> None:
    """Nothing was heard of any feed: told after a while, until one of them has spoken."""
    core = core_of(2, feeds=False)
    other = core_of(1)
    for name in list(core.fleet.pods):
        core.fleet.leave(name)
    pod = other.fleet.pods["pod-0"]
    rank = pod.ranks[0]
    assert rank.feed is not None
    silent = type(rank.feed)(core.index, rank.id, 100)
    rank.feed = silent
    core.fleet.join(pod)
    world = World(core)
    assert world.after(GIVEN.patience) == {}
    assert world.after(1) == {"no_state": "", "pod_not_exact": "pod-0"}
    silent.replay_ended(True, world.now)
    assert world.after(1) == {}


def test_the_log_has_each_change_once(caplog: pytest.LogCaptureFixture) -> None:
    """However often it is looked at; `since` is when it began, and the metric is 1 meanwhile."""
    world = World()
    with caplog.at_level(logging.INFO, "warmroute.alerts"):
        world.core.fleet.pods["pod-0"].drain(True)
        world.core.fleet.pods["pod-1"].drain(True)
        world.after(50)
        assert 'warmroute_alerts{name="no_fit_pod"} 1' in _text(world)
        (alert,) = world.alerts.firing
        assert alert.since == 1001.0
        world.core.fleet.pods["pod-0"].drain(False)
        world.after(50)
    assert [record.getMessage() for record in caplog.records] == [
        "alert no_fit_pod: none of 2 pods is fit",
        "alert no_fit_pod is over",
    ]
    assert 'warmroute_alerts{name="no_fit_pod"} 0' in _text(world)


def test_all_names_are_there_from_the_start() -> None:
    """In the metric, and in what operators are told."""
    world = World()
    assert all(f'warmroute_alerts{{name="{name}"}} 0' in _text(world) for name in ALERTS)
    assert world.alerts.told() == {"alerts": [], "known": ALERTS}
    _refuses(world)
    world.after(1)
    (told,) = world.alerts.told()["alerts"]
    assert (told["name"], told["subject"], told["why"]) == ("retry_budget_spent", None, "1 retries were not allowed")


def _text(world: World) -> str:
    world.metrics.join(world.alerts)
    return world.metrics.text().decode()


async def test_operators_ask_for_them() -> None:
    """`/alerts` of a gateway that was just started knows all names; what holds is there at the next look."""
    async with operators() as (client, service):
        assert (await client.get("/alerts")).json() == {"alerts": [], "known": ALERTS}
        for pod in service.core.fleet.pods.values():
            pod.drain(True)
        at_once(service.alerts.look(service.metrics.clock()))
        (told,) = (await client.get("/alerts")).json()["alerts"]
    assert (told["name"], told["subject"], told["why"]) == ("no_fit_pod", None, "none of 2 pods is fit")
    assert told["for_s"] < 60 and told["since"] > 1.7e9
