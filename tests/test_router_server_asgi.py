"""Bodies are read whole, within their bound, and nothing of them stays."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Sequence

import pytest

from router.errors import BadRequest, BodyTooLarge
from router.server.asgi import ClientGone, Message, Receive, Scope, read_body


def scope(length: bytes | None = None) -> Scope:
    return {"headers": [] if length is None else [(b"content-length", length)]}


def coming(pieces: Sequence[bytes], whole: bool = True) -> Receive:
    """The pieces; if that is not the `whole`, the client leaves behind them."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if whole:
        messages[-1]["more_body"] = False
    else:
        messages.append({"type": "http.disconnect"})

    async def receive() -> Message:
        return messages.pop(0)

    return receive


@pytest.mark.parametrize("pieces", [[b""], [b"one"], [b"on", b"", b"e"], [b"x" * 70_000] * 40, [b"late", b""]])
async def test_a_body_is_what_came(pieces: Sequence[bytes]) -> None:
    """In however many pieces, with or without a length before them."""
    body = b"".join(pieces)
    assert await read_body(scope(), coming(pieces), len(body)) == body
    assert await read_body(scope(b"%d" % len(body)), coming(pieces), len(body)) == body


@pytest.mark.parametrize("pieces", [[b"four"], [b"fo", b"ur"], [b"", b"f", b"our and more"]])
async def test_a_body_over_the_bound_is_refused(pieces: Sequence[bytes]) -> None:
    """Also where its length is not told, and before it is whole."""
    with pytest.raises(BodyTooLarge):
        await read_body(scope(), coming(pieces), 3)
    with pytest.raises(BodyTooLarge):
        await read_body(scope(), coming(pieces, whole=False), 3)
    with pytest.raises(BodyTooLarge):
        await read_body(scope(b"4"), coming([], whole=False), 3)
    with pytest.raises(BadRequest):
        await read_body(scope(b"four"), coming([], whole=False), 3)


@pytest.mark.parametrize("pieces", [[], [b"on"], [b"o", b"n"]])
async def test_a_client_that_leaves_has_no_body(pieces: Sequence[bytes]) -> None:
    """At whatever point."""
    with pytest.raises(ClientGone):
        await read_body(scope(), coming(pieces, whole=False), 100)


KEPT = """
import asyncio
from router.garbage import keep_little_memory
from router.server.asgi import read_body
PIECE, PIECES = 1 << 16, 512
def taken():
    return next(int(line.split()[1]) >> 10 for line in open("/proc/self/status") if line.startswith("VmRSS"))
def coming(kept, pieces):
    async def receive():
        nonlocal pieces
        pieces -= 1
        kept.append(bytearray(1000))
        return {"type": "http.request", "body": bytes(PIECE), "more_body": pieces > 0}
    return receive
keep_little_memory()
kept = []
asyncio.run(read_body({"headers": []}, coming(kept, 2), 2 * PIECE))
before = taken()
assert len(asyncio.run(read_body({"headers": []}, coming(kept, PIECES), PIECES * PIECE))) == PIECES * PIECE
print(taken() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_large_body_is_given_back() -> None:
    """Of one that came in many pieces, while between them much was made that stays."""
    told = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, check=True)
    assert int(told.stdout) < 4  # MiB, of 32
