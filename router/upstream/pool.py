"""HTTP/1.1 to one pod: a bounded pool of connections, used last in, first out."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from router.server.asgi import Headers
from router.upstream.connection import Connection, Response, UpstreamLimits
from router.upstream.failures import ConnectFailed, ConnectTimeout, PoolFull, StaleConnection
from router.upstream.pod_keys import PodKey
from router.upstream.replies import NOT_FORWARDED, request_head

__all__ = ["Address", "Response", "Tls", "Upstream", "UpstreamLimits"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a pod listens: `host` and `port`, or `path` of a Unix socket; `authority` is what Host says."""

    authority: bytes
    tls: bool = False
    host: str = ""
    port: int = 0
    path: str = ""

    @staticmethod
    def parse(text: str) -> Address:
        """`http://host:port`, `https://host`, `host:port`, `[::1]:8000`, `unix:/path`. Raises `ValueError`."""
        if text.startswith("unix:"):
            path = text.removeprefix("unix:").removeprefix("//")  # unix:///path, as URLs are written
            if not path.startswith("/"):
                raise ValueError(f"not an absolute path: {text}")
            return Address(authority=b"localhost", path=path)
        url = urlsplit(text if "://" in text else f"http://{text}")
        if url.scheme not in _DEFAULT_PORTS or not url.hostname:
            raise ValueError(f"not an http(s) address: {text}")
        if url.path not in ("", "/") or url.query or url.fragment or url.username is not None:
            raise ValueError(f"an address has a host and a port, nothing more: {text}")
        port = url.port or _DEFAULT_PORTS[url.scheme]
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        authority = host if port == _DEFAULT_PORTS[url.scheme] else f"{host}:{port}"
        return Address(authority.encode("ascii"), url.scheme == "https", url.hostname, port)


class Tls(NamedTuple):
    """How an `https://` pod is spoken to."""

    context: Callable[[], ssl.SSLContext]  # asked for each connection
    server_name: str | None = None  # in its certificate, where that is not the host of its address
    verified: bool = True  # its certificate is checked


