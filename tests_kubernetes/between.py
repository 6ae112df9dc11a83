"""A plain HTTP door to an API server, that shows what is asked, and lets a test act before it is passed on."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from urllib.parse import parse_qs, urlsplit

import httpx

from tests_kubernetes.api_server import ADMIN, ApiServer


class Between:
    """Who listens at `url`; `asked`: the queries so far, the newest last."""

    def __init__(self, api: ApiServer) -> None:
        self.url = ""
        self._serving: set[asyncio.Task[None] | None] = set()
        self.asked: list[dict[str, str]] = []
        self.first: Callable[[dict[str, str]], None] = lambda query: None
        self._client = httpx.AsyncClient(
            base_url=api.url, headers=ADMIN, verify=ssl.create_default_context(cafile=api.ca_file), timeout=None
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection."""
        self._serving.add(task := asyncio.current_task())
        with contextlib.suppress(
            ConnectionError, httpx.TransportError, asyncio.IncompleteReadError, asyncio.CancelledError
        ):
            target = (await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1]
            query = {name: values[0] for name, values in parse_qs(urlsplit(target).query).items()}
            self.asked.append(query)
            await asyncio.to_thread(self.first, query)
            async with self._client.stream("GET", target) as answer:
                writer.write(b"HTTP/1.1 %d X\r\nconnection: close\r\n\r\n" % answer.status_code)
                async for piece in answer.aiter_bytes():
                    writer.write(piece)
                    await writer.drain()
        writer.close()
        self._serving.discard(task)

    async def aclose(self) -> None:
        tasks = [task for task in self._serving if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
        await self._client.aclose()


@contextlib.asynccontextmanager
async def between(api: ApiServer) -> AsyncIterator[Between]:
    """A door that is open."""
    made = Between(api)
    listening = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield made
    finally:
        listening.close()
        await made.aclose()
