"""Reading a request's body, bounded."""

from __future__ import annotations

from router.errors import BadRequest, BodyTooLarge
from router.proxy.proxy import Receive, Scope


class ClientGone(Exception):
    """The client left before its request was whole: nobody waits for an answer."""


async def read_body(scope: Scope, receive: Receive, body_max: int) -> bytes:
    """The whole body; raises `BodyTooLarge` before reading what can't fit, and `ClientGone`."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit():
                raise BadRequest("content-length is not a number")
            if int(value) > body_max:
                raise _too_large(body_max)
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = message.get("body", b"")
    if not message.get("more_body", False):
        if len(body) > body_max:
            raise _too_large(body_max)
        return body
    parts, size = [body], len(body)
    while message.get("more_body", False):
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > body_max:
            raise _too_large(body_max)
    return b"".join(parts)


def _too_large(body_max: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {body_max} bytes.")
