"""Operators ask one worker, and hear of all: what they ask goes to every worker's private socket, and is made one.

The workers themselves check the operator's key: it goes with the question. Whether a request may change something
without one is checked before. What changes something has to reach all.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple
from urllib.parse import parse_qs

import httpx
import orjson

from router.config.gateway import GatewayConfig
from router.config.keys import read_keys
from router.config.settings import Config
from router.errors import RouterError
from router.metrics.families import TEXT_TYPE, MetricFamily, gauge, text_of
from router.metrics.summary import summary_as_asked
from router.server.asgi import App, ClientGone, Receive, Scope, Send, read_body, send_error
from router.server.long_answers import in_turns
from router.server.operator_access import OperatorAccess
from router.workers import merging
from router.workers.kept_counters import kept
from router.workers.merging import Bodies, Merging
from router.workers.worker import Worker

TOLD = "/worker/metrics"
"""Where a worker tells its series to the others, on its private socket only: a line of the (cached, asked) tokens of
its last minute, then its families."""

_BODY_MAX = 1 << 20  # the keys of an invalidation
_FORWARDED = frozenset((b"authorization", b"x-api-key", b"content-type"))
_CONNECTIONS_MAX = 64  # to one worker: drains that wait must not keep others out
_KEEP_IDLE_S = 2.0  # below the 5 s after which uvicorn closes
DRAIN_WAIT_MAX_S = 3600.0
_DECISIONS = 50  # the default of /decisions

_Merge = Callable[[Bodies, int], Merging]


class _Told(NamedTuple):
    """What is told of all workers' families: how, by the query, and as what."""

    tell: Callable[[list[MetricFamily], Mapping[str, list[str]]], Generator[None, None, bytes]]
    media_type: str


class WorkerSilent(RouterError):
    """503: a worker has not answered: what was asked for is done in the others only."""

    status = 503
    type = "service_unavailable"
    code = "worker_silent"
    retry_after_s = 1


class WorkerAnswer(NamedTuple):
    """What one worker says."""

    status: int
    media_type: str
    body: bytes


class Peers:
    """All workers of this host, this one included and first."""

    def __init__(self, worker: Worker, timeout_s: float) -> None:
        self.worker = worker
        self._timeout_s = timeout_s
        others = [number for number in range(worker.workers) if number != worker.number]
        self._clients = {number: self._client(number) for number in (worker.number, *others)}

    async def ask(
        self, method: str, target: str, headers: Mapping[bytes, bytes], body: bytes = b"", takes_s: float = 0.0
    ) -> dict[int, WorkerAnswer | None]:
        """What each says, at the same time; None: nothing, in time. `takes_s`: what is asked for takes so long."""
        asked = [self._ask(client, method, target, headers, body, takes_s) for client in self._clients.values()]
        return dict(zip(self._clients, await asyncio.gather(*asked), strict=True))

    async def ask_one(
        self, number: int, method: str, target: str, headers: Mapping[bytes, bytes]
    ) -> WorkerAnswer | None:
        """What one of them says; None: nothing, in time, or there is no such worker."""
        client = self._clients.get(number)
        return None if client is None else await self._ask(client, method, target, headers, b"", 0.0)

    def shown(self, gateway: GatewayConfig) -> dict[bytes, bytes]:
        """What shows the workers the operator key, when it is this process that asks."""
        key, path = gateway.operator_key, gateway.operator_key_file
        shown = [] if key is None else [key.get_secret_value()]
        if path is not None:
            with contextlib.suppress(OSError, ValueError):
                shown = read_keys(path)  # as it is now
        return {b"authorization": b"Bearer " + shown[0].encode()} if shown else {}

    async def drained(self, gateway: GatewayConfig) -> set[str]:
        """The pods that operators have drained, as the other workers know."""
        answers = await self.ask("GET", "/pods", self.shown(gateway))
        told = [orjson.loads(answer.body) for answer in answers.values() if answer is not None and answer.status == 200]
        return {pod["pod"] for one in told for pod in one["pods"] if pod["draining"]}

    async def aclose(self) -> None:
        for client in self._clients.values():
            await client.aclose()

    def _client(self, number: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=_CONNECTIONS_MAX, keepalive_expiry=_KEEP_IDLE_S)
        transport = httpx.AsyncHTTPTransport(uds=str(self.worker.socket(number)), limits=limits, verify=False)
        return httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=None, trust_env=False)

    async def _ask(
        self, client: httpx.AsyncClient, method: str, target: str, headers: Mapping[bytes, bytes], body: bytes,
        takes_s: float,
    ) -> WorkerAnswer | None:  # fmt: skip
        with contextlib.suppress(httpx.HTTPError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_s + takes_s):
                said = await client.request(method, target, headers=dict(headers), content=body)
                return WorkerAnswer(said.status_code, said.headers.get("content-type", ""), said.content)
        return None


