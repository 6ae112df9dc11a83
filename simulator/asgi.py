"""One HTTP exchange over plain ASGI, with the one thing that ASGI lacks: cutting the connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

BODY_BYTES_MAX = 64 * 1024 * 1024


class BodyTooLarge(Exception):
    """The request's body is larger than BODY_BYTES_MAX."""


class Exchange:
    """Reads one request, writes one answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query: bytes = scope["query_string"]
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self._receive = receive
        self._send = send

    async def body(self) -> bytes:
        """The whole body. Raises BodyTooLarge."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > BODY_BYTES_MAX:
                raise BodyTooLarge
            if not message.get("more_body"):
                return b"".join(parts)

    async def gone(self) -> None:
        """Returns when the client closes the connection; call it after `body`."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, content_type: str, headers: Mapping[str, str]) -> None:
        """Send the head of an answer."""
        fields = [(b"content-type", content_type.encode())]
        fields += [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": fields})

    async def send(self, data: bytes) -> None:
        """Send a piece of the body, waiting for a slow client."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """No more body."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def respond(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
        """Send an answer of known length."""
        await self.start(status, content_type, {**headers, "content-length": str(len(body))})
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def cut(self) -> None:
        """Close the connection where it is, as a dying process does."""
        cycle = getattr(self._receive, "__self__", None)
        transport: asyncio.Transport | None = getattr(cycle, "transport", None)
        if transport is not None:
            transport.abort()
        await self.gone()
