"""Pods from a name: one for each address that it has, looked up again and again."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator

from router.config.fleet import DnsConfig, StaticPod
from router.discovery.found import Change, FoundPod, difference, pod_at

log = logging.getLogger("warmroute.discovery")


class DnsSource:
    """See the module. A name that can't be looked up leaves the pods as they were; one without addresses has none."""

    def __init__(self, given: DnsConfig) -> None:
        self.name = "dns"
        self.synced = False
        self._given = given
        self.trouble: str | None = None

    async def changes(self) -> AsyncGenerator[list[Change]]:
        known: dict[str, FoundPod] = {}
        first = True
        while True:
            now = await self._look()
            if now is not None or first:
                changes = difference(known, now or {})
                if changes or first:
                    yield changes
                known, first = now or {}, False
            await asyncio.sleep(self._given.interval)

    async def _look(self) -> dict[str, FoundPod] | None:
        given, loop = self._given, asyncio.get_running_loop()
        try:
            told = await loop.getaddrinfo(given.name, given.port, type=socket.SOCK_STREAM)
        except OSError as error:
            if error.strerror != self.trouble:
                log.warning("dns: %s: %s; pods stay as they were", given.name, error.strerror or error)
            self.trouble, self.synced = error.strerror, False
            return None
        self.trouble, self.synced = None, True
        return {host: FoundPod(host, self._pod(host)) for host in sorted({str(each[4][0]) for each in told})}

    def _pod(self, address: str) -> StaticPod:
        given = self._given
        name = "ip-" + address.replace(":", "-").replace("%", "-")
        return pod_at(address, given.port, given.events_port, given.replay_port, name=name)
