"""Clients that leave while their requests are forwarded.

Watching for that costs a task, so only requests that last get one: a timer arms those that it finds, and a request that
is over before the timer's turn has cost a set entry.
"""

from __future__ import annotations

import asyncio
from typing import Any

from router.proxy.uploads import Upload
from router.server.asgi import Receive, Scope, Send


class Flight:
    """One request while it is forwarded; `gone` once its client is."""

    __slots__ = ("_cancelling", "_task", "body", "gone", "receive", "scope", "send", "upload", "watch")

    def __init__(self, scope: Scope, receive: Receive, send: Send, body: bytes | Upload) -> None:
        task = asyncio.current_task()
        assert task is not None, "forward runs in a task"
        self._task: asyncio.Task[Any] | None = task
        self._cancelling = task.cancelling()
        self.scope = scope
        self.receive = receive
        self.send = send
        self.body = body if isinstance(body, bytes) else b""  # all of it, where it is no upload
        self.upload = body if not isinstance(body, bytes) else None
        self.gone = False
        self.watch: asyncio.Task[None] | None = None

    async def until_gone(self) -> None:
        """Wait for the client to leave; then interrupt the forwarding, wherever it waits.

        Who waits for that has what comes from the client: the rest of an upload.
        """
        if self.upload is not None:
            await self.upload.pass_on()
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._task is not None:
            self._task.cancel()

    @property
    def spent(self) -> bool:
        """One pod has had what can't be sent again."""
        return self.upload is not None and self.upload.spent

    def was_ours(self) -> bool:
        """Whether a cancellation that arrived is `until_gone`'s own, and nobody else's."""
        return self.gone and self._task is not None and self._task.uncancel() <= self._cancelling

    def over(self) -> asyncio.Task[None] | None:
        """Let go of the tasks: one that is cancelled refers to us, by its traceback. Returns the watch."""
        watch, self.watch, self._task = self.watch, None, None
        return watch


class ClientWatch:
    """For all requests of one loop. `unwatched`: those under way that the timer has not found yet."""

    def __init__(self, after_s: float) -> None:
        """`after_s`: the timer's turn comes so long after the first request that waits for it."""
        self._after_s = after_s
        self.unwatched: set[Flight] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, flight: Flight) -> None:
        """An upload is watched from its beginning: who watches brings the rest of it."""
        if flight.upload is not None:
            flight.watch = asyncio.get_running_loop().create_task(flight.until_gone())
            return
        self.unwatched.add(flight)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._after_s, self._watch_all, loop)

    def _watch_all(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        for flight in self.unwatched:
            flight.watch = loop.create_task(flight.until_gone())
        self.unwatched.clear()

    def end(self, flight: Flight) -> None:
        """The request is over: nothing is left of it here."""
        watch = flight.over()
        if watch is None:
            self.unwatched.discard(flight)
        else:
            watch.cancel()
