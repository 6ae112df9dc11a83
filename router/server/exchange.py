"""One request and its response, as an ASGI application sees them (ASGI 3, HTTP spec 2.4, with trailers)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from router.server.asgi import App, ClientDisconnected, Message
from router.server.heads import CONTINUE, response_head, tokens

log = logging.getLogger("warmroute")

_START, _BODY, _TRAILERS, _DONE = range(4)  # what the application says next
_COPIED_BYTES_MAX = 64 * 1024  # a larger piece goes out beside its framing, not copied into one
_BODYLESS_STATUSES = (204, 304)


class Carrier(Protocol):
    """The connection that carries an exchange; nothing here blocks."""

    transport: asyncio.Transport | None
    write_paused: bool

    async def writable(self) -> None:
        """Wait until the client has taken what was written, or has left."""

    def taken(self) -> None:
        """The application has taken the body's bytes that had come."""

    def released(self, size: int) -> None:
        """So many bytes of a body are not in memory any more."""

    def leaving(self) -> bool:
        """Whether the connection should not be used for another request."""

    def answered(self, exchange: Exchange) -> None:
        """The response is complete."""

    def ended(self, exchange: Exchange) -> None:
        """The application has returned, or failed; the response may be incomplete."""


class Exchange:
    """`receive` and `send` of one request. Its connection calls the rest.

    `size`: bytes of the request's body so far, `held` those that are kept in memory for its sake, `unread` those that
    the application has not taken. `whole`: the request is complete; `complete`: so is the response. `begun`: a byte
    of the response is out. `gone`: nobody reads the response any more.
    """

    __slots__ = (
        "_carrier",
        "_chunked",
        "_chunks",
        "_delivered",
        "_expects",
        "_head",
        "_head_only",
        "_modern",
        "_remaining",
        "_says",
        "_trailers",
        "_waiters",
        "begun",
        "complete",
        "gone",
        "held",
        "keep_alive",
        "size",
        "started_at",
        "task",
        "unread",
        "whole",
    )

    def __init__(self, carrier: Carrier, method: str, modern: bool, keep_alive: bool, expects: bool) -> None:
        """`modern`: the client speaks HTTP/1.1; `expects`: it waits for 100 before it sends its body."""
        self._carrier = carrier
        self._head_only = method == "HEAD"
        self._modern = modern
        self._expects = expects and modern
        self.keep_alive = keep_alive
        self._chunks: list[bytes] = []
        self._waiters: list[asyncio.Future[None]] | None = None
        self._delivered = False  # the application has seen the end of the body
        self._says = _START
        self._head = b""
        self._chunked = False
        self._remaining: int | None = None  # bytes of the response's body still to come, if its length is known
        self._trailers: list[bytes] | None = None
        self.size = self.held = self.unread = 0
        self.started_at = 0.0
        self.whole = self.complete = self.begun = self.gone = False
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "gone" if self.gone else "complete" if self.complete else "begun" if self.begun else "open"
        return f"<Exchange {state} size={self.size}{' whole' if self.whole else ''}>"

    async def run(self, app: App, scope: Message) -> None:
        """The application's task."""
        try:
            await app(scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except Exception:
            log.exception("the application failed")
        finally:
            self._carrier.ended(self)

    # What the application calls

    async def receive(self) -> Message:
        """The next piece of the body; after it, wait until the client leaves or the response is complete."""
        while not self.gone and not self.complete:
            if not self._delivered and (self._chunks or self.whole):
                return self._take()
            if self._expects and not self._delivered:
                self._expects = False
                if not self.begun:
                    self._transport().write(CONTINUE)
            await self._change()
        return {"type": "http.disconnect"}

    def _take(self) -> Message:
        chunks = self._chunks
        body = b"".join(chunks)
        if chunks:
            self._chunks = []
            self.unread = 0
            self._carrier.taken()
        self._delivered = self.whole
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append(waiter)
        await waiter

    async def send(self, message: Message) -> None:
        """Say the next part of the response. Raises `ClientDisconnected`, or `RuntimeError` if it is out of turn."""
        if self._carrier.write_paused:
            await self._carrier.writable()
        if self.gone:
            raise ClientDisconnected("the client has left")
        kind, says = message["type"], self._says
        if says == _BODY and kind == "http.response.body":
            self._body(message.get("body", b""), message.get("more_body", False))
        elif says == _START and kind == "http.response.start":
            self._start(message["status"], message.get("headers", ()), message.get("trailers", False))
        elif says == _TRAILERS and kind == "http.response.trailers":
            self._trail(message.get("headers", ()), message.get("more_trailers", False))
        else:
            raise RuntimeError(f"{kind} is out of turn")

    def push(self, take: Callable[[], bytes]) -> bytes | None:
        """Say what `take` gives as a further piece of the body, as `send` would, but at once.

        Returns the piece; None where `send` has to be awaited, and then nothing was taken.
        """
        if self._carrier.write_paused or self.gone or self._says != _BODY:
            return None
        piece = take()
        self._body(piece, True)
        return piece

    def release(self, size: int) -> None:
        """The application does not keep so many of the body's bytes any more; without this it is taken to keep all
        until it returns.
        """
        self.held -= size
        self._carrier.released(size)

    def _start(self, status: int, fields: Any, trailers: bool) -> None:
        """Keep the head until the first piece of the body, as ASGI says: mostly both go out as one."""
        names = dict(fields)
        bodyless = self._head_only or status in _BODYLESS_STATUSES
        if b"transfer-encoding" in names or (status == 204 and b"content-length" in names):
            fields = [field for field in fields if field[0] not in (b"transfer-encoding", b"content-length")]
            names.pop(b"content-length", None)
        length = names.get(b"content-length")
        said = names.get(b"connection")
        if said is not None:
            fields = [field for field in fields if field[0] != b"connection"]
        unread = self._expects and not self.whole  # whether the body still comes, only the client knows
        if unread or self._carrier.leaving() or (said is not None and b"close" in tokens(said)):
            self.keep_alive = False
        ours = []
        if bodyless:
            self._remaining = 0
        elif length is not None:
            self._remaining = int(length)
        elif self._modern:
            self._chunked = True
            ours.append(b"transfer-encoding: chunked\r\n")
        else:
            self.keep_alive = False
        if not self.keep_alive:
            ours.append(b"connection: close\r\n")
        self._head_only = bodyless
        self._head = response_head(status, fields, ours)
        self._trailers = [] if trailers else None
        self._says = _BODY

    def _body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            self._write_chunk(body, more)
        elif self._head_only:
            self._write(b"", b"")
        elif self._remaining is None:
            self._write(b"", body)
        else:
            self._remaining -= len(body)
            if self._remaining < 0 or (self._remaining and not more):
                raise RuntimeError(f"the body is not as long as its Content-Length: by {self._remaining} bytes")
            self._write(b"", body)
        if more:
            return
        if self._trailers is None:
            self._finish()
        else:
            self._says = _TRAILERS

    def _write_chunk(self, body: bytes, more: bool) -> None:
        last = b"" if more or self._trailers is not None else b"0\r\n\r\n"
        size = len(body)
        if not size:
            self._write(b"", last)
        elif size <= _COPIED_BYTES_MAX:
            self._write(b"", b"%x\r\n%b\r\n%b" % (size, body, last))
        else:
            self._write(b"%x\r\n" % size, body)
            self._write(b"", b"\r\n" + last)

    def _write(self, framing: bytes, data: bytes) -> None:
        transport = self._transport()
        before, self._head = self._head + framing, b""
        self.begun = True
        if not before:
            if data:
                transport.write(data)
        elif len(data) <= _COPIED_BYTES_MAX:
            transport.write(before + data)
        else:
            transport.writelines((before, data))

    def _transport(self) -> asyncio.Transport:
        transport = self._carrier.transport
        assert transport is not None, "gone is known in time"
        return transport

    def _trail(self, fields: Any, more: bool) -> None:
        assert self._trailers is not None
        self._trailers += [b"%b: %b\r\n" % (name, value) for name, value in fields]
        if more:
            return
        lines = b"".join(self._trailers)
        if not lines.count(b"\n") == lines.count(b"\r") == len(self._trailers) or b"\0" in lines:
            raise ValueError("a trailer holds a line break or a zero byte")
        if self._chunked:
            self._write(b"", b"0\r\n%b\r\n" % lines)
        self._finish()

    def _finish(self) -> None:
        self._says = _DONE
        self.complete = True
        if self._chunks:
            self._chunks = []
            self.unread = 0
        if self._waiters is not None:
            self._wake()
        self._carrier.answered(self)

    # What the connection calls

    def arrived(self, data: bytes) -> None:
        """A piece of the request's body; nobody wants it once the response is complete."""
        if not self.complete:
            self._expects = False
            self._chunks.append(data)
            self.unread += len(data)
            self.held += len(data)
            if self._waiters is not None:
                self._wake()

    def arrived_whole(self) -> None:
        """The request is complete."""
        self.whole = True
        if self._waiters is not None:
            self._wake()

    def lost(self) -> None:
        """Nobody reads the response any more."""
        self.gone = True
        if self._waiters is not None:
            self._wake()

    @property
    def delimited(self) -> bool:
        """Whether the client can see that a response is cut, from its framing."""
        return self._chunked or self._remaining is not None

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)
