"""Pods from a name: one for each address or SRV record that it has, looked up again as records' times to live say."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator, Iterable
from typing import NamedTuple

from dns.asyncresolver import Resolver
from dns.exception import DNSException
from dns.rdatatype import AAAA, SRV, A, RdataType
from dns.resolver import NXDOMAIN, Answer, LifetimeTimeout, NoAnswer, NoNameservers

from router.config.fleet import DnsConfig, nameserver_of
from router.discovery.found import Change, FoundPod, difference, pod_at

log = logging.getLogger("warmroute.discovery")

_SOONEST_S = 0.5  # after a look: records that may not be kept at all are not asked for without a pause
_TARGETS_AT_ONCE = 16


class Look(NamedTuple):
    """What a name stands for: (address, port) of each server with the name of its host; good for `ttl_s`."""

    servers: dict[tuple[str, int], str]
    ttl_s: float


class DnsSource:
    """See the module. A name that can't be looked up leaves the pods as they were; one without addresses has none."""

    def __init__(self, given: DnsConfig) -> None:
        self.name = "dns"
        self.synced = False
        self.trouble: str | None = None
        self._given = given
        self._resolver = _resolver(given)
        self._room = asyncio.Semaphore(_TARGETS_AT_ONCE)

    async def changes(self) -> AsyncGenerator[list[Change]]:
        known: dict[str, FoundPod] = {}
        first = True
        while True:
            look = await self._look()
            if look is not None or first:
                now = self._pods(look.servers) if look is not None else {}
                changes = difference(known, now)
                if changes or first:
                    yield changes
                known, first = now, False
            ttl_s = look.ttl_s if look is not None else self._given.interval
            await asyncio.sleep(min(self._given.interval, max(ttl_s, _SOONEST_S)))

    async def _look(self) -> Look | None:
        try:
            look = await (self._services() if self._given.name.startswith("_") else self._hosts(self._given.name))
        except (OSError, DNSException) as error:
            self.synced = False
            self._say(f"{self._given.name}: {_why(error)}; pods stay as they were")
            return None
        self.synced = True
        self._say(None if look.servers else f"{self._given.name} has no addresses: waiting for one")
        return look

    async def _services(self) -> Look:
        """By SRV records: their targets' first addresses, with their ports."""
        answer = await self._ask(self._given.name, SRV)
        records = sorted({(str(each.target).rstrip("."), int(each.port)) for each in answer or ()})
        hosts = sorted({target for target, _ in records})
        looks = dict(zip(hosts, await asyncio.gather(*(self._hosts(host) for host in hosts)), strict=True))
        servers: dict[tuple[str, int], str] = {}
        for target, port in records:
            addresses = sorted(address for address, _ in looks[target].servers)
            if addresses:
                servers[addresses[0], port] = target.partition(".")[0]
        return Look(servers, min([_ttl(answer), *(look.ttl_s for look in looks.values())]))

    async def _hosts(self, name: str) -> Look:
        """By A and AAAA records; a name that only the hosts file knows by that."""
        async with self._room:
            answers = [await self._ask(name, kind) for kind in (A, AAAA)]
        found = {str(each.address) for answer in answers if answer is not None for each in answer}
        if not found and self._given.nameserver is None:
            found = await _known_here(name)
        return Look({(address, self._given.port): "" for address in found}, min(map(_ttl, answers)))

    async def _ask(self, name: str, kind: RdataType) -> Answer | None:
        """The records; None: there are none of this kind. Raises DNSException."""
        try:
            return await self._resolver.resolve(name, kind, lifetime=self._given.timeout, search=True)
        except (NXDOMAIN, NoAnswer):
            return None

    def _pods(self, servers: dict[tuple[str, int], str]) -> dict[str, FoundPod]:
        given, found, before = self._given, {}, dict[str, int]()
        for (address, port), host in sorted(servers.items()):
            place = before.get(address, 0)  # further servers at one address have sockets behind those of the first
            before[address] = place + 1
            name = host or "ip-" + address.replace(":", "-").replace("%", "-")
            name = f"{name}-{port}" if place else name
            events, replay = (
                None if first is None else first + place for first in (given.events_port, given.replay_port)
            )
            uid = f"{address}/{port}"
            found[uid] = FoundPod(uid, pod_at(address, port, events, replay, name=name))
        return found

    def _say(self, trouble: str | None) -> None:
        """Once for each change."""
        if trouble != self.trouble and trouble is not None:
            log.warning("dns: %s", trouble)
        self.trouble = trouble


def _resolver(given: DnsConfig) -> Resolver:
    if given.nameserver is None:
        return Resolver()
    resolver = Resolver(configure=False)
    host, resolver.port = nameserver_of(given.nameserver)
    resolver.nameservers = [host]
    return resolver


def _why(error: Exception) -> str:
    """In words that stay the same from one look to the next."""
    if isinstance(error, LifetimeTimeout):
        return "no nameserver answers in time"
    if isinstance(error, NoNameservers):
        return "no nameserver can tell"
    return " ".join(str(error).split()) or type(error).__name__


def _ttl(answer: Answer | None) -> float:
    """Seconds for which an answer is good; one that is not there is no reason to ask sooner."""
    return float("inf") if answer is None or answer.rrset is None else float(answer.rrset.ttl)


async def _known_here(name: str) -> set[str]:
    try:
        told: Iterable[tuple[object, ...]] = await asyncio.get_running_loop().getaddrinfo(
            name, 0, type=socket.SOCK_STREAM
        )
    except OSError:
        return set()
    return {str(each[4][0]) for each in told}  # type: ignore[index]
