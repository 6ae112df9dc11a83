"""A server of ours in a thread, on uvloop as in production, and a client that speaks raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
import uvloop

from router.server.asgi import ClientDisconnected
from router.server.port import Port
from tests.fakes.limits import serving_limits

WAIT_S = 10.0
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass
class Seen:
    """What the application saw of one request."""

    scope: dict[str, Any]
    body: bytes = b""
    pieces: int = 0
    whole: bool = False
    disconnected: bool = False
    failed_send: bool = False


@dataclass
class Application:
    """Does what the path says, and keeps what it saw."""

    seen: list[Seen] = field(default_factory=list)
    sent_bytes: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        seen = Seen(scope)
        self.seen.append(seen)
        act = getattr(self, "at_" + scope["path"].strip("/*").partition("/")[0], self.at_echo)
        await act(seen, receive, send)

    async def at_echo(self, seen: Seen, receive: Any, send: Any) -> None:
        """The whole body, back."""
        await _read(seen, receive)
        await _answer(send, seen.body)

    async def at_early(self, seen: Seen, receive: Any, send: Any) -> None:
        """An answer before the body."""
        await _answer(send, b"early", 403)

    async def at_lazy(self, seen: Seen, receive: Any, send: Any) -> None:
        """Reads its body only after a while."""
        await asyncio.sleep(0.5)
        await self.at_echo(seen, receive, send)

    async def at_slow(self, seen: Seen, receive: Any, send: Any) -> None:
        """The body, back, after a while."""
        await _read(seen, receive)
        await asyncio.sleep(0.2)
        await _answer(send, seen.body)

    async def at_pieces(self, seen: Seen, receive: Any, send: Any) -> None:
        """Three pieces, of no known length."""
        await _read(seen, receive)
        await send(_start())
        for piece in (b"one", b"", b"two", b"x" * 100_000):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    async def at_trailers(self, seen: Seen, receive: Any, send: Any) -> None:
        """A body and trailers."""
        await send({**_start((b"trailer", b"x-sum")), "trailers": True})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await send({"type": "http.response.body", "body": b"def"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"6")], "more_trailers": True})
        await send({"type": "http.response.trailers", "headers": [(b"x-end", b"yes")]})

    async def at_held(self, seen: Seen, receive: Any, send: Any) -> None:
        """A head, and for ever nothing."""
        await send(_start())
        await self.at_forever(seen, receive, send)

    async def at_flushed(self, seen: Seen, receive: Any, send: Any) -> None:
        """A head that goes out, and for ever nothing."""
        await send(_start())
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await self.at_forever(seen, receive, send)

    async def at_long_after(self, seen: Seen, receive: Any, send: Any) -> None:
        """A head that goes out, and the rest after a while."""
        await send(_start())
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await asyncio.sleep(0.2)
        await send({"type": "http.response.body", "body": b"late"})

    async def at_forever(self, seen: Seen, receive: Any, send: Any) -> None:
        """Waits for the client to leave, and says so."""
        while (await receive())["type"] != "http.disconnect":
            pass
        seen.disconnected = True
        try:
            await send({"type": "http.response.body", "body": b"nobody", "more_body": True})
        except OSError as error:
            seen.failed_send = isinstance(error, ClientDisconnected)
            raise

    async def at_flood(self, seen: Seen, receive: Any, send: Any) -> None:
        """More than a client that does not read can take."""
        await send(_start())
        for _ in range(2_000):
            await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
            self.sent_bytes += 100_000

    async def at_crash(self, seen: Seen, receive: Any, send: Any) -> None:
        """Fails before it has said anything."""
        raise LookupError("of the application")

    async def at_crash_late(self, seen: Seen, receive: Any, send: Any) -> None:
        """Fails in the middle."""
        await send(_start())
        await send({"type": "http.response.body", "body": b"some", "more_body": True})
        raise LookupError("of the application")

    async def at_silent(self, seen: Seen, receive: Any, send: Any) -> None:
        """Says nothing and returns."""

    async def at_unfinished(self, seen: Seen, receive: Any, send: Any) -> None:
        """Returns in the middle."""
        await send(_start((b"content-length", b"10")))
        await send({"type": "http.response.body", "body": b"some", "more_body": True})

    async def at_short(self, seen: Seen, receive: Any, send: Any) -> None:
        """Says a length and does not keep it."""
        await send(_start((b"content-length", b"10")))
        await send({"type": "http.response.body", "body": b"short"})

    async def at_long(self, seen: Seen, receive: Any, send: Any) -> None:
        """The other way round."""
        await send(_start((b"content-length", b"2")))
        await send({"type": "http.response.body", "body": b"long"})

    async def at_split(self, seen: Seen, receive: Any, send: Any) -> None:
        """A header that would be two."""
        await send(_start((b"x-a", b"1\r\nset-cookie: 2")))
        await send({"type": "http.response.body", "body": b""})

    async def at_status(self, seen: Seen, receive: Any, send: Any) -> None:
        """The status that the path says, with a body that this status may not have."""
        status = int(seen.scope["path"].rpartition("/")[2])
        await send(_start((b"content-length", b"5"), status=status))
        await send({"type": "http.response.body", "body": b"12345"})

    async def at_task(self, seen: Seen, receive: Any, send: Any) -> None:
        """Two wait for the client at once; one of them gives up."""
        waits = [asyncio.create_task(receive()) for _ in range(2)]
        await asyncio.sleep(0)
        first = await waits[0]
        assert first["type"] == "http.request"
        third = asyncio.create_task(receive())
        await asyncio.sleep(0)
        third.cancel()
        await _answer(send, b"done")
        assert (await waits[1])["type"] == "http.disconnect"
        seen.disconnected = True


async def _read(seen: Seen, receive: Any) -> None:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            seen.disconnected = True
            raise ClientDisconnected
        seen.body += message["body"]
        seen.pieces += 1
        more = message["more_body"]
    seen.whole = True


def _start(*headers: tuple[bytes, bytes], status: int = 200) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"x-app", b"ours"), *headers]}


async def _answer(send: Any, body: bytes, status: int = 200) -> None:
    await send(_start((b"content-length", b"%d" % len(body)), status=status))
    await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    """A server that runs, what it runs, and what it refused."""

    port: int
    app: Application
    front: Port
    server: uvicorn.Server
    refused: list[int]
    thread: threading.Thread

    def connect(self) -> Peer:
        """A new connection."""
        return Peer(socket.create_connection(("127.0.0.1", self.port), WAIT_S))

    def ask(self, request: bytes) -> list[Answer]:
        """All that comes for these bytes, on a connection that the server is asked to close."""
        with self.connect() as peer:
            peer.send(request)
            peer.finish()
            return peer.all()

    def leave(self) -> None:
        """As on SIGTERM."""
        self.server.should_exit = True

    def eventually(self, condition: Callable[[], object]) -> None:
        """Wait for what must come."""
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "what should have come did not"
            time.sleep(0.01)


@contextlib.contextmanager
def serving(app: Any = None, tick_s: float = 0.05, **limits: Any) -> Iterator[Served]:
    """Our protocol under uvicorn, in a thread of its own."""
    refused: list[int] = []
    front = Port(serving_limits(sweep_interval_s=tick_s, **limits), refused.append)
    application = app or Application()
    settings = uvicorn.Config(
        application, loop="none", http=front, ws="none", lifespan="off", log_config=None,
        proxy_headers=False, server_header=False, date_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=uvloop.run, args=(server.serve([listener]),))
    thread.start()
    served = Served(listener.getsockname()[1], application, front, server, refused, thread)
    try:
        served.eventually(lambda: server.started)
        yield served
    finally:
        server.should_exit = True
        thread.join(WAIT_S)
        assert not thread.is_alive()


@dataclass
class Answer:
    """One response."""

    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool = True
    trailers: dict[str, str] = field(default_factory=dict)

    def error(self) -> dict[str, Any]:
        """The OpenAI error of the body."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        return found


