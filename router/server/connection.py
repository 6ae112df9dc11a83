"""One connection of a client: requests are read one after the other, and answered in their order."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from typing import Any, Protocol, cast

import httptools
from uvicorn.server import ServerState

from router.errors import unraised
from router.server.asgi import PUSH, RELEASE, App
from router.server.exchange import Exchange
from router.server.heads import Refused, Target, check_fields, parse_target, tokens, without_upgrade
from router.server.limits import ServingLimits

_ASGI = {"version": "3.0", "spec_version": "2.4"}
_RESET = struct.pack("ii", 1, 0)  # do not linger
_REMEMBERED_BYTES_MAX = 128  # of a target that is parsed once, not for each request
_TRAILERS: dict[str, Any] = {}


class Owner(Protocol):
    """Who holds the connections; nothing here blocks."""

    limits: ServingLimits
    leaving: bool
    """Every response says that its connection closes."""
    stopping: bool
    """A connection closes when nothing of a request has come, whatever its last response said."""

    def admit(self, connection: ClientConnection, client: str | None) -> Refused | None:
        """Take a new connection into account; the reason why it should not stay, if there is one."""

    def lost(self, connection: ClientConnection, client: str | None) -> None:
        """The connection is no more. Called once."""

    def hold(self, size: int) -> None:
        """So many more bytes of bodies (or less) are in memory; raises `Refused` when there are too many."""

    def refused(self, refusal: Refused) -> None:
        """A request, or the connection, was refused."""


class ClientConnection(asyncio.Protocol):
    """One connection of a client: requests are read one after the other, and answered in their order."""

    __slots__ = (
        "_active",
        "_app",
        "_app_state",
        "_client",
        "_deaf",
        "_headers",
        "_last_target",
        "_limits",
        "_lingering",
        "_loop",
        "_overhead_bytes",
        "_owner",
        "_parsed_target",
        "_parser",
        "_plain_head",
        "_reading",
        "_reading_paused",
        "_refusal",
        "_requests",
        "_server",
        "_since",
        "_state",
        "_target",
        "_tls",
        "_unsent_bytes",
        "_waiting",
        "_writable",
        "transport",
        "write_paused",
    )

    def __init__(
        self,
        owner: Owner,
        app: App,
        state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._owner = owner
        self._limits = owner.limits
        self._app = app
        self._state = state
        self._app_state = app_state
        self._loop = loop
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport | None = None
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int | None] | None = None
        self._tls = False
        # the request that is being read
        self._target = b""
        self._last_target = b""  # most clients ask for one thing again and again
        self._parsed_target = Target("", b"", b"")
        self._headers: list[tuple[bytes, bytes]] = []
        self._overhead_bytes = 0  # that were fed since a head or a piece of a body was complete
        self._plain_head = b""  # of a request that asks for another protocol: to be read again without
        self._reading: Exchange | None = None  # its body is not complete
        self._reading_paused = False
        # the requests that are being answered
        self._active: Exchange | None = None
        self._waiting: deque[tuple[Exchange, dict[str, Any]]] | None = None
        self._refusal: Refused | None = None  # to be said when all before it is answered
        self._requests = 0
        self._deaf = False  # what comes now is no request
        self._lingering = False
        self._since = 0.0  # idle, or a head has begun, or a body has moved, or lingering: as the state is
        self._unsent_bytes = 0
        self._writable: asyncio.Future[None] | None = None
        self.write_paused = False

    def __repr__(self) -> str:
        state = "lost" if self.transport is None else "lingering" if self._lingering else None
        state = state or ("busy" if self._active else "reading" if self._overhead_bytes else "idle")
        return f"<ClientConnection {state} requests={self._requests} waiting={len(self._waiting or ())}>"

    # What uvicorn calls

    def shutdown(self) -> None:
        """The server leaves: answer what has begun to come, and nothing after it."""
        self._owner.leaving = self._owner.stopping = True
        if self.transport is not None and (self._idle() or self._lingering):
            self.transport.close()

    # What the sweeper calls

    def check(self, now: float) -> None:
        """A look at the clock: end what is over a limit."""
        if self._active is not None and self._reading is None and not self._overhead_bytes and not self.write_paused:
            return  # it is the application's turn: of many connections most are here, or idle
        transport, limits = self.transport, self._limits
        if transport is None:
            return
        waited_s = now - self._since
        if self.write_paused or transport.is_closing():
            self._check_unsent(transport, now)
        elif self._lingering:
            if waited_s > limits.linger_s:
                transport.abort()
        elif self._reading_paused:  # it is the application who is slow
            if self._reading is not None:
                self._reading.started_at += waited_s
            self._since = now
        elif self._reading is not None:
            age_s = now - self._reading.started_at
            slow = age_s > limits.body_timeout_s and self._reading.size < age_s * limits.body_rate_min
            if slow or waited_s > limits.body_timeout_s:
                self._refuse(Refused(408, "The request's body comes too slowly."))
        elif self._overhead_bytes:
            if waited_s > limits.header_timeout_s and not self._deaf:
                self._refuse(Refused(408, "The request's head comes too slowly."))
        elif self._active is None and waited_s > limits.keep_alive_s:
            transport.close()

    def _check_unsent(self, transport: asyncio.Transport, now: float) -> None:
        unsent_bytes = transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self._since = now
        elif now - self._since > self._limits.send_timeout_s:
            transport.abort()

    def _idle(self) -> bool:
        return self._active is None and self._reading is None and not self._overhead_bytes

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass. Both loops set TCP_NODELAY themselves.
        self.transport = cast(asyncio.Transport, transport)
        self._tls = transport.get_extra_info("sslcontext") is not None
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if isinstance(peer, tuple):
            self._client = (peer[0], peer[1])
        self._server = (own[0], own[1]) if isinstance(own, tuple) else (own, None) if own else None
        self._since = time.monotonic()
        self._state.connections.add(self)  # type: ignore[arg-type]
        refusal = self._owner.admit(self, self._client and self._client[0])
        if refusal is not None:
            self._refuse(refusal)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        parser = self._parser
        assert parser is not None
        self._overhead_bytes += len(data)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._read_plainly(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            refusal = self._refusal
            if refusal is not None:
                unraised(refusal)  # where it was raised, we are
            if not self._deaf:  # else it came after the last request
                self._refuse(refusal or Refused(400, f"This is not HTTP/1.1: {error}."))
            return
        if self._reading is not None or self._overhead_bytes:
            self._moved(len(data))

    def _moved(self, size: int) -> None:
        """Bytes came, and more must: take the time, and bound what is neither head nor body."""
        if self._deaf:
            self._overhead_bytes = 0
            return
        overhead_bytes = self._overhead_bytes
        if self._reading is not None:
            self._since = time.monotonic()
            self._reading.started_at = self._reading.started_at or self._since
        elif overhead_bytes == size:  # a head has begun
            self._since = time.monotonic()
        if overhead_bytes > self._limits.header_bytes_max:
            self._refuse(self._limits.overhead(self._target, self._reading is not None))

    def eof_received(self) -> None:
        """Half closed is closed: a client that can't ask any more is taken to have left."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._owner.lost(self, self._client and self._client[0])
        self._deaf = True
        self.transport = self._parser = self._reading = None
        self.resume_writing()
        active, self._active = self._active, None
        if active is not None:
            active.lost()
        while self._waiting:
            self._drop(self._waiting.pop()[0])

    def pause_writing(self) -> None:
        self.write_paused = True
        self._unsent_bytes = 0

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # What httptools calls

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value.rstrip()))  # llhttp takes whitespace off before a value only

    def on_headers_complete(self) -> None:
        parser, limits = self._parser, self._limits
        assert parser is not None
        headers, self._headers = self._headers, []
        target, self._target = self._target, b""
        method, version = parser.get_method().decode(), parser.get_http_version()
        try:
            if self._deaf:
                raise Refused(400, "The connection is closing.")
            limits.check_head(target, headers, self._overhead_bytes)
            names = dict(headers)
            if parser.should_upgrade():
                if method == "CONNECT":
                    raise Refused(405, "This is no forward proxy.")
                if method == "GET" and b"websocket" in tokens(names.get(b"upgrade", b"")):
                    raise Refused(501, "WebSocket connections are not relayed here: send requests over plain HTTP.")
                self._plain_head = without_upgrade(method, target, version, headers)
                return
            check_fields(version, headers, names)
            if target == self._last_target:
                path, raw_path, query, authority = self._parsed_target
            else:
                path, raw_path, query, authority = self._parse_target(method, target)
            length = names.get(b"content-length")
            if length is not None:
                limits.check_body(int(length))
        except Refused as refusal:
            self._refusal = refusal
            raise  # stops the C parser; `data_received` says the refusal
        if authority is not None:
            headers = [(b"host", authority), *[field for field in headers if field[0] != b"host"]]
        self._overhead_bytes = 0
        self._requests += 1
        modern = version == "1.1"
        keep_alive = modern and parser.should_keep_alive() and self._requests != limits.requests_per_connection_max
        exchange = self._reading = Exchange(self, method, modern, keep_alive, b"expect" in names)
        self._begin(
            exchange,
            {
                "type": "http",
                "asgi": _ASGI,
                "http_version": version,
                "method": method,
                "scheme": "https" if self._tls else "http",
                "path": path,
                "raw_path": raw_path,
                "query_string": query,
                "root_path": "",
                "headers": headers,
                "client": self._client,
                "server": self._server,
                "state": self._app_state.copy(),
                "extensions": {"http.response.trailers": _TRAILERS, PUSH: exchange.push, RELEASE: exchange.release},
            },
        )

    def on_body(self, data: bytes) -> None:
        exchange = self._reading
        if exchange is None:  # of a request that asked for another protocol
            return
        self._overhead_bytes = 0
        exchange.size += len(data)
        try:
            self._limits.check_body(exchange.size)
            if not exchange.complete:
                self._owner.hold(len(data))
        except Refused as refusal:
            self._refusal = refusal
            raise
        exchange.arrived(data)
        if exchange.unread > self._limits.unread_bytes_max and not self._reading_paused:
            assert self.transport is not None
            self._reading_paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        exchange, self._reading = self._reading, None
        if exchange is None:
            return
        self._overhead_bytes = 0
        if self._headers:  # trailers: nobody asks for them
            self._headers = []
        if not exchange.keep_alive:
            self._deaf = True
        exchange.arrived_whole()
        if exchange.complete:
            self._rest()

    # What is done

    def _parse_target(self, method: str, target: bytes) -> Target:
        parsed = parse_target(method, target)
        if target.startswith(b"/") and len(target) <= _REMEMBERED_BYTES_MAX:
            self._last_target, self._parsed_target = target, parsed
        return parsed

    def _read_plainly(self, rest: bytes) -> None:
        """The request asked for another protocol: read it again as one that did not."""
        head, self._plain_head = self._plain_head, b""
        self._overhead_bytes = 0
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(head + rest)

    def _begin(self, exchange: Exchange, scope: dict[str, Any]) -> None:
        if self._active is None:
            self._start(exchange, scope)
            return
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append((exchange, scope))
        if len(self._waiting) >= self._limits.pipelined_max:
            exchange.keep_alive = False  # the client asks again for what it sends after this

    def _start(self, exchange: Exchange, scope: dict[str, Any]) -> None:
        self._active = exchange
        exchange.task = self._loop.create_task(exchange.run(self._app, scope))
        self._state.tasks.add(exchange.task)

    def _refuse(self, refusal: Refused) -> None:
        """No request is read from here on: what is being read can't be trusted."""
        self._owner.refused(refusal)
        self._deaf = True
        reading, self._reading = self._reading, None
        active = self._active
        if reading is not None and reading is not active:
            if reading.complete:  # it has its response: this would be a second one
                self._linger()
                return
            assert self._waiting is not None
            self._drop(self._waiting.pop()[0])
        if active is None:
            self._say(refusal)
        elif active is not reading:
            self._refusal = refusal
        else:
            self._active = None
            active.lost()
            if active.begun:
                self._abort()
            else:
                self._say(refusal)

    def _say(self, refusal: Refused) -> None:
        if self.transport is not None:
            self.transport.write(refusal.response())
            self._linger()

    def _linger(self) -> None:
        """Say that nothing more is said, and close when the client does: at once, it could lose what was said last."""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._deaf = self._lingering = True
        self._since = time.monotonic()
        self.taken()
        if transport.can_write_eof():
            transport.write_eof()

    def _abort(self) -> None:
        """Cut with a reset: the end of a connection could be taken for the end of a response."""
        if self.transport is not None:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()

    def _drop(self, exchange: Exchange) -> None:
        """It never was begun."""
        exchange.lost()
        self._owner.hold(-exchange.held)

    def _rest(self) -> None:
        """A request is over: what now?"""
        if self._waiting:
            self._start(*self._waiting.popleft())
        elif self._refusal is not None:
            self._say(self._refusal)
        elif not self._overhead_bytes:
            self._since = time.monotonic()
            if self._owner.stopping and self.transport is not None:
                self.transport.close()

    # What an exchange calls

    async def writable(self) -> None:
        """Wait until the client has taken what was written, or has left."""
        while self.write_paused:
            if self._writable is None or self._writable.done():
                self._writable = self._loop.create_future()
            await self._writable

    def taken(self) -> None:
        """The application has taken the body's bytes that had come."""
        if self._reading_paused and self.transport is not None:
            self._reading_paused = False
            self.transport.resume_reading()

    def released(self, size: int) -> None:
        """So many bytes of a body are not in memory any more."""
        self._owner.hold(-size)

    def leaving(self) -> bool:
        """Whether the connection should not be used for another request."""
        return self._owner.leaving

    def answered(self, exchange: Exchange) -> None:
        """The response is complete."""
        self._state.total_requests += 1
        self._active = None
        if self._reading_paused:
            self.taken()
        if not exchange.keep_alive:
            self._deaf = True
            if exchange.whole:
                assert self.transport is not None
                self.transport.close()
            else:
                self._linger()
        elif exchange.whole:
            self._rest()

    def ended(self, exchange: Exchange) -> None:
        """The application has returned, or failed; the response may be incomplete."""
        if exchange.task is not None:
            self._state.tasks.discard(exchange.task)
            exchange.task = None
        if exchange.held:
            self._owner.hold(-exchange.held)
        if exchange.complete or exchange.gone:
            return
        exchange.lost()
        self._deaf = True
        self._active = None
        if not exchange.begun:
            self._say(Refused(500, "The gateway has failed to answer this request."))
        elif exchange.delimited and self.transport is not None:
            self.transport.close()
        else:
            self._abort()
