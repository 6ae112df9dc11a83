"""Hand-written pods for the tests of the router's edge: real sockets, scripted to the byte."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

Handler = Callable[["Call"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Call:
    """One request as a peer sees it; `number` counts the requests of its connection from 0."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, head: bytes) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number
        self.head = head
        self.body = b""

    async def read_body(self) -> bytes:
        """The rest of the request, by its Content-Length."""
        for line in self.head.split(b"\r\n"):
            if line.startswith(b"content-length: "):
                self.body = await self.reader.readexactly(int(line.split()[1]))
        return self.body

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_bytewise(self, data: bytes) -> None:
        """Each byte in a segment of its own, as far as the loop allows."""
        for at in range(len(data)):
            await self.send(data[at : at + 1])
            await asyncio.sleep(0)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """RST instead of FIN."""
        self.writer.transport.abort()

    async def gone(self) -> None:
        """Return when the other side has closed."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass


class Peer:
    """What a peer has seen."""

    def __init__(self) -> None:
        self.address = ""
        self.connections = 0
        self.calls: list[Call] = []

    @property
    def open(self) -> int:
        """Connections that this side has not closed."""
        return sum(not writer.is_closing() for writer in {call.writer for call in self.calls})


@contextlib.asynccontextmanager
async def peer(
    handler: Handler, *, path: str | None = None, host: str = "127.0.0.1", **options: object
) -> AsyncIterator[Peer]:
    """A pod on a real socket. `handler` is called for each request head; the body is its to read."""
    seen = Peer()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        number = 0
        try:
            while not writer.is_closing():
                call = Call(reader, writer, number, await reader.readuntil(b"\r\n\r\n"))
                seen.calls.append(call)
                await handler(call)
                number += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()
            tasks.discard(task)

    if path is not None:
        server = await asyncio.start_unix_server(serve, path)
        seen.address = f"unix:{path}"
    else:
        server = await asyncio.start_server(serve, host, 0, **options)  # type: ignore[arg-type]
        port = server.sockets[0].getsockname()[1]
        seen.address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    try:
        yield seen
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer(call: Call) -> None:
    """A well-behaved pod."""
    await call.read_body()
    await call.send(OK)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that must come; fails instead of hanging."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def settled(figure: Callable[[], int]) -> int:
    """Wait until a figure has stopped growing, and return it."""
    last, same = -1, 0
    async with asyncio.timeout(10):
        while same < 10:
            now = figure()
            same = same + 1 if now == last else 0
            last = now
            await asyncio.sleep(0.02)
    return last
