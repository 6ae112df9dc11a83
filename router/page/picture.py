"""The page's picture: all that it shows at one moment, whoever looks at it, of one worker or of several."""

from __future__ import annotations

import time
from typing import Any

import orjson

from router.causes.journal import why_of
from router.causes.sentences import misses_of
from router.page.account import (
    WorkerAccount,
    added_up,
    by_class,
    decisions_of,
    last_requests,
    served_lately,
    stats_of,
)
from router.page.course import POINT_COLUMNS, Course
from router.page.rows import FEED_COLUMNS, POD_COLUMNS, SERVED_COLUMNS, add_served, fleet_rows
from router.server.long_answers import in_turns
from router.service import Service

_SUMMED = 200  # requests of which sums are made: some 2 ms for each picture
_LATELY_S = 60.0  # what pods are said to do is of these
_ALERTS_MAX = 100  # more than anybody reads; /alerts has all

ACCOUNT = "/worker/page"
"""Where a worker gives its account to the others, on its private socket only."""


class Picture:
    """What is drawn, and how it went so far: as long as the process lives, but only while somebody looks."""

    def __init__(self, service: Service) -> None:
        given = service.config.page
        self._service = service
        self._decisions_max = given.decisions
        self._course = Course(max(1, round(given.history / given.interval)), service.metrics.first_bytes.bounds)

    async def draw(self) -> bytes:
        """The picture of now, as an event of the stream; others have their turns meanwhile."""
        service, now, wall = self._service, time.monotonic(), time.time()
        rows = await in_turns(fleet_rows(service.core, now))
        accounts, workers = await self._accounts()
        account, index = added_up(accounts, self._decisions_max), service.core.index
        held = {"blocks": index.blocks, "bytes": account.pop("index_bytes"), "evictions": account["index_evictions"]}
        add_served(rows, account["served"])
        totals = self._course.add(account, held, now, wall)
        told = {
            "at": round(wall, 3),
            "gateway": {"workers": workers, "answering": len(accounts), "interval_s": service.config.page.interval},
            "totals": {**totals, "waiting": account["waiting"], "in_flight": account["in_flight"]},
            "prefix_store": account["prefix_store"],
            "index": {**held, "refusals": index.refusals},
            "decisions": account["decisions"],
            "alerts": account["alerts"],
            "point": self._course.points[-1],
            "missed": account["missed"],
            "summary": account["summary"],
            "columns": [*POD_COLUMNS, *FEED_COLUMNS, *SERVED_COLUMNS],
            "pods": rows,
        }
        return _event(b"picture", told)

    def course(self) -> bytes:
        """How it went before, as the stream's first event."""
        return _event(b"course", {"columns": POINT_COLUMNS, "points": list(self._course.points)})

    async def _accounts(self) -> tuple[list[WorkerAccount], int]:
        """Of the workers that answer; and how many there are."""
        service = self._service
        if service.peers is None:
            return [account_of(service, self._decisions_max)], 1
        headers = service.peers.shown(service.config.gateway)
        answers = await service.peers.ask("GET", ACCOUNT, headers)
        told = [orjson.loads(each.body) for each in answers.values() if each is not None and each.status == 200]
        return told or [account_of(service, self._decisions_max)], len(answers)


def account_of(service: Service, decisions_max: int) -> WorkerAccount:
    """What this worker has served."""
    core, metrics, now = service.core, service.metrics, time.monotonic()
    last = last_requests(core, max(decisions_max, _SUMMED))
    whys = [why for _, decision in last if (why := why_of(decision.story)) is not None]
    worker = 0 if service.peers is None else service.peers.worker.number
    return {
        "window": list(metrics.window.totals(now)),
        "requests": by_class(metrics.requests),
        "first_bytes": metrics.first_bytes.totals()[0],
        "in_flight": core.in_flight,
        "waiting": core.queue.waiting + core.hold.waiting,
        "prefix_store": stats_of(service.encoder.stats()),
        "index_bytes": core.index.nbytes,
        "index_evictions": core.index.evictions,
        "alerts": service.alerts.told()["alerts"][:_ALERTS_MAX],
        "decisions": decisions_of(last[:decisions_max], worker, time.time() - now),
        "served": served_lately(last, now - _LATELY_S),
        "missed": dict(metrics.missed_tokens),
        "summary": misses_of(whys),
    }


def _event(name: bytes, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name, orjson.dumps(data))
