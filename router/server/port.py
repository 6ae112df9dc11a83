"""Our HTTP/1.1 server for uvicorn: all connections of clients, and the limits that they are held to.

uvicorn keeps the process, its signals, sockets and lifespan; it takes a `Port` as `Config(http=front)`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from router.server.connection import ClientConnection
from router.server.heads import Refused
from router.server.limits import ServingLimits

__all__ = ["Port", "ServingLimits"]

log = logging.getLogger("warmroute")

_LOOKED_AT = 500  # connections in one go of the sweeper: well under 1 ms


class Port:
    """All connections of one server: what they share, what they are counted for, and one sweeper for all."""

    def __init__(self, limits: ServingLimits, refused: Callable[[int], None] | None = None) -> None:
        """`refused` is told the status of each request that is refused here."""
        self.limits = limits
        self.leaving = False
        """Set it, and every response says that its connection closes."""
        self.stopping = False
        self.bodies_bytes = 0
        self._refused = refused
        self._connections: set[ClientConnection] = set()
        self._clients: Counter[str] = Counter()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    def __call__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> ClientConnection:
        """What uvicorn calls for each connection that it accepts."""
        self._loop = _loop or asyncio.get_running_loop()
        return ClientConnection(self, config.loaded_app, server_state, app_state, self._loop)

    def admit(self, connection: ClientConnection, client: str | None) -> Refused | None:
        """Take a new connection into account; the reason why it should not stay, if there is one."""
        limits = self.limits
        self._connections.add(connection)
        if client is not None:
            self._clients[client] += 1
        if self._sweeper is None:
            assert self._loop is not None
            self._sweeper = self._loop.call_later(limits.sweep_interval_s, self._sweep)
        if len(self._connections) > limits.connections_max:
            return Refused(503, "Too many connections are open.", retry_after_s=1)
        each = limits.connections_per_client_max
        if each is not None and client is not None and self._clients[client] > each:
            return Refused(429, "Too many connections are open from this address.", retry_after_s=1)
        return None

    def lost(self, connection: ClientConnection, client: str | None) -> None:
        """A connection is no more."""
        self._connections.discard(connection)
        if client is not None:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    def hold(self, size: int) -> None:
        """So many more bytes of bodies (or less) are in memory; raises `Refused` when there are too many."""
        self.bodies_bytes += size
        if self.bodies_bytes > self.limits.bodies_bytes_max and size > 0:
            self.bodies_bytes -= size
            raise Refused(503, "Too many bytes of requests are in flight.", retry_after_s=1)

    def refused(self, refusal: Refused) -> None:
        """A request was refused."""
        log.debug("refused with %d: %s", refusal.status, refusal.message)
        if self._refused is not None:
            self._refused(refusal.status)

    def _sweep(self) -> None:
        """One timer for all connections, while there are any."""
        self._sweeper = None
        if self._connections:
            self._look(iter(tuple(self._connections)))

    def _look(self, connections: Iterator[ClientConnection]) -> None:
        assert self._loop is not None
        now, seen = time.monotonic(), 0
        for connection in islice(connections, _LOOKED_AT):
            connection.check(now)
            seen += 1
        if seen == _LOOKED_AT:
            self._loop.call_soon(self._look, connections)
        else:
            self._sweeper = self._loop.call_later(self.limits.sweep_interval_s, self._sweep)
