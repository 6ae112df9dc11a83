"""One TCP (or Unix, or TLS) connection to a pod, and the response that it carries: the I/O around `http1`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, cast

from router.upstream.failures import BrokenResponse, ConnectFailed, ResponseTimeout, StaleConnection, UpstreamError
from router.upstream.replies import Reply, ReplyParser

if TYPE_CHECKING:
    from router.config.upstream import UpstreamConfig

# A head and a body up to this size go out as one piece; above it, copying costs more than a second one.
_JOINED_BYTES_MAX = 16 * 1024
_READ_BYTES = 64 * 1024
_SWEEP_S = 1.0  # between two looks at all connections of a pod, as at those of clients


@dataclass(frozen=True, slots=True)
class UpstreamLimits:
    """Every limit of one pod's connections. Times are as coarse as `sweep_interval_s`."""

    connect_timeout_s: float
    first_byte_timeout_s: float  # a request may queue and prefill for minutes
    idle_timeout_s: float  # between two pieces of a body
    total_timeout_s: float
    keep_idle_s: float  # vLLM's server closes an idle connection after 5 s
    idle_max: int
    connections_max: int
    head_bytes_max: int
    buffer_bytes_max: int  # of a body that nobody takes: reading pauses above it
    whole_bytes_max: int  # a body with a known length up to this comes whole with its head
    sweep_interval_s: float

    @classmethod
    def of(cls, upstream: UpstreamConfig) -> Self:
        """As configured."""
        shortest_s = min(upstream.first_byte_timeout, upstream.idle_timeout, upstream.total_timeout)
        return cls(
            connect_timeout_s=upstream.connect_timeout,
            first_byte_timeout_s=upstream.first_byte_timeout,
            idle_timeout_s=upstream.idle_timeout,
            total_timeout_s=upstream.total_timeout,
            keep_idle_s=upstream.keep_alive_idle,
            idle_max=upstream.idle_connections_max,
            connections_max=upstream.connections_max,
            head_bytes_max=upstream.response_header_max,
            buffer_bytes_max=upstream.response_buffer_max,
            whole_bytes_max=min(upstream.response_whole_max, upstream.response_buffer_max),
            sweep_interval_s=min(_SWEEP_S, shortest_s / 4),
        )

    def __post_init__(self) -> None:
        if self.whole_bytes_max > self.buffer_bytes_max:
            raise ValueError("whole_bytes_max is over buffer_bytes_max: such a body could never come whole")


class Keeper(Protocol):
    """Who holds the connections; both are called on the loop and must not block."""

    def released(self, connection: Connection) -> None:
        """The exchange ended cleanly; the connection is free for another."""

    def lost(self, connection: Connection) -> None:
        """The connection is no more. Called once."""