class Upstream:
    """One pod as a place to send requests to. Belongs to the loop on which it is first used."""

    def __init__(self, address: str, limits: UpstreamLimits, tls: Tls | None = None, key: PodKey | None = None) -> None:
        """`tls`: must be given for an `https://` address."""
        self.address = Address.parse(address)
        self.limits = limits
        if self.address.tls and tls is None:
            raise ValueError(f"{address} needs to be told whom to trust")
        self._tls = tls
        self._key = key
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # oldest first
        self._connecting = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._all_lost: asyncio.Event | None = None  # set: closed
        self._retired = False
        self.stale_retries = 0

    def __repr__(self) -> str:
        where = self.address.path or self.address.authority.decode()
        return f"<Upstream {where} connections={len(self._connections)} idle={len(self._idle)}>"

    @property
    def connections(self) -> int:
        """How many connections are open, busy and idle."""
        return len(self._connections)

    @property
    def idle(self) -> int:
        """How many connections are open and free."""
        return len(self._idle)

    def own_key(self) -> Sequence[tuple[bytes, bytes]]:
        """The headers that show the pod the key that it asks for; none where it asks for none."""
        return self._key.headers() if self._key is not None else ()

    async def request(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        body: bytes = b"",
        ours: Sequence[tuple[bytes, bytes]] = (),
        dropped: frozenset[bytes] = NOT_FORWARDED,
        fresh: bool = False,
    ) -> Response:
        """Send, and wait for the response's head (a small body comes with it). The caller closes the response.

        `target` is a path with its query; of `headers` those that are `dropped` are left out, and `ours` go in place of
        those of their names. A reused connection that dies before the first byte is tried once more on a fresh one; one
        that the pod is to have once at most goes out on a `fresh` one: a kept one that dies leaves open why.
        Raises `UpstreamError`, or `UnsendableRequest` before anything is sent.
        """
        head = request_head(method, target, self.address.authority, headers, len(body), ours, dropped)
        if fresh:
            return await self._exchange(await self._connect_fresh(), method, head, body)
        connection = self._reusable()
        if connection is not None:
            try:
                return await self._exchange(connection, method, head, body)
            except StaleConnection:
                self.stale_retries += 1
                return await self._exchange(await self._connect_again(), method, head, body)
        return await self._exchange(await self._connect(), method, head, body)

    async def begin(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        beginning: bytes,
        length: int | None,
        ours: Sequence[tuple[bytes, bytes]] = (),
        dropped: frozenset[bytes] = NOT_FORWARDED,
    ) -> Response:
        """Send a request with the `beginning` of its body; the caller writes the rest, awaits `ready`, and closes.

        `length`: of the whole body; None where it comes as chunks. What was written can't be sent again, so this does
        not take a connection that may be closing just now. Raises as `request`.
        """
        head = request_head(method, target, self.address.authority, headers, length, ours, dropped)
        return (await self._connect_fresh()).start(method, head, beginning, whole=False)

    def retire(self) -> None:
        """Nothing new comes: close what is free now, and the rest as it ends."""
        self._retired = True
        while self._idle:
            self._idle.popitem()[0].abort()

    async def aclose(self) -> None:
        """Close all connections, also those in use, and wait until they are gone. For good."""
        if self._all_lost is None:
            self._all_lost = asyncio.Event()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in tuple(self._connections):
            connection.abort()
        if self._connections:
            await self._all_lost.wait()

    async def _exchange(self, connection: Connection, method: str, head: bytes, body: bytes) -> Response:
        response = connection.start(method, head, body)
        try:
            await response.ready()
        except BaseException:
            response.close()
            raise
        return response

    def _reusable(self) -> Connection | None:
        """The connection that was freed last, unless the pod may be about to close it."""
        oldest = time.monotonic() - self.limits.keep_idle_s
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.idle_since > oldest and not connection.lost:
                return connection
            connection.abort()
        return None

    async def _connect_fresh(self) -> Connection:
        """A new connection, for which one that is free makes room where there must be."""
        if len(self._connections) + self._connecting >= self.limits.connections_max and self._idle:
            oldest = next(iter(self._idle))
            oldest.abort()
            self.lost(oldest)
        return await self._connect()

    async def _connect_again(self) -> Connection:
        """A new connection to a pod that has just lost one: if it can't be reached, it may have died of the request."""
        try:
            return await self._connect()
        except ConnectFailed as failure:
            failure.breaks = StaleConnection.breaks
            raise

    async def _connect(self) -> Connection:
        limits = self.limits
        if self._all_lost is not None:
            raise ConnectFailed(f"{self!r} is closed")
        if len(self._connections) + self._connecting >= limits.connections_max:
            raise PoolFull(f"all {limits.connections_max} connections are in use")
        self._connecting += 1
        try:
            async with asyncio.timeout(limits.connect_timeout_s):
                connection = await self._open(asyncio.get_running_loop())
        except TimeoutError as late:
            raise ConnectTimeout(f"no connection within {limits.connect_timeout_s:g} s") from late
        except OSError as error:  # ssl.SSLError is one too
            raise ConnectFailed(f"no connection: {error}") from error
        finally:
            self._connecting -= 1
        return self._admit(connection)

    async def _open(self, loop: asyncio.AbstractEventLoop) -> Connection:
        address = self.address
        connection = Connection(self, self.limits, loop)
        try:
            if address.path:
                await loop.create_unix_connection(lambda: connection, address.path)
            else:
                await loop.create_connection(lambda: connection, address.host, address.port, **self._secured())
        except BaseException:
            connection.drop()
            raise
        return connection

    def _secured(self) -> dict[str, Any]:
        """What `create_connection` needs to know for TLS."""
        if self._tls is None or not self.address.tls:
            return {}
        return {"ssl": self._tls.context(), "server_hostname": self._tls.server_name or self.address.host}

    def _admit(self, connection: Connection) -> Connection:
        if connection.lost:
            connection.abort()
            raise ConnectFailed("the pod closed the connection as soon as it was made")
        if self._all_lost is not None:
            connection.abort()
            raise ConnectFailed(f"{self!r} is closed")
        self._connections.add(connection)
        self._sweep_later()
        return connection

    def _sweep_later(self) -> None:
        if self._sweeper is None:
            loop = asyncio.get_running_loop()
            self._sweeper = loop.call_later(self.limits.sweep_interval_s, self._sweep)

    def _sweep(self) -> None:
        """One timer for all connections, while there are any."""
        self._sweeper = None
        now = time.monotonic()
        for connection in tuple(self._connections):
            connection.check(now)
        for connection in tuple(self._idle):
            if now - connection.idle_since < self.limits.keep_idle_s:
                break  # the rest was freed later
            del self._idle[connection]
            connection.abort()
        if self._connections:
            self._sweep_later()

    # What a connection calls

    def released(self, connection: Connection) -> None:
        """Free for another exchange: keep it, if there is room."""
        if len(self._idle) >= self.limits.idle_max or self._retired or self._all_lost is not None:
            connection.abort()
            return
        connection.idle_since = time.monotonic()
        self._idle[connection] = None

    def lost(self, connection: Connection) -> None:
        """Gone: forget it."""
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        if self._all_lost is not None and not self._connections:
            self._all_lost.set()
