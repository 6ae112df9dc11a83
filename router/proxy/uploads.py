"""Large bodies without a prompt, sounds mostly: sent on while they come, as soon as it is known who they are for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from router.prompts.multipart import ModelOfForm
from router.server.asgi import RELEASE, ClientGone, Receive, Scope, length_of, too_large
from router.upstream.replies import chunk


class Taker(Protocol):
    """A pod's end of an upload. Whether the pod still listens it does not tell: the answer does, or the lack of one."""

    def write(self, data: bytes, last: bool) -> None: ...

    async def writable(self) -> None:
        """Wait until the pod has taken most of what was written, or takes no more at all."""


class Upload:
    """A body of which one pod gets more than the beginning. As long as it is not `spent`, another one still can.

    `length`: of the whole, where the client says so; else it goes on in chunks. `model`: as a form names it.
    """

    __slots__ = ("_beginning", "_receive", "_release", "_taker", "_waiter", "length", "model", "spent")

    def __init__(self, scope: Scope, receive: Receive, beginning: bytes, length: int | None, model: str | None) -> None:
        """`beginning`: what has come of it."""
        self._receive = receive
        extensions = scope.get("extensions")
        self._release: Callable[[int], None] | None = extensions.get(RELEASE) if extensions else None
        self._beginning = beginning
        self._taker: Taker | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.length = length
        self.model = model
        self.spent = False

    def __repr__(self) -> str:
        return f"<Upload {self.model} length={self.length}{' spent' if self.spent else ''}>"

    @property
    def known_bytes(self) -> int:
        """Of the whole, as far as that can be known."""
        return len(self._beginning) if self.length is None else self.length

    @property
    def beginning(self) -> bytes:
        """As a pod gets it."""
        return self._beginning if self.length is not None else chunk(self._beginning, last=False)

    def to(self, taker: Taker | None) -> None:
        """Who has got the beginning gets the rest. None: nobody, until one is found."""
        self._taker = taker
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def pass_on(self) -> None:
        """Take what comes from the client and give it to the pod, not faster than that takes it: to the end, or until
        the client has left.
        """
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return
            piece: bytes = message.get("body", b"")
            more = message.get("more_body", False)
            while self._taker is None:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
            taker = self._taker
            self._spend()
            taker.write(piece if self.length is not None else chunk(piece, last=not more), last=not more)
            await taker.writable()
            self._let_go(len(piece))

    def _spend(self) -> None:
        if not self.spent:
            self.spent = True
            self._let_go(len(self._beginning))
            self._beginning = b""

    def _let_go(self, size: int) -> None:
        """So much is not in memory any more."""
        if self._release is not None:
            self._release(size)


async def take_body(scope: Scope, receive: Receive, kept_max: int, body_max: int) -> bytes | Upload:
    """A body that is no prompt, or the beginning of one that is over `kept_max` bytes: as much as tells its model.

    What may be JSON, and a form that does not name its model within `kept_max`, is read whole. Raises as `read_body`.
    """
    length = length_of(scope, body_max)
    large = length is not None and length > kept_max
    body, form, undecided, more = bytearray(), ModelOfForm(), True, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > body_max:
            raise too_large(body_max)
        if more and undecided and (large or len(body) > kept_max):
            if _tells(body, form):
                return Upload(scope, receive, bytes(body), length, form.model)
            undecided = len(body) <= kept_max
    return bytes(body)


def _tells(body: bytearray, form: ModelOfForm) -> bool:
    """Whether it is known who a body is for: by its `form`, or because it is neither a form nor JSON."""
    start = bytes(body[:100]).lstrip()
    if b"--".startswith(start[:2]):
        return form.look(body) is not None
    return not start.startswith(b"{")
