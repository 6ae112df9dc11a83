"""Which conditions hold, since when, and why; looked at every second, and said in the log once for each change."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from router.alerts.conditions import ALERTS, Minute, Wrong, models_with_feeds, of_fleet, of_gateway, of_pod
from router.alerts.past import Past, Tally
from router.config.settings import AlertsConfig
from router.metrics.families import Steps, gauges
from router.metrics.metrics import Metrics
from router.metrics.process import MemoryUse
from router.server.long_answers import in_turns

log = logging.getLogger("warmroute.alerts")

_PODS = 16  # looked at in one step


class Alert(NamedTuple):
    """One that fires. `since`: when its condition began to hold (monotonic)."""

    name: str
    subject: str
    since: float
    why: str


class Alerts:
    """See the module."""

    def __init__(
        self,
        metrics: Metrics,
        given: AlertsConfig,
        memory: Callable[[], MemoryUse],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`memory`: of this process, as of now."""
        self._metrics = metrics
        self._given = given
        self._memory = memory
        self._clock = clock
        self._past = Past(self._counted(), clock())
        self._began: dict[tuple[str, str], float] = {}  # conditions that hold, whether they are alerts yet or not
        self._firing: dict[tuple[str, str], Alert] = {}

    @property
    def firing(self) -> list[Alert]:
        """Those that fire, by name."""
        return sorted(self._firing.values())

    async def run(self) -> None:
        """Look, for as long as the gateway runs."""
        while True:
            await asyncio.sleep(self._given.interval)
            try:
                await in_turns(self.look(self._clock()))
            except Exception:  # a fault of ours: requests are served all the same
                log.exception("alerts could not be looked at")

    def look(self, now: float) -> Generator[None, None, None]:
        """Find out what holds now, in steps."""
        metrics, core = self._metrics, self._metrics.core
        counted = self._past.add(self._counted(), now)
        yield
        cached, asked = metrics.window.totals(now)
        memory = self._memory()
        minute = Minute(counted, self._past.length_s(now), cached, asked, memory.used, memory.limit)
        wrong = [*of_gateway(minute, self._given), *of_fleet(core, now)]
        with_feeds = models_with_feeds(core)
        for place, pod in enumerate(list(core.fleet.pods.values())):
            wrong += of_pod(pod, counted.replays_failed.get(pod.name, 0), with_feeds)
            if place % _PODS == 0:
                yield
        self._judge(wrong, now)

    def _judge(self, wrong: list[Wrong], now: float) -> None:
        held = {(one.name, one.subject) for one in wrong}
        self._began = {key: since for key, since in self._began.items() if key in held}
        for one in wrong:
            key = one.name, one.subject
            since = self._began.setdefault(key, now)
            if one.lasting and now - since < self._given.patience:
                continue
            if key not in self._firing:
                log.warning("alert %s: %s", _called(*key), one.why)
            self._firing[key] = Alert(one.name, one.subject, since, one.why)
        for key in [key for key in self._firing if key not in held]:
            del self._firing[key]
            log.info("alert %s is over", _called(*key))

    def _counted(self) -> Tally:
        metrics, index = self._metrics, self._metrics.core.index
        evicted = sum(count for reason, count in metrics.store().evictions.items() if reason != "manual")
        failed = {
            pod.name: sum(rank.feed.counts.replay_failed for rank in pod.ranks if rank.feed is not None)
            for pod in metrics.core.fleet.pods.values()
        }
        return Tally(
            metrics.decisions.totals()[0], metrics.errors.totals()[0], evicted + index.evictions,
            metrics.retries_refused, failed,
        )  # fmt: skip

    def told(self) -> dict[str, Any]:
        """For operators: those that fire, and what there are."""
        now, wall = self._clock(), time.time()
        return {
            "alerts": [
                {
                    "name": alert.name,
                    "subject": alert.subject or None,
                    "since": round(wall - (now - alert.since), 3),
                    "for_s": round(now - alert.since, 3),
                    "why": alert.why,
                }
                for alert in self.firing
            ],
            "known": ALERTS,
        }

    def collect(self) -> Steps:
        """Its family."""
        fire = dict.fromkeys(ALERTS, 0) | {name: 1 for name, _ in self._firing}
        yield gauges("warmroute_alerts", "1 while it fires, of whomever; /alerts says why.", "name", fire)


def _called(name: str, subject: str) -> str:
    return f"{name} ({subject})" if subject else name
