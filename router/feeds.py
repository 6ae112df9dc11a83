"""Pods' KV-event feeds over ZMQ: frames go to their `Feed`, gaps are closed from the replay socket.

One `FeedReader` a data-parallel rank. Sockets are read where they become readable, in slices that leave the loop to
requests; there is no task and no queue between a frame and the index: what is not read yet waits, bounded, in ZMQ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import zmq

from indexer.feed import Feed
from router.sockets import FeedLimits, Readable, Resolve, Subscription, addresses, asker

log = logging.getLogger("warmroute.feeds")

_END = b"\xff" * 8  # the sequence number of a replay's end marker


class FeedReader:
    """Keeps one `Feed` fed: subscribes, notices reconnects, replays."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        feed: Feed,
        events: str | None,
        replay: str | None,
        limits: FeedLimits,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve = addresses,
    ) -> None:
        """`events` and `replay`: the endpoints of this rank; without `events`, somebody else calls `frame`."""
        self.feed = feed
        self._context = context
        self._events = events
        self._replay_endpoint = replay
        self._limits = limits
        self._clock = clock
        self._resolve = resolve
        self._subscription: Subscription | None = None
        self._replaying: asyncio.Task[None] | None = None
        self._state = feed.state
        self.joined = asyncio.Event()  # the first replay has ended: the first state is loaded

    def start(self) -> None:
        """Subscribe; connecting goes on behind."""
        if self._events is None:
            self.connected()
            return
        self._subscription = Subscription(
            self._context, self._events, self._limits, self.frame, self.connected, self._resolve
        )

    async def stop(self) -> None:
        if self._replaying is not None:
            self._replaying.cancel()
            await asyncio.gather(self._replaying, return_exceptions=True)
        if self._subscription is not None:
            await self._subscription.close()
            self._subscription = None

    def mend(self) -> None:
        """Ask for what the feed wants again, if anything."""
        start = self.feed.mend(self._clock())
        if start is not None:
            log.info("%s: its history is asked for again", self.feed.pod)
            self._replay_if(start)
        elif self.feed.state != self._state:
            self._say_state()

    @property
    def replays(self) -> bool:
        """Can the pod be asked for what did not come?"""
        return self._replay_endpoint is not None

    def connected(self) -> None:
        """The publisher may be another one now, or may have said what did not come."""
        self._replay_if(self.feed.connected(self._clock()))

    def frame(self, message: list[bytes]) -> None:
        """`[topic, sequence number, payload]`."""
        if len(message) != 3 or len(message[1]) != 8 or len(message[2]) > self._limits.batch_bytes_max:
            self.feed.counts["decode errors"] += 1
            return
        start = self.feed.frame(int.from_bytes(message[1], "big"), message[2], self._clock())
        self.feed.lag_s = time.time() - self.feed.last_clock
        self._replay_if(start)

    def _replay_if(self, start: int | None) -> None:
        if start is not None:
            if self._replaying is not None:
                self._replaying.cancel()
            self._replaying = asyncio.get_running_loop().create_task(self._replay(start))
        elif self.feed.state != self._state:
            self._say_state()

    async def _replay(self, start: int) -> None:
        """Ask for all batches from `start`, again where something is missing in the middle, then close the gap."""
        feed, complete = self.feed, False
        again: int | None = start
        for attempt in range(1 + self._limits.replay_retries):
            batches, complete = await self._fetch(again or 0, attempt) if self._replay_endpoint else ([], False)
            anew = await self._believe(batches)
            if anew is not None:
                self._replaying = None
                self._replay_if(anew)
                return
            again = feed.missing() if complete else again
            if again is None or not self._replay_endpoint:
                break
        self._replaying = None
        self._replay_if(feed.replay_ended(complete, self._clock()))
        if self._replaying is None:
            self.joined.set()
            self._say_state()

    async def _believe(self, batches: list[tuple[int, bytes]]) -> int | None:
        """Apply replayed batches in slices; from where to start anew, if they are another publisher's."""
        until = self._clock() + self._limits.slice_s
        for number, payload in batches:
            anew = self.feed.replayed(number, payload, self._clock())
            if anew is not None:
                return anew
            if self._clock() > until:
                await asyncio.sleep(0)
                until = self._clock() + self._limits.slice_s
        return None

    async def _fetch(self, start: int, attempt: int) -> tuple[list[tuple[int, bytes]], bool]:
        """All that the pod sends for `start`, and whether its end marker came. Read without work: the pod's socket
        drops silently what is not fetched in time."""
        try:
            places = await self._resolve(self._replay_endpoint or "")
        except OSError as error:
            log.warning("%s: replay failed: its host is not known: %s", self.feed.pod, error.strerror or error)
            await asyncio.sleep(self._limits.reconnect_max_s)
            return [], False
        batches: list[tuple[int, bytes]] = []
        ended = asyncio.get_running_loop().create_future()
        heard = self._clock()

        def on_message(message: list[bytes]) -> None:
            nonlocal heard
            heard = self._clock()
            number = message[-2] if len(message) >= 2 else b""
            if number == _END:
                if not ended.done():
                    ended.set_result(True)
            elif len(number) == 8:
                batches.append((int.from_bytes(number, "big"), message[-1]))

        socket = asker(self._context, self._limits)
        socket.connect(places[attempt % len(places)])
        readable = Readable(socket, self._limits.slice_s, on_message)
        try:
            socket.send_multipart([b"", start.to_bytes(8, "big")], zmq.NOBLOCK)
            while not ended.done():
                left = heard + self._limits.replay_timeout_s - self._clock()
                if left <= 0:
                    return batches, False
                await asyncio.wait([ended], timeout=left)
            return batches, True
        except zmq.ZMQError as error:
            log.warning("%s: replay failed: %s", self.feed.pod, error)
            return batches, False
        finally:
            readable.close()

    def _say_state(self) -> None:
        """Once for each change."""
        if self.feed.state != self._state:
            self._state = self.feed.state
            reasons = "; ".join(self.feed.reasons)
            log.info("%s: its feed is %s%s", self.feed.pod, self._state, f": {reasons}" if reasons else "")