class Response(Reply):
    """A reply that is being received. `take` what has come and wait for `more`, or iterate; then `close`.

    Complete, failed or closed, it lets go of its connection in that moment, and can't touch it again.
    """

    __slots__ = ("_connection", "_error", "_loop", "_sink", "_waiter", "_whole_bytes_max")

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, whole_bytes_max: int) -> None:
        super().__init__()
        self._connection: Connection | None = connection
        self._loop = loop
        self._whole_bytes_max = whole_bytes_max
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._sink: Callable[[], bool] | None = None

    def __repr__(self) -> str:
        live = "open" if self._connection else "closed"
        state = "complete" if self.complete else "failed" if self._error else live
        return f"<Response {self.status} {state} buffered={self.buffered}>"

    async def ready(self) -> None:
        """Wait for the head; for a small body of known length too. Raises `UpstreamError`."""
        while not self.complete:
            if self.head_done and (self.length is None or self.length > self._whole_bytes_max):
                return
            await self._change()

    def take(self) -> bytes:
        """The body's bytes that have come since the last call, perhaps none."""
        chunks = self.chunks
        if not chunks:
            return b""
        self.chunks = []
        self.buffered = 0
        if self._connection is not None:
            self._connection.resume()
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def write(self, data: bytes, last: bool) -> None:
        """More of the request's body, for a pod that still listens; see `Connection.start`. `last`: that was all."""
        if self._connection is not None:
            self._connection.write(data, last)

    async def writable(self) -> None:
        """Wait until the pod has taken most of what was written, or takes no more at all."""
        while self._connection is not None and self._connection.write_paused:
            await self._connection.resumed()

    async def more(self, sink: Callable[[], bool] | None = None) -> None:
        """Wait until there is something to take. Raises `UpstreamError` when nothing will: failed, or closed.

        As long as `sink` takes what comes, and says so, there is nothing: so a task need not have its turn for it.
        """
        self._sink = sink
        try:
            while not self.chunks and not self.complete:
                await self._change()
        finally:
            self._sink = None

    async def _change(self) -> None:
        """Wait for the connection to wake us. Bytes that are here already are no change."""
        if self._error is not None:
            raise self._error
        if self._connection is None:
            raise BrokenResponse("the response was closed by its reader", before_first_byte=False)
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        await self.more()
        if not self.chunks:
            raise StopAsyncIteration
        return self.take()

    async def read(self, bytes_max: int) -> bytes:
        """The rest of the body, all of it; `BrokenResponse` where that is more than `bytes_max`."""
        parts, size = [], 0
        async for part in self:
            size += len(part)
            if size > bytes_max:
                raise BrokenResponse(f"the answer is over {bytes_max} bytes", before_first_byte=False)
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """Let go. An unfinished response takes its connection down with it. Any number of calls, no await.

        Of the error too: once raised, it refers to all that was on the stack, and so to us.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()
        self._sink = self._error = None
        self.wake()

    async def aclose(self) -> None:
        """`close`, for those who expect to await it."""
        self.close()

    def wake(self) -> None:
        """Called by the connection: something has changed."""
        if self._sink is not None and self.chunks and not self.complete and self._sink():
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def detach(self, error: UpstreamError | None = None) -> None:
        """Called by the connection, which is not ours any more: complete (no error) or failed."""
        self._connection = None
        self._error = error
        self._sink = None
        self.wake()


class Connection(asyncio.Protocol):
    """At most one exchange at a time; what it was before is known by `exchanges`."""

    __slots__ = (
        "_heard",
        "_limits",
        "_loop",
        "_moved",
        "_owner",
        "_parser",
        "_paused",
        "_quiet_since",
        "_response",
        "_started_at",
        "_transport",
        "_unsent_bytes",
        "_uploading",
        "_writable",
        "exchanges",
        "idle_since",
        "write_paused",
    )

    def __init__(self, owner: Keeper, limits: UpstreamLimits, loop: asyncio.AbstractEventLoop) -> None:
        self._owner = owner
        self._limits = limits
        self._loop = loop
        self._parser = ReplyParser(limits.head_bytes_max)
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._heard = False  # one byte of this exchange's reply has come
        self._moved = False  # bytes have come since the last look at the clock
        self._paused = False
        self._uploading = False  # more of the request is to come
        self._unsent_bytes = 0
        self._writable: asyncio.Future[None] | None = None
        self._started_at = self._quiet_since = self.idle_since = 0.0
        self.exchanges = 0
        self.write_paused = False

    def __repr__(self) -> str:
        state = "lost" if self.lost else "idle" if self._response is None else "busy"
        return f"<Connection {state}{' paused' if self._paused else ''} exchanges={self.exchanges}>"

    @property
    def lost(self) -> bool:
        """It can't be used: closed, or closing."""
        return self._transport is None or self._transport.is_closing()

    def start(self, method: str, head: bytes, body: bytes, whole: bool = True) -> Response:
        """Send a request; the response fills as bytes come. Raises `ConnectFailed` if it is lost.

        All of `body` is handed to the transport, which holds what the pod does not read yet. If it is not the `whole`
        one, `write` the rest; until then the pod's time to answer does not run.
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectFailed("the pod closed the connection as soon as it was made")
        response = Response(self, self._loop, self._limits.whole_bytes_max)
        self._response = response
        self._heard = False
        self._uploading = not whole
        self._started_at = self._quiet_since = time.monotonic()
        self.exchanges += 1
        self._parser.expect(response, head_only=method == "HEAD")
        if len(body) <= _JOINED_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.writelines((head, body))
        return response

    def write(self, data: bytes, last: bool) -> None:
        """More of the request's body, and maybe the `last` of it."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if data:
            transport.write(data)
        if last:
            self._uploading = False
            self._started_at = self._quiet_since = time.monotonic()

    async def resumed(self) -> None:
        """Wait until the transport has room again, or is no more."""
        self._writable = self._writable or self._loop.create_future()
        await self._writable

    def resume(self) -> None:
        """The reader has made room."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def abandon(self) -> None:
        """The reader does not want the rest."""
        self._response = None
        self.abort()

    def abort(self) -> None:
        """Close now; nothing is flushed."""
        if self._transport is not None:
            self._transport.abort()

    def drop(self) -> None:
        """Nobody waits any more for it to be made: uvloop then closes it, and never says that it is lost."""
        self.abort()
        self._parser.close()
        self._transport = None

    def check(self, now: float) -> None:
        """A look at the clock, every `sweep_interval_s`: fail an exchange that is over a limit."""
        response = self._response
        if response is None:
            return
        if self._moved or self._paused:  # paused: it is the reader who is slow
            self._moved = False
            self._quiet_since = now
        overdue = self._stuck(now) if self._uploading else self._overdue(now, response.head_done)
        if overdue is not None:
            self._fail(ResponseTimeout(overdue, before_first_byte=not response.head_done))

    def _overdue(self, now: float, head_done: bool) -> str | None:
        limits = self._limits
        age_s = now - self._started_at
        if age_s > limits.total_timeout_s:
            return f"not done within {limits.total_timeout_s:g} s"
        if not head_done and age_s > limits.first_byte_timeout_s:
            return f"no response within {limits.first_byte_timeout_s:g} s"
        if head_done and now - self._quiet_since > limits.idle_timeout_s:
            return f"silent for {limits.idle_timeout_s:g} s in the middle of the response"
        return None

    def _stuck(self, now: float) -> str | None:
        """As `_overdue`, while the request is not whole: how fast that comes is the client's affair, how fast it is
        taken the pod's.
        """
        transport, limits = self._transport, self._limits
        unsent_bytes = transport.get_write_buffer_size() if self.write_paused and transport is not None else 0
        if not unsent_bytes or unsent_bytes != self._unsent_bytes:
            self._unsent_bytes = unsent_bytes
            self._quiet_since = now
        if now - self._quiet_since > limits.idle_timeout_s:
            return f"it has taken nothing of the request for {limits.idle_timeout_s:g} s"
        return None

    # What the transport calls

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass. Both loops set TCP_NODELAY themselves.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # nobody has asked: a reply to come could not be told from this
            self.abort()
            return
        self._heard = self._moved = True
        try:
            self._parser.feed(data)
        except BrokenResponse as error:
            self._fail(error)
            return
        if response.complete:
            self._end(response)
        else:
            if response.buffered > self._limits.buffer_bytes_max and not self._paused:
                self._paused = True
                assert self._transport is not None
                self._transport.pause_reading()
            response.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        if exc is not None and self._uploading and self._response is not None:
            self._hear_out()
        self._owner.lost(self)
        response, self._response = self._response, None
        if response is not None:
            response.detach(self._ended_by(exc, response))
        self._parser.close()
        self._transport = None

    def _hear_out(self) -> None:
        """A pod that refuses an upload says so, and hangs up: what we wrote then fails before its words are read."""
        transport = self._transport
        if transport is None or transport.get_extra_info("sslcontext") is not None:
            return
        with contextlib.suppress(OSError):
            while self._response is not None and (
                data := os.read(transport.get_extra_info("socket").fileno(), _READ_BYTES)
            ):
                self.data_received(data)

    def _ended_by(self, exc: Exception | None, response: Response) -> UpstreamError | None:
        """Why a loss fails the response; None where it is the proper end of its body."""
        if not self._heard and self.exchanges > 1:
            return StaleConnection("a reused connection was closed before a response")
        if exc is not None:
            return BrokenResponse(f"the connection broke: {exc}", before_first_byte=not response.head_done)
        try:
            self._parser.eof()
        except BrokenResponse as error:
            return error
        return None

    def _end(self, response: Response) -> None:
        """The reply is whole: let go of it first, so that nobody holds us when we are free."""
        self._response = None
        response.detach()
        transport = self._transport
        assert transport is not None
        all_sent = (
            not self._uploading and not transport.get_write_buffer_size()
        )  # a pod may answer before it has read all
        self.resume()
        if response.reusable and all_sent and not transport.is_closing():
            self._owner.released(self)
        else:
            transport.abort()

    def _fail(self, error: UpstreamError) -> None:
        response, self._response = self._response, None
        assert response is not None
        response.detach(error)
        self.abort()
