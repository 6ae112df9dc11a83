"""Pods of Kubernetes: listed once, then watched; what is known is kept while the API server is away.

A reflector. The state is listed in pages and followed from its resourceVersion. When that is too old (410, as a status
or as an event), everything is listed anew, and what is not there any more is gone. resourceVersions are opaque: never
compared. Watches end by themselves after some minutes and go on from where they were.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import httpx
import orjson

from router.config.fleet import KubernetesConfig
from router.discovery.found import Change, FoundPod, difference
from router.discovery.kubernetes_api import Api
from router.discovery.kubernetes_choice import Choice, choice_of, paths_of
from router.discovery.kubernetes_pods import NotAServer, Ports, servers_of
from router.errors import ConfigError

log = logging.getLogger("warmroute.discovery")

_PAGE = 500  # objects a page: what kubectl asks for
_WATCH_S = (300.0, 600.0)  # a watch ends after so long, at random: not all of a fleet's at once
_PATIENCE_S = 30.0  # beyond that the connection is dead; and for any other answer
_BACKOFF_S = (0.2, 30.0)  # full jitter between two attempts
_LINE_BYTES_MAX = 4 * 2**20  # an object is 1.5 MB at most
_CUT_SHORT_S, _CUT_SHORT_MAX = 1.0, 2  # so soon a watch does not end by itself, or not many of them in a row
_GONE, _NOT_FOUND = 410, 404


class _TooOld(Exception):
    """The resourceVersion is not known any more: list anew."""


class _Refused(Exception):
    """The API server says no, in words."""


_SOMEBODY_ELSE = (ValueError, LookupError, TypeError, AttributeError)  # answers: a login page, a proxy
_TROUBLES = (httpx.HTTPError, _Refused, ConfigError, OSError, *_SOMEBODY_ELSE)


class KubernetesSource:
    """See the module; `synced`: the pods are those that the API server last told, as far as we know."""

    def __init__(
        self,
        given: KubernetesConfig,
        api: Api,
        sleep: Callable[[float], Any] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.name = "kubernetes"
        self.synced = False
        self._api = api
        self._given = given
        self._ports = Ports(given.port, given.events_port, given.replay_port, given.scheme)
        self._sleep = sleep
        self._random = rng or random.Random()
        self._known: dict[str, dict[str, FoundPod]] = {}  # by the Pod's uid, the servers in it
        self.objects: dict[str, str] = {}  # the name of each Pod, by its uid
        self._version = ""
        self._choice = Choice(given.selector or "")
        self.trouble: str | None = None
        self._odd: set[str] = set()  # Pods of which was said why they are none of ours

    async def changes(self) -> AsyncGenerator[list[Change]]:
        tries, first, cut_short, clock = 0, True, 0, asyncio.get_running_loop().time
        while True:
            try:
                async with self._client() as client:
                    yield await self._listed(client)
                    first = False
                    while True:
                        began = clock()
                        async for changes in self._watched(client):
                            tries = cut_short = 0  # a list alone proves nothing: its version may be too old at once
                            if changes:
                                yield changes
                        cut_short = cut_short + 1 if clock() - began < _CUT_SHORT_S else 0
                        if cut_short > _CUT_SHORT_MAX:
                            raise _Refused("watches end at once, and nothing was told in them")
                        if await self._chosen(client) != self._choice:
                            yield await self._listed(client)
            except _TooOld:
                if not tries:  # at once, the first time
                    tries = 1
                    continue
            except _TROUBLES as error:
                self._say(f"{self._why(error)}; pods stay as they were")
                if first:  # nobody should wait for an API server that is away
                    yield []
                    first = False
            self.synced = False
            least, most = _BACKOFF_S
            await self._sleep(self._random.uniform(0, min(most, least * 2**tries)))
            tries = min(tries + 1, 10)

    def _client(self) -> httpx.AsyncClient:
        """Fresh connections. What is asked by them shows the token of then: one that is rotated is no failure."""
        context = self._api.context()
        return httpx.AsyncClient(base_url=self._api.url, verify=context, timeout=_PATIENCE_S, trust_env=False)

    def _why(self, error: Exception) -> str:
        if isinstance(error, ConfigError):
            return error.message
        if isinstance(error, _SOMEBODY_ELSE):
            return f"{self._api.url} answers what no API server does ({error!r})"
        return str(error) or type(error).__name__

    # --- list

    async def _listed(self, client: httpx.AsyncClient) -> list[Change]:
        """All Pods of the selector; what follows of it. After a 410 the newest, else what the server has at hand."""
        choice = await self._chosen(client)
        selector, ports = choice.selector, self._ports._replace(servers=choice.ports)
        if choice != self._choice:  # known Pods may have other servers in them now
            self._choice, self._ports, self._version = choice, ports, ""
        query = {"labelSelector": selector, "limit": str(_PAGE)}
        if not self._version:
            query["resourceVersion"] = "0"
        now: dict[str, dict[str, FoundPod]] = {}
        while True:
            page = await self._get(client, self._path("pods"), query)
            for pod in page.get("items") or ():
                now[pod["metadata"]["uid"]] = self._servers(pod)
            version, more = page["metadata"]["resourceVersion"], page["metadata"].get("continue")
            if not more:
                break
            query = {"labelSelector": selector, "limit": str(_PAGE), "continue": more}
        self.objects = {uid: name for uid, name in self.objects.items() if uid in now}
        changes = difference(_flat(self._known), _flat(now))
        self._known, self._version = now, version
        self.synced = True
        self._say(None if now else f"no Pod in {self._api.namespace} has the labels {selector}: waiting for one")
        return changes

    async def _chosen(self, client: httpx.AsyncClient) -> Choice:
        """As configured, or as the Service or pool says now."""
        places = paths_of(self._given, self._api.namespace)
        if not places:
            return Choice(self._given.selector or "")
        for place in places:
            answer = await client.get(place, headers=self._api.headers())
            if answer.status_code != _NOT_FOUND:
                break
        self._check(answer)
        return choice_of(self._given, orjson.loads(answer.content))

    # --- watch

    async def _watched(self, client: httpx.AsyncClient) -> AsyncIterator[list[Change]]:
        """What changes until the watch ends by itself; raises `_TooOld`."""
        seconds = self._random.uniform(*_WATCH_S)
        query = {
            "watch": "1", "allowWatchBookmarks": "true", "labelSelector": self._choice.selector,
            "resourceVersion": self._version, "timeoutSeconds": f"{seconds:.0f}",
        }  # fmt: skip
        timeout = httpx.Timeout(_PATIENCE_S, read=seconds + _PATIENCE_S)
        headers = self._api.headers()
        async with client.stream("GET", self._path("pods"), params=query, headers=headers, timeout=timeout) as answer:
            if answer.status_code != 200:
                await answer.aread()
                self._check(answer)
            async for line in _lines(answer):
                yield self._event(orjson.loads(line))

    def _event(self, event: dict[str, Any]) -> list[Change]:
        kind, thing = event["type"], event["object"]
        if kind == "ERROR":
            if thing.get("code") == _GONE:
                self._version = "0"  # not empty: what is listed next must not be an old state
                raise _TooOld
            raise _Refused(f"the watch failed: {thing.get('message') or thing.get('reason')}")
        self._version = thing["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return []
        if kind == "ADDED":
            self._say(None)
        uid = thing["metadata"]["uid"]
        before = self._known.pop(uid, {})
        now = {} if kind == "DELETED" else self._servers(thing)
        if kind != "DELETED":
            self._known[uid] = now
        else:
            self.objects.pop(uid, None)
        return difference(before, now)

    # --- both

    def _servers(self, pod: dict[str, Any]) -> dict[str, FoundPod]:
        self.objects[pod["metadata"]["uid"]] = pod["metadata"]["name"]
        try:
            return {found.uid: found for found in servers_of(pod, self._ports)}
        except NotAServer as why:
            name = pod["metadata"]["name"]
            if name not in self._odd and len(self._odd) < _PAGE:
                self._odd.add(name)
                log.warning("kubernetes: Pod %s is left out: %s", name, why)
            return {}

    def _path(self, what: str) -> str:
        return f"/api/v1/namespaces/{self._api.namespace}/{what}"

    async def _get(self, client: httpx.AsyncClient, path: str, query: dict[str, str]) -> dict[str, Any]:
        answer = await client.get(path, params=query, headers=self._api.headers())
        self._check(answer)
        return dict(orjson.loads(answer.content))

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            return
        if answer.status_code == _GONE:
            self._version = "0"
            raise _TooOld
        try:
            said = orjson.loads(answer.content).get("message")
        except (orjson.JSONDecodeError, AttributeError):
            said = None
        hint = ""
        if answer.status_code == 403:
            what = "get, list and watch of pods" if answer.request.url.path.endswith("/pods") else "get of what chooses"
            hint = f" (a Role in {self._api.namespace} has to allow {what} to the gateway's account)"
        raise _Refused(f"{self._api.url} says {answer.status_code}: {said or answer.reason_phrase}{hint}")

    def _say(self, trouble: str | None) -> None:
        """Once for each change."""
        if trouble == self.trouble:
            return
        if trouble is not None:
            log.warning("kubernetes: %s", trouble)
        else:
            log.info("kubernetes: the API server tells its pods again")
        self.trouble = trouble


def _flat(pods: dict[str, dict[str, FoundPod]]) -> dict[str, FoundPod]:
    return {uid: found for servers in pods.values() for uid, found in servers.items()}


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    """Lines of a stream, bounded."""
    rest = b""
    async for piece in answer.aiter_bytes():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if line.strip():
                yield line
        if len(rest) > _LINE_BYTES_MAX:
            raise ValueError("a line of the watch is too long")
    if rest.strip():
        yield rest
