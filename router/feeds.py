"""Pods' KV-event feeds over ZMQ: frames go to their `Feed`, gaps are closed from the replay socket.

One `FeedReader` a data-parallel rank. Sockets are read where they become readable, in slices that leave the loop to
requests; there is no task and no queue between a frame and the index: what is not read yet waits, bounded, in ZMQ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import zmq
from zmq.utils.monitor import parse_monitor_message

from indexer.feed import Feed

log = logging.getLogger("warmroute.feeds")

_END = b"\xff" * 8  # the sequence number of a replay's end marker
_RECONNECT_MS, _RECONNECT_MAX_MS = 100, 2000
_KEEPALIVE_IDLE_S = 30


@dataclass(slots=True, frozen=True)
class FeedLimits:
    """`slice_s`: longest stretch of applying events at once. `replay_timeout_s`: silence that ends a replay."""

    receive_hwm: int = 100_000
    batch_bytes_max: int = 16 << 20
    slice_s: float = 0.001
    replay_timeout_s: float = 5.0
    replay_retries: int = 2


class Readable:
    """Calls `on_message` for each message of a socket, in slices; ZMQ's descriptor only signals changes."""

    def __init__(self, socket: zmq.Socket[bytes], slice_s: float, on_message: Callable[[list[bytes]], None]) -> None:
        self._socket = socket
        self._slice_s = slice_s
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._again: asyncio.Handle | None = None
        self._loop.add_reader(self._fd, self._drain)
        self._again = self._loop.call_soon(self._drain)

    def close(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._again is not None:
            self._again.cancel()
        self._socket.close(linger=0)

    def _drain(self) -> None:
        """Read until nothing is there; a longer stretch goes on after the loop's other work."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        until = time.monotonic() + self._slice_s
        while not self._socket.closed:
            try:
                message = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._on_message(message)
            if time.monotonic() > until:
                self._again = self._loop.call_soon(self._drain)
                return


class FeedReader:
    """Keeps one `Feed` fed: subscribes, notices reconnects, replays."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        feed: Feed,
        events: str,
        replay: str | None,
        limits: FeedLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`events` and `replay`: the endpoints of this rank."""
        self.feed = feed
        self._context = context
        self._events = events
        self._replay_endpoint = replay
        self._limits = limits
        self._clock = clock
        self._readables: list[Readable] = []
        self._replaying: asyncio.Task[None] | None = None
        self._state = feed.state
        self.joined = asyncio.Event()  # the first replay has ended: the first state is loaded

    def start(self) -> None:
        """Subscribe; connecting goes on behind."""
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, self._limits.receive_hwm)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_IDLE_S)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        socket.subscribe(b"")  # the topic may hold any text; who speaks is known by the feed
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self._readables = [
            Readable(monitor, self._limits.slice_s, self._connected),
            Readable(socket, self._limits.slice_s, self._frame),
        ]
        socket.connect(self._events)

    async def stop(self) -> None:
        if self._replaying is not None:
            self._replaying.cancel()
            await asyncio.gather(self._replaying, return_exceptions=True)
        for readable in reversed(self._readables):
            readable.close()
        self._readables = []

    def mend(self) -> None:
        """Ask for what the feed wants again, if anything."""
        start = self.feed.mend(self._clock())
        if start is not None:
            log.info("%s: its history is asked for again", self.feed.pod)
            self._replay_if(start)
        elif self.feed.state != self._state:
            self._say_state()

    def _connected(self, message: list[bytes]) -> None:
        parse_monitor_message(message)
        self._replay_if(self.feed.connected(self._clock()))

    def _frame(self, message: list[bytes]) -> None:
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
        for _ in range(1 + self._limits.replay_retries):
            batches, complete = await self._fetch(again or 0) if self._replay_endpoint else ([], False)
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

    async def _fetch(self, start: int) -> tuple[list[tuple[int, bytes]], bool]:
        """All that the pod sends for `start`, and whether its end marker came. Read without work: the pod's socket
        drops silently what is not fetched in time."""
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

        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.IPV6, 1)
        socket.connect(self._replay_endpoint or "")
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
