"""ASGI's words, in one place, and what every application does with them: read a bounded body, answer with JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from io import BytesIO
from typing import Any

from router.errors import BadRequest, BodyTooLarge, RouterError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]
"""Names and values as they came, in their order."""

PUSH = "warmroute.push"
"""The extension by which an application finds an exchange's `push`."""
RELEASE = "warmroute.release"
"""The same for its `release`."""


class ClientDisconnected(OSError):
    """The client has left: what is sent goes nowhere."""


class ClientGone(Exception):
    """The client left before its request was whole: nobody waits for an answer."""


async def read_body(scope: Scope, receive: Receive, body_max: int) -> bytes:
    """The whole body; raises `BodyTooLarge` before reading what can't fit, and `ClientGone`."""
    length_of(scope, body_max)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > body_max:
            raise too_large(body_max)
        return body
    gathered = BytesIO()  # one block that grows: pieces that waited would leave holes between what stays
    while gathered.tell() + len(body) <= body_max:
        gathered.write(body)
        if not message.get("more_body", False):
            return gathered.getvalue()
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body = message.get("body", b"")
    raise too_large(body_max)


def length_of(scope: Scope, body_max: int) -> int | None:
    """What the client says of the body's length; raises `BodyTooLarge` where it can't fit."""
    length: int | None = None
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit():
                raise BadRequest("content-length is not a number")
            length = int(value)
            if length > body_max:
                raise too_large(body_max)
    return length


def too_large(body_max: int) -> BodyTooLarge:
    """What a body over the limit is refused with."""
    return BodyTooLarge(f"The body is larger than {body_max} bytes.")


async def send_error(send: Send, error: RouterError, headers: Headers = ()) -> None:
    """Answer with the OpenAI error body of `error`."""
    if error.retry_after_s is not None:
        headers = [*headers, (b"retry-after", b"%d" % error.retry_after_s)]
    await send_json(send, error.status, error.body(), headers)


async def send_json(send: Send, status: int, body: bytes, headers: Headers = ()) -> None:
    """Answer with this JSON."""
    said = [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": said})
    await send({"type": "http.response.body", "body": body, "more_body": False})
