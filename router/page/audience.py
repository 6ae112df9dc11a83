"""Who looks at the page: one producer for all of them, which works while there is somebody, and waits for nobody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from starlette.responses import Response

from router.errors import RouterError
from router.page.picture import Picture
from router.server.asgi import Receive, Scope, Send, send_error
from router.service import Service

log = logging.getLogger("warmroute")

_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would keep them until it has many
)
_RETRY_MS = 1000  # a browser whose stream has ended asks again after this


class TooManyViewers(RouterError):
    """503: as many look at the page as may."""

    status = 503
    type = "service_unavailable"
    retry_after_s = 10


class Viewer:
    """One who looks. Of pictures it has not taken the newest is kept: who is slow sees fewer of them."""

    def __init__(self, may_look: Callable[[], bool], first: bytes) -> None:
        """`may_look`: whether it still may, asked before each picture."""
        self._may_look = may_look
        self._first: bytes | None = first
        self._newest: bytes | None = None
        self._over = False
        self._changed = asyncio.Event()

    def show(self, picture: bytes) -> None:
        """The newest one."""
        self._newest = picture
        self._changed.set()

    def end(self) -> None:
        """Nothing more is to come."""
        self._over = True
        self._changed.set()

    async def next(self) -> bytes | None:
        """What to send next; None: it is over."""
        while not self._over:
            if self._first is not None:
                first, self._first = self._first, None
                return first
            if self._newest is not None:
                picture, self._newest = self._newest, None
                return picture if self._may_look() else None
            self._changed.clear()
            await self._changed.wait()
        return None


class Audience:
    """All who look at the page of this process."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._interval_s = service.config.page.interval
        self._viewers_max = service.config.page.viewers_max
        self._picture = Picture(service)
        self._viewers: set[Viewer] = set()
        self._drawing: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._viewers)

    def enter(self, may_look: Callable[[], bool]) -> Viewer:
        """One more; it must `leave`. Raises `TooManyViewers`."""
        if len(self._viewers) >= self._viewers_max:
            raise TooManyViewers(f"{len(self._viewers)} look at the page already (page.viewers_max).")
        viewer = Viewer(may_look, b"retry: %d\n\n%b" % (_RETRY_MS, self._picture.course()))
        self._viewers.add(viewer)
        if self._drawing is None:
            self._drawing = asyncio.get_running_loop().create_task(self._draw())
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """With the last one, the work ends."""
        self._viewers.discard(viewer)
        if not self._viewers and self._drawing is not None:
            self._drawing.cancel()
            self._drawing = None

    async def _draw(self) -> None:
        """A picture for all in every interval, until the process is told to end."""
        try:
            while not self._service.draining:
                picture = await self._picture.draw()
                for viewer in self._viewers:
                    viewer.show(picture)
                await asyncio.sleep(self._interval_s)
        except Exception:
            log.exception("the page can't be drawn")
        finally:
            if self._drawing is asyncio.current_task():  # not one who was told to stop, while somebody new came
                self._drawing = None
                for viewer in self._viewers:
                    viewer.end()


class PictureStream(Response):
    """The pictures as server-sent events, for as long as the client stays and may look."""

    def __init__(self, audience: Audience, may_look: Callable[[], bool]) -> None:
        super().__init__()
        self._audience = audience
        self._may_look = may_look

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            viewer = self._audience.enter(self._may_look)
        except TooManyViewers as error:
            return await send_error(send, error)
        watching = asyncio.get_running_loop().create_task(_left(receive, viewer))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            while (piece := await viewer.next()) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            watching.cancel()
            self._audience.leave(viewer)


async def _left(receive: Receive, viewer: Viewer) -> None:
    """Ends what the viewer is shown once its client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    viewer.end()