class Gathering:
    """An ASGI application in front of the operators' endpoints of one worker, which answers for all."""

    def __init__(self, app: App, peers: Peers, access: OperatorAccess, config: Config) -> None:
        self._app = app
        self._config = config
        self._peers = peers
        self._access = access  # the workers take all that comes on their private sockets for an operator's

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = _asked(scope)
        if asked is None:
            await self._app(scope, receive, send)
            return
        try:
            if asked[0]:
                self._access.check_operator(scope)
            answer = await self._gather(scope, receive, *asked)
        except ClientGone:
            return
        except RouterError as error:
            await send_error(send, error, [])
            return
        head = [(b"content-type", answer.media_type.encode()), (b"content-length", b"%d" % len(answer.body))]
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        await send({"type": "http.response.body", "body": answer.body})

    async def _gather(self, scope: Scope, receive: Receive, changes: bool, merge: _Merge | _Told) -> WorkerAnswer:
        headers = {name: value for name, value in scope["headers"] if name in _FORWARDED}
        body = await read_body(scope, receive, _BODY_MAX) if changes else b""
        query = scope["query_string"].decode("latin-1")
        path = scope["raw_path"].decode("latin-1")
        target = TOLD if isinstance(merge, _Told) else path + (f"?{query}" if query else "")
        takes_s = self._takes_s(path, query) if changes else 0.0
        answers = await self._peers.ask(scope["method"], target, headers, body, takes_s)
        heard = {worker: answer for worker, answer in answers.items() if answer is not None}
        refusal = next((answer for answer in heard.values() if answer.status != 200), None)
        if refusal is not None:
            return refusal
        silent = sorted(set(answers) - set(heard))
        if not heard or (changes and silent):
            raise WorkerSilent(f"Of the workers, {silent} did not answer: ask again.")
        given = parse_qs(query)
        if isinstance(merge, _Told):
            families = await in_turns(self._families([answer.body for answer in heard.values()], silent))
            return WorkerAnswer(200, merge.media_type, await in_turns(merge.tell(families, given)))
        limit = int(given.get("limit", [_DECISIONS])[0])
        told = await in_turns(merge({worker: answer.body for worker, answer in heard.items()}, limit))
        return WorkerAnswer(200, "application/json", told)

    def _takes_s(self, path: str, query: str) -> float:
        """How long a change may take by itself: a drain as long as it is to wait, a snapshot until the next one."""
        if path == "/index/snapshot":
            return self._config.state.interval
        if not path.endswith("/drain"):
            return 0.0
        try:
            asked_s = float(parse_qs(query)["wait"][-1])
        except (KeyError, ValueError):  # each worker says what is wrong
            return self._config.handover.before
        return asked_s if 0 <= asked_s <= DRAIN_WAIT_MAX_S else 0.0

    def _families(self, told: list[bytes], silent: list[int]) -> Generator[None, None, list[MetricFamily]]:
        """Those of all. Of a worker that is silent, what it has counted until it told last."""
        workers, cached, tokens = [], 0, 0
        heads: merging.Heads = {}
        for body in told:
            window, _, lines = body.partition(b"\n")
            of_minute = orjson.loads(window)
            cached, tokens = cached + of_minute[0], tokens + of_minute[1]
            families = yield from merging.read(lines, heads)
            workers.append(families)
        for number in silent:
            families = yield from kept(self._peers.worker.counts(number))
            workers.append(families)
        merged = yield from merging.merged(workers, cached / tokens if tokens else 0.0)
        answering = gauge("warmroute_workers", "Workers that answer.", len(told))
        return [*merged, answering]


_ENDPOINTS: tuple[tuple[str, re.Pattern[str], _Merge | _Told], ...] = (
    ("GET", re.compile(r"/metrics"), _Told(lambda families, given: text_of(families), TEXT_TYPE)),
    ("GET", re.compile(r"/metrics\.json"), _Told(summary_as_asked, "application/json")),
    ("GET", re.compile(r"/pods"), merging.pods_of_all),
    ("GET", re.compile(r"/decisions"), merging.decisions_of_all),
    ("GET", re.compile(r"/alerts"), merging.of_answers(merging.merged_alerts)),
    ("GET", re.compile(r"/cache/status"), merging.of_answers(merging.merged_status)),
    ("GET", re.compile(r"/sessions"), merging.of_answers(merging.merged_sessions)),
    ("GET", re.compile(r"/scale-in"), merging.of_answers(merging.merged_losses)),
    ("POST", re.compile(r"/pods/[^/]+/(un)?drain"), merging.of_answers(merging.merged_drain)),
    ("POST", re.compile(r"/index/snapshot"), merging.of_answers(merging.merged_saves)),
    ("POST", re.compile(r"/cache/(invalidate|clear|cleanup)"), merging.of_answers(merging.merged_changes)),
)


def _asked(scope: Scope) -> tuple[bool, _Merge | _Told] | None:
    """Whether it changes something, and how the answers are made one; None: it is not gathered."""
    if scope["type"] != "http":
        return None
    for method, path, merge in _ENDPOINTS:
        if scope["method"] == method and path.fullmatch(scope["path"]):
            return method == "POST", merge
    return None