class Peer:
    """A client's end of a connection, byte by byte."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = b""

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Also when the server does not want it any more."""
        with contextlib.suppress(ConnectionError):
            self.sock.sendall(data)

    def finish(self) -> None:
        """A last request, so that the server closes after it."""
        self.send(b"GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")

    def closed(self) -> bool:
        """Whether nothing more comes but the end."""
        return not self._buffer and not self._more()

    def _more(self) -> bool:
        try:
            data = self.sock.recv(65536)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)

    def _until(self, mark: bytes) -> bytes | None:
        while mark not in self._buffer:
            if not self._more():
                return None
        part, _, self._buffer = self._buffer.partition(mark)
        return part

    def _exactly(self, size: int) -> bytes | None:
        while len(self._buffer) < size:
            if not self._more():
                return None
        part, self._buffer = self._buffer[:size], self._buffer[size:]
        return part

    def line(self) -> bytes | None:
        """Bytes up to the next empty line."""
        return self._until(b"\r\n\r\n")

    def answer(self, bodyless: bool = False) -> Answer | None:
        """The next response that is no 1xx; None at the end of the connection."""
        head = self._until(b"\r\n\r\n")
        if head is None:
            assert not self._buffer, f"a head that is cut: {self._buffer!r}"
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        headers = _fields(lines)
        answer = Answer(int(first.split(" ")[1]), headers, b"")
        if bodyless or answer.status in (204, 304):
            return answer
        if "content-length" in headers:
            assert "transfer-encoding" not in headers
            self._read_whole(answer, int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            self._read_chunks(answer)
        else:
            assert headers["connection"] == "close"
            while self._more():
                pass
            answer.body, self._buffer = self._buffer, b""
        return answer

    def _read_whole(self, answer: Answer, size: int) -> None:
        body = self._exactly(size)
        answer.whole = body is not None
        answer.body = self._buffer if body is None else body
        if body is None:
            self._buffer = b""

    def _read_chunks(self, answer: Answer) -> None:
        while (size := self._until(b"\r\n")) is not None:
            if int(size, 16) == 0:
                lines = []
                while line := self._until(b"\r\n"):
                    lines.append(line.decode())
                answer.whole, answer.trailers = line is not None, _fields(lines)
                return
            chunk = self._exactly(int(size, 16) + 2)
            if chunk is None:
                break
            assert chunk.endswith(b"\r\n")
            answer.body += chunk[:-2]
        answer.whole = False
        self._buffer = b""

    def all(self) -> list[Answer]:
        """What comes until the end of the connection."""
        return list(iter(self.answer, None))


def _fields(lines: list[str]) -> dict[str, str]:
    fields = {}
    for line in lines:
        name, colon, value = line.partition(": ")
        assert colon and name not in fields, lines
        fields[name] = value
    return fields
